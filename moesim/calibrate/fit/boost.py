"""Boost: gradient-boosted symmetric trees, trained by histograms; the result is arrays, no object of a library.

A symmetric tree asks the same question of every row at one depth, so that its answer is a table lookup: fast to
evaluate with plain arrays, and hard to overfit. Everything is deterministic for a seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba as nb
import numpy as np
import numpy.typing as npt

from moesim.cost.fitted.trees import Forest, bins_of

__all__ = ["Settings", "boost", "borders_of"]

_MAX_BORDERS = 63


@dataclass(frozen=True, slots=True)
class Settings:
    """How a forest is grown.

    Attributes
    ----------
    trees, depth : size
    rate : part of each tree's answer that is used
    ridge : rows' worth of zeros in every leaf
    rows, columns : shares of rows and features that each tree sees
    clip : largest residual (log seconds) that pulls with full force
    seed : of the draws
    """

    trees: int = 150
    depth: int = 7
    rate: float = 0.15
    ridge: float = 3.0
    rows: float = 0.5
    columns: float = 0.6
    clip: float = 0.5
    seed: int = 1


def borders_of(matrix: npt.NDArray[np.float32], limit: int = _MAX_BORDERS) -> list[npt.NDArray[np.float32]]:
    """Return up to ``limit`` borders per feature: midpoints where values are few, quantiles where many."""
    borders = []
    for column in matrix:
        values = np.unique(column)
        if values.size <= limit + 1:
            cuts = (values[1:] + values[:-1]) / 2
        else:
            cuts = np.unique(np.quantile(column, np.linspace(0, 1, limit + 2)[1:-1]))
        borders.append(cuts.astype(np.float32))
    return borders


def boost(
    matrix: npt.NDArray[np.float32] | None,
    target: npt.NDArray[np.float64],
    borders: list[npt.NDArray[np.float32]],
    settings: Settings,
    *,
    binned: npt.NDArray[np.uint8] | None = None,
) -> Forest:
    """Return the forest that predicts ``target`` from ``matrix``.

    Parameters
    ----------
    matrix : [feature, row]
    target : [row]
    borders : per feature, at most 255
    binned : [feature, row] where the caller has binned ``matrix`` already
    """
    if binned is None:
        assert matrix is not None
        binned = bins_of(matrix, borders)
    count = np.array([b.size for b in borders], dtype=np.int64)
    s = settings
    rows, wanted = np.ascontiguousarray(binned), np.asarray(target, dtype=np.float64)
    shares = (s.rate, s.ridge, s.rows, s.columns, s.clip, s.seed)
    feature, border, leaves = _grow(rows, wanted, count, s.trees, s.depth, *shares)
    return Forest.quantised(feature, border, leaves)


@nb.njit(cache=True)
def _grow(
    binned: Any, target: Any, count: Any, trees: Any, depth: Any, rate: Any, ridge: Any, row_share: Any,
    column_share: Any, clip: Any, seed: Any,
) -> Any:  # fmt: skip
    np.random.seed(seed)  # noqa: NPY002 - the compiled generator
    features, rows = binned.shape
    width = 1 << depth
    feature = np.zeros((trees, depth), np.uint8)
    border = np.full((trees, depth), 255, np.uint8)
    leaves = np.zeros((trees, width), np.float32)
    answer = np.zeros(rows, np.float64)
    taken = max(1, int(rows * row_share))
    order = np.arange(rows)
    use = np.zeros(features, np.bool_)
    table = np.zeros((features, width, count.max() + 1, 2), np.float32)
    pull = np.empty(taken, np.float32)
    leaf = np.zeros(taken, np.int64)
    upper = np.arange(taken)
    seen = np.zeros((features, taken), np.uint8)
    for t in range(trees):
        _draw(order, taken, use, count, column_share)
        for f in range(features):
            if use[f]:
                for i in range(taken):
                    seen[f, i] = binned[f, order[i]]
        for i in range(taken):
            pull[i] = min(max(target[order[i]] - answer[order[i]], -clip), clip)
            leaf[i] = 0
            upper[i] = i
        many = taken
        for d in range(depth):
            _fill(table, seen, upper[:many], leaf, pull, use, d)
            best, cut = _split(table, count, use, 1 << d, ridge)
            if best < 0:
                break
            feature[t, d] = best
            border[t, d] = cut
            row = seen[best]
            many = 0
            for i in range(taken):
                if row[i] > cut:
                    leaf[i] |= 1 << d
                    upper[many] = i
                    many += 1
        _settle(leaves[t], leaf, pull, rate, ridge)
        _add(answer, binned, feature[t], border[t], leaves[t])
    return feature, border, leaves


@nb.njit(cache=True)
def _draw(order: Any, taken: Any, use: Any, count: Any, share: Any) -> None:
    """Shuffle the first ``taken`` rows to the front, and choose the features that this tree may ask about."""
    rows = order.size
    for i in range(taken):
        j = i + np.random.randint(0, rows - i)  # noqa: NPY002
        order[i], order[j] = order[j], order[i]
    for f in range(use.size):
        use[f] = count[f] > 0 and np.random.random() < share  # noqa: NPY002


@nb.njit(cache=True)
def _settle(values: Any, leaf: Any, pull: Any, rate: Any, ridge: Any) -> None:
    """Set each leaf to its rows' mean pull, shrunk."""
    total = np.zeros(values.size)
    seen = np.zeros(values.size)
    for i in range(leaf.size):
        total[leaf[i]] += pull[i]
        seen[leaf[i]] += 1.0
    for x in range(values.size):
        values[x] = rate * total[x] / (seen[x] + ridge)


