"""Exact: dynamic programming over every balanced grouping of a layer, where there are few enough."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from itertools import combinations

import numpy as np

from moesim.errors import SpecError
from moesim.plan.affinity.chain import Nesting, nesting, viterbi
from moesim.plan.affinity.problem import Affinity, IntArray, hops
from moesim.plan.solution import Point, Solution

__all__ = ["can_be_exact", "grouping_count", "groupings", "solve_exact"]

_MOST_WORK = 1.5e9
"""Entries of all tables of transitions together: some ten seconds."""


def grouping_count(experts: int, nested: Nesting) -> int:
    """Return how many balanced groupings of a layer there are, devices of a node and nodes unnamed.

    ``E! / (share!^devices inner!^outer outer!)``: 105 for 8 experts on 4 devices.
    """
    devices = nested.outer * nested.inner
    named = math.factorial(experts) // int(math.factorial(experts // devices) ** devices)
    return named // (int(math.factorial(nested.inner) ** nested.outer) * math.factorial(nested.outer))


def can_be_exact(problem: Affinity) -> bool:
    """Say whether ``solve_exact`` ends within seconds."""
    nested = nesting(problem.topology)
    if problem.experts > 24:
        return problem.share == 1 and nested.outer == 1
    states = grouping_count(problem.experts, nested)
    return states**2 * problem.topology.devices**2 * len(problem.counts) <= _MOST_WORK


def _split(items: tuple[int, ...], groups: int) -> Iterator[list[tuple[int, ...]]]:
    """Yield every way to split items into unnamed groups of equal size."""
    if groups == 1:
        yield [items]
        return
    size = len(items) // groups
    first = items[0]
    for others in combinations(items[1:], size - 1):
        taken = {first, *others}
        rest = tuple(item for item in items if item not in taken)
        for tail in _split(rest, groups - 1):
            yield [(first, *others), *tail]


def groupings(experts: int, nested: Nesting) -> IntArray:
    """Return every balanced grouping of a layer as device of each expert, [grouping, expert]."""
    found = []

    def inside(nodes: list[tuple[int, ...]], at: int, row: list[int]) -> None:
        if at == len(nodes):
            found.append(row.copy())
            return
        for devices in _split(nodes[at], nested.inner):
            for d, members in enumerate(devices):
                for expert in members:
                    row[expert] = at * nested.inner + d
            inside(nodes, at + 1, row)

    for nodes in _split(tuple(range(experts)), nested.outer):
        inside(nodes, 0, [0] * experts)
    return np.array(found, dtype=np.int64)


def solve_exact(problem: Affinity) -> Solution[IntArray]:
    """Return an optimal placement, proven.

    With one expert per device all layers have one grouping and the chain of linear assignments remains, which is
    MoETuner's second program (arXiv:2502.06643 section 4.2) for equal clusters and uniform bandwidth.

    Raises
    ------
    SpecError : too many groupings, see ``can_be_exact``
    """
    began = time.perf_counter()
    if not can_be_exact(problem):
        raise SpecError(
            f"affinity: {problem.experts} experts on {problem.topology.devices} devices have too many groupings "
            "for an exact answer"
        )
    nested = nesting(problem.topology)
    states = groupings(problem.experts, nested)
    _, placement = viterbi(problem.counts, [states] * problem.layers, nested)
    cost = hops(problem, placement).weighted
    method = (
        "linear assignment chain" if len(states) == 1 else f"dynamic program over {len(states)} groupings"
    )
    seconds = time.perf_counter() - began
    return Solution(placement, cost, cost, method, "optimal", seconds, (Point(seconds, cost, cost),))
