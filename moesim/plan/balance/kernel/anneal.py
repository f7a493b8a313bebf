"""Annealing of one layer's placement: swaps of two slots and changes of one copy's expert, under a falling target.

A state is slot -> expert. Rows of loads come in two kinds: the first ``hard`` rows pay ``weight * excess**2`` above a
target, the others (spread of unseen traffic) pay ``weight * (load - 1)**2``. A state without excess becomes the
incumbent and the target falls below it, so the search is one of feasibility and never of a plateau of the maximum.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
State = npt.NDArray[np.uint64]


@njit(cache=True)
def _next(state: State) -> Any:
    """Advance xorshift64*: the same numbers under every numba and numpy."""
    x = state[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    state[0] = x
    return x * np.uint64(2685821657736338717)


@njit(cache=True)
def _below(state: State, n: int) -> Any:
    """Return a random integer below n."""
    return np.int64((_next(state) >> np.uint64(33)) % np.uint64(n))


@njit(cache=True)
def _unit(state: State) -> np.float64:
    return np.float64(_next(state) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@njit(cache=True)
def _pay(load: float, row: int, hard: int, target: float, weight: float) -> float:
    over = load - target if row < hard else load - 1.0
    if row < hard and over <= 0.0:
        return 0.0
    return weight * over * over


@njit(cache=True)
def _refresh(slot: IntArray, loads: FloatArray, count: IntArray, load: FloatArray, ranks: int) -> None:
    """Recount copies and rank loads [rank, row] from the slots."""
    rows = loads.shape[0]
    per = slot.shape[0] // ranks
    count[:] = 0
    for p in range(slot.shape[0]):
        count[slot[p]] += 1
    load[:] = 0.0
    for p in range(slot.shape[0]):
        for k in range(rows):
            load[p // per, k] += loads[k, slot[p]] / count[slot[p]]


@njit(cache=True)
def worth(load: FloatArray, hard: int, mix: FloatArray) -> float:
    """Return the objective of rank loads [rank, row]: the worst row's maximum, or the mix of maxima if mix[0] >= 0."""
    worst, total = 0.0, 0.0
    for k in range(hard):
        top = load[0, k]
        for r in range(1, load.shape[0]):
            top = max(top, load[r, k])
        worst = max(worst, top)
        total += mix[k] * top
    return total if mix[0] >= 0.0 else worst


@njit(cache=True)
def _paid(load: FloatArray, hard: int, target: FloatArray, weight: FloatArray) -> float:
    total = 0.0
    for r in range(load.shape[0]):
        for k in range(load.shape[1]):
            total += _pay(load[r, k], k, hard, target[k], weight[k])
    return total


@njit(cache=True)
def _worst_rank(load: FloatArray, hard: int, target: FloatArray) -> int:
    found, most = 0, -1e300
    for r in range(load.shape[0]):
        for k in range(hard):
            over = load[r, k] - target[k]
            if over > most:
                most, found = over, r
    return found


@njit(cache=True)
def _retarget(
    load: FloatArray,
    hard: int,
    mix: FloatArray,
    best: float,
    floor: FloatArray,
    fall: float,
    target: FloatArray,
) -> None:
    """Set the targets just below the incumbent, never below what is proven impossible."""
    if mix[0] >= 0.0:
        for k in range(hard):
            top = 0.0
            for r in range(load.shape[0]):
                top = max(top, load[r, k])
            target[k] = max(floor[k], top - fall * (top - floor[k]) - 1e-12)
    else:
        for k in range(hard):
            target[k] = max(floor[k], best - max(fall * (best - floor[k]), 1e-12))


