"""Suites ``local-cpu`` and ``local-gpu``: this machine measured and predicted side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from moesim.calibrate.fit.holdout import errors_of
from moesim.calibrate.local.store import RECORDED, read_comparisons, write_validation
from moesim.calibrate.local.validate import SCOPES, Comparison, Scope, validate_local
from moesim.calibrate.measure.device import describe, device_name, torch_module
from moesim.errors import DataMissing
from moesim.files import catalog_root

__all__ = ["answer", "run_cpu", "run_gpu"]

Progress = Callable[[float, str], None]


def run_cpu(
    *,
    shared: Path | None = None,  # noqa: ARG001 - the suites' common signature
    cache: Path | None = None,
    bands: Iterable[Any] = (),
    quick: int = 0,
    bound: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a small MoE transformer and its MoE layer here, predict both from microbenchmarks.

    Parameters
    ----------
    cache : folder for the tables of the run (``store.write_validation``); nothing is read from it
    bands : limits; see ``validation/bands.yaml``
    quick : every n-th pair of architecture and shape
    bound : predict by overheads and roofline alone

    Returns
    -------
    see ``answer``

    Raises
    ------
    DataMissing : PyTorch is not installed
    """
    scope = SCOPES["ci"]
    if quick:
        scope = replace(scope, shapes=scope.shapes[::quick], architectures=scope.architectures[::quick])
    found = validate_local(scope, _told(progress, "microbenchmarks and passes in turns"))
    if cache is not None:
        write_validation(found, cache)
    facts = {"rounds": found.rounds, "device": device_name("cpu"), "clock": "CPU time of one thread"}
    return answer("local-cpu", found.comparisons, bands, bound=bound) | facts


def run_gpu(
    *,
    shared: Path | None = None,  # noqa: ARG001 - the suites' common signature
    cache: Path | None = None,
    bands: Iterable[Any] = (),
    quick: int = 0,
    bound: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Do the same on the GPU with the project's Triton kernels; without a GPU, replay what was recorded.

    Parameters
    ----------
    cache : folder for the tables of the run; without a GPU, a folder of recorded devices to read instead of
        ``validation/kernels``
    bands, quick, bound : as for ``run_cpu``; recorded results are not cut by ``quick``

    Raises
    ------
    DataMissing : no GPU here and nothing recorded
    """
    if not _cuda():
        return _recorded(cache or catalog_root() / "validation" / "kernels", bands, bound=bound)
    from moesim.calibrate.local.gpu import GPU_SCOPE, OPS, validate_gpu

    scope: Scope = GPU_SCOPE
    if quick:
        scope = replace(scope, shapes=scope.shapes[::quick], architectures=scope.architectures[::quick])
    found = validate_gpu(scope, progress=_told(progress, "microbenchmarks and passes in turns"))
    if cache is not None:
        write_validation(found, cache, suite="local-gpu", facts=describe("cuda"), ops=OPS)
    facts = {"rounds": found.rounds, "device": device_name("cuda"), "clock": "CUDA events", "recorded": False}
    return answer("local-gpu", found.comparisons, bands, bound=bound) | facts


def _cuda() -> bool:
    try:
        return bool(torch_module().cuda.is_available())
    except DataMissing:
        return False


def _recorded(folder: Path, bands: Iterable[Any], *, bound: bool) -> dict[str, Any]:
    """Return the answer over every recorded device; ``folder`` has one folder per device."""
    found = sorted(folder.glob(f"*/{RECORDED}")) if folder.is_dir() else []
    if not found:
        what = "none is recorded yet (validation/kernels/<device>/local-gpu)"
        raise DataMissing(f"local-gpu: PyTorch sees no GPU here, and {what}")
    names = {path.parents[1].name: read_comparisons(path) for path in found}
    every = [comparison for part in names.values() for comparison in part]
    return answer("local-gpu", every, bands, bound=bound) | {"recorded": True, "device": ", ".join(names)}


def answer(
    suite: str, comparisons: Sequence[Comparison], bands: Iterable[Any] = (), *, bound: bool = False
) -> dict[str, Any]:
    """Return the suite's answer.

    Returns
    -------
    ``{suite, rows, covered, metrics, groups, bands, side_by_side}``; errors are fractions. Metrics: ``all``,
    ``forward``, ``moe_layer``, and ``routing_unknown``, predictions that knew no rows per expert. Groups: by
    architecture, worst first. ``side_by_side`` has one entry per pass with both times
    """
    metrics = {"all": _figures(comparisons, bound=bound)}
    for part in ("forward", "moe_layer"):
        mine = [c for c in comparisons if c.target.part == part]
        if mine:
            metrics[part] = _figures(mine, bound=bound)
    if not bound:
        unknown = [replace(c, predicted_s=c.uniform_s) for c in comparisons]
        metrics["routing_unknown"] = _figures(unknown, bound=False)
    kinds = list(dict.fromkeys(c.target.sizes for c in comparisons))
    groups = [
        {
            "hidden": sizes.hidden,
            "inner": sizes.inner,
            "experts": sizes.experts,
            "top_k": sizes.top_k,
            **_figures([c for c in comparisons if c.target.sizes == sizes], bound=bound),
        }
        for sizes in kinds
    ]
    return {
        "suite": suite,
        "rows": len(comparisons),
        "covered": len(comparisons),
        "metrics": metrics,
        "groups": sorted(groups, key=lambda group: -group["median_ape"]),
        "bands": [_checked(band, metrics) for band in bands],
        "side_by_side": [_side(c, bound=bound) for c in comparisons],
    }


def _figures(comparisons: Sequence[Comparison], *, bound: bool) -> dict[str, float]:
    predicted = np.array([c.bound_s if bound else c.predicted_s for c in comparisons])
    measured = np.array([c.measured.median for c in comparisons])
    rank = float(spearmanr(predicted, measured).statistic) if len(comparisons) > 2 else float("nan")
    within = float((np.abs(predicted / measured - 1) <= 0.3).mean())
    return errors_of(predicted, measured) | {"within_30": within, "spearman": rank}


def _side(found: Comparison, *, bound: bool) -> dict[str, Any]:
    target, sizes = found.target, found.target.sizes
    predicted = found.bound_s if bound else found.predicted_s
    return {
        "part": target.part,
        "batch": target.batch,
        "length": target.length,
        "hidden": sizes.hidden,
        "inner": sizes.inner,
        "experts": sizes.experts,
        "top_k": sizes.top_k,
        "measured_s": found.measured.median,
        "predicted_s": predicted,
        "error": predicted / found.measured.median - 1,
    }


def _checked(band: Any, metrics: dict[str, dict[str, float]]) -> dict[str, Any]:
    metric, _, figure = band.name.partition(".")
    value = float(metrics.get(metric, {}).get(figure, float("nan")))
    ok = value >= band.limit if band.least else abs(value) <= band.limit
    return {"name": band.name, "value": value, "limit": band.limit, "ok": bool(ok)}


def _told(progress: Progress | None, first: str) -> Callable[[int, int, str], None] | None:
    if progress is None:
        return None
    progress(0.0, first)
    return lambda done, total, line: progress(done / total, line)
