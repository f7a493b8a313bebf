"""Migration: what moving from the present placement costs, when it pays, and the best plan within so many moves."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from moesim.errors import SpecError
from moesim.plan.balance.problem import Balance, FloatArray, IntArray, check_placement, worth
from moesim.plan.balance.search import search, tops
from moesim.plan.balance.solve import Effort, balance
from moesim.plan.solution import Limits, Point, Solution

__all__ = ["MoveCost", "align", "fetched", "move_cost", "rebalance"]

_SHARES: Final = (0.0, 0.05, 0.15, 0.3, 0.5, 0.7, 0.85)
_TOLLS: Final = (1e-5, 1e-4)


def _holds(placement: IntArray, ranks: int, experts: int) -> npt.NDArray[np.bool_]:
    """Return which experts each rank holds, [layer, rank, expert]."""
    layers, places = placement.shape
    held = np.zeros((layers, ranks, experts), dtype=bool)
    rank = np.repeat(np.arange(ranks), places // ranks)
    held[np.arange(layers)[:, None], rank, placement] = True
    return held


def fetched(before: npt.ArrayLike, after: npt.ArrayLike, ranks: int, experts: int) -> IntArray:
    """Return how many experts each rank must fetch, int [layer, rank]: those it holds after and did not before.

    >>> fetched([[0, 1, 2, 3]], [[1, 0, 2, 1]], 2, 4).tolist()
    [[0, 1]]
    """
    old = _holds(np.asarray(before, dtype=np.int64), ranks, experts)
    new = _holds(np.asarray(after, dtype=np.int64), ranks, experts)
    return np.asarray((new & ~old).sum(axis=2))


def align(before: npt.ArrayLike, after: npt.ArrayLike, ranks: int, experts: int) -> IntArray:
    """Return ``after`` with its ranks renumbered so that least is fetched, and what stays kept in its slot.

    Ranks are taken as alike: loads are the same, only which rank carries them changes. Exact, one linear assignment
    per layer.

    >>> align([[0, 1, 2, 3]], [[3, 2, 1, 0]], 2, 4).tolist()
    [[0, 1, 2, 3]]
    """
    old, new = np.asarray(before, dtype=np.int64), np.asarray(after, dtype=np.int64)
    slots = old.shape[1] // ranks
    common = _holds(old, ranks, experts).astype(np.int64) @ _holds(new, ranks, experts).astype(
        np.int64
    ).transpose(0, 2, 1)
    answer = np.empty_like(new)
    for layer in range(len(new)):
        _, source = linear_sum_assignment(-common[layer])
        sets = new[layer].reshape(ranks, slots)[source]
        answer[layer] = np.concatenate(
            [_in_place(was, now) for was, now in zip(old[layer].reshape(ranks, slots), sets, strict=True)]
        )
    return answer


def _in_place(was: IntArray, now: IntArray) -> IntArray:
    """Order one rank's experts so that each that stays keeps its slot; the others fill the holes in their order."""
    left = now.tolist()
    row = np.full(len(was), -1, dtype=np.int64)
    for slot, expert in enumerate(was.tolist()):
        if expert in left:
            row[slot] = expert
            left.remove(expert)
    row[row < 0] = left
    return row


@dataclass(frozen=True, slots=True)
class MoveCost:
    """What a change of placement costs and brings.

    Attributes
    ----------
    moved_bytes : expert weights that ranks fetch from others, all layers
    busiest_bytes : the most that one rank fetches
    move_s : seconds of that rank's fetches at the link's rate, the least the move takes
    saved : share of the balanced work's time that the new placement saves, negative where it is slower
    break_even_s : seconds of balanced work after which the move has paid for itself, inf where it never does
    """

    moved_bytes: float
    busiest_bytes: float
    move_s: float
    saved: float
    break_even_s: float


def move_cost(
    problem: Balance,
    before: npt.ArrayLike,
    after: npt.ArrayLike,
    expert_bytes: float,
    link_rate: float,
) -> MoveCost:
    """Return cost and break-even of moving from ``before`` to ``after`` (int [layer, slot]) under the problem's loads.

    The work waits for the busiest rank in every layer, so its time goes with the objective; the move is counted as a
    pause of ``move_s``. Transfers that hide behind work pay earlier.

    Parameters
    ----------
    expert_bytes : weights of one expert in one layer
    link_rate : bytes per second that a rank receives
    """
    old, new = check_placement(problem, before), check_placement(problem, after)
    fetch = fetched(old, new, problem.ranks, problem.experts)
    if expert_bytes < 0 or link_rate <= 0:
        raise SpecError(f"expert of {expert_bytes:g} B over {link_rate:g} B/s: expected positive values")
    busiest = float(fetch.sum(axis=0).max()) * expert_bytes
    was, now = float(worth(problem, old).mean()), float(worth(problem, new).mean())
    move_s, saved = busiest / link_rate, 1.0 - now / was
    # after t seconds of work under the new plan, the old one would have taken t * was / now
    gain = was / now - 1.0
    pays = move_s / gain if gain > 0 else (0.0 if gain == 0 and move_s == 0 else math.inf)
    return MoveCost(float(fetch.sum()) * expert_bytes, busiest, move_s, saved, pays)