@njit(cache=True)
def anneal(
    slot: IntArray,
    loads: FloatArray,
    hard: int,
    weight: FloatArray,
    mix: FloatArray,
    floor: FloatArray,
    ranks: int,
    steps: int,
    hot: float,
    cold: float,
    fall: float,
    recount: float,
    seed: int,
    limit: float,
    settle: int,
    held: npt.NDArray[np.uint8],
    toll: float,
) -> tuple[float, int]:
    """Improve ``slot`` [P] in place to the best state met; return its objective and the steps taken.

    Parameters
    ----------
    slot : int64 [P], expert of each slot, rank-major
    loads : float64 [rows, E], hard rows first; scaled so that a rank's mean load is 1
    hard : number of rows whose maximum counts
    weight : float64 [rows], price of squared excess
    mix : float64 [hard], weights of the rows' maxima; mix[0] < 0: the worst row counts
    floor : float64 [hard], proven lower bounds of the rows' maxima; the search ends where the objective meets them
    steps, hot, cold : moves tried; temperature at the first and last of them
    fall : share of the way to the floor that the target falls at every incumbent
    recount : share of moves that change a copy's expert
    limit : float, an objective that is good enough
    settle : 1: ``floor`` are fixed targets and the least total price is kept, whatever the objective; else 0
    held, toll : uint8 [rank, expert], experts that a rank holds already; price of every copy it must fetch
    """
    places = slot.shape[0]
    per = places // ranks
    rows, experts = loads.shape
    state = np.array([np.uint64(seed) * np.uint64(2654435769) + np.uint64(88172645463325252)])
    for _ in range(4):
        _next(state)
    count = np.zeros(experts, dtype=np.int64)
    load = np.zeros((ranks, rows))
    _refresh(slot, loads, count, load, ranks)
    best = worth(load, hard, mix)
    best_slot = slot.copy()
    target = np.empty(rows)
    target[hard:] = 1.0
    if settle:
        target[:hard] = floor
    else:
        _retarget(load, hard, mix, best, floor, fall, target)
    paid = _paid(load, hard, target, weight)
    best_paid = paid
    delta = np.zeros((ranks, rows))
    touched = np.zeros(ranks, dtype=np.int64)
    mark = np.zeros(ranks, dtype=np.int64)
    cooling = (cold / hot) ** (1.0 / max(steps - 1, 1))
    temperature = hot
    worst = _worst_rank(load, hard, target)
    done = 0
    for step in range(steps):
        done = step + 1
        temperature *= cooling
        if best <= limit:
            break
        draw = _unit(state)
        rank = worst if draw < 0.5 else _below(state, ranks)
        p = rank * per + _below(state, per)
        e = slot[p]
        n = 0
        if _unit(state) < recount:
            if count[e] < 2:
                continue
            f = _below(state, experts)
            if f == e:
                continue
            grow_e = 1.0 / (count[e] - 1) - 1.0 / count[e]
            drop_f = 1.0 / (count[f] + 1) - 1.0 / count[f]
            left = count[e] + count[f]
            for s in range(places):
                x = slot[s]
                if x not in (e, f):
                    continue
                r = s // per
                if mark[r] == 0:
                    mark[r] = 1
                    touched[n] = r
                    n += 1
                    for k in range(rows):
                        delta[r, k] = 0.0
                for k in range(rows):
                    if s == p:
                        delta[r, k] += loads[k, f] / (count[f] + 1) - loads[k, e] / count[e]
                    elif x == e:
                        delta[r, k] += loads[k, e] * grow_e
                    else:
                        delta[r, k] += loads[k, f] * drop_f
                left -= 1
                if left == 0:
                    break
            q = -1
        else:
            q = _below(state, places)
            f = slot[q]
            other = q // per
            if other == rank or f == e:
                continue
            touched[0], touched[1] = rank, other
            n = 2
            for k in range(rows):
                change = loads[k, f] / count[f] - loads[k, e] / count[e]
                delta[rank, k] = change
                delta[other, k] = -change
        price = 0.0
        for i in range(n):
            r = touched[i]
            mark[r] = 0
            for k in range(rows):
                now = load[r, k]
                price += _pay(now + delta[r, k], k, hard, target[k], weight[k])
                price -= _pay(now, k, hard, target[k], weight[k])
        if toll > 0.0:
            price += toll * (np.float64(held[rank, e]) - np.float64(held[rank, f]))
            if q >= 0:
                price += toll * (np.float64(held[q // per, f]) - np.float64(held[q // per, e]))
        if price > 0.0 and _unit(state) >= np.exp(-price / temperature):
            continue
        slot[p] = f
        if q >= 0:
            slot[q] = e
        else:
            count[e] -= 1
            count[f] += 1
        paid += price
        hit = False
        for i in range(n):
            r = touched[i]
            hit = hit or r == worst
            for k in range(rows):
                load[r, k] += delta[r, k]
        over = False
        for i in range(n):
            for k in range(hard):
                if load[touched[i], k] > target[k]:
                    over = True
        if hit or over:
            worst = _worst_rank(load, hard, target)
        if settle:
            if paid < best_paid - 1e-12:
                best_paid = paid
                best_slot[:] = slot
            continue
        met = True
        for k in range(hard):
            if load[worst, k] > target[k]:
                met = False
        if met or mix[0] >= 0.0:
            value = worth(load, hard, mix)
            if value < best - 1e-12:
                _refresh(slot, loads, count, load, ranks)
                best = worth(load, hard, mix)
                best_slot[:] = slot
                _retarget(load, hard, mix, best, floor, fall, target)
                worst = _worst_rank(load, hard, target)
    slot[:] = best_slot
    return best, done
