"""Solve: prune the menu, cover by rule, prove by program."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from moesim.errors import NoResult
from moesim.plan.fleet.heuristic import cover
from moesim.plan.fleet.problem import Fleet, FleetProblem, IntArray
from moesim.plan.fleet.program import fleet_program
from moesim.plan.fleet.prune import undominated
from moesim.plan.program import Outcome, solve
from moesim.plan.solution import Limits, Point, Solution

__all__ = ["solve_fleet"]

_MORE = 3e-6
"""More than the solver's tolerance on a row."""


def solve_fleet(
    problem: FleetProblem,
    limits: Limits | None = None,
    *,
    on_progress: Callable[[Point], None] | None = None,
) -> Solution[Fleet]:
    """Return the cheapest fleet, in USD per hour averaged over the periods, with the bound that the program proves.

    Raises
    ------
    NoResult : no entry serves a class at all, or power or devices are short, and by how much
    """
    began, limits = time.perf_counter(), limits or Limits()
    _every_class_served(problem)
    kept, small = _pruned(problem)
    types = {problem.menu.types[int(k)] for k in problem.menu.kind[kept]}
    first = cover(small)
    made = fleet_program(small)
    left = max(limits.seconds - (time.perf_counter() - began), 1.0)
    outcome = solve(
        made.program,
        replace(limits, seconds=left),
        start=None if first is None else made.start(first),
        on_progress=on_progress,
        elastic=lambda name: name.startswith(("power_", "stock_")),
    )
    best = first
    if outcome.values:
        found = made.fleet(dict(outcome.values))
        if small.broken(found):  # within the solver's tolerance: ask for a little more than the demand
            more = fleet_program(replace(small, demand=small.demand * (1 + _MORE)))
            again = solve(more.program, replace(limits, seconds=left))
            found = more.fleet(dict(again.values)) if again.values else found
        if not small.broken(found) and (best is None or small.cost(found) <= small.cost(best)):
            best = found
    if best is None:
        raise NoResult(_short(small, outcome, types))
    answer = _whole(problem, kept, best)
    objective = problem.cost(answer)
    bound = min(outcome.bound if math.isfinite(outcome.bound) else 0.0, objective)
    proven = objective - bound <= 1e-9 * max(1.0, objective)
    dropped = len(problem.menu.names) - len(kept)
    return Solution(
        answer,
        objective,
        objective if proven else bound,
        f"HiGHS over {len(kept)} entries, {dropped} dominated",
        "optimal" if proven else "feasible",
        time.perf_counter() - began,
        outcome.history,
    )


def _pruned(problem: FleetProblem) -> tuple[IntArray, FleetProblem]:
    """Return the entries worth having, and the problem of them alone.

    Where no replica changes its class between periods, an entry may be worth having for some classes only; its goodput
    for the others is then forgotten.
    """
    menu = problem.menu
    if len(problem.hours) > 1 and np.any(np.isfinite(menu.reserved)):
        kept = undominated(menu, problem.stock)
        return kept, replace(problem, menu=menu.take(kept))
    worth = np.zeros(menu.goodput.shape, dtype=bool)
    for c in range(len(menu.classes)):
        worth[undominated(replace(menu, goodput=menu.goodput[:, [c]]), problem.stock), c] = True
    kept = np.flatnonzero(worth.any(axis=1))
    small = replace(menu, goodput=np.where(worth, menu.goodput, 0.0)).take(kept)
    return kept, replace(problem, menu=small)


def _whole(problem: FleetProblem, kept: IntArray, fleet: Fleet) -> Fleet:
    count, (periods, classes) = len(problem.menu.names), problem.demand.shape
    use = np.zeros((count, classes, periods), dtype=np.int64)
    reserved, on_demand = np.zeros(count, dtype=np.int64), np.zeros((count, periods), dtype=np.int64)
    use[kept], reserved[kept], on_demand[kept] = fleet.use, fleet.reserved, fleet.on_demand
    return Fleet(use, reserved, on_demand)


def _every_class_served(problem: FleetProblem) -> None:
    for c, name in enumerate(problem.menu.classes):
        if problem.demand[:, c].max() > 0 and problem.menu.goodput[:, c].max() <= 0:
            most = float(problem.demand[:, c].max())
            raise NoResult(
                f"fleet: class {name}: no menu entry has goodput within its targets, {most:.4g} request/s short"
            )


def _short(problem: FleetProblem, outcome: Outcome, types: set[str]) -> str:
    if outcome.sol_status != "infeasible":
        return f"fleet: no fleet found in {outcome.seconds:.0f} s"
    power = max((v for k, v in outcome.short.items() if k.startswith("power_")), default=0.0)
    parts = [f"power {power:.4g} kW"] if power else []
    for kind, name in enumerate(problem.menu.types):
        missing = max((v for k, v in outcome.short.items() if k.startswith(f"stock_{kind}_")), default=0.0)
        parts += [f"{math.ceil(missing - 1e-6)} {name}"] if missing and name in types else []
    return f"fleet: the demand cannot be served, short of: {', '.join(parts) or 'unknown'}"
