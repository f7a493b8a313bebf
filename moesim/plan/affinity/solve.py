"""Solve: exact where groupings are few; otherwise relax, follow the relaxation, anneal, splice, and certify."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment, linprog
from scipy.sparse import eye_array, kron, vstack

from moesim.plan.affinity.baselines import alternating, bipartition, contiguous
from moesim.plan.affinity.chain import splice
from moesim.plan.affinity.exact import can_be_exact, solve_exact
from moesim.plan.affinity.kernel import anneal
from moesim.plan.affinity.onethread import one_blas_thread
from moesim.plan.affinity.problem import Affinity, FloatArray, IntArray, check_placement, hop_cost, hops
from moesim.plan.affinity.relaxation import Relaxed, relax
from moesim.plan.affinity.rounding import follow
from moesim.plan.solution import Limits, Point, Solution

__all__ = ["matching_bound", "solve_affinity"]

_ITERATIONS = 300
_RELAX_WORK = 4e10
"""Boundaries * (2 E)**3 * iterations that a relaxation may take: under a minute."""
_LEAST_ITERATIONS = 60
_STEPS = 300
"""Annealing steps per expert and layer."""
_ALL_STEPS = 30_000_000
_HEATS = (0.06, 0.1, 0.03)
"""First temperatures of the rounds, in units of the mean weight of an expert's transitions."""
_COLD = 0.004
_HOT = 0.2
_FRESH = 12


