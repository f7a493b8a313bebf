"""Rebalancing: policies of a pool replayed online over a recorded trace: unchanged, planned once, EPLB, balanced."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moesim.errors import SpecError
from moesim.plan.balance import Balance, Effort, align, balance, eplb, rebalance
from moesim.plan.solution import Limits
from moesim.routing.trace import RoutingTrace
from moesim.sim.routing_load import routing_load
from moesim.sim.setup import pool_parts
from moesim.spec.parameters import expert_bytes
from moesim.spec.placement import moe_layers
from moesim.spec.planning import Online
from moesim.spec.scenario import ScenarioSpec
from moesim.study.plans.online import Chooser, Migration, loads_by_step, replay

__all__ = ["expert_seconds", "online_answer", "policies"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_EFFORT = Effort(steps=20_000, bound_seconds=0.0, exact=False)
"""Of one rebalancing while serving: about a hundredth of a second per layer."""
_EXPERT_OPS = ("moe_permute", "moe_gate_up", "moe_up", "moe_activation", "moe_down", "moe_unpermute")


def online_answer(
    scenario: ScenarioSpec,
    pool: str,
    online: Online,
    trace: RoutingTrace,
    present: IntArray,
    planned: IntArray,
    *,
    device_bytes: float,
    bandwidth: float,
) -> dict[str, Any]:
    """Return the course of every policy over the trace, in JSON.

    Parameters
    ----------
    trace : of the model's MoE layers
    present : [layer, slot], where every policy starts
    planned : [layer, slot], the plan, which stays where it is
    device_bytes : of one expert on one device
    bandwidth : B/s at which a device receives

    Raises
    ------
    SpecError : a trace too short for one rebalancing, or of another number of layers
    """
    ranks = scenario.deployment.pools[pool].parallelism.ep
    if trace.layers != len(present):
        raise SpecError(f"plan.online: the trace has {trace.layers} MoE layers, the model {len(present)}")
    loads = loads_by_step(trace, online.tokens_per_step)
    if len(loads) <= online.every:
        raise SpecError(
            f"plan.online.every {online.every}: expected below {len(loads)}, the steps of the trace at "
            f"{online.tokens_per_step} tokens each"
        )
    migration = Migration(device_bytes, bandwidth, online.hidden)
    whole = sum(
        expert_bytes(scenario.model, name, scenario.deployment.precision)
        for name in moe_layers(scenario.model)
    )
    most = None if online.max_moved is None else int(online.max_moved // whole)
    found = policies(ranks, present.shape[1], most, scenario.run.seed)
    seconds = expert_seconds(scenario, pool, online.tokens_per_step)
    runs = {
        "present, unchanged": replay(loads, present, ranks, migration, expert_s=seconds),
        "planned once": replay(loads, planned, ranks, migration, expert_s=seconds),
    }
    for name, choose in found.items():
        runs[name] = replay(
            loads,
            present,
            ranks,
            migration,
            every=online.every,
            window=online.window,
            choose=choose,
            expert_s=seconds,
        )
    return {
        "steps": len(loads),
        "tokens_per_step": online.tokens_per_step,
        "every": online.every,
        "window": online.window,
        "expert_s": seconds,
        "policies": {name: run.summary() for name, run in runs.items()},
    }


def policies(ranks: int, slots: int, most_moves: int | None, seed: int) -> dict[str, Chooser]:
    """Return rules that place experts anew: (window's loads [layer, expert], present [layer, slot]) -> slots.

    ``EPLB``: global, whatever it moves. ``balanced``: the best placement found, ranks numbered so that most stays;
    at most ``most_moves`` experts fetched where that is limited.
    """

    def by_eplb(seen: FloatArray, present: IntArray) -> IntArray:  # noqa: ARG001 - EPLB starts from nothing
        return eplb(seen, slots, 1, 1, ranks)

    def balanced(seen: FloatArray, present: IntArray) -> IntArray:
        problem = Balance(seen[None], ranks, slots // ranks)
        limits = Limits(60.0, 0.0, seed)
        if most_moves is not None:
            return rebalance(problem, present, most_moves, limits, effort=_EFFORT).answer
        free = balance(problem, limits, start=present, effort=_EFFORT).answer
        return align(present, free, ranks, problem.experts)

    return {"EPLB": by_eplb, "balanced": balanced}


def expert_seconds(scenario: ScenarioSpec, pool: str, tokens: int) -> float:
    """Return the seconds that the experts of all layers take in a step of ``tokens`` tokens with even load.

    Priced as the simulator prices it under uniform choice without a placement, less the busiest rank's chance surplus.
    """
    spec = scenario.deployment.pools[pool].model_copy(update={"placement": None})
    even = scenario.model_copy(update={"routing": None})
    priced = pool_parts(even, pool, spec).setup.pricing
    loads, _ = routing_load(even, scenario.topology(), spec)
    assert loads is not None
    at = min(tokens, priced.group_s.shape[1] - 1)
    mine = [index for index, op in enumerate(priced.group_ops) if op.name.startswith(_EXPERT_OPS)]
    surplus = max(float(load.straggler[at]) for load in loads.values())
    return float(priced.group_s[mine, at].sum()) / surplus
