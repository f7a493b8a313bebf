"""Compiled: bins and trees of many rows in one pass; the same answers as numpy's, which small inputs use."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

__all__ = ["add_trees", "count_borders"]

_BLOCK = 4096
"""Rows at a time: their bins stay in the first cache."""


@nb.njit(cache=True)
def count_borders(column: Any, cuts: Any, out: Any) -> None:
    """Write into ``out`` [row] uint8 how many of ``cuts`` lie below each value of ``column``."""
    for start in range(0, column.size, _BLOCK):
        stop = min(start + _BLOCK, column.size)
        part, count = column[start:stop], out[start:stop]
        count[:] = 0
        for cut in cuts:
            for i in range(part.size):
                count[i] += np.uint8(part[i] > cut)


@nb.njit(cache=True)
def add_trees(binned: Any, feature: Any, border: Any, worth: Any, total: Any) -> None:
    """Add to ``total`` [row] float32 the leaves that rows of ``binned`` [feature, row] reach.

    Parameters
    ----------
    feature, border : [tree, depth] uint8, at most eight levels
    worth : [tree, leaf] float32
    """
    trees, depth = feature.shape
    leaf = np.empty(_BLOCK, np.uint8)
    for start in range(0, total.size, _BLOCK):
        stop = min(start + _BLOCK, total.size)
        here, at = total[start:stop], leaf[: stop - start]
        for t in range(trees):
            at[:] = 0
            for d in range(depth):
                row, cut, bit = binned[feature[t, d], start:stop], border[t, d], np.uint8(1 << d)
                for i in range(at.size):
                    at[i] |= bit if row[i] > cut else np.uint8(0)
            values = worth[t]
            for i in range(at.size):
                here[i] += values[at[i]]
