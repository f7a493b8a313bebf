"""Baseline: a kernel's time as a sum of physical terms, which the forest then corrects.

Where features state ``terms``, a fit weighs them first (launch, weights, padded arithmetic, traffic of rows here and
elsewhere): sums of physics extrapolate to shapes that no tree has seen. What each term is of the sum is a feature too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moesim.cost.fitted.features import Features
    from moesim.cost.pricing import FloatArray

__all__ = ["SHARE_BORDERS", "base_of", "shares_of"]

SHARE_BORDERS = np.linspace(-6.0, -0.02, 31, dtype=np.float32)
"""Borders of log(share of a term): the same for every group, no data decides them."""

_BLOCK = 16384


def base_of(
    features: Features, cycles: float | FloatArray, clock: float | FloatArray, work: Sequence[float]
) -> FloatArray:
    """Return [row] seconds that a forest's answer multiplies.

    Parameters
    ----------
    cycles, clock : the floor of features without terms
    work : weight of each term; empty where features have none: then the base is ``floor + bound``
    """
    if len(work) == 0 or features.terms is None:
        return np.asarray(cycles / clock + features.bound)
    return np.asarray(np.asarray(work, dtype=np.float32) @ features.terms, dtype=np.float64)


def shares_of(features: Features, work: Sequence[float]) -> np.ndarray:
    """Return features of a forest [feature, row] float32: the matrix, and log of each term's share of the base."""
    if len(work) == 0 or features.terms is None:
        return features.matrix
    weights, own = np.asarray(work, dtype=np.float32)[:, None], len(features.matrix)
    out = np.empty((own + len(weights), features.matrix.shape[1]), dtype=np.float32)
    out[:own] = features.matrix
    for start in range(0, out.shape[1], _BLOCK):
        part = weights * features.terms[:, start : start + _BLOCK]
        part /= part.sum(axis=0)
        np.log(np.maximum(part, 1e-4, out=part), out=out[own:, start : start + _BLOCK])
    return out
