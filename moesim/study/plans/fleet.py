"""Fleet: the cheapest mix of device types, replicas and parallelisms for a scenario's model, targets and demand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from moesim.errors import SpecError
from moesim.plan.fleet import FleetProblem, cover, entries_of, menu_of, solve_fleet
from moesim.plan.parallelism import option_table, priced_cuts
from moesim.plan.parallelism.options import Option, Table
from moesim.plan.solution import Limits
from moesim.spec.base import load_spec
from moesim.spec.planning import FleetPlan
from moesim.spec.scenario import ScenarioSpec
from moesim.spec.topology import Topology, resolve_cluster
from moesim.spec.traffic import TrafficSpec
from moesim.study.plans.answer import Planned, Progress
from moesim.study.plans.parallelism import demand_of_traffic, problem_of

__all__ = ["plan_fleet"]


def plan_fleet(
    scenario: ScenarioSpec, plan: FleetPlan, limits: Limits, on_progress: Progress | None = None
) -> Planned:
    """Return the cheapest fleet in USD per hour, averaged over the periods, with the program's bound.

    The menu is every cut and batch limit of every device type, with the goodput that the closed form gives it for
    each class alone.

    Raises
    ------
    NoResult : no entry serves a class, or devices or power are short, and by how much
    DataMissing : a price, or the power where there is a cap, is not known
    SpecError : a period that names an unknown class, or names of nothing
    """
    classes = {name: load_spec(TrafficSpec, of, "traffic") for name, of in plan.classes.items()}
    classes = classes or {"all": scenario.traffic}
    names = list(classes)
    for index, period in enumerate(plan.periods):
        unknown = next((name for name in period.rate if name not in classes), None)
        if unknown is not None:
            raise SpecError(
                f"plan.periods.{index}.rate: {unknown!r} is no class, expected {', '.join(names)}"
            )
    entries = []
    for cluster in plan.clusters:
        topology = resolve_cluster(cluster)
        tables = {name: _table(scenario, plan, topology, traffic) for name, traffic in classes.items()}
        entries += entries_of(
            tables,
            topology,
            scenario.economics,
            reserved=plan.reserved.get(topology.device.name),
            power=plan.power_cap is not None,
        )
    if not entries:
        raise SpecError(
            "fleet: no cut of the model fits any of the clusters; moesim plan --problem parallelism says why"
        )
    menu = menu_of(entries, names)
    problem = FleetProblem(
        menu=menu,
        demand=np.array([[period.rate.get(name, 0.0) for name in names] for period in plan.periods]),
        hours=np.array([period.hours for period in plan.periods]),
        available={name: float(count) for name, count in plan.available.items() if name in menu.types},
        power_cap=math.inf if plan.power_cap is None else plan.power_cap,
        spare=plan.redundancy,
    )
    found = solve_fleet(problem, limits, on_progress=on_progress)
    rule = cover(problem)
    rows = [
        {
            "option": menu.names[o], "devices": int(menu.devices[o]), "reserved": int(found.answer.reserved[o]),
            "on_demand": [int(n) for n in found.answer.on_demand[o]],
            "serves": {c: [int(n) for n in found.answer.use[o, i]] for i, c in enumerate(names)},
            "request_per_s": {c: float(menu.goodput[o, i]) for i, c in enumerate(names)},
            "usd_per_h_on_demand": _price(menu.on_demand[o]), "usd_per_h_reserved": _price(menu.reserved[o]),
        }
        for o in np.flatnonzero(found.answer.reserved + found.answer.on_demand.sum(axis=1))
    ]  # fmt: skip
    return Planned(
        problem="fleet",
        measure="USD per hour, mean of the periods",
        objective=found.objective,
        bound=found.bound,
        method=found.method,
        sol_status=found.sol_status,
        seconds=found.seconds,
        history=found.history,
        baselines={} if rule is None else {"greedy cover": problem.cost(rule)},
        answer={"menu_entries": len(menu.names), "fleet": rows},
        scenarios=tuple(names),
        notes=("Goodputs are the closed form's for one class alone; a replica serves one class at a time.",),
    )


def _table(scenario: ScenarioSpec, plan: FleetPlan, topology: Topology, traffic: TrafficSpec) -> Table:
    demand = demand_of_traffic(traffic, scenario.run.seed, 0.0)
    problem = problem_of(scenario, topology, demand, plan.axes, min(plan.devices, topology.devices))
    refused: list[Option] = []
    return option_table(problem, priced_cuts(problem, refused.append), refused)


def _price(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
