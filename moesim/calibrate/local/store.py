"""Store: write a local validation as tables a person can read, with what is needed to judge it."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import math
from pathlib import Path
from statistics import median

from moesim.calibrate.local.micro import MICRO
from moesim.calibrate.local.validate import Validation
from moesim.calibrate.measure.device import describe
from moesim.files import write_atomic

__all__ = ["write_validation"]

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
    ),
)


def write_validation(validation: Validation, folder: Path) -> Path:
    """Write ``comparison.csv``, ``microbenchmarks.csv`` and ``meta.json`` to ``folder``; returns the first.

    Times are CPU seconds of one thread, medians over the rounds, but for ``wall_s``.
    """
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
            ]
        )
    path = folder / "comparison.csv"
    write_atomic(path, _csv(rows))
    bench: list[list[object]] = [["op", "sizes", "seconds_median", "seconds_p10", "seconds_p90", "repeats"]]
    for (name, dims), each in validation.benchmarks.items():
        sizes_text = " ".join(f"{d}={v}" for d, v in zip(MICRO[name].dims, dims, strict=True))
        times = (_short(each.median), _short(each.p10), _short(each.p90))
        bench.append([name, sizes_text, *times, each.repeats])
    write_atomic(folder / "microbenchmarks.csv", _csv(bench))
    meta = {
        "suite": "local-cpu",
        **describe("cpu"),
        "torch_threads": 1,
        "clock": "CPU time of the thread",
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
