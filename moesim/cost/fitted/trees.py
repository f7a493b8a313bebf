"""Trees: a forest of symmetric trees as plain arrays, and its evaluation with numpy alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moesim.cost.pricing import FloatArray

__all__ = ["Forest", "bins_of"]

_AT_ONCE, _TOGETHER = 1024, 128
"""Rows up to which all trees are asked at once, and in parts of how many."""
_CHUNK = 65536
"""Rows at a time: the working set stays in a core's cache."""
_FEW = 2048
"""Rows below which a binary search per value is quicker than one pass per border."""
_MANY = 100_000
"""Rows from which compiled code earns the time that loading it takes."""


def bins_of(
    matrix: npt.NDArray[np.float32], borders: Sequence[npt.NDArray[np.float32]]
) -> npt.NDArray[np.uint8]:
    """Return [feature, row]: how many borders of the feature lie below the value."""
    rows = matrix.shape[1]
    binned = np.zeros(matrix.shape, dtype=np.uint8)
    for cuts, column, out in zip(borders, matrix, binned, strict=True):
        if rows < _FEW:
            out[:] = np.searchsorted(cuts, column, side="left")
        elif not (column[1:] < column[:-1]).any():  # a table over tokens: most features are fixed or grow
            crossed = np.bincount(np.searchsorted(column, cuts, side="right"), minlength=rows + 1)
            np.cumsum(crossed[:rows], out=out, dtype=np.uint8)
        else:
            _count_below(column, cuts, out)
    return binned


def _count_below(
    column: npt.NDArray[np.float32], cuts: npt.NDArray[np.float32], out: npt.NDArray[np.uint8]
) -> None:
    """Count comparisons into ``out``: that streams through memory, where a binary search of each value would jump."""
    if len(column) >= _MANY:
        from moesim.cost.fitted.compiled import count_borders  # noqa: PLC0415 - numba takes long to load

        count_borders(np.ascontiguousarray(column), cuts, out)
        return
    for start in range(0, len(column), _CHUNK):
        part, count = column[start : start + _CHUNK], out[start : start + _CHUNK]
        above = np.empty(len(part), dtype=np.bool_)
        for cut in cuts:
            np.greater(part, cut, out=above)
            np.add(count, above.view(np.uint8), out=count)


@dataclass(frozen=True, slots=True, eq=False)
class Forest:
    """Trees that ask one question of every row at each depth: whether a feature's bin is above a border.

    Attributes
    ----------
    feature, border : [tree, depth] uint8
    leaves : [tree, 2 ** depth] int8; the bit of depth d is 2 ** d
    scale : [tree] float32, what one step of a leaf is worth
    """

    feature: npt.NDArray[np.uint8]
    border: npt.NDArray[np.uint8]
    leaves: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]

    @classmethod
    def quantised(
        cls,
        feature: npt.NDArray[np.uint8],
        border: npt.NDArray[np.uint8],
        leaves: npt.NDArray[np.float32],
    ) -> Forest:
        """Return the forest with leaves rounded to 255 levels of each tree's own range."""
        scale = np.abs(leaves).max(axis=1, initial=0.0).astype(np.float32) / np.float32(127)
        safe = np.where(scale > 0, scale, np.float32(1))
        return cls(feature, border, np.rint(leaves / safe[:, None]).astype(np.int8), scale)

    def answer(self, binned: npt.NDArray[np.uint8]) -> FloatArray:
        """Return the sum over trees for each row.

        Parameters
        ----------
        binned : [feature, row] from ``bins_of``
        """
        rows = binned.shape[1]
        if rows > _FEW:  # a table over tokens stays in one cell of all features for many rows on end
            starts = np.flatnonzero(np.r_[True, (binned[:, 1:] != binned[:, :-1]).any(axis=0)])
            if len(starts) < rows // 2:
                return np.repeat(self.answer(binned[:, starts]), np.diff(starts, append=rows))
        worth = self.leaves.astype(np.float32) * self.scale[:, None]
        if rows <= _AT_ONCE:
            parts = [
                self._together(binned[:, at : at + _TOGETHER], worth) for at in range(0, rows, _TOGETHER)
            ]
            return np.concatenate(parts or [np.zeros(0)])
        total = np.zeros(rows, dtype=np.float32)
        if rows >= _MANY:
            from moesim.cost.fitted.compiled import add_trees  # noqa: PLC0415 - numba takes long to load

            if self.feature.max(initial=0) >= len(binned):  # compiled code would read beyond
                raise IndexError(f"{len(binned)} features: expected {self.feature.max() + 1}")
            add_trees(binned, self.feature, self.border, worth, total)
            return total.astype(np.float64)
        for start in range(0, rows, _CHUNK):
            stop = min(start + _CHUNK, rows)
            part = np.ascontiguousarray(binned[:, start:stop])
            where, bit = np.empty(stop - start, np.uint8), np.empty(stop - start, np.bool_)
            found = np.empty(stop - start, np.float32)
            for feature, border, values in zip(
                self.feature.tolist(), self.border.tolist(), worth, strict=True
            ):
                where[:] = 0
                for depth in range(len(feature) - 1, -1, -1):
                    np.greater(part[feature[depth]], border[depth], out=bit)
                    where += where
                    where |= bit.view(np.uint8)
                np.take(values, where, out=found)
                total[start:stop] += found
        return total.astype(np.float64)

    def _together(self, binned: npt.NDArray[np.uint8], worth: npt.NDArray[np.float32]) -> FloatArray:
        """Return the same sums, all trees at once: for few rows, calls per tree would cost more than the work."""
        alone = binned.shape[1] == 1
        if alone:  # two columns are added tree by tree, as the other path does; one would be added in pairs
            binned = np.repeat(binned, 2, axis=1)
        above = binned[self.feature] > self.border[:, :, None]
        where = np.zeros((len(above), binned.shape[1]), np.intp)
        for depth in range(above.shape[1] - 1, -1, -1):
            where += where
            where |= above[:, depth]
        found = np.take_along_axis(worth, where, axis=1)
        total = np.add.reduce(found, axis=0, dtype=np.float32).astype(np.float64)
        return np.asarray(total[:1] if alone else total)
