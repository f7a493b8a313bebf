"""Options that several verbs share, and what the shell may complete."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from moesim.files.catalog import Kind, catalog_names

__all__ = ["Force", "JsonFlag", "Out", "ScenarioName", "Seed", "Sets", "Variants", "complete"]


def complete(kind: Kind) -> Callable[[str], list[str]]:
    """Return a completer for the catalog names of ``kind``."""

    def names(incomplete: str) -> list[str]:
        return [name for name in catalog_names(kind) if name.startswith(incomplete)]

    return names


def _variants(ctx: typer.Context, incomplete: str) -> list[str]:
    from moesim.scenario import variant_names

    try:
        # an option still without its value stops the parser before it has named the argument
        scenario = ctx.params.get("scenario") or next(word for word in ctx.args if not word.startswith("-"))
        known = list(variant_names(str(scenario)))
    except Exception:  # noqa: BLE001 - a completer that fails must stay silent
        return []
    done, _, last = incomplete.rpartition(",")
    head = f"{done}," if done else ""
    return [head + name for name in known if name.startswith(last)]


ScenarioName = Annotated[
    str,
    typer.Argument(
        help="Name of a scenario (moesim list scenarios) or path of a YAML file.",
        metavar="SCENARIO",
        autocompletion=complete("scenario"),
    ),
]
Variants = Annotated[
    list[str] | None,
    typer.Option(
        "--variant",
        "-v",
        help="Variants of the scenario: a,b or repeated.",
        autocompletion=_variants,
        metavar="NAME",
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        help="Override one value: dotted.key=value, value in YAML. Repeatable.",
        metavar="KEY=VALUE",
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of all random streams (run.seed).", min=0)]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Where to write.", metavar="PATH")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
