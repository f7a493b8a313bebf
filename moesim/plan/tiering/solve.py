"""Solve: bound by prices, decision by repair, proof by a program over the choices that prices cannot exclude."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np

from moesim.errors import NoResult
from moesim.plan.program import Outcome, solve
from moesim.plan.solution import Limits, Point, Solution
from moesim.plan.tiering.choice import Choices
from moesim.plan.tiering.dual import Prices, price_limits, rounded
from moesim.plan.tiering.greedy import edgemoe, fastest_first
from moesim.plan.tiering.problem import IntArray, Tiering, TieringProblem
from moesim.plan.tiering.program import TieringProgram, tiering_program, unit_of
from moesim.units import format_quantity

__all__ = ["baselines", "solve_tiering"]

_SHRINK = 2e-6
"""More than the solver's tolerance on a row."""
_CORE = 4000
"""Choices of the first, small program beside the best of each class."""


def baselines(problem: TieringProblem) -> dict[str, Tiering]:
    """Return the greedy decisions by name, those that exist: ``edgemoe`` and ``fastest_first``."""
    found = {}
    for name, rule in (("edgemoe", edgemoe), ("fastest_first", fastest_first)):
        try:
            found[name] = rule(problem)
        except NoResult:
            continue
    return found


def solve_tiering(
    problem: TieringProblem,
    limits: Limits | None = None,
    *,
    on_progress: Callable[[Point], None] | None = None,
) -> Solution[Tiering]:
    """Place every expert in a tier at a bitwidth, for the least expected seconds per step.

    Prices on the limits (Lagrangian, cutting planes) give a bound and a decision; choices whose reduced seconds
    exceed the gap cannot be in a better one, and HiGHS decides among the rest. ``optimal`` is a proof.

    Parameters
    ----------
    problem : experts, tiers, bitwidths, budgets
    limits : time and gap that are good enough
    on_progress : called with every new incumbent or bound of the program, in seconds per step

    Raises
    ------
    NoResult : nothing fits: which limits are short, and by how much
    """
    began, limits = time.perf_counter(), limits or Limits()
    choices = Choices.of(problem)
    _everyone_fits_somewhere(problem, choices)
    prices = price_limits(choices)
    candidates = [choices.taken(answer) for answer in baselines(problem).values()]
    repaired = rounded(choices, prices)
    candidates += [repaired] if repaired is not None else []
    candidates = [c for c in candidates if choices.fits(c) and np.all(np.isfinite(choices.cost[c > 0]))]
    best = min(candidates, key=choices.total, default=None)
    history = []
    if best is not None:
        history.append(Point(time.perf_counter() - began, choices.total(best), prices.bound))
        if choices.total(best) - prices.bound <= max(limits.gap, 1e-12) * abs(choices.total(best)):
            return _solution(problem, choices, best, prices.bound, "prices and repair", began, history)
    unit = unit_of(choices)

    def told(point: Point) -> None:
        if on_progress is not None:
            on_progress(Point(point.seconds, point.objective * unit, max(point.bound * unit, prices.bound)))

    open_ = _open(choices, prices, best)
    if (
        best is not None and open_.sum() > _CORE
    ):  # a small program first: a better decision closes many choices
        near = np.partition(prices.reduced[open_], _CORE)[_CORE]
        core = Limits(limits.seconds / 4, limits.gap, limits.seed)
        best, _ = _decide(choices, open_ & ((prices.reduced < near) | (best > 0)), best, core, told)
        if best is not None and choices.total(best) - prices.bound <= limits.gap * choices.total(best):
            return _solution(problem, choices, best, prices.bound, "prices, repair, HiGHS", began, history)
        open_ = _open(choices, prices, best)
    best, outcome = _decide(choices, open_, best, limits, told)
    if best is None:
        raise NoResult(_short(problem, outcome))
    lower = outcome.bound * unit if math.isfinite(outcome.bound) else -math.inf
    bound = max(prices.bound, min(lower, choices.total(best)))
    history += [
        Point(p.seconds, p.objective * unit, max(p.bound * unit, prices.bound)) for p in outcome.history
    ]
    return _solution(problem, choices, best, bound, "prices, repair, HiGHS on the rest", began, history)


