"""Annealing: swaps of two experts of a layer between devices, under a falling temperature."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@njit(cache=True)
def anneal(
    counts: FloatArray,
    saved: FloatArray,
    load: FloatArray,
    price: float,
    start: IntArray,
    steps: int,
    hot: float,
    cold: float,
    seed: int,
) -> tuple[float, IntArray]:
    """Return the best value met and its placement: weight saved minus ``price`` times the layers' largest loads.

    Parameters
    ----------
    counts : [layer - 1, expert, expert]
    saved : [device, device], what a transition between two devices saves
    load : [layer, expert], not read when ``price`` is 0
    start : [layer, expert], left as it is
    hot, cold : temperature of the first and last step, in units of the value
    """
    boundaries, experts = counts.shape[0], counts.shape[1]
    layers, devices = boundaries + 1, saved.shape[0]
    np.random.seed(seed)  # noqa: NPY002 - the compiled generator, a stream of its own per thread
    place = start.copy()
    gain = np.zeros((layers, experts, devices))
    value = 0.0
    for b in range(boundaries):
        for i in range(experts):
            for j in range(experts):
                c = counts[b, i, j]
                if c == 0.0:
                    continue
                p, q = place[b, i], place[b + 1, j]
                value += c * saved[p, q]
                for g in range(devices):
                    gain[b, i, g] += c * saved[g, q]
                    gain[b + 1, j, g] += c * saved[p, g]
    on = np.zeros((layers, devices))
    worst = np.zeros(layers)
    if price > 0.0:
        for r in range(layers):
            for i in range(experts):
                on[r, place[r, i]] += load[r, i]
            worst[r] = on[r].max()
            value -= price * worst[r]
    best, kept = value, place.copy()
    cooling = (cold / hot) ** (1.0 / max(steps, 1))
    heat = hot
    for _ in range(steps):
        heat *= cooling
        r = np.random.randint(layers)  # noqa: NPY002
        i = np.random.randint(experts)  # noqa: NPY002
        k = np.random.randint(experts)  # noqa: NPY002
        p, q = place[r, i], place[r, k]
        if p == q:
            continue
        change = gain[r, i, q] - gain[r, i, p] + gain[r, k, p] - gain[r, k, q]
        peak = 0.0
        if price > 0.0:
            shift = load[r, i] - load[r, k]
            for g in range(devices):
                carried = on[r, g]
                if g == p:
                    carried -= shift
                elif g == q:
                    carried += shift
                peak = max(peak, carried)
            change -= price * (peak - worst[r])
        if change < 0.0 and np.random.random() >= np.exp(change / heat):  # noqa: NPY002
            continue
        place[r, i], place[r, k] = q, p
        value += change
        if price > 0.0:
            on[r, p] -= shift
            on[r, q] += shift
            worst[r] = peak
        if r < boundaries:
            for j in range(experts):
                c = counts[r, i, j] - counts[r, k, j]
                if c != 0.0:
                    for g in range(devices):
                        gain[r + 1, j, g] += c * (saved[q, g] - saved[p, g])
        if r > 0:
            for j in range(experts):
                c = counts[r - 1, j, i] - counts[r - 1, j, k]
                if c != 0.0:
                    for g in range(devices):
                        gain[r - 1, j, g] += c * (saved[g, q] - saved[g, p])
        if value > best + 1e-12 * abs(best):
            best = value
            kept[:] = place
    return best, kept


@njit(cache=True)
def anneal_layer(
    alike: FloatArray, saved: FloatArray, start: IntArray, steps: int, hot: float, cold: float, seed: int
) -> IntArray:
    """Return a placement of one layer that puts experts together that are alike, [expert].

    Parameters
    ----------
    alike : symmetric [expert, expert], its diagonal is not read
    saved : symmetric [device, device], worth of two experts' devices per unit of likeness
    """
    experts, devices = alike.shape[0], saved.shape[0]
    np.random.seed(seed)  # noqa: NPY002
    place = start.copy()
    gain = np.zeros((experts, devices))
    for i in range(experts):
        for j in range(experts):
            if i != j:
                for g in range(devices):
                    gain[i, g] += alike[i, j] * saved[g, place[j]]
    cooling = (cold / hot) ** (1.0 / max(steps, 1))
    heat = hot
    for _ in range(steps):
        heat *= cooling
        i = np.random.randint(experts)  # noqa: NPY002
        k = np.random.randint(experts)  # noqa: NPY002
        p, q = place[i], place[k]
        if p == q:
            continue
        # the two count each other's old place in their gains
        change = gain[i, q] - gain[i, p] + gain[k, p] - gain[k, q]
        change -= alike[i, k] * (saved[q, q] + saved[p, p] - 2.0 * saved[p, q])
        if change < 0.0 and np.random.random() >= np.exp(change / heat):  # noqa: NPY002
            continue
        place[i], place[k] = q, p
        for j in range(experts):
            for g in range(devices):
                move = saved[g, q] - saved[g, p]
                if j != i:
                    gain[j, g] += alike[j, i] * move
                if j != k:
                    gain[j, g] -= alike[j, k] * move
    return place
