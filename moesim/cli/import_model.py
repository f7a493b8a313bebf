"""``moesim import model``: from a checkpoint's config.json to a model file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moesim.cli.console import answers, emit_json, note, text
from moesim.cli.options import Force, JsonFlag, Out
from moesim.errors import SpecError

__all__ = ["app", "model"]

app = typer.Typer(help="Import what other tools wrote.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Import what other tools wrote."""


@app.command("model")
@answers
def model(
    config: Annotated[
        Path,
        typer.Argument(
            help="config.json of a Hugging Face checkpoint; hf_quant_config.json beside it is read too.",
            metavar="CONFIG.json",
        ),
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the model; else the file's or folder's.")
    ] = None,
    out: Out = None,
    force: Force = False,
    json_: JsonFlag = False,
) -> None:
    """Read a checkpoint's config as a model file; an unknown architecture is refused by name."""
    from moesim.files import write_atomic
    from moesim.spec.huggingface import import_model
    from moesim.spec.parameters import parameter_count

    if out is not None and out.exists() and not force:
        raise SpecError(f"{out}: already there; --force replaces it")
    spec, yaml = import_model(config, name)
    count = parameter_count(spec)
    if out is not None:
        write_atomic(out, yaml)
    if json_:
        emit_json(
            {
                "model": spec.model_dump(mode="json"),
                "parameters": {"total": count.total, "active": count.active},
                "written": None if out is None else str(out),
            }
        )
    elif out is None:
        text(yaml.rstrip("\n"))
    note(
        f"{spec.name}: {count.total / 1e9:.2f} billion parameters, {count.active / 1e9:.2f} billion active"
        + ("" if out is None else f"; written: {out}")
    )
