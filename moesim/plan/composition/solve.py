"""Solve: the fewest bins, from a bound upwards; each number is either packed or proven too few."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from moesim.errors import NoResult
from moesim.plan.composition.heuristic import pack
from moesim.plan.composition.problem import BinTier, CompositionProblem, Packing
from moesim.plan.composition.program import packing_program
from moesim.plan.program import Outcome, solve
from moesim.plan.solution import Limits, Point, Solution
from moesim.units import format_quantity

__all__ = ["bins_bound", "fewest_bins"]

_LIMITS = ("room_", "busy_", "late", "mean")


def bins_bound(problem: CompositionProblem) -> int:
    """Return a number of bins below which nothing can fit: bytes, whole experts, and busy time.

    - bytes: all experts over a bin's capacity
    - whole experts: of those larger than half a bin's tier, no two share it
    - busy time: the least that every expert can take
    """
    capacity = sum(tier.capacity for tier in problem.tiers)
    bound = math.ceil(float(problem.size.sum()) / capacity * (1 - 1e-12)) if math.isfinite(capacity) else 1
    smallest = float(problem.size.min())
    whole = (
        sum(math.floor(tier.capacity / smallest * (1 + 1e-12)) for tier in problem.tiers)
        if math.isfinite(capacity)
        else 0
    )
    bound = max(bound, -(-problem.experts // whole) if whole else 1)
    busy = float(problem.busy().min(axis=1).sum()) / problem.busy_share
    return max(bound, math.ceil(busy * (1 - 1e-12)), 1)


def fewest_bins(
    problem: CompositionProblem,
    limits: Limits | None = None,
    *,
    on_progress: Callable[[Point], None] | None = None,
) -> Solution[Packing]:
    """Pack all experts into the fewest bins within the latency and load limits.

    From the bound upwards each number of bins is packed by rule, or by HiGHS, or proven too few. The last step
    lowers the expected latency at that number.

    Raises
    ------
    NoResult : not even all bins suffice: which limit is short, and by how much
    """
    began, limits = time.perf_counter(), limits or Limits()
    _single_experts_fit(problem)
    lower = bins_bound(problem)
    history: list[Point] = []
    upper = next((k for k in range(lower, problem.most_bins + 1) if pack(problem, k) is not None), None)
    best = None if upper is None else pack(problem, upper)

    def note() -> None:
        point = Point(
            time.perf_counter() - began, math.inf if best is None else float(best.bins), float(lower)
        )
        history.append(point)
        if on_progress is not None:
            on_progress(point)

    note()
    proven, outcome, method = True, None, "bound and rule"
    for bins in range(lower, problem.most_bins + 1 if upper is None else upper):
        method = "bound, rule, HiGHS"
        left = limits.seconds - (time.perf_counter() - began)
        if left <= 0:
            proven = False
            break
        found, outcome = _packed(problem, bins, replace(limits, seconds=left, gap=math.inf))
        if found is not None:
            best = found
            break
        if outcome.sol_status != "infeasible":
            proven = False
        elif proven:
            lower = bins + 1
        note()
    if best is None:
        raise NoResult(_short(problem, outcome))
    best = _quicker(problem, best, limits.seconds - (time.perf_counter() - began), limits)
    objective = float(best.bins)
    note()
    return Solution(
        best,
        objective,
        float(min(lower, best.bins)),
        method,
        "optimal" if lower >= best.bins else "feasible",
        time.perf_counter() - began,
        tuple(history),
    )


def _packed(problem: CompositionProblem, bins: int, limits: Limits) -> tuple[Packing | None, Outcome]:
    made = packing_program(problem, bins)
    outcome = solve(made.program, limits, elastic=lambda name: name.startswith(_LIMITS))
    if not outcome.values:
        return None, outcome
    answer = made.answer(dict(outcome.values))
    if not problem.broken(answer):
        return answer, outcome
    # the solver's tolerance let a limit slip: ask again with a little less of everything
    made = packing_program(_tightened(problem), bins)
    second = solve(made.program, limits)
    answer = made.answer(dict(second.values)) if second.values else answer
    ok = not problem.broken(answer)
    return (answer if ok else None), replace(outcome, sol_status="feasible" if ok else "no solution")


def _tightened(problem: CompositionProblem) -> CompositionProblem:
    keep = 1 - 4e-6
    tiers = tuple(BinTier(t.name, t.capacity * keep, t.bandwidth, t.latency) for t in problem.tiers)
    return replace(problem, tiers=tiers, busy_share=problem.busy_share * keep, mean_s=problem.mean_s * keep)


def _quicker(problem: CompositionProblem, best: Packing, seconds: float, limits: Limits) -> Packing:
    """Lower the expected latency at the same number of bins, where the program is small enough to try."""
    names, compact = np.unique(best.bin, return_inverse=True)
    best = Packing(np.asarray(compact, dtype=np.int64).ravel(), best.tier)
    floor = float(problem.share @ problem.latency().min(axis=1))
    small = problem.experts * len(names) * len(problem.tiers) <= 20_000
    if seconds <= 0 or not small or problem.mean_latency(best) <= floor * (1 + 1e-9):
        return best
    made = packing_program(problem, best.bins)
    allowed = replace(limits, seconds=min(seconds, limits.seconds / 4), gap=max(limits.gap, 1e-6))
    outcome = solve(made.program, allowed, start=made.start(best))
    if not outcome.values:
        return best
    found = made.answer(dict(outcome.values))
    better = not problem.broken(found) and problem.mean_latency(found) < problem.mean_latency(best)
    return found if better else best


def _single_experts_fit(problem: CompositionProblem) -> None:
    largest = int(np.argmax(problem.size))
    most = max(tier.capacity for tier in problem.tiers)
    if problem.size[largest] > most:
        short = format_quantity(float(problem.size[largest]) - most, "B")
        raise NoResult(f"composition: expert {largest} is {short} larger than the largest tier of a bin")
    busy = problem.busy().min(axis=1)
    hottest = int(np.argmax(busy))
    if busy[hottest] > problem.busy_share * (1 + 1e-12):
        copies = math.ceil(float(busy[hottest]) / problem.busy_share)
        raise NoResult(
            f"composition: expert {hottest} keeps a bin busy {busy[hottest]:.3g} of the time, "
            f"{busy[hottest] - problem.busy_share:.3g} more than allowed: enter it {copies} times, its requests divided"
        )
    late = float(problem.share @ problem.late().all(axis=1))
    if late > problem.late_share + 1e-12:
        raise NoResult(
            f"composition: {late:.3g} of the requests miss {format_quantity(problem.target_s, 's')} wherever their "
            f"experts live, {late - problem.late_share:.3g} more than allowed"
        )
    least = float(problem.share @ problem.latency().min(axis=1))
    if least > problem.mean_s * (1 + 1e-12):
        over = format_quantity(least - problem.mean_s, "s")
        raise NoResult(
            f"composition: the expected latency misses its limit by {over} even if all run in place"
        )


def _short(problem: CompositionProblem, outcome: Outcome | None) -> str:
    if outcome is None:
        lower = bins_bound(problem)
        return (
            f"composition: short of bins: {problem.most_bins} there, at least {lower} needed, "
            f"{lower - problem.most_bins} short"
        )
    if outcome.sol_status != "infeasible":
        return f"composition: no packing into {problem.most_bins} bins found in {outcome.seconds:.0f} s"
    unit, parts = float(problem.size.min()), []
    for tier in problem.tiers:
        missing = sum(v for k, v in outcome.short.items() if k.startswith(f"room_{tier.name}_"))
        parts += [f"{tier.name} {format_quantity(missing * unit, 'B')}"] if missing else []
    missing = sum(v for k, v in outcome.short.items() if k.startswith("busy_"))
    parts += [f"busy time {missing:.3g} of a bin"] if missing else []
    parts += [f"late share {outcome.short['late']:.3g}"] if "late" in outcome.short else []
    parts += [f"mean {format_quantity(outcome.short['mean'], 's')}"] if "mean" in outcome.short else []
    return f"composition: {problem.most_bins} bins do not suffice, short of: {', '.join(parts) or 'bins'}"
