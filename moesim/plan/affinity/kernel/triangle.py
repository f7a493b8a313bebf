"""Triangles: if i is with j and with k, then j is with k; those that a fractional solution breaks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@njit(cache=True)
def violated(
    together: FloatArray, entry: IntArray, tolerance: float, most: int
) -> tuple[IntArray, FloatArray]:
    """Return triangles ``x[ij] + x[ik] - x[jk] <= 1`` broken by more than the tolerance, and by how much.

    Parameters
    ----------
    together : symmetric [boundary, point, point], 0..1
    entry : [boundary, point, point], index of the variable that an entry shows
    most : stop after so many

    Returns
    -------
    triangles : [found, 3] variables ij, ik (the smaller first), jk
    excess : [found]
    """
    boundaries, points = together.shape[0], together.shape[1]
    found = np.empty((most, 3), np.int64)
    excess = np.empty(most)
    count = 0
    for b in range(boundaries):
        for i in range(points):
            for j in range(points):
                first = together[b, i, j]
                if j == i or first < tolerance:
                    continue
                for k in range(j + 1, points):
                    if k == i:
                        continue
                    over = first + together[b, i, k] - together[b, j, k] - 1.0
                    if over > tolerance:
                        if count == most:
                            return found, excess
                        found[count, 0] = min(entry[b, i, j], entry[b, i, k])
                        found[count, 1] = max(entry[b, i, j], entry[b, i, k])
                        found[count, 2] = entry[b, j, k]
                        excess[count] = over
                        count += 1
    return found[:count], excess[:count]
