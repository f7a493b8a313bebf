"""Joint: balance and traffic of a scenario together: one placement at a price, and the front between the two."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from moesim.errors import SpecError
from moesim.plan.affinity import Affinity, Topology, hops
from moesim.plan.affinity.baselines import contiguous
from moesim.plan.joint import busiest, moetuner, pareto, sequence_homes, solve_joint, traffic
from moesim.plan.solution import Limits, Point
from moesim.routing.recorded_loads import trace_loads
from moesim.routing.statistics import transitions
from moesim.routing.trace import RoutingTrace
from moesim.spec.parameters import expert_bytes
from moesim.spec.planning import JointPlan
from moesim.spec.scenario import ScenarioSpec
from moesim.study.plans.affinity import FloatArray, IntArray, placed_by_rank, trace_of_plan
from moesim.study.plans.answer import Placed, Planned, Progress
from moesim.study.plans.balance import nodes_of_pool, pool_to_place
from moesim.study.plans.loads import kinds

__all__ = ["plan_joint"]

_FRONT = 0.7
"""Share of the time for the front, where it is asked for."""


def plan_joint(
    scenario: ScenarioSpec, plan: JointPlan, limits: Limits, on_progress: Progress | None = None
) -> Planned:
    """Return the placement of least hops plus priced load of the busiest ranks, and the front between the two.

    Hops are those of heaviest experts between layers; load counts every choice. Both per token and pass.

    Raises
    ------
    SpecError : nothing to place, layers of several sizes, no trace
    NoResult : experts that do not split evenly over the ranks
    """
    routed = kinds(scenario.model)
    name, pool = pool_to_place(scenario, plan.pool)
    trace = trace_of_plan(scenario, plan)
    assert trace is not None
    if len({ffn.experts for ffn, _ in routed.values()}) > 1 or trace.layers != scenario.model.moe_layers:
        raise SpecError(
            f"joint: expected a trace of the {scenario.model.moe_layers} MoE layers of {scenario.model.name}, all of "
            f"one size; it has {trace.layers}"
        )
    ranks, nodes = pool.parallelism.ep, nodes_of_pool(scenario, pool)
    topology = Topology(nodes, ranks // nodes, plan.device_hop, plan.node_hop)
    problem, loads = Affinity(transitions(trace, top1=True), topology), trace_loads(trace)
    tokens = float(len(trace.experts))
    starts = {"contiguous": contiguous(problem), "MoETuner": moetuner(problem.counts, loads, topology)}
    share = _FRONT if plan.front else 0.0
    front = (
        pareto(problem, loads, limits=Limits(limits.seconds * share / 12, limits.gap, limits.seed))
        if plan.front
        else ()
    )
    found = solve_joint(
        problem,
        loads,
        plan.price,
        Limits(limits.seconds * (1 - share), limits.gap, limits.seed),
        starts=[*starts.values(), *(point.placement for point in front)],
        hop_bound=0.0,
    )

    def worth(rank_of: IntArray) -> float:
        load = float(busiest(loads, rank_of, ranks).sum())
        return (hops(problem, rank_of).weighted + plan.price * load) / tokens

    def valued(rank_of: IntArray, key: str) -> Placed:
        placed = placed_by_rank(scenario, problem, rank_of, key, loads)
        return replace(placed, objective=worth(rank_of))

    history = tuple(Point(p.seconds, p.objective / tokens, p.bound / tokens) for p in found.history)
    if on_progress is not None and history:
        on_progress(history[-1])
    first = next(iter(routed))
    return Planned(
        problem="joint",
        measure=f"weighted hops plus {plan.price:g} times the busiest rank's choices, per token and pass",
        objective=worth(found.answer),
        bound=min(found.bound / tokens, worth(found.answer)),
        method=found.method,
        sol_status=found.sol_status,
        seconds=found.seconds,
        history=history,
        baselines={key: worth(rows) for key, rows in starts.items()},
        pool=name,
        plan=valued(found.answer, f"{scenario.name}-joint"),
        others={key: valued(rows, key) for key, rows in starts.items()},
        moved_bytes=float((found.answer != starts["contiguous"]).sum())
        * expert_bytes(scenario.model, first, scenario.deployment.precision),
        answer={
            "placements": [
                _row(key, trace, problem, loads, rows, plan)
                for key, rows in {"plan": found.answer, **starts}.items()
            ],
            "front": [_row(f"price {p.price:g}", trace, problem, loads, p.placement, plan) for p in front],
        },
        notes=(
            f"Copies are counted under {plan.dispatch} dispatch; sequences are dealt to the ranks in turn.",
        ),
    )


def _row(
    name: str, trace: RoutingTrace, problem: Affinity, loads: FloatArray, rank_of: IntArray, plan: JointPlan
) -> dict[str, Any]:
    """Return what one placement is worth: hops, imbalance, and copies that cross ranks and nodes per token."""
    topology, tokens = problem.topology, len(trace.experts)
    moved = traffic(
        trace,
        rank_of,
        sequence_homes(trace, topology.devices),
        topology,
        plan.dispatch,
        most_nodes=plan.most_nodes,
    )
    mean = loads.sum(axis=1) / topology.devices
    return {
        "placement": name,
        "hops_per_token": hops(problem, rank_of).per_token,
        "imbalance": float(np.mean(busiest(loads, rank_of, topology.devices) / mean)),
        "copies_inside_nodes_per_token": moved.inside_nodes / tokens,
        "copies_between_nodes_per_token": moved.between_nodes / tokens,
        "weight_kept": moved.kept,
    }
