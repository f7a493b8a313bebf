"""Tiering: which expert of a scenario's model lives in which memory at how many bits, from how often it is used."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from moesim.errors import NoResult, SpecError
from moesim.plan.solution import Limits
from moesim.plan.tiering import Tiering, TieringProblem, baselines, count_accesses, solve_tiering, tier_of
from moesim.routing.sample import sample_sequences
from moesim.routing.store import load_model
from moesim.routing.trace import RoutingTrace
from moesim.spec.deployment import PrecisionChoice
from moesim.spec.parameters import bytes_per_value, expert_bytes, weight_bytes
from moesim.spec.planning import TieringPlan
from moesim.spec.routing import Fitted
from moesim.spec.scenario import ScenarioSpec
from moesim.study.plans.answer import Planned, Progress
from moesim.study.plans.loads import kinds, trace_to_plan

__all__ = ["plan_tiering"]

_TOKENS = 512
"""Tokens of each lane that stand for a fitted routing."""
_ROOM = 0.1


def plan_tiering(
    scenario: ScenarioSpec, plan: TieringPlan, limits: Limits, on_progress: Progress | None = None
) -> Planned:
    """Return tier and width of every expert for the least expected seconds per step, for one device.

    Raises
    ------
    SpecError : several kinds of MoE layers, no trace, an unknown tier
    NoResult : nothing fits: which limits are short, and by how much
    """
    routed = kinds(scenario.model)
    if len(routed) > 1:
        raise SpecError(f"tiering: {scenario.model.name} has {len(routed)} kinds of MoE layers, expected one")
    name, (ffn, layers) = next(iter(routed.items()))
    trace = _trace(scenario, plan)
    if (trace.layers, trace.total) != (len(layers), ffn.experts):
        raise SpecError(
            f"tiering: the trace has {trace.layers} layers of {trace.total} experts, {scenario.model.name} "
            f"{len(layers)} of {ffn.experts}"
        )
    seen = count_accesses(trace, plan.batch)
    count, topology = len(seen.touches), scenario.topology()
    sizes = [
        expert_bytes(scenario.model, name, PrecisionChoice(experts=width.dtype)) for width in plan.widths
    ]
    reserved = _reserved(scenario, name, len(layers) * ffn.experts, plan)
    tiers = tuple(
        tier_of(topology, tier, reserved=reserved if index == 0 else 0.0)
        for index, tier in enumerate(plan.tiers)
    )
    problem = TieringProblem(
        tiers=tiers,
        bits=tuple(round(8 * bytes_per_value(width.dtype)) for width in plan.widths),
        touches=seen.touches,
        reuse=seen.reuse,
        size=np.tile(np.array(sizes), (count, 1)),
        loss=np.tile(np.array([width.loss for width in plan.widths]), (count, 1)),
        loss_budget=math.inf if plan.loss_budget is None else plan.loss_budget,
    )
    found = solve_tiering(problem, limits, on_progress=on_progress)
    return Planned(
        problem="tiering",
        measure="seconds per step spent on reading experts",
        objective=found.objective,
        bound=found.bound,
        method=found.method,
        sol_status=found.sol_status,
        seconds=found.seconds,
        history=found.history,
        baselines={key: problem.objective(answer) for key, answer in baselines(problem).items()},
        answer={
            "loss": problem.lost(found.answer),
            "reserved_bytes": reserved,
            "tiers": _rows(problem, found.answer, plan),
            "tier_of_expert": found.answer.tier.reshape(len(layers), -1).tolist(),
            "width_of_expert": found.answer.width.reshape(len(layers), -1).tolist(),
        },
        notes=(
            f"Uses and reuse are counted over {seen.steps} steps of {plan.batch} sequences.",
            "One device holds all experts; losses add up, as stated in the plan section.",
        ),
    )


def _trace(scenario: ScenarioSpec, plan: TieringPlan) -> RoutingTrace:
    routing = scenario.routing
    if not plan.trace and routing is not None and isinstance(routing.router, Fitted):
        return sample_sequences(
            load_model(routing), np.full(plan.batch, _TOKENS), scenario.run.seed, "tiering"
        )
    return trace_to_plan(scenario, plan.trace)


def _reserved(scenario: ScenarioSpec, ffn: str, experts: int, plan: TieringPlan) -> float:
    if plan.reserved is not None:
        return plan.reserved
    precision = scenario.deployment.precision
    rest = weight_bytes(scenario.model, precision) - experts * expert_bytes(scenario.model, ffn, precision)
    room = (
        _ROOM * scenario.device.memory[plan.tiers[0]].capacity
        if plan.tiers[0] in scenario.device.memory
        else 0.0
    )
    if (
        plan.tiers[0] in scenario.device.memory
        and rest + room > scenario.device.memory[plan.tiers[0]].capacity
    ):
        raise NoResult(
            f"tiering: {rest / 1e9:.4g} GB of other weights leave no room for experts in {plan.tiers[0]} of "
            f"{scenario.device.name}"
        )
    return rest + room


def _rows(problem: TieringProblem, answer: Tiering, plan: TieringPlan) -> list[dict[str, object]]:
    """Return bytes and experts of each tier, by width."""
    held, used = problem.held(answer), Counter(zip(answer.tier.tolist(), answer.width.tolist(), strict=True))
    return [
        {
            "tier": tier.name,
            "capacity_bytes": tier.capacity,
            "held_bytes": float(held[index]),
            "touches_per_step": float(problem.touches[answer.tier == index].sum()),
            **{f"experts_{width.dtype}": used[(index, at)] for at, width in enumerate(plan.widths)},
        }
        for index, tier in enumerate(problem.tiers)
    ]
