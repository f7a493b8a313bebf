"""``moesim calibrate measure``: microbenchmarks of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from moesim.cli.console import answers, emit_json, progress_bar, text
from moesim.cli.options import JsonFlag

__all__ = ["measure"]


@answers
def measure(
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option("--device", help="What to measure.")
    ] = "auto",
    suite: Annotated[Literal["quick", "full"], typer.Option("--suite", help="How much.")] = "quick",
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for rows and meta file.", metavar="DIR")
    ] = Path("measurements"),
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", help="PyTorch's threads on a CPU; with 1, other programs' time is left out.", min=1
        ),
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Run microbenchmarks on this machine; every kernel is checked before it is timed."""
    from moesim.calibrate.measure import measure as run_suite

    with progress_bar("measuring", quiet=json_) as bar:

        def told(done: int, total: int, line: str) -> None:
            if bar is not None:
                bar(done / total, line)

        written = run_suite(device=device, suite=suite, out=out, progress=told, threads=threads)
    if json_:
        emit_json({"out": str(written)})
    else:
        text(str(written))
