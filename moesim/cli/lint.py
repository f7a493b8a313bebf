"""``moesim lint``: check files of any kind, all mistakes at once."""

from __future__ import annotations

from typing import Annotated

import typer

from moesim.cli.console import answers, emit_json, text
from moesim.cli.options import JsonFlag
from moesim.errors import SpecError

__all__ = ["lint"]


@answers
def lint(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files, folders or catalog names; none: the whole catalog.", metavar="[FILES]..."
        ),
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Check YAML files by their ``kind:`` key; a scenario with each of its variants, memory included."""
    from moesim.api import fits
    from moesim.scenario import lint as lint_files

    found = lint_files(files or [], check=fits)
    if found.problems:
        raise SpecError(*found.problems)
    if json_:
        emit_json({"files": list(found.files), "problems": []})
    else:
        text(f"{len(found.files)} file{'s' if len(found.files) != 1 else ''}, no mistakes")
