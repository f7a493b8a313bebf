"""``moesim schema``: JSON Schema of the files, for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from moesim.cli.console import answers, emit_json, note, text
from moesim.cli.options import JsonFlag, Out
from moesim.errors import SpecError

__all__ = ["schema"]

_KINDS = ("device", "node", "cluster", "model", "traffic", "routing", "placement", "composition", "scenario")


def _complete(incomplete: str) -> list[str]:
    return [kind for kind in _KINDS if kind.startswith(incomplete)]


@answers
def schema(
    kind: Annotated[
        str | None, typer.Argument(help=f"Kind of file: {', '.join(_KINDS)}.", autocompletion=_complete)
    ] = None,
    all_: Annotated[
        Path | None,
        typer.Option("--all", help="Write KIND.schema.json of every kind into this folder.", metavar="DIR"),
    ] = None,
    out: Out = None,
    json_: JsonFlag = False,
) -> None:
    """Print the JSON Schema of one kind of file, or write all of them.

    In an editor with a YAML language server: ``# yaml-language-server: $schema=PATH/scenario.schema.json``.
    """
    from moesim.files import write_atomic
    from moesim.scenario import KINDS, json_schema

    if (kind is None) == (all_ is None):
        raise SpecError(f"expected either a kind of file ({', '.join(KINDS)}) or --all DIR")
    if all_ is not None:
        written = []
        for each in KINDS:
            path = all_ / f"{each}.schema.json"
            write_atomic(path, json.dumps(json_schema(each), indent=2, ensure_ascii=False) + "\n")
            written.append(str(path))
        if json_:
            emit_json({"written": written})
        else:
            text("\n".join(written))
        return
    data = json_schema(str(kind))
    if out is None:
        emit_json(data)
        return
    write_atomic(out, json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    if json_:
        emit_json({"written": [str(out)]})
    else:
        note(f"written: {out}")
