"""Categories: which expert answers each category of prompts, under budgets of parameters (arXiv 2412.01868's form).

The paper asks for a subset of experts within a cumulative budget and a map from categories to them; it reports results
at two average active budgets. Performance per category and expert is measured by the user, never assumed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pulp

from moesim.errors import NoResult, SpecError
from moesim.plan.composition.problem import FloatArray, IntArray
from moesim.plan.program import Outcome, solve
from moesim.plan.solution import Limits, Point, Solution

__all__ = [
    "CategoryMap",
    "CategoryProblem",
    "CategoryProgram",
    "active_budget",
    "best_performance",
    "choose_experts",
    "cumulative_budget",
    "kept_experts_only",
    "one_expert",
]


@dataclass(frozen=True, slots=True)
class CategoryMap:
    """A decision: the expert of every category, [C]."""

    expert: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class CategoryProblem:
    """Categories of prompts, experts, budgets.

    Attributes
    ----------
    share : of the prompts in each category, [C], sums to 1
    performance : of each expert in each category, [C, E], as measured; more is better
    parameters : of each expert, [E]
    cumulative : most parameters of all experts that are kept
    active : most parameters that answer a prompt, on average
    """

    share: FloatArray
    performance: FloatArray
    parameters: FloatArray
    cumulative: float = math.inf
    active: float = math.inf

    def __post_init__(self) -> None:
        if self.performance.shape != (len(self.share), len(self.parameters)):
            raise SpecError(
                f"categories: performance of shape {self.performance.shape}, expected "
                f"({len(self.share)} categories, {len(self.parameters)} experts)"
            )
        if np.any(self.share < 0) or abs(float(self.share.sum()) - 1) > 1e-9:
            raise SpecError("categories: share: expected non-negative shares that sum to 1")
        if not np.all(np.isfinite(self.performance)) or np.any(self.parameters <= 0):
            raise SpecError("categories: expected finite performance and positive parameters")

    def value(self, answer: CategoryMap) -> float:
        """Return the expected performance."""
        return float(self.share @ self.performance[np.arange(len(self.share)), answer.expert])

    def active_parameters(self, answer: CategoryMap) -> float:
        """Return the parameters that answer a prompt, on average."""
        return float(self.share @ self.parameters[answer.expert])

    def kept_parameters(self, answer: CategoryMap) -> float:
        """Return the parameters of all experts in use."""
        return float(self.parameters[np.unique(answer.expert)].sum())

    def fits(self, answer: CategoryMap) -> bool:
        """Tell whether both budgets hold."""
        return (
            self.active_parameters(answer) <= self.active * (1 + 1e-12)
            and self.kept_parameters(answer) <= self.cumulative * (1 + 1e-12)
        )  # fmt: skip


class CategoryProgram:
    """A PuLP program: ``m_CATEGORY_EXPERT`` maps, ``y_EXPERT`` keeps."""

    def __init__(self, problem: CategoryProblem) -> None:
        self.problem = problem
        categories, experts = problem.performance.shape
        self.program = pulp.LpProblem("categories", pulp.LpMaximize)
        self.m = [
            [pulp.LpVariable(f"m_{c}_{e}", cat=pulp.LpBinary) for e in range(experts)]
            for c in range(categories)
        ]
        self.y = [pulp.LpVariable(f"y_{e}", cat=pulp.LpBinary) for e in range(experts)]


def best_performance(made: CategoryProgram) -> None:
    """Maximise the expected performance."""
    gain = made.problem.share[:, None] * made.problem.performance
    made.program += pulp.lpSum(
        float(gain[c, e]) * v for c, row in enumerate(made.m) for e, v in enumerate(row)
    )


def one_expert(made: CategoryProgram) -> None:
    """Give every category one expert."""
    for c, row in enumerate(made.m):
        made.program += pulp.lpSum(row) == 1, f"one_{c}"


def kept_experts_only(made: CategoryProgram) -> None:
    """Map categories to kept experts only."""
    for c, row in enumerate(made.m):
        for e, v in enumerate(row):
            made.program += v <= made.y[e], f"kept_{c}_{e}"


def cumulative_budget(made: CategoryProgram) -> None:
    """Keep the parameters of all kept experts within their budget."""
    if math.isfinite(made.problem.cumulative):
        unit = float(made.problem.parameters.min())
        kept = pulp.lpSum(float(p / unit) * y for p, y in zip(made.problem.parameters, made.y, strict=True))
        made.program += kept <= made.problem.cumulative / unit, "cumulative"


def active_budget(made: CategoryProgram) -> None:
    """Keep the average active parameters within their budget."""
    if math.isfinite(made.problem.active):
        unit = float(made.problem.parameters.min())
        weight = made.problem.share[:, None] * made.problem.parameters[None, :] / unit
        used = pulp.lpSum(float(weight[c, e]) * v for c, row in enumerate(made.m) for e, v in enumerate(row))
        made.program += used <= made.problem.active / unit, "active"


def _downgraded(problem: CategoryProblem) -> CategoryMap | None:
    """Return the best experts per category, then cheaper ones where that costs least performance per parameter."""
    share, rows = problem.share, np.arange(len(problem.share))
    for keep in _subsets(problem):
        performance = np.where(keep[None, :], problem.performance, -np.inf)
        expert = performance.argmax(axis=1)
        while float(share @ problem.parameters[expert]) > problem.active * (1 + 1e-12):
            lost = share[:, None] * (performance[rows, expert][:, None] - performance)
            saved = share[:, None] * (problem.parameters[expert][:, None] - problem.parameters[None, :])
            ratio = np.where((saved > 0) & np.isfinite(lost), lost / np.maximum(saved, 1e-300), np.inf)
            best = int(np.argmin(ratio))
            if not np.isfinite(ratio.ravel()[best]):
                break
            category, cheaper = divmod(best, len(problem.parameters))
            expert[category] = cheaper
        answer = CategoryMap(np.asarray(expert, dtype=np.int64))
        if problem.fits(answer):
            return answer
    return None


def _subsets(problem: CategoryProblem) -> list[np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """Return sets of experts within the cumulative budget: by share won, then by size, each filled greedily."""
    best = problem.performance.argmax(axis=1)
    won = np.bincount(best, weights=problem.share, minlength=len(problem.parameters))
    made = []
    for order in (np.lexsort((problem.parameters, -won)), np.argsort(problem.parameters, kind="stable")):
        keep, total = np.zeros(len(problem.parameters), dtype=bool), 0.0
        for e in order.tolist():
            if total + problem.parameters[e] <= problem.cumulative:
                keep[e], total = True, total + float(problem.parameters[e])
        if keep.any():
            made.append(keep)
    return made


def choose_experts(
    problem: CategoryProblem,
    limits: Limits | None = None,
    *,
    on_progress: Callable[[Point], None] | None = None,
) -> Solution[CategoryMap]:
    """Choose the experts to keep and the one that answers each category; the objective is minus the performance.

    Raises
    ------
    NoResult : a budget is too small for any map, with the parameters that are short
    """
    began, limits = time.perf_counter(), limits or Limits()
    least = float(problem.parameters.min())
    for name, budget in (("cumulative", problem.cumulative), ("active", problem.active)):
        if budget < least:
            raise NoResult(
                f"categories: short of {name} parameters: {least - budget:.4g} for the smallest expert"
            )
    made = CategoryProgram(problem)
    for part in (best_performance, one_expert, kept_experts_only, cumulative_budget, active_budget):
        part(made)
    rule = _downgraded(problem)
    start = None if rule is None else _values(made, rule)

    def told(point: Point) -> None:
        if on_progress is not None:
            on_progress(Point(point.seconds, -point.objective, -point.bound))

    outcome = solve(made.program, limits, start=start, on_progress=told)
    answer = _answer(made, outcome)
    if answer is None or not problem.fits(answer):
        answer = rule
    if answer is None:
        raise NoResult(f"categories: no map found in {outcome.seconds:.0f} s")
    objective = -problem.value(answer)
    bound = min(-outcome.bound, objective)
    proven = objective - bound <= 1e-9 * max(1.0, abs(objective))
    return Solution(
        answer,
        objective,
        objective if proven else bound,
        "HiGHS from a greedy map",
        "optimal" if proven else "feasible",
        time.perf_counter() - began,
        tuple(Point(p.seconds, -p.objective, -p.bound) for p in outcome.history),
    )


def _values(made: CategoryProgram, answer: CategoryMap) -> dict[str, float]:
    values = {v.name: float(answer.expert[c] == e) for c, row in enumerate(made.m) for e, v in enumerate(row)}
    return values | {y.name: float(e in answer.expert) for e, y in enumerate(made.y)}


def _answer(made: CategoryProgram, outcome: Outcome) -> CategoryMap | None:
    if not outcome.values:
        return None
    mapped = np.array([[outcome.values[v.name] for v in row] for row in made.m])
    return CategoryMap(np.asarray(mapped.argmax(axis=1), dtype=np.int64))
