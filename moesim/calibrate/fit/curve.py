"""Curve: fit collectives, whose sizes were measured densely for a few numbers of ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moesim.calibrate.fit.holdout import errors_of, interval_of
from moesim.calibrate.silicon.collectives import group_of
from moesim.cost.fitted.curves import Curve, CurveFit, efficiency_coordinates

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from moesim.calibrate.silicon.families import Imported
    from moesim.cost.fitted.artifact import GroupKey
    from moesim.cost.pricing import FloatArray

__all__ = ["fit_curves", "rate_of"]

_GRID = np.linspace(-9.0, 9.0, 37)
"""Where devices' curves are averaged: log(bytes' time / latency)."""


def rate_of(device: str, ranks: int) -> float:
    """Return the B/s at which a collective cannot be beaten: every device passes on what it does not hold."""
    group = group_of(device, ranks)
    assert group is not None
    return group.intra_bandwidth * ranks / (ranks - 1)


def _fit(size: FloatArray, seconds: FloatArray, rate: float) -> CurveFit:
    order = np.argsort(size, kind="stable")
    size, seconds = size[order], seconds[order]
    latency = float(np.median(seconds[:3]))
    where, base = efficiency_coordinates(size, latency, rate)
    return CurveFit(latency, tuple(where.tolist()), tuple(np.log(seconds / base).tolist()))


def _common(fits: list[CurveFit]) -> CurveFit:
    ratio = np.median([np.interp(_GRID, f.at, f.ratio) for f in fits], axis=0)
    latency = float(np.median([f.latency for f in fits]))
    return CurveFit(latency, tuple(_GRID.tolist()), tuple(ratio.tolist()))


def fit_curves(imported: Imported) -> Iterator[tuple[GroupKey, Curve]]:
    """Yield the curves of one family of collectives, by library and pattern, with their hold-out errors.

    Hold-outs: every second size of a curve (``points``), and each device in turn (``device``).
    """
    rows = imported.rows[imported.rows["possible"]]
    for names, part in rows.groupby(["framework", "dtype", "kernel"], observed=True):
        framework, dtype, kernel = map(str, names)
        yield (imported.family, framework, dtype, kernel), _curve(part)


def _curve(part: pd.DataFrame) -> Curve:
    curves: dict[tuple[str, int], tuple[FloatArray, FloatArray]] = {}
    for names, mine in part.groupby(["device", "ranks"], observed=True):
        device, ranks = str(names[0]), int(str(names[1]))
        sizes, seconds = mine["size"].to_numpy(dtype=np.float64), mine["seconds"].to_numpy(dtype=np.float64)
        if sizes.size >= 4:
            curves[device, ranks] = (sizes, seconds)
    fits = {key: _fit(*curve, rate_of(*key)) for key, curve in curves.items()}
    by_ranks = {n: [f for (_, m), f in fits.items() if m == n] for n in {n for _, n in fits}}
    errors: dict[str, dict[str, dict[str, float]]] = {"points": {}, "device": {}}
    log_points: list[FloatArray] = []
    log_devices: list[FloatArray] = []
    for name in sorted({device for device, _ in fits}):
        point, other = [], []
        for (device, ranks), (sizes, seconds) in curves.items():
            if device != name:
                continue
            rate, order = rate_of(device, ranks), np.argsort(sizes, kind="stable")
            seen, left = order[::2], order[1::2]
            guess = _fit(sizes[seen], seconds[seen], rate).seconds(sizes[left], rate)
            point.append((guess, seconds[left]))
            others = [f for (d, m), f in fits.items() if m == ranks and d != name]
            if others:
                other.append((_common(others).seconds(sizes, rate), seconds))
        for kind, pairs, log in (("points", point, log_points), ("device", other, log_devices)):
            if pairs:
                guess, truth = (np.concatenate(x) for x in zip(*pairs, strict=True))
                errors[kind][name] = errors_of(guess, truth)
                log.append(np.log(truth / guess))
    versions = {
        str(d): tuple(sorted(set(mine["version"].astype(str))))
        for d, mine in part.groupby("device", observed=True)
    }
    return Curve(
        fits,
        {n: _common(found) for n, found in sorted(by_ranks.items())},
        versions,
        errors,
        (_range(log_points), _range(log_devices or log_points)),
    )


def _range(parts: list[FloatArray]) -> tuple[float, float]:
    whole = np.concatenate(parts)
    return interval_of(whole, np.zeros(whole.size, dtype=np.int64), 1)[0]
