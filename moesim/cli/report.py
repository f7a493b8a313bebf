"""``moesim report``: write the HTML page of runs again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moesim.cli.console import answers, emit_json, text
from moesim.cli.options import JsonFlag, Out
from moesim.errors import SpecError

__all__ = ["report"]


@answers
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.", metavar="RUN_DIR...")],
    out: Out = None,
    json_: JsonFlag = False,
) -> None:
    """Write report.html of each run folder (or --out, for one run)."""
    from moesim import api

    if out is not None and len(runs) > 1:
        raise SpecError("--out names one file, expected one run folder")
    pages = [
        str(api.write_report(api.read(folder), folder / "report.html" if out is None else out))
        for folder in runs
    ]
    if json_:
        emit_json({"reports": pages})
    else:
        text("\n".join(pages))
