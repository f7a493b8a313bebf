"""Affinity: plan which experts of adjacent layers live together, from recorded, fitted or drawn transitions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moesim.errors import SpecError
from moesim.plan.affinity import BASELINES, Affinity, Topology, hops, solve_affinity
from moesim.plan.solution import Limits, Point
from moesim.routing.chain import drawn_transitions, rank_traffic
from moesim.routing.sample import sample_sequences
from moesim.routing.statistics import transitions
from moesim.routing.store import load_model
from moesim.spec.parameters import expert_bytes
from moesim.spec.placement import PlacementSpec, moe_layers
from moesim.spec.planning import AffinityPlan, JointPlan
from moesim.spec.routing import Fitted
from moesim.spec.scenario import ScenarioSpec
from moesim.study.plans.answer import Placed, Planned, Progress, placement_of
from moesim.study.plans.balance import nodes_of_pool, pool_to_place
from moesim.study.plans.loads import kinds, trace_to_plan

if TYPE_CHECKING:
    from moesim.routing.trace import RoutingTrace

__all__ = ["placed_by_rank", "plan_affinity", "ranks_of_placement", "trace_of_plan"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_SAMPLED = (64, 256)
"""Sequences and their tokens that stand for a fitted routing."""


def plan_affinity(
    scenario: ScenarioSpec, plan: AffinityPlan, limits: Limits, on_progress: Progress | None = None
) -> Planned:
    """Return the placement of least weighted hops between layers, its bound, and ExFlow's and others' beside it.

    The objective is a token's weighted hops in one pass through all layers; its heaviest expert says where it is.

    Raises
    ------
    SpecError : nothing to place, layers of several sizes, no transitions to plan for
    NoResult : experts that do not split evenly over the ranks
    """
    routed = kinds(scenario.model)
    name, pool = pool_to_place(scenario, plan.pool)
    if len({ffn.experts for ffn, _ in routed.values()}) > 1 or scenario.model.moe_layers < 2:
        raise SpecError(
            f"affinity: expected at least 2 MoE layers of equally many experts in {scenario.model.name}"
        )
    ranks, nodes = pool.parallelism.ep, nodes_of_pool(scenario, pool)
    if ranks % nodes:
        raise SpecError(f"affinity: {ranks} ranks on {nodes} nodes, expected equally many on each")
    counts = _counts(scenario, plan)
    problem = Affinity(counts, Topology(nodes, ranks // nodes, plan.device_hop, plan.node_hop))
    scale = problem.total / len(counts)  # tokens
    starts = {key: rule(problem, limits.seed) for key, rule in BASELINES.items()}

    def tell(point: Point) -> None:
        assert on_progress is not None
        on_progress(Point(point.seconds, point.objective / scale, point.bound / scale))

    found = solve_affinity(
        problem, limits, starts=list(starts.values()), on_progress=None if on_progress is None else tell
    )
    others = {key: placed_by_rank(scenario, problem, rows, key) for key, rows in starts.items()}
    placed = placed_by_rank(scenario, problem, found.answer, f"{scenario.name}-affinity")
    seen = hops(problem, found.answer)
    moved = (found.answer != starts["contiguous"]).sum() if "contiguous" in starts else 0
    first = next(iter(routed))
    return Planned(
        problem="affinity",
        measure="weighted hops between ranks per token and pass"
        + (f" ({plan.device_hop:g} inside a node, {plan.node_hop:g} between)" if nodes > 1 else ""),
        objective=placed.objective,
        bound=min(found.bound / scale, placed.objective),
        method=found.method,
        sol_status=found.sol_status,
        seconds=found.seconds,
        history=tuple(Point(p.seconds, p.objective / scale, p.bound / scale) for p in found.history),
        baselines={key: other.objective for key, other in others.items()},
        pool=name,
        plan=placed,
        others=others,
        moved_bytes=float(moved) * expert_bytes(scenario.model, first, scenario.deployment.precision),
        answer={
            "cross_rank_share": seen.share,
            "cross_node_share": seen.node / seen.total if seen.total else 0.0,
            "source": _source(scenario, plan),
        },
        notes=(
            "A token is where its heaviest expert is; its other experts are not followed.",
            "Every rank holds equally many experts of every layer, each once.",
            "Step times are simulated with tokens returned home after each layer, where fewer hops save nothing.",
        ),
    )


def trace_of_plan(scenario: ScenarioSpec, plan: AffinityPlan | JointPlan) -> RoutingTrace | None:
    """Return the tokens that transitions are counted on; None where they are drawn."""
    if isinstance(plan, AffinityPlan) and plan.drawn is not None:
        return None
    routing = scenario.routing
    if not plan.trace and routing is not None and isinstance(routing.router, Fitted):
        sequences, tokens = _SAMPLED
        return sample_sequences(
            load_model(routing), np.full(sequences, tokens), scenario.run.seed, "affinity"
        )
    return trace_to_plan(scenario, plan.trace)


def _counts(scenario: ScenarioSpec, plan: AffinityPlan) -> FloatArray:
    layers = scenario.model.moe_layers
    if plan.drawn is not None:
        ffn, _ = next(iter(kinds(scenario.model).values()))
        how = plan.drawn
        return drawn_transitions(layers, ffn.experts, how.zipf, how.concentration, how.seed)
    trace = trace_of_plan(scenario, plan)
    assert trace is not None
    if trace.layers != layers:
        raise SpecError(f"the trace has {trace.layers} MoE layers, {scenario.model.name} has {layers}")
    return transitions(trace, top1=True)


def _source(scenario: ScenarioSpec, plan: AffinityPlan) -> str:
    if plan.drawn is not None:
        return f"random chain, Zipf {plan.drawn.zipf:g}, Dirichlet {plan.drawn.concentration:g}, seed {plan.drawn.seed}"
    return plan.trace or (scenario.routing.name if scenario.routing is not None else "")


def placed_by_rank(
    scenario: ScenarioSpec, problem: Affinity, rank_of: IntArray, name: str, loads: FloatArray | None = None
) -> Placed:
    """Return a placement from the rank of each expert, [layer, E]; load counts heaviest experts, or is given."""
    ranks = problem.topology.devices
    slots = np.argsort(rank_of, axis=1, kind="stable")
    use = (
        np.concatenate([problem.counts.sum(axis=2), problem.counts[-1:].sum(axis=1)])
        if loads is None
        else loads
    )
    load = np.stack([np.bincount(r, weights=u, minlength=ranks) for r, u in zip(rank_of, use, strict=True)])
    load = load / np.maximum(load.mean(axis=1, keepdims=True), 1e-300)
    return Placed(
        placement_of(scenario, ranks, list(slots), name),
        hops(problem, rank_of).per_token,
        load[None],
        rank_traffic(problem.counts, rank_of, ranks),
    )


def ranks_of_placement(scenario: ScenarioSpec, placement: PlacementSpec) -> IntArray:
    """Return the rank of each expert of a placement without replicas, [MoE layer, E]."""
    layers = moe_layers(scenario.model)
    experts = next(iter(placement.ffns.values())).experts
    found = np.empty((scenario.model.moe_layers, experts), dtype=np.int64)
    for name, rows in layers.items():
        part, size = placement.ffns[name], placement.slots_per_rank(name)
        for index, layer in enumerate(rows):
            row = np.array(part.slots[index % len(part.slots)])
            found[layer, row] = np.arange(len(row)) // size
    return found
