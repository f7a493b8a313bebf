"""Verify: simulate a plan beside its baselines, and hold the planner's objective against the simulator's count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moesim.errors import LawBroken, NoResult
from moesim.results import Result, summary
from moesim.routing.chain import hops_of_trace
from moesim.routing.placed import imbalance
from moesim.sim.routing_load import node_of_rank
from moesim.sim.run import simulate
from moesim.spec.planning import AffinityPlan
from moesim.spec.scenario import ScenarioSpec
from moesim.study.plans.affinity import ranks_of_placement, trace_of_plan
from moesim.study.plans.answer import Placed, Planned
from moesim.study.plans.balance import nodes_of_pool, with_placement

__all__ = ["counted_imbalance", "verify"]

_AGREE = 1e-9


def verify(
    scenario: ScenarioSpec, planned: Planned, progress: Callable[[float, str], None] | None = None
) -> dict[str, Any]:
    """Return what the simulator says of the plan and of every baseline that is a placement.

    Returns
    -------
    dict with ``runs``: name -> ``imbalance`` (busiest rank over mean rank, counted by the simulator on the scenario's
    routing), ``objective`` (the planner's, on the loads planned for), ``step_s``, ``ttft_s``, ``tpot_s`` (means),
    ``output_tokens_per_s``, ``output_tokens_per_s_per_device``; ``speedup``: output rate of the plan over each
    baseline, minus 1; ``counts_agree``: the planner's objective is the simulator's count (none
    where they see different loads)

    Raises
    ------
    NoResult : the plan is no placement, or the scenario cannot be simulated
    LawBroken : planner and simulator count differently
    """
    if planned.plan is None:
        raise NoResult(f"{planned.problem}: nothing to simulate, the decision is no placement")
    placed: dict[str, Placed] = {"plan": planned.plan, **planned.others}
    same = _same_loads(scenario, planned)
    hops = _hops(scenario, planned)
    runs: dict[str, dict[str, Any]] = {}
    for index, (name, one) in enumerate(placed.items()):
        if progress is not None:
            progress(index / len(placed), f"simulating {name}")
        result = simulate(with_placement(scenario, planned.pool, one.placement))
        runs[name] = {"objective": one.objective, **_numbers(result)}
        if hops is not None:
            runs[name]["hops"] = hops(one)
            _must_agree(scenario, name, one.objective, runs[name]["hops"])
        if same:
            _must_agree(scenario, name, one.objective, runs[name]["imbalance"])
    rate = runs["plan"]["output_tokens_per_s"]
    gain = {
        name: rate / run["output_tokens_per_s"] - 1
        for name, run in runs.items()
        if name != "plan" and run["output_tokens_per_s"]
    }
    return {"runs": runs, "speedup": gain, "counts_agree": True if same or hops is not None else None}


def _must_agree(scenario: ScenarioSpec, name: str, planned: float, counted: float) -> None:
    if abs(counted - planned) > _AGREE * max(1.0, abs(planned)):
        seed = scenario.run.seed
        raise LawBroken(f"{name}: planned {planned!r}, the simulator counts {counted!r} (seed {seed})")


def _hops(scenario: ScenarioSpec, planned: Planned) -> Callable[[Placed], float] | None:
    """Return what counts an affinity plan's hops token by token; None for other plans and drawn transitions."""
    plan = scenario.plan
    if planned.problem != "affinity" or not isinstance(plan, AffinityPlan):
        return None
    trace = trace_of_plan(scenario, plan)
    if trace is None:
        return None
    pool = scenario.deployment.pools[planned.pool]
    node = node_of_rank(pool.parallelism.ep, nodes_of_pool(scenario, pool))

    def count(one: Placed) -> float:
        inside, between = hops_of_trace(trace, ranks_of_placement(scenario, one.placement), node)
        return plan.device_hop * inside + plan.node_hop * between

    return count


def counted_imbalance(result: Result) -> float:
    """Return the busiest rank's load over the mean rank's, mean over MoE layers, from a run's table of experts."""
    by_rank = result.tables.experts.pivot_table("load", "layer", "rank", "sum", fill_value=0.0)
    return float(imbalance(by_rank.to_numpy()).mean())


def _same_loads(scenario: ScenarioSpec, planned: Planned) -> bool:
    """Tell whether the plan was made for the loads that the last pool is simulated with, and no others."""
    plan = scenario.plan
    own = (
        planned.problem == "balance"
        and not getattr(plan, "loads", ())
        and not getattr(plan, "by_group", False)
    )
    return own and planned.pool == list(scenario.deployment.pools)[-1]


def _numbers(result: Result) -> dict[str, Any]:
    found, steps = summary(result), result.tables.replicas["steps"].sum()
    return {
        "imbalance": counted_imbalance(result),
        "step_s": float(result.tables.replicas["busy_s"].sum() / steps) if steps else None,
        "ttft_s": found["ttft_s"]["mean"],
        "tpot_s": found["tpot_s"]["mean"],
        "output_tokens_per_s": found["throughput"]["output_tokens_per_s"],
        "output_tokens_per_s_per_device": found["throughput"]["output_tokens_per_s_per_device"],
    }
