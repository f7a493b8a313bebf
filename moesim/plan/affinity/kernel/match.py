"""Match: linear assignment of many small matrices: all orders up to four, shortest augmenting paths beyond."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@njit(cache=True)
def _orders(size: int) -> IntArray:
    """Return all orders of 0..size-1, [size!, size]."""
    number = 1
    for i in range(2, size + 1):
        number *= i
    found = np.empty((number, size), np.int64)
    for n in range(number):
        left, rest = n, list(range(size))
        for i in range(size):
            found[n, i] = rest.pop(left % (size - i))
            left //= size - i
    return found


@njit(cache=True)
def match(worth: FloatArray) -> tuple[FloatArray, IntArray]:
    """Return the largest total of one entry per row and column, [n], and the column of each row, [n, size].

    Parameters
    ----------
    worth : [n, size, size]
    """
    number, size = worth.shape[0], worth.shape[1]
    total = np.zeros(number)
    column = np.empty((number, size), np.int64)
    if size <= 4:
        orders = _orders(size)
        for n in range(number):
            best, kept = -np.inf, 0
            for o in range(len(orders)):
                value = 0.0
                for i in range(size):
                    value += worth[n, i, orders[o, i]]
                if value > best:
                    best, kept = value, o
            total[n] = best
            column[n] = orders[kept]
        return total, column
    u, v = np.zeros(size + 1), np.zeros(size + 1)
    row_of, way = np.zeros(size + 1, np.int64), np.zeros(size + 1, np.int64)
    least, done = np.zeros(size + 1), np.zeros(size + 1, np.bool_)
    for n in range(number):
        u[:] = 0.0
        v[:] = 0.0
        row_of[:] = 0
        for i in range(1, size + 1):
            row_of[0] = i
            at = 0
            least[:] = np.inf
            done[:] = False
            while row_of[at] != 0:
                done[at] = True
                row, delta, nxt = row_of[at], np.inf, 0
                for j in range(1, size + 1):
                    if done[j]:
                        continue
                    reduced = -worth[n, row - 1, j - 1] - u[row] - v[j]
                    if reduced < least[j]:
                        least[j] = reduced
                        way[j] = at
                    if least[j] < delta:
                        delta = least[j]
                        nxt = j
                for j in range(size + 1):
                    if done[j]:
                        u[row_of[j]] += delta
                        v[j] -= delta
                    else:
                        least[j] -= delta
                at = nxt
            while at != 0:
                row_of[at] = row_of[way[at]]
                at = way[at]
        for j in range(1, size + 1):
            column[n, row_of[j] - 1] = j - 1
            total[n] += worth[n, row_of[j] - 1, j - 1]
    return total, column
