"""Store: write a local validation as tables a person can read, with what is needed to judge it."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from moesim.calibrate.local.micro import MICRO
from moesim.calibrate.local.model import Architecture
from moesim.calibrate.local.validate import Comparison, Target, Validation
from moesim.calibrate.measure.device import describe
from moesim.calibrate.measure.timing import Spread
from moesim.errors import Problem, SpecError
from moesim.files import write_atomic

__all__ = ["RECORDED", "read_comparisons", "write_validation"]

RECORDED = "local-gpu/comparison.csv"
"""Where a device's folder under ``validation/kernels`` keeps its recorded passes."""

_TARGET = (
    *("part", "batch", "length", "hidden", "heads", "inner", "experts", "top_k", "layers", "vocabulary"),
    *(
        "measured_s",
        "measured_p10_s",
        "measured_p90_s",
        "wall_s",
        "predicted_s",
        "error_percent",
        "uniform_s",
        "bound_s",
    ),
)
_SIZES = ("hidden", "inner", "experts", "top_k", "layers", "vocabulary")


class _Named(Protocol):
    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the sizes."""


def write_validation(
    validation: Validation,
    folder: Path,
    *,
    suite: str = "local-cpu",
    facts: Mapping[str, Any] | None = None,
    ops: Mapping[str, _Named] = MICRO,
) -> Path:
    """Write ``comparison.csv``, ``microbenchmarks.csv`` and ``meta.json`` to ``folder``; returns the first.

    Times are medians over the rounds: CPU seconds of one thread, but for ``wall_s``; on a GPU those of its events.

    Parameters
    ----------
    facts : device, driver, versions; by default those of this machine's CPU with one thread
    ops : the microbenchmarks
    """
    if facts is None:
        facts = {**describe("cpu"), "torch_threads": 1, "clock": "CPU time of the thread"}
    rows: list[list[object]] = [list(_TARGET)]
    for found in validation.comparisons:
        target, sizes = found.target, found.target.sizes
        rows.append(
            [
                target.part,
                target.batch,
                target.length,
                sizes.hidden,
                sizes.heads,
                sizes.inner,
                sizes.experts,
                sizes.top_k,
                sizes.layers,
                sizes.vocabulary,
                *(_short(s) for s in (found.measured.median, found.measured.p10, found.measured.p90)),
                _short(found.wall.median),
                _short(found.predicted_s),
                f"{100 * found.error:+.2f}",
                _short(found.uniform_s),
                _short(found.bound_s),
            ]
        )
    path = folder / "comparison.csv"
    write_atomic(path, _csv(rows))
    bench: list[list[object]] = [["op", "sizes", "seconds_median", "seconds_p10", "seconds_p90", "repeats"]]
    for (name, dims), each in validation.benchmarks.items():
        sizes_text = " ".join(f"{d}={v}" for d, v in zip(ops[name].dims, dims, strict=True))
        times = (_short(each.median), _short(each.p10), _short(each.p90))
        bench.append([name, sizes_text, *times, each.repeats])
    write_atomic(folder / "microbenchmarks.csv", _csv(bench))
    meta = {
        "suite": suite,
        **facts,
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d"),
        "rounds": validation.rounds,
        "targets": len(validation.comparisons),
        "microbenchmarks": len(validation.benchmarks),
        "median_ape_percent": {
            "all": _percent(validation.median_ape()),
            "forward": _percent(validation.median_ape("forward")),
            "moe_layer": _percent(validation.median_ape("moe_layer")),
            "all_without_routing": _percent(validation.median_ape(uniform=True)),
        },
        "median_spread_p90_over_p10": _spread(validation),
    }
    write_atomic(folder / "meta.json", json.dumps(meta, indent=2) + "\n")
    return path


def read_comparisons(path: Path) -> list[Comparison]:
    """Return the passes of a ``comparison.csv``; what it does not keep (repeats) is zero.

    Raises
    ------
    SpecError : a missing column or a cell that is no number
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    found = []
    for number, row in enumerate(csv.DictReader(lines), 2):
        try:
            whole = {name: int(row[name]) for name in _TARGET[1:10]}
            times = {name: float(row[name]) for name in _TARGET[10:] if name != "error_percent"}
        except (KeyError, TypeError, ValueError) as error:
            raise SpecError(Problem(str(path), number, "", str(error), "expected a number")) from None
        sizes = Architecture(**{name: whole[name] for name in _SIZES})
        part: Any = row["part"]
        median_s, low, high = (times[f"measured{end}_s"] for end in ("", "_p10", "_p90"))
        measured = Spread(median_s, low, high, low, 0)
        waited = times["wall_s"]
        wall = Spread(waited, waited, waited, waited, 0)
        found.append(
            Comparison(
                Target(part, sizes, whole["batch"], whole["length"]),
                measured,
                wall,
                times["predicted_s"],
                times["uniform_s"],
                times["bound_s"],
            )
        )
    return found


def _spread(validation: Validation) -> dict[str, float]:
    return {
        "targets": round(median(c.measured.p90 / c.measured.p10 for c in validation.comparisons), 3),
        "microbenchmarks": round(median(s.p90 / s.p10 for s in validation.benchmarks.values()), 3),
    }


def _percent(share: float) -> float:
    return round(100 * share, 2) if math.isfinite(share) else share


def _short(seconds: float) -> str:
    return f"{seconds:.5g}"


def _csv(rows: list[list[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
