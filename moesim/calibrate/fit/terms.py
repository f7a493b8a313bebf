"""Terms: weigh a kernel's physical terms so that their sum comes closest to the measured times."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

if TYPE_CHECKING:
    from moesim.cost.pricing import FloatArray

__all__ = ["weights_of"]

_STEPS = 8
_FAR = 1.0
"""Log errors beyond this pull no harder."""


def weights_of(terms: npt.NDArray[np.float32], seconds: FloatArray) -> tuple[float, ...]:
    """Return weights >= 0 that make the sum of terms close to ``seconds`` in log space.

    Gauss-Newton: each step solves a non-negative least-squares problem about the sum that the last one gave.

    Parameters
    ----------
    terms : [term, row] seconds
    seconds : [row]
    """
    scaled = np.ascontiguousarray((np.asarray(terms, dtype=np.float64) / seconds).T)
    size = np.maximum(
        scaled.mean(axis=0), 1e-30
    )  # columns of one magnitude: the solver's tolerance is absolute
    scaled = scaled / size
    weights = nnls(scaled, np.ones(len(scaled)))[0]
    for _ in range(_STEPS):
        total = np.maximum(scaled @ weights, 1e-3)
        aim = 1 - np.clip(np.log(total), -_FAR, _FAR)
        weights = (weights + nnls(scaled / total[:, None], aim)[0]) / 2
    return tuple((weights / size).tolist())
