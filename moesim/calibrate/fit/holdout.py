"""Hold-out: which rows a fit must not see, and how far it is then off."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from moesim.cost.pricing import FloatArray

__all__ = ["coverage", "errors_of", "interval_of", "regime_of", "shape_folds"]

_NOMINAL = 0.9


def errors_of(predicted: FloatArray, measured: FloatArray) -> dict[str, float]:
    """Return n, MAPE, median and 90th percentile of absolute relative error, and mean signed error."""
    relative = predicted / measured - 1
    size = np.abs(relative)
    return {
        "n": int(size.size),
        "mape": float(size.mean()),
        "median_ape": float(np.median(size)),
        "p90_ape": float(np.quantile(size, 0.9)),
        "bias": float(relative.mean()),
    }


def shape_folds(shape: npt.NDArray[np.int64], folds: int, seed: int) -> npt.NDArray[np.int64]:
    """Return each row's fold, 0..folds-1; a shape lies in one fold as a whole."""
    known = np.unique(shape)
    order = np.random.default_rng(seed).permutation(known.size)
    fold_of = np.empty(known.size, dtype=np.int64)
    fold_of[order] = np.arange(known.size) % folds
    return np.asarray(fold_of[np.searchsorted(known, shape)])


def regime_of(bound: FloatArray, floor: FloatArray, regimes: tuple[float, ...]) -> npt.NDArray[np.int64]:
    """Return each row's regime: how large its work is beside the floor."""
    return np.searchsorted(regimes, np.log2(np.maximum(bound / floor, 1e-30)))


def interval_of(
    log_error: FloatArray,
    regime: npt.NDArray[np.int64],
    regimes: int,
    shape: npt.NDArray[np.int64] | None = None,
) -> tuple[tuple[float, float], ...]:
    """Return (low, high) per regime: factors on the prediction around nine of ten measurements.

    Rows of one shape err alike, so each shape counts the same, and with few shapes the next one may lie beyond all:
    the tails shrink to ``tail * n / (n + 1) - 1 / (4 n)``, at least a fifth of the nominal tail.

    Parameters
    ----------
    log_error : log(measured / predicted) of held-out rows
    regime : their regimes; a regime with fewer than 30 rows takes all rows' quantiles
    shape : number of each row's shape; None: every row is one
    """

    def cut(values: FloatArray, of: npt.NDArray[np.int64] | None) -> tuple[float, float]:
        low, high = _quantiles(values, of)
        return float(np.exp(low)), float(np.exp(high))

    whole = cut(log_error, shape)
    found = []
    for number in range(regimes):
        here = regime == number
        mine = log_error[here]
        found.append(cut(mine, None if shape is None else shape[here]) if mine.size >= 30 else whole)
    return tuple(found)


def _quantiles(values: FloatArray, shape: npt.NDArray[np.int64] | None) -> tuple[float, float]:
    tail = (1 - _NOMINAL) / 2
    if shape is None:
        low, high = np.quantile(values, [tail, 1 - tail])
        return float(low), float(high)
    _, place, count = np.unique(shape, return_inverse=True, return_counts=True)
    shapes = count.size
    tail = max(tail * shapes / (shapes + 1) - 0.25 / shapes, tail / 5)
    order = np.argsort(values, kind="stable")
    weight = (1 / count[place])[order]
    level = (np.cumsum(weight) - weight / 2) / shapes
    low, high = np.interp([tail, 1 - tail], level, values[order])
    return float(low), float(high)


def coverage(
    log_error: FloatArray,
    regime: npt.NDArray[np.int64],
    shape: npt.NDArray[np.int64],
    regimes: int,
    seed: int = 0,
) -> float:
    """Return how many rows an interval covers that was made from other shapes' errors, mean of two halves."""
    half = shape_folds(shape, 2, seed)
    inside = np.zeros(log_error.size, dtype=bool)
    for part in (0, 1):
        test = half == part
        if not test.any() or test.all():
            return float("nan")
        table = np.log(np.array(interval_of(log_error[~test], regime[~test], regimes, shape[~test])))[
            regime[test]
        ]
        inside[test] = (log_error[test] >= table[:, 0]) & (log_error[test] <= table[:, 1])
    return float(inside.mean())
