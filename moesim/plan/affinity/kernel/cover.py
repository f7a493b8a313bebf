"""Cover: annealing of one layer so that tokens touch few nodes and devices, counted token by token."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@njit(cache=True)
def anneal_cover(
    chosen: IntArray,
    start: IntArray,
    size: IntArray,
    weight: FloatArray,
    steps: int,
    hot: float,
    cold: float,
    seed: int,
) -> tuple[float, IntArray]:
    """Return the least weighted number of groups touched by all tokens that was met, and its placement.

    Parameters
    ----------
    chosen : [token, k], different experts
    start : [expert], device
    size : [level], devices per group of a level (nodes, devices); device d is in group ``d // size``
    weight : [level], cost of one group touched by one token
    hot, cold : temperature of the first and last step, in units of the cost
    """
    tokens, k = chosen.shape
    experts, levels = len(start), len(size)
    np.random.seed(seed)  # noqa: NPY002 - the compiled generator, a stream of its own per thread
    devices = start.max() + 1
    first = np.zeros(experts + 1, np.int64)
    for t in range(tokens):
        for s in range(k):
            first[chosen[t, s] + 1] += 1
    for e in range(experts):
        first[e + 1] += first[e]
    users, filled = np.empty(tokens * k, np.int64), first[:-1].copy()
    uses = np.zeros((tokens, experts), np.bool_)
    place = start.copy()
    held = np.zeros((levels, tokens, devices), np.int64)
    cost = 0.0
    for t in range(tokens):
        for s in range(k):
            e = chosen[t, s]
            uses[t, e] = True
            users[filled[e]] = t
            filled[e] += 1
            for v in range(levels):
                group = place[e] // size[v]
                if held[v, t, group] == 0:
                    cost += weight[v]
                held[v, t, group] += 1
    best, kept = cost, place.copy()
    cooling = (cold / hot) ** (1.0 / max(steps, 1))
    heat = hot
    for _ in range(steps):
        heat *= cooling
        i = np.random.randint(experts)  # noqa: NPY002
        j = np.random.randint(experts)  # noqa: NPY002
        p, q = place[i], place[j]
        if p == q:
            continue
        change = 0.0
        for turn in range(2):
            e, other, a, b = (i, j, p, q) if turn == 0 else (j, i, q, p)
            for at in range(first[e], first[e + 1]):
                t = users[at]
                if uses[t, other]:  # it keeps one expert in both groups
                    continue
                for v in range(levels):
                    left, entered = a // size[v], b // size[v]
                    if left != entered:
                        if held[v, t, left] == 1:
                            change -= weight[v]
                        if held[v, t, entered] == 0:
                            change += weight[v]
        if change > 0.0 and np.random.random() >= np.exp(-change / heat):  # noqa: NPY002
            continue
        for turn in range(2):
            e, a, b = (i, p, q) if turn == 0 else (j, q, p)
            for at in range(first[e], first[e + 1]):
                for v in range(levels):
                    held[v, users[at], a // size[v]] -= 1
                    held[v, users[at], b // size[v]] += 1
        place[i], place[j] = q, p
        cost += change
        if cost < best - 1e-9:
            best = cost
            kept[:] = place
    return best, kept