def _options(
    rows: FloatArray, present: IntArray, full: IntArray, bound: float, problem: Balance, steps: int, seed: int
) -> list[tuple[int, float, IntArray]]:
    """Return placements of one layer as (fetched, objective, placement), cheapest first, each better than the last."""
    ranks, mix = problem.ranks, problem.mix
    now = tops(rows, present, ranks)
    value = float(now.max() if mix is None else mix @ now)
    held = _holds(present[None], ranks, problem.experts)[0].astype(np.uint8)
    found = [present, full]
    price = np.ones(len(rows)) if mix is None else mix
    for number, share in enumerate(_SHARES):
        aim = bound + share * (value - bound)
        target = np.full(len(rows), aim) if mix is None else now * (aim / value)
        for toll in _TOLLS:
            slot = present.copy()
            search(
                slot,
                rows,
                len(rows),
                price,
                mix,
                target,
                ranks,
                steps,
                seed + number,
                settle=True,
                held=held,
                toll=toll,
            )
            found.append(slot)
    found += _descent(rows, present, problem)
    each = []
    for slot in found:
        top = tops(rows, slot, ranks)
        count = int(fetched(present[None], slot[None], ranks, problem.experts).sum())
        each.append((count, float(top.max() if mix is None else mix @ top), slot))
    kept: list[tuple[int, float, IntArray]] = []
    for option in sorted(each, key=lambda o: o[:2]):
        if not kept or option[1] < kept[-1][1] - 1e-12:
            kept.append(option)
    return kept


def _descent(rows: FloatArray, present: IntArray, problem: Balance) -> list[IntArray]:
    """Return the placements along a steepest descent by swaps: the good ones of very few moves."""
    ranks, slots = problem.ranks, problem.slots
    slot, path = present.copy(), []
    share = rows / np.bincount(present, minlength=rows.shape[1])
    rank = np.repeat(np.arange(ranks), slots)
    for _ in range(len(slot) // 2):
        load = share[:, slot].reshape(len(rows), ranks, slots).sum(axis=2)
        excess = load.max(axis=0)
        worst = int(excess.argmax())
        mine, others = np.flatnonzero(rank == worst), np.flatnonzero(rank != worst)
        change = share[:, slot[others]][:, None, :] - share[:, slot[mine]][:, :, None]
        after = np.maximum(
            (load[:, worst, None, None] + change).max(axis=0),
            (load[:, rank[others]][:, None, :] - change).max(axis=0),
        )
        best = int(after.argmin())
        if after.flat[best] >= excess[worst] - 1e-12:
            break
        p, q = mine[best // len(others)], others[best % len(others)]
        slot[p], slot[q] = slot[q], slot[p]
        path.append(slot.copy())
    return path


def rebalance(
    problem: Balance,
    present: npt.ArrayLike,
    most_moves: int,
    limits: Limits | None = None,
    *,
    spread: FloatArray | None = None,
    effort: Effort | None = None,
) -> Solution[IntArray]:
    """Return the best placement found that fetches at most ``most_moves`` experts, over all ranks and layers.

    Every layer offers placements between the present one and the best without a limit (aligned to the present); how
    the moves are shared among the layers is solved exactly. The bound is that of the problem without the limit.

    Parameters
    ----------
    present : int [layer, slot]
    most_moves : at least 0; bytes allowed over bytes of one expert

    Raises
    ------
    SpecError : a present placement that does not fit, a negative number of moves
    """
    began = time.perf_counter()
    limits, effort = limits or Limits(), effort or Effort()
    old = check_placement(problem, present)
    if most_moves < 0:
        raise SpecError(f"moves {most_moves}: expected none or more")
    free = balance(problem, limits, start=old, spread=spread, effort=effort)
    full = align(old, free.answer, problem.ranks, problem.experts)
    if int(fetched(old, full, problem.ranks, problem.experts).sum()) <= most_moves:
        answer = full
    else:
        answer = _within(problem, old, full, most_moves, limits, effort)
    total = float(worth(problem, answer).mean())
    bound = min(free.bound, total)
    seconds = time.perf_counter() - began
    proven = total - bound <= 1e-9 * total
    return Solution(
        answer,
        total,
        bound,
        f"{free.method}; at most {most_moves} moves, shared among layers by a knapsack",
        "optimal" if proven else "feasible",
        seconds,
        (*free.history, Point(seconds, total, bound)),
    )


def _within(
    problem: Balance, old: IntArray, full: IntArray, most_moves: int, limits: Limits, effort: Effort
) -> IntArray:
    relative = problem.relative()
    best = np.zeros(most_moves + 1)  # least sum of objectives over the layers so far, by moves allowed
    taken = np.zeros((problem.layers, most_moves + 1), dtype=np.int64)
    offers: list[list[tuple[int, float, IntArray]]] = []
    steps = max(effort.steps // 8, 1)
    for layer in range(problem.layers):
        rows = np.ascontiguousarray(relative[:, layer])
        bound = 1.0 if problem.mix is None else float(problem.mix.sum())
        options = _options(rows, old[layer], full[layer], bound, problem, steps, limits.seed + 16 * layer)
        offers.append(options)
        after = np.full(most_moves + 1, np.inf)
        for number, (count, value, _) in enumerate(options):
            if count > most_moves:
                break
            offer = best[: most_moves + 1 - count] + value
            better = offer < after[count:] - 1e-15
            after[count:][better] = offer[better]
            taken[layer, count:][better] = number
        best = after
    answer = old.copy()
    left = int(best.argmin())
    for layer in range(problem.layers - 1, -1, -1):
        count, _, slot = offers[layer][taken[layer, left]]
        answer[layer] = slot
        left -= count
    return answer
