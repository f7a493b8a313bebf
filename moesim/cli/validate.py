"""``moesim validate``: predictions against measurements, suite by suite; bands that fail the build."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from moesim.cli.console import answers, emit_json, note, print_table, progress_bar, text
from moesim.cli.options import JsonFlag
from moesim.errors import NoResult, SpecError
from moesim.files import catalog_root, nearest

__all__ = ["SUITES", "validate"]

SUITES: dict[str, str] = {
    "silicon-kernels": "moesim.calibrate.validate_kernels:run",
    "silicon-serving": "moesim.study.serving.suite:run",
    "vllm-rtx": "moesim.study.recorded.vllm_rtx:run",
    "tiers": "moesim.study.recorded.tiers:run",
    "h20-h800": "moesim.study.recorded.h20_h800:run",
    "local-cpu": "moesim.calibrate.local.suite:run_cpu",
    "local-gpu": "moesim.calibrate.local.suite:run_gpu",
}
"""Suite -> ``module:function``. The function takes ``shared, cache, bands, quick, bound, progress`` by keyword and
returns ``{suite, rows, covered, metrics, groups, bands}``."""

_FIGURES = ("n", "mape", "median_ape", "p90_ape", "within_30", "bias", "spearman")


@answers
def validate(
    suite: Annotated[
        str,
        typer.Argument(
            help=f"One of: {', '.join(SUITES)}.", metavar="SUITE", autocompletion=lambda: list(SUITES)
        ),
    ],
    json_: JsonFlag = False,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Keep answers here and go on from them.", metavar="DIR")
    ] = None,
    shared: Annotated[
        Path | None,
        typer.Option("--shared", help="Folder of shared measurements ($MOESIM_SHARED).", metavar="DIR"),
    ] = None,
    bands: Annotated[
        Path | None,
        typer.Option("--bands", help="File of limits; default validation/bands.yaml.", metavar="FILE"),
    ] = None,
    section: Annotated[
        Path | None,
        typer.Option("--section", help="Replace the suite's section of this Markdown file.", metavar="FILE"),
    ] = None,
    quick: Annotated[int, typer.Option("--quick", help="Only every N-th measurement; no bands.", min=0)] = 0,
    bound: Annotated[
        bool, typer.Option("--bound", help="Price with the roofline bound alone; no bands.")
    ] = False,
) -> None:
    """Predict what was measured, and print how far off the predictions are. A figure outside its band: exit code 3."""
    if suite not in SUITES:
        raise SpecError(
            f"unknown suite {suite!r}, expected one of {', '.join(SUITES)}{nearest(suite, SUITES)}"
        )
    folder = shared or (Path(os.environ["MOESIM_SHARED"]) if os.environ.get("MOESIM_SHARED") else None)
    limits = () if quick or bound else _bands(suite, bands)
    module, _, name = SUITES[suite].partition(":")
    run: Any = getattr(importlib.import_module(module), name)
    with progress_bar(suite) as progress:
        answer = run(shared=folder, cache=cache, bands=limits, quick=quick, bound=bound, progress=progress)
    if section is not None:
        _write_section(section, suite, answer)
    if json_:
        emit_json(answer)
    else:
        _show(answer)
    failed = [band for band in answer["bands"] if not band["ok"]]
    if failed:
        for band in failed:
            note(f"{band['name']}: {band['value']:.4g} is outside its limit {band['limit']:.4g}")
        raise NoResult(f"{suite}: {len(failed)} of {len(answer['bands'])} figures are outside their bands")


def _write_section(path: Path, suite: str, answer: dict[str, Any]) -> None:
    if suite != "silicon-serving":
        raise SpecError(f"--section: only silicon-serving writes one here, not {suite}")
    from moesim.study.serving.page import page
    from moesim.study.serving.section import write_section

    write_section(path, "serving", f"moesim validate {suite} --section", page(answer))
    note(f"wrote {path}")


def _bands(suite: str, path: Path | None) -> tuple[Any, ...]:
    from moesim.study.serving.score import load_bands

    where = path or catalog_root() / "validation" / "bands.yaml"
    if path is None and not where.is_file():
        note("no validation/bands.yaml here: figures are printed, none is checked")
        return ()
    return load_bands(where).suites.get(suite, ())


def _show(answer: dict[str, Any]) -> None:
    text(f"{answer['suite']}: {answer['covered']} runs predicted of {answer['rows']} rows")
    rows = [
        [name, *(_number(figures.get(figure)) for figure in _FIGURES)]
        for name, figures in answer["metrics"].items()
        if "mape" in figures
    ]
    print_table(["metric", *_FIGURES], rows, right=tuple(range(1, len(_FIGURES) + 1)))
    for name, figures in answer["metrics"].items():
        if "mape" not in figures:
            text(f"{name}: " + ", ".join(f"{key} {_number(value)}" for key, value in figures.items()))
    worst = [group for group in answer["groups"] if group["n"] >= 5][:10]
    if worst:
        keys = [key for key in worst[0] if key not in _FIGURES]
        print_table(
            [*keys, "n", "median_ape", "bias"],
            [[str(g[k]) for k in keys] + [_number(g[k]) for k in ("n", "median_ape", "bias")] for g in worst],
            title="worst groups",
        )
    _show_passes(answer.get("side_by_side", ()))
    for left in answer.get("left_out", ()):
        text(f"left out: {left['rows']} rows ({left['mode']}): {left['reason']}")


def _show_passes(passes: Sequence[dict[str, Any]]) -> None:
    """Print measured and predicted times side by side."""
    if not passes:
        return
    sizes = [key for key in passes[0] if key not in {"measured_s", "predicted_s", "error"}]
    print_table(
        [*sizes, "measured s", "predicted s", "error %"],
        [
            [str(p[key]) for key in sizes]
            + [_number(p["measured_s"]), _number(p["predicted_s"]), f"{100 * p['error']:+.1f}"]
            for p in passes
        ],
        title="measured and predicted",
        right=tuple(range(1, len(sizes) + 3)),
    )


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:,.4g}"  # noqa: PLR0124 - NaN differs from itself