def _open(
    choices: Choices, prices: Prices, best: IntArray | None
) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """Return the choices that a decision better than ``best`` may contain, and those of ``best``, [G, C]."""
    allowed = np.isfinite(choices.cost)
    if best is None:
        return allowed
    value = choices.total(best)
    slack = 1e-9 * max(abs(value), abs(prices.bound))
    return np.asarray((allowed & (prices.reduced <= value - prices.bound + slack)) | (best > 0))


def _decide(
    choices: Choices,
    open_: np.ndarray[tuple[int, int], np.dtype[np.bool_]],
    best: IntArray | None,
    limits: Limits,
    told: Callable[[Point], None],
) -> tuple[IntArray | None, Outcome]:
    """Let HiGHS decide among the open choices; its rows have a tolerance, so what it finds is checked here."""
    made = tiering_program(choices, open_)
    start = None if best is None else {v.name: float(best[key]) for key, v in made.taken.items()}
    outcome = solve(
        made.program, limits, start=start, on_progress=told, elastic=lambda name: name.startswith("within_")
    )
    found = _taken(made, outcome)
    if found is not None and not choices.fits(found):
        tight = tiering_program(choices, open_, _SHRINK)
        found = _taken(tight, solve(tight.program, limits))
    if (
        found is not None
        and choices.fits(found)
        and (best is None or choices.total(found) < choices.total(best))
    ):
        best = found
    return best, outcome


def _taken(made: TieringProgram, outcome: Outcome) -> IntArray | None:
    if not outcome.values:
        return None
    taken = np.zeros(made.choices.cost.shape, dtype=np.int64)
    for key, variable in made.taken.items():
        taken[key] = round(outcome.values[variable.name])
    return taken


def _solution(
    problem: TieringProblem,
    choices: Choices,
    taken: IntArray,
    bound: float,
    method: str,
    began: float,
    history: list[Point],
) -> Solution[Tiering]:
    answer = choices.answer(taken)
    objective = problem.objective(answer)
    bound = min(bound, objective)
    proven = objective - bound <= 1e-9 * max(abs(objective), 1e-300)
    seconds = time.perf_counter() - began
    return Solution(
        answer,
        objective,
        objective if proven else bound,
        method,
        "optimal" if proven else "feasible",
        seconds,
        (*history, Point(seconds, objective, objective if proven else bound)),
    )


def _everyone_fits_somewhere(problem: TieringProblem, choices: Choices) -> None:
    lonely = np.flatnonzero(~np.any(np.isfinite(choices.cost), axis=1))
    if len(lonely):
        expert = int(np.flatnonzero(choices.member == lonely[0])[0])
        least = format_quantity(float(problem.size[expert].min()), "B")
        raise NoResult(
            f"tiering: expert {expert} ({least} at its narrowest) fits no tier at any bitwidth within the budgets"
        )


def _short(problem: TieringProblem, outcome: Outcome) -> str:
    """Say which limits are short; the program counts each in the unit of its smallest part."""
    if outcome.sol_status != "infeasible":
        return f"tiering: no decision found within {outcome.seconds:.0f} s"
    choices, parts = Choices.of(problem), []
    for index, name in enumerate(choices.names):
        missing = outcome.short.get(f"within_{name}", 0.0)
        if missing > 0:
            used = choices.weight[index][choices.weight[index] > 0]
            amount = missing * float(used.min())
            parts.append(f"loss {amount:.4g}" if name == "loss" else f"{name} {format_quantity(amount, 'B')}")
    return f"tiering: the experts do not fit, short of: {', '.join(parts) or 'unknown'}"