def matching_bound(counts: FloatArray, groups: int) -> float:
    """Return how many transitions groups can keep together at most, by the linear program RLT-1.

    Device names make the program symmetric, so its optimum is that of one matching per boundary in which every expert
    has ``E / G`` partners on either side: no program over names needs to be solved. Exact for one expert per device.

    Parameters
    ----------
    counts : float64 [layer - 1, expert, expert]
    """
    experts = counts.shape[1]
    one = np.ones((1, experts))
    rows = vstack([kron(eye_array(experts), one), kron(one, eye_array(experts))]).tocsr()
    share = np.full(2 * experts, experts // groups)
    found = [linprog(-c.ravel(), A_eq=rows, b_eq=share, bounds=(0, 1), method="highs") for c in counts]
    return float(sum(-f.fun for f in found))


@dataclass(slots=True)
class _Search:
    """Incumbent, bound and progress of one run."""

    problem: Affinity
    limits: Limits
    on_progress: Callable[[Point], None] | None
    began: float = field(default_factory=time.perf_counter)
    answer: IntArray | None = None
    objective: float = np.inf
    bound: float = 0.0
    history: list[Point] = field(default_factory=list)

    def offer(self, placement: IntArray) -> None:
        """Keep a placement if it is the best so far."""
        cost = hops(self.problem, placement).weighted
        if cost < self.objective:
            self.answer, self.objective = placement, cost
            self._note()

    def certify(self, bound: float) -> None:
        """Keep a bound if it is the best so far."""
        if bound > self.bound:
            self.bound = bound
            self._note()

    def _note(self) -> None:
        self.history.append(
            Point(time.perf_counter() - self.began, self.objective, min(self.bound, self.objective))
        )
        if self.on_progress is not None:
            self.on_progress(self.history[-1])

    @property
    def left(self) -> float:
        return self.limits.seconds - (time.perf_counter() - self.began)

    @property
    def goes_on(self) -> bool:
        """Say whether time is left and the gap is still too wide."""
        return self.left > 0 and self.objective - self.bound > self.limits.gap * self.objective


@one_blas_thread()
def solve_affinity(
    problem: Affinity,
    limits: Limits | None = None,
    *,
    starts: Sequence[npt.ArrayLike] = (),
    on_progress: Callable[[Point], None] | None = None,
    rounds: int | None = None,
) -> Solution[IntArray]:
    """Minimise the weighted hops between layers.

    Few groupings of a layer: dynamic programming, proven. Otherwise one relaxation per level of the topology (nodes,
    devices) gives the bound and the start: placements that follow it from every layer are annealed, and the best of
    all their layers are joined exactly (``splice``); never worse than the starts given.

    The same problem, limits and starts give the same answer unless the time limit bites. An interrupt keeps the
    incumbent.

    Parameters
    ----------
    limits : time limit, gap that is good enough, seed; none: 60 s
    starts : placements to be at least as good as
    rounds : of annealing and splicing; none: 3 for large problems, up to 15 for small ones

    Raises
    ------
    SpecError : a start is no placement of this problem
    """
    limits = limits or Limits()
    search = _Search(problem, limits, on_progress)
    for start in starts:
        search.offer(check_placement(problem, start))
    if not problem.topology.levels:
        search.offer(contiguous(problem))
        return _solution(search, "hops are free")
    if can_be_exact(problem):
        found = solve_exact(problem)
        search.offer(found.answer)
        search.certify(found.objective)
        return _solution(search, found.method)
    method = "relaxation, annealing, splicing"
    try:
        search.offer(contiguous(problem))
        search.offer(alternating(problem, limits.seed))
        relaxed = _relax(search)
        _improve(search, relaxed, rounds)
    except KeyboardInterrupt:
        method += ", interrupted"
    return _solution(search, method)


def _solution(search: _Search, method: str) -> Solution[IntArray]:
    assert search.answer is not None
    bound = min(search.bound, search.objective)
    proven = search.objective - bound <= 1e-9 * max(1.0, search.objective)
    return Solution(
        search.answer,
        search.objective,
        bound,
        method,
        "optimal" if proven else "feasible",
        time.perf_counter() - search.began,
        tuple(search.history),
    )


def _relax(search: _Search) -> list[Relaxed]:
    """Relax every level of the topology; their bounds add up. Half the time at most."""
    problem = search.problem
    levels = problem.topology.levels
    work = len(problem.counts) * (2 * problem.experts) ** 3
    iterations = min(_ITERATIONS, int(_RELAX_WORK / work / len(levels)))
    total = 0.0
    found: list[Relaxed] = []
    for at, (groups, weight) in enumerate(levels):
        until = search.limits.seconds * (at + 1) / len(levels) * 0.5

        def goes_on(_: float, until: float = until) -> bool:
            return time.perf_counter() - search.began < until

        if groups == problem.experts:
            found.append(_matched(problem.counts))
            kept = found[-1].bound
        elif iterations >= _LEAST_ITERATIONS:
            found.append(relax(problem.counts, groups, iterations, goes_on=goes_on))
            kept = found[-1].bound
        else:
            kept = matching_bound(problem.counts, groups)
        total += weight * (problem.total - kept)
    search.certify(total)
    return found if len(found) == len(levels) else []


def _matched(counts: FloatArray) -> Relaxed:
    """Return the relaxation of groups of one expert: the matching of every boundary by itself, which is exact."""
    across = np.zeros(counts.shape)
    for table, count in zip(across, counts, strict=True):
        table[linear_sum_assignment(count, maximize=True)] = 1.0
    within = np.tile(np.eye(counts.shape[1]), (len(counts) + 1, 1, 1))
    return Relaxed(float((across * counts).sum()), across, within, 0)


def _improve(search: _Search, relaxed: list[Relaxed], rounds: int | None) -> None:
    problem, seed = search.problem, search.limits.seed
    saved = problem.topology.node_hop - hop_cost(problem.topology)
    saved -= saved.min()
    unit = problem.total * saved.max() / (len(problem.counts) * problem.experts)
    load = np.zeros((problem.layers, problem.experts))
    steps = _STEPS * load.size

    def annealed(start: IntArray, steps: int, heat: float, number: int) -> IntArray:
        return anneal(
            problem.counts, saved, load, 0.0, start, steps, heat * unit, _COLD * unit, seed + number
        )[1]

    flat = contiguous(problem)
    if relaxed:
        levels, devices = problem.topology.levels, problem.topology.devices
        across, within = [r.across for r in relaxed], [r.within for r in relaxed]
        pool = [follow(across, within, levels, devices, layer, seed) for layer in range(problem.layers)]
        heats: tuple[float, ...] = _HEATS
    else:
        pool = [annealed(flat, 3 * steps, _HOT, 1000 + n) for n in range(_FRESH)]
        pool.append(bipartition(problem, seed))
        heats = _HEATS[:1] + (_HOT,) * len(_HEATS)
    for number in range(rounds or min(15, max(3, _ALL_STEPS // (steps * len(pool))))):
        if not search.goes_on:
            return
        heat = heats[number % len(heats)]
        better: list[IntArray] = []
        if relaxed and number % 3 == 1:  # other valleys, where the relaxation is undecided
            better += [annealed(flat, 2 * steps, _HOT, number * 100_003 + 1000 + n) for n in range(_FRESH)]
        for n, start in enumerate(pool):
            better.append(annealed(start, steps, heat, number * 100_003 + n))
            search.offer(better[-1])
            if search.left < 0:
                break
        assert search.answer is not None
        search.offer(splice(problem, [*better, search.answer]))
        search.offer(annealed(search.answer, 3 * steps, _HEATS[0], number * 100_003 + 50_000))
        search.offer(splice(problem, [*better, search.answer]))
