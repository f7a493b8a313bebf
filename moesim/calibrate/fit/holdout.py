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
    log_error: FloatArray, regime: npt.NDArray[np.int64], regimes: int
) -> tuple[tuple[float, float], ...]:
    """Return (low, high) per regime: factors on the prediction around nine of ten measurements.

    Parameters
    ----------
    log_error : log(measured / predicted) of held-out rows
    regime : their regimes; a regime with fewer than 30 rows takes all rows' quantiles
    """
    tail = (1 - _NOMINAL) / 2

    def cut(values: FloatArray) -> tuple[float, float]:
        low, high = np.quantile(values, [tail, 1 - tail])
        return float(np.exp(low)), float(np.exp(high))

    whole = cut(log_error)
    found = []
    for number in range(regimes):
        mine = log_error[regime == number]
        found.append(cut(mine) if mine.size >= 30 else whole)
    return tuple(found)


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
        table = np.log(np.array(interval_of(log_error[~test], regime[~test], regimes)))[regime[test]]
        inside[test] = (log_error[test] >= table[:, 0]) & (log_error[test] <= table[:, 1])
    return float(inside.mean())
