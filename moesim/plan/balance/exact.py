"""Exact balance of a small layer: which patterns of ranks supply all copies below a target, solved by HiGHS."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import Any, Final

import numpy as np
import pulp

from moesim.plan.balance.problem import Balance, FloatArray, IntArray
from moesim.plan.program import solve
from moesim.plan.solution import Limits

__all__ = ["Patterns", "exact_layer", "is_small", "one_count", "patterns", "rank_count", "supply"]

_MOST_PATTERNS: Final = 200_000


class Patterns:
    """Patterns of one rank: multisets of pieces (expert, its number of copies), and the variables that choose them.

    Attributes
    ----------
    piece : (expert, copies) of each piece kind
    table : int64 [pattern, slots], pieces
    worth : float64 [pattern, row], load of a rank with that pattern
    """

    def __init__(self, piece: list[tuple[int, int]], table: IntArray, worth: FloatArray) -> None:
        self.piece, self.table, self.worth = piece, table, worth
        self.use = [pulp.LpVariable(f"use_{i}", 0, cat=pulp.LpInteger) for i in range(len(table))]
        self.copies = {p: pulp.LpVariable(f"copies_{p[0]}_{p[1]}", cat=pulp.LpBinary) for p in piece}


def is_small(problem: Balance) -> bool:
    """Say whether all patterns of a rank can be listed."""
    kinds = problem.experts * (problem.redundant + 1)
    count = 1.0
    for slot in range(problem.slots):
        count *= (kinds + slot) / (slot + 1)
    return count <= _MOST_PATTERNS


def patterns(rows: FloatArray, slots: int, spare: int, target: float) -> Patterns:
    """List the patterns whose load is at or below the target in every row [row, expert]."""
    experts = rows.shape[1]
    piece = [(e, c) for e in range(experts) for c in range(1, spare + 2)]
    load = np.array([rows[:, e] / c for e, c in piece])
    owner = np.array([e for e, _ in piece])
    most = np.array([c for _, c in piece])
    light = np.flatnonzero(load.max(axis=1) <= target)
    table = np.array(list(combinations_with_replacement(light.tolist(), slots)), dtype=np.int64)
    table = table.reshape(-1, slots)
    kept = load[table].sum(axis=1).max(axis=1) <= target if len(table) else np.zeros(0, dtype=bool)
    table = table[kept]
    for i in range(slots):  # one kind per expert, and no more copies than it has
        for j in range(i):
            same = table[:, i] == table[:, j]
            table = table[same | (owner[table[:, i]] != owner[table[:, j]])]
        repeats = (table == table[:, i : i + 1]).sum(axis=1)
        table = table[repeats <= most[table[:, i]]]
    return Patterns(piece, table, load[table].sum(axis=1))


def supply(program: pulp.LpProblem, choice: Patterns) -> None:
    """Chosen patterns hold as many copies of each expert as it has."""
    held: list[list[Any]] = [[] for _ in choice.piece]
    for pattern, use in zip(choice.table, choice.use, strict=True):
        for kind, times in zip(*np.unique(pattern, return_counts=True), strict=True):
            held[kind].append(int(times) * use)
    for (expert, count), terms in zip(choice.piece, held, strict=True):
        have = count * choice.copies[expert, count]
        program.addConstraint(pulp.lpSum(terms) == have, f"supply_{expert}_{count}")


def one_count(program: pulp.LpProblem, choice: Patterns) -> None:
    """Every expert has one number of copies."""
    for expert in sorted({e for e, _ in choice.piece}):
        counts = [v for (e, _), v in choice.copies.items() if e == expert]
        program.addConstraint(pulp.lpSum(counts) == 1, f"one_count_{expert}")


def rank_count(program: pulp.LpProblem, choice: Patterns, ranks: int) -> None:
    """Every rank has one pattern."""
    program.addConstraint(pulp.lpSum(choice.use) == ranks, "rank_count")


def _feasible(choice: Patterns, ranks: int, limits: Limits) -> tuple[bool | None, IntArray | None]:
    """Say whether patterns fill the ranks: yes with a placement, no, or unknown (None) at the time limit."""
    program = pulp.LpProblem("patterns", pulp.LpMinimize)
    program.setObjective(pulp.lpSum([]))
    supply(program, choice)
    one_count(program, choice)
    rank_count(program, choice, ranks)
    outcome = solve(program, limits, elastic=lambda _: False)
    if outcome.sol_status == "infeasible":
        return False, None
    if not outcome.values:
        return None, None
    chosen: list[Sequence[int]] = []
    for pattern, use in zip(choice.table, choice.use, strict=True):
        chosen += [[choice.piece[p][0] for p in pattern]] * round(outcome.values[use.name])
    return True, np.array(chosen, dtype=np.int64).ravel()


def exact_layer(
    rows: FloatArray,
    ranks: int,
    slots: int,
    mix: FloatArray | None,
    slot: IntArray,
    bound: float,
    limits: Limits,
) -> tuple[IntArray, float, float]:
    """Return the placement, objective and bound of one layer after closing the gap by search over targets.

    The optimum is the load of some pattern: the patterns' loads between bound and objective are searched by halving,
    each time asking whether ranks can be filled at or below one of them. Only for the worst of the rows; a mix is
    returned as it came.
    """
    share = rows / np.bincount(slot, minlength=rows.shape[1])
    tops = share[:, slot].reshape(len(rows), ranks, -1).sum(axis=2).max(axis=1)
    objective = float(tops.max() if mix is None else mix @ tops)
    if mix is not None:
        return slot, objective, bound
    spare = ranks * slots - rows.shape[1]
    everything = patterns(rows, slots, spare, objective * (1 + 1e-12))
    loads = np.unique(everything.worth.max(axis=1))
    loads = loads[(loads >= bound * (1 - 1e-12)) & (loads < objective * (1 - 1e-12))]
    best = slot
    low, high = 0, len(loads)  # below low: impossible; at high: met (by the incumbent at the end)
    while low < high:
        middle = (low + high) // 2
        choice = patterns(rows, slots, spare, float(loads[middle]) * (1 + 1e-12))
        met, placed = _feasible(choice, ranks, limits)
        if met is None:
            break
        if met and placed is not None:
            best, high = placed, middle
            share = rows / np.bincount(best, minlength=rows.shape[1])
            objective = float(share[:, best].reshape(len(rows), ranks, -1).sum(axis=2).max())
        else:
            low = middle + 1
    reached = float(loads[low]) if low < len(loads) else objective
    return best, objective, min(max(bound, reached), objective)