@nb.njit(cache=True)
def _add(answer: Any, binned: Any, feature: Any, border: Any, values: Any) -> None:
    """Add one tree's answer to all rows."""
    for i in range(answer.size):
        x = 0
        for d in range(feature.size):
            if binned[feature[d], i] > border[d]:
                x |= 1 << d
        answer[i] += values[x]


@nb.njit(cache=True)
def _fill(table: Any, seen: Any, upper: Any, leaf: Any, pull: Any, use: Any, depth: Any) -> None:
    """Count rows and pulls by feature, leaf and bin. The lower half of a split is the whole less its upper half."""
    half = (1 << depth) >> 1
    for f in range(seen.shape[0]):
        if not use[f]:
            continue
        row, here = seen[f], table[f]
        if depth == 0:
            here[0] = 0.0
        else:
            here[half : 2 * half] = 0.0
        for i in upper:
            x, b = leaf[i], row[i]
            here[x, b, 0] += pull[i]
            here[x, b, 1] += 1.0
        for x in range(half):
            for b in range(here.shape[1]):
                here[x, b, 0] -= here[half + x, b, 0]
                here[x, b, 1] -= here[half + x, b, 1]


@nb.njit(cache=True)
def _split(table: Any, count: Any, use: Any, leaves: Any, ridge: Any) -> Any:
    best, cut, most = -1, 0, 0.0
    gain = np.zeros(table.shape[2])
    for f in range(table.shape[0]):
        if not use[f]:
            continue
        gain[:] = 0.0
        for x in range(leaves):
            total = 0.0
            rows = 0.0
            for b in range(count[f] + 1):
                total += table[f, x, b, 0]
                rows += table[f, x, b, 1]
            if rows < 1.0:
                continue
            whole = total * total / (rows + ridge)
            low = 0.0
            seen = 0.0
            for b in range(count[f]):
                low += table[f, x, b, 0]
                seen += table[f, x, b, 1]
                high, rest = total - low, max(rows - seen, 0.0)
                gain[b] += low * low / (seen + ridge) + high * high / (rest + ridge) - whole
        for b in range(count[f]):
            if gain[b] > most:
                best, cut, most = f, b, gain[b]
    return best, cut
