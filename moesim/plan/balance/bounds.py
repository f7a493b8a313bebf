"""Certified lower bounds of a layer's imbalance: the mean, the hottest expert with its company, and patterns of ranks.

Loads are relative (a rank's mean load is 1 in every row). Every bound here is checked by plain arithmetic on its
certificate; a solver only proposes it.
"""

from __future__ import annotations

import time
from typing import Any, Final

import highspy
import numpy as np

from moesim.plan.balance.kernel import best_pattern
from moesim.plan.balance.problem import FloatArray, IntArray
from moesim.plan.program import quiet_highs

__all__ = ["layer_bound", "pattern_bound", "row_bounds", "simple_bound"]

_NODES: Final = 3_000_000  # some 50 ms
_ROUNDS: Final = 60
_MARGIN: Final = 1e-7
_MOST_SLOTS: Final = 5  # patterns of more are too many to price, and there the mean is close
_FINEST: Final = 0.15  # pieces are told apart down to this part of a rank's mean load


def row_bounds(rows: FloatArray, ranks: int, slots: int) -> FloatArray:
    """Return for each row a bound of the busiest rank over the mean, [row]: mean 1, or the hottest with its company.

    With n spare copies no copy is below load / (n + 1), and copying the hottest first makes the largest copy smallest.
    The rank that holds that copy holds slots - 1 others.

    Parameters
    ----------
    rows : float64 [row, expert], relative loads
    """
    experts = rows.shape[1]
    spare = ranks * slots - experts
    found = np.ones(len(rows))
    for k, row in enumerate(rows):
        if spare == 0:
            cold = np.sort(row)
            # company of the hottest: the slots - 1 coldest of the others
            found[k] = max(1.0, cold[-1] + cold[: slots - 1].sum())
            continue
        count = np.ones(experts)
        for _ in range(spare):
            count[(row / count).argmax()] += 1
        found[k] = max(1.0, (row / count).max() + (slots - 1) * row.min() / (spare + 1))
    return found


def simple_bound(rows: FloatArray, ranks: int, slots: int, mix: FloatArray | None) -> float:
    """Return the bound of the objective that follows from each row alone; a few microseconds."""
    each = row_bounds(rows, ranks, slots)
    return float(each.max() if mix is None else mix @ each)


def _pieces(rows: FloatArray, spare: int) -> tuple[IntArray, IntArray, IntArray, FloatArray]:
    """Return owner, least and most copies, and load [row, piece] of every kind of piece.

    A piece is an expert's copy when the expert has that many. The last kind of each expert stands for all larger
    numbers of copies and has the load of the largest of them: a relaxation, so the bound stays true.
    """
    owner, least, most, load = [], [], [], []
    for expert in range(rows.shape[1]):
        finest = int(np.clip(np.ceil(rows[:, expert].max() / _FINEST), 1, spare + 1))
        for count in range(1, finest + 1):
            last = spare + 1 if count == finest else count
            owner.append(expert)
            least.append(count)
            most.append(last)
            load.append(rows[:, expert] / last)
    return np.array(owner), np.array(least), np.array(most), np.ascontiguousarray(np.array(load).T)


def _fewest_value(
    value: FloatArray, owner: IntArray, least: IntArray, most: IntArray, experts: int, places: int
) -> float:
    """Return the least total value of all copies over all choices of copy counts that fill the places; a knapsack."""
    spare = places - experts
    table = np.full(spare + 1, np.inf)
    table[0] = 0.0
    for expert in range(experts):
        cost = np.full(spare + 1, np.inf)
        for piece in np.flatnonzero(owner == expert):
            for count in range(least[piece], most[piece] + 1):
                cost[count - 1] = min(cost[count - 1], count * value[piece])
        after = np.full(spare + 1, np.inf)
        for extra in np.flatnonzero(np.isfinite(cost)):
            moved = table[: spare + 1 - extra] + cost[extra]
            after[extra:] = np.minimum(after[extra:], moved)
        table = after
    return float(table[spare])


