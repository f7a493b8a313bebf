"""Suite ``tiers``: memory tiers as papers print them, answered by closed forms and by the simulator, part by part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from moesim.study.recorded.tiers_coe import coe_figures
from moesim.study.recorded.tiers_dataflow import dataflow_figures
from moesim.study.serving.score import Band, check_bands

__all__ = ["PARTS", "run"]

Progress = Callable[[float, str], None]
Figures = dict[str, dict[str, float]]
PARTS: dict[str, Callable[[], tuple[Figures, list[dict[str, Any]]]]] = {
    "dataflow": dataflow_figures,
    "composition": coe_figures,
}
"""Part -> function that returns its figures and what it leaves out, with the reason."""


def run(
    *,
    shared: Path | None = None,  # noqa: ARG001 - published numbers ship with the package
    cache: Path | None = None,  # noqa: ARG001 - the suite takes seconds
    bands: tuple[Band, ...] = (),
    quick: int = 0,  # noqa: ARG001 - nothing to thin out
    bound: bool = False,  # noqa: ARG001 - no fitted kernels take part
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return the suite's answer; a figure carries ``value`` and, where one is printed, ``published`` and ``error``."""
    figures: Figures = {}
    left: list[dict[str, Any]] = []
    for done, (name, part) in enumerate(PARTS.items()):
        if progress is not None:
            progress(done / len(PARTS), name)
        found, without = part()
        figures |= found
        left += [{"mode": name, **entry} for entry in without]
    return {
        "suite": "tiers",
        "rows": int(sum(f.get("n", 1.0) for f in figures.values())) + sum(entry["rows"] for entry in left),
        "covered": int(sum(f.get("n", 1.0) for f in figures.values())),
        "metrics": figures,
        "groups": [],
        "bands": check_bands(bands, figures),
        "left_out": left,
    }
