"""``moesim compare``: the numbers of two runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moesim.cli.console import answers, emit_json, print_table
from moesim.cli.options import JsonFlag

__all__ = ["compare"]


@answers
def compare(
    a: Annotated[Path, typer.Argument(help="Run folder.", metavar="A")],
    b: Annotated[Path, typer.Argument(help="Run folder.", metavar="B")],
    json_: JsonFlag = False,
) -> None:
    """Print every number of two runs, their difference (B - A) and ratio (B / A)."""
    from moesim import api

    frame = api.compare(a, b)
    if json_:
        emit_json({"a": str(a), "b": str(b), "metrics": frame.to_dict("records")})
        return
    rows = [
        [str(row["metric"]), *(_number(row[name]) for name in ("a", "b", "difference", "ratio"))]
        for row in frame.to_dict("records")
    ]
    print_table(["metric", a.name or "a", b.name or "b", "b - a", "b / a"], rows, right=(1, 2, 3, 4))


def _number(value: float) -> str:
    return "-" if value != value else f"{value:,.5g}"  # noqa: PLR0124 - NaN is the number that differs from itself