class _Master:
    """Least total miss of a choice of patterns that supplies the copies of a choice of copy counts (an LP)."""

    def __init__(self, owner: IntArray, least: IntArray, most: IntArray, ranks: int) -> None:
        self.pieces = len(owner)
        experts = int(owner.max()) + 1
        self.lp: Any = quiet_highs()
        for name, option in (
            ("output_flag", False),
            ("log_to_console", False),
            ("threads", 1),
            ("presolve", "off"),
        ):
            self.lp.setOptionValue(name, option)
        inf = highspy.kHighsInf
        for low in [0.0] * self.pieces + [1.0] * experts:
            self.lp.addRow(low, low, 0, [], [])
        self.lp.addRow(-inf, float(ranks), 0, [], [])
        for piece in range(self.pieces):
            for sign in (1.0, -1.0):
                self.lp.addCol(1.0, 0.0, inf, 1, [piece], [sign])
            counts = {int(least[piece]), int(most[piece])}  # between them is their mix
            for count in counts:
                rows = [piece, self.pieces + int(owner[piece])]
                self.lp.addCol(0.0, 0.0, inf, 2, rows, [-float(count), 1.0])
        self.last = self.pieces + experts
        self.known: set[tuple[int, ...]] = set()

    def add(self, pattern: IntArray) -> bool:
        """Add a pattern unless it is known; say whether it was new."""
        key = tuple(sorted(pattern.tolist()))
        if key in self.known:
            return False
        self.known.add(key)
        piece, times = np.unique(pattern, return_counts=True)
        index = [*piece.tolist(), self.last]
        self.lp.addCol(0.0, 0.0, highspy.kHighsInf, len(index), index, [*times.astype(float).tolist(), 1.0])
        return True

    def solve(self) -> tuple[float, FloatArray]:
        """Return the least miss and the value of each piece."""
        self.lp.run()
        dual = np.array(self.lp.getSolution().row_dual, dtype=np.float64)
        return float(self.lp.getInfo().objective_function_value), dual[: self.pieces]


def _impossible(
    rows: FloatArray, ranks: int, slots: int, target: float, known: set[tuple[int, ...]], until: float
) -> bool:
    """Say whether no placement keeps every rank of every row at or below the target; False: not proven.

    Prices of pieces prove it: the copies of any choice of counts are worth more than ``ranks`` patterns below the
    target can be.
    """
    experts, places = rows.shape[1], ranks * slots
    owner, least, most, load = _pieces(rows, places - experts)
    master = _Master(owner, least, most, ranks)
    for old in known:
        chosen = np.array(old)
        if load[:, chosen].sum(axis=1).max() <= target:
            master.add(chosen)
    for _ in range(_ROUNDS):
        miss, value = master.solve()
        if miss < _MARGIN or time.perf_counter() > until:
            return False
        best, pattern, finished = best_pattern(
            value, np.argsort(-value), load, owner, most, slots, target, _NODES
        )
        if not finished:
            return False
        worth = _fewest_value(value, owner, least, most, experts, places)
        if worth - ranks * best.max() > _MARGIN * ranks:  # also where not one pattern fits
            return True
        fresh = sum(master.add(held) for held in pattern if held[0] >= 0)
        known |= master.known
        if not fresh:
            return False
    return False


def pattern_bound(
    rows: FloatArray, ranks: int, slots: int, low: float, high: float, gap: float, seconds: float
) -> float:
    """Return a bound of the worst row between ``low`` (proven) and ``high`` (an objective met), by bisection.

    The bound is that of the set-partition program whose columns are the patterns of one rank; its LP relaxation sees
    what fits together on a rank, which the mean does not. Fast where a rank has few slots.

    Parameters
    ----------
    gap : relative gap that is good enough
    seconds : stop after
    """
    until = time.perf_counter() + seconds
    known: set[tuple[int, ...]] = set()
    failed = high
    while failed - low > max(gap * high, 1e-6) * 0.25 and high - low > gap * high:
        if time.perf_counter() > until:
            break
        target = 0.5 * (low + failed)
        if _impossible(rows, ranks, slots, target, known, until):
            low = target
        else:
            failed = target
    return low


def layer_bound(
    rows: FloatArray,
    ranks: int,
    slots: int,
    mix: FloatArray | None,
    objective: float,
    gap: float,
    seconds: float,
) -> float:
    """Return the best bound of one layer found within ``seconds``: simple first, patterns where they may help."""
    low = simple_bound(rows, ranks, slots, mix)
    if mix is not None or low >= objective * (1 - gap) or not 2 <= slots <= _MOST_SLOTS:
        return min(low, objective)
    return min(pattern_bound(rows, ranks, slots, low, objective, gap, seconds), objective)
