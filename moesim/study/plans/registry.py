"""Registry: which function plans which problem; a new problem is one entry here and one spec in ``spec.planning``."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from pydantic import TypeAdapter, ValidationError

from moesim.errors import SpecError
from moesim.files import nearest
from moesim.plan.solution import Limits
from moesim.spec.planning import PROBLEMS, PlanSpec
from moesim.spec.scenario import ScenarioSpec
from moesim.study.plans.answer import Planned, Progress

__all__ = ["PLANNERS", "asked", "plan", "planner"]

Planner = Callable[[ScenarioSpec, Any, Limits, Progress | None], Planned]

PLANNERS: dict[str, tuple[str, str]] = {
    "balance": ("moesim.study.plans.balance", "plan_balance"),
    "affinity": ("moesim.study.plans.affinity", "plan_affinity"),
    "joint": ("moesim.study.plans.joint", "plan_joint"),
    "parallelism": ("moesim.study.plans.parallelism", "plan_parallelism_of"),
    "fleet": ("moesim.study.plans.fleet", "plan_fleet"),
    "tiering": ("moesim.study.plans.tiering", "plan_tiering"),
    "composition": ("moesim.study.plans.composition", "plan_composition"),
}
"""Problem -> module and function ``(scenario, plan section, limits, progress) -> Planned``, imported when asked for."""


def planner(problem: str) -> Planner:
    """Return the function that plans a problem.

    Raises
    ------
    SpecError : no such problem
    """
    if problem not in PLANNERS:
        known = ", ".join(PLANNERS)
        raise SpecError(f"{problem}: no such problem{nearest(problem, PLANNERS)} (known: {known})")
    module, name = PLANNERS[problem]
    found: Planner = getattr(import_module(module), name)
    return found


def asked(scenario: ScenarioSpec, problem: str | None = None) -> PlanSpec:
    """Return the scenario's plan section, or the named problem with default options where the section is of another.

    Raises
    ------
    SpecError : no plan section and no problem named, or a problem that needs options
    """
    section = scenario.plan
    if problem is None:
        if section is None:
            known = ", ".join(PROBLEMS)
            raise SpecError(f"{scenario.name}: expected a plan section, or --problem with one of {known}")
        return section
    planner(problem)
    if section is not None and section.problem == problem:
        return section
    adapter: TypeAdapter[PlanSpec] = TypeAdapter(PlanSpec)
    try:
        return adapter.validate_python({"problem": problem})
    except ValidationError as error:
        needed = ", ".join(str(detail["loc"][-1]) for detail in error.errors())
        raise SpecError(f"{problem}: expected a plan section of the scenario that says {needed}") from None


def plan(
    scenario: ScenarioSpec, section: PlanSpec, limits: Limits, on_progress: Progress | None = None
) -> Planned:
    """Decide what a plan section asks; see the problem's own function."""
    return planner(section.problem)(scenario, section, limits, on_progress)
