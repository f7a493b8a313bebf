"""Balance: plan a scenario's balance problem, FFN by FFN, and say what it is worth over all layers."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from moesim.cost.memory import memory_plan
from moesim.errors import NoResult, SpecError
from moesim.plan.balance import (
    Balance,
    align,
    balance,
    baselines,
    contiguous,
    eplb,
    fetched,
    fewest_replicas,
    move_cost,
    rebalance,
    worth,
)
from moesim.plan.solution import Limits, Point, Solution
from moesim.routing.placed import rank_loads
from moesim.spec.deployment import Pool
from moesim.spec.model import MoeFfn
from moesim.spec.parameters import expert_bytes
from moesim.spec.placement import PlacementSpec
from moesim.spec.planning import BalancePlan
from moesim.spec.scenario import ScenarioSpec
from moesim.spec.topology import group_shape, inter_bandwidth, intra_bandwidth
from moesim.study.plans.answer import Placed, Planned, Progress, placement_of
from moesim.study.plans.loads import Loads, kinds, loads_to_plan, trace_to_plan
from moesim.study.plans.rebalancing import online_answer
from moesim.units import format_quantity

__all__ = [
    "device_expert_bytes",
    "nodes_of_pool",
    "plan_balance",
    "pool_to_place",
    "present_rows",
    "with_placement",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class _Kind:
    """One FFN's balance problem."""

    name: str
    ffn: MoeFfn
    layers: tuple[int, ...]
    problem: Balance
    present: IntArray
    spread: FloatArray | None


def plan_balance(
    scenario: ScenarioSpec, plan: BalancePlan, limits: Limits, on_progress: Progress | None = None
) -> Planned:
    """Return the placement whose busiest ranks have least to do, its bound, and the engines' own beside it.

    The objective is the mean over MoE layers of the busiest rank's load over the mean rank's, in each layer that of
    the worst load scenario (or their weighted mean).

    Raises
    ------
    SpecError : nothing to place, loads that do not fit the model, slots that do not divide
    NoResult : too few slots for the experts, or slots that do not fit into a device's memory
    """
    began = time.perf_counter()
    routed = kinds(scenario.model)
    name, pool = pool_to_place(scenario, plan.pool)
    given = loads_to_plan(scenario, plan, pool.parallelism.ep)
    parts = [_kind(plan, pool, ffn_name, ffn, layers, given) for ffn_name, (ffn, layers) in routed.items()]
    first = _placed(scenario, pool, parts, {p.name: contiguous(p.problem) for p in parts}, "contiguous")
    _must_fit(scenario, name, first.placement)
    solutions: list[Solution[IntArray]] = []
    history: list[Point] = []
    shares = np.array([len(part.layers) for part in parts]) / sum(len(part.layers) for part in parts)
    for index, part in enumerate(parts):
        left = max(limits.seconds - (time.perf_counter() - began), 0.0)
        own = Limits(left * shares[index] / shares[index:].sum(), limits.gap, limits.seed)

        def tell(point: Point, done: float = time.perf_counter() - began) -> None:
            history.append(Point(point.seconds + done, point.objective, point.bound))
            if on_progress is not None:
                on_progress(history[-1])

        solutions.append(_solve(part, plan, scenario, pool, own, tell if len(parts) == 1 else None))
    rows = {p.name: s.answer for p, s in zip(parts, solutions, strict=True)}
    parts = [_resized(part, rows[part.name], pool) for part in parts]
    placed = _placed(scenario, pool, parts, rows, f"{scenario.name}-balance")
    others = _others(scenario, plan, pool, parts)
    values = {key: other.objective for key, other in others.items()}
    if plan.wanted is not None:
        values = _slots_of_baselines(plan.wanted, parts, shares)
    return Planned(
        problem="balance",
        measure=_measure(scenario, plan, given),
        objective=float(shares @ [s.objective for s in solutions]),
        bound=float(shares @ [s.bound for s in solutions]),
        method="; ".join(dict.fromkeys(s.method for s in solutions)),
        sol_status="optimal" if all(s.sol_status == "optimal" for s in solutions) else "feasible",
        seconds=time.perf_counter() - began,
        history=tuple(history) or tuple(p for s in solutions for p in s.history),
        baselines=values,
        pool=name,
        plan=placed,
        others=others,
        moved_bytes=_moved(scenario, {p.name: p.present for p in parts}, rows, pool),
        answer={
            "imbalance": placed.objective,
            **_migration(scenario, pool, parts, rows),
            **_online(scenario, plan, name, parts, rows),
        },
        scenarios=given.names,
        notes=("All copies of an expert take equal shares of its load.",),
    )


def _measure(scenario: ScenarioSpec, plan: BalancePlan, given: Loads) -> str:
    of = f", {'worst' if given.mix is None else 'weighted mean'} of {len(given.names)} load scenarios"
    balanced = f"busiest rank over mean rank, mean of {scenario.model.moe_layers} MoE layers"
    balanced += of if len(given.names) > 1 else ""
    return (
        balanced
        if plan.wanted is None
        else f"redundant slots per layer for at most {plan.wanted:g} ({balanced})"
    )


def _resized(part: _Kind, rows: IntArray, pool: Pool) -> _Kind:
    """Return the part with the slots that the answer has; they differ only where slots were to be decided."""
    slots = rows.shape[1] // part.problem.ranks
    if slots == part.problem.slots:
        return part
    problem = part.problem.with_slots(slots)
    return replace(part, problem=problem, present=present_rows(pool, part.name, problem))


def _slots_of_baselines(wanted: float, parts: list[_Kind], shares: FloatArray) -> dict[str, float]:
    """Return the redundant slots per layer that baselines need for the wanted balance, where they reach it."""
    found: dict[str, float] = {}
    for key in baselines(parts[0].problem):
        needs = [_slots_needed(wanted, part.problem, key) for part in parts]
        if math.isfinite(sum(needs)):
            found[key] = float(shares @ needs)
    return found


def _slots_needed(wanted: float, problem: Balance, key: str) -> float:
    fewest = -(-problem.experts // problem.ranks)
    for slots in range(fewest, max(2 * problem.slots, fewest + 2) + 1):
        sized = problem.with_slots(slots)
        if float(worth(sized, baselines(sized)[key]).mean()) <= wanted:
            return float(sized.redundant)
    return math.inf


def _kind(
    plan: BalancePlan,
    pool: Pool,
    name: str,
    ffn: MoeFfn,
    layers: tuple[int, ...],
    given: Loads,
) -> _Kind:
    ranks = pool.parallelism.ep
    held = 0 if pool.placement is None else pool.placement.slots_per_rank(name)
    if plan.redundant is None:
        slots = held or -(-ffn.experts // ranks)
    else:
        slots, rest = divmod(ffn.experts + plan.redundant, ranks)
        if rest:
            raise SpecError(
                f"plan.redundant {plan.redundant}: {ffn.experts} + {plan.redundant} slots on {ranks} ranks, expected "
                f"a multiple: {plan.redundant - rest} or {plan.redundant - rest + ranks}"
            )
    problem = Balance(given.loads[name], ranks, slots, given.mix)
    return _Kind(name, ffn, layers, problem, present_rows(pool, name, problem), given.spread.get(name))


def _moved(
    scenario: ScenarioSpec, before: dict[str, IntArray], after: dict[str, IntArray], pool: Pool
) -> float:
    """Return bytes of expert weights that ranks must fetch."""
    return sum(
        float(fetched(before[name], rows, pool.parallelism.ep, int(rows.max()) + 1).sum())
        * expert_bytes(scenario.model, name, scenario.deployment.precision)
        for name, rows in after.items()
    )


def _migration(
    scenario: ScenarioSpec, pool: Pool, parts: list[_Kind], rows: dict[str, IntArray]
) -> dict[str, Any]:
    """Return what the move costs and when it has paid for itself, where one problem covers the model."""
    part = parts[0]
    if len(parts) > 1 or part.present.shape != rows[part.name].shape:
        return {}
    size = device_expert_bytes(scenario, pool, part.name)
    rate = receive_rate(scenario, pool)
    if not math.isfinite(rate):
        return {}
    cost = move_cost(part.problem, part.present, rows[part.name], size, rate)
    return {
        "migration": {
            "busiest_device_bytes": cost.busiest_bytes,
            "bandwidth_bytes_per_s": rate,
            "seconds": cost.move_s,
            "expert_time_saved": cost.saved,
            "break_even_s": cost.break_even_s,
        }
    }


def _online(
    scenario: ScenarioSpec, plan: BalancePlan, name: str, parts: list[_Kind], rows: dict[str, IntArray]
) -> dict[str, Any]:
    """Return the online policies' course, where the plan section asks for it."""
    if plan.online is None:
        return {}
    if len(parts) > 1:
        raise SpecError(
            f"plan.online: {scenario.model.name} has {len(parts)} kinds of MoE layers, expected one"
        )
    pool, part = scenario.deployment.pools[name], parts[0]
    trace = trace_to_plan(scenario, plan.loads[0].path if plan.loads else "")
    return {
        "online": online_answer(
            scenario,
            name,
            plan.online,
            trace,
            part.present,
            rows[part.name],
            device_bytes=device_expert_bytes(scenario, pool, part.name),
            bandwidth=receive_rate(scenario, pool),
        )
    }


def receive_rate(scenario: ScenarioSpec, pool: Pool) -> float:
    """Return the B/s at which a device receives experts: over the network once the pool spans nodes."""
    topology, nodes = scenario.topology(), nodes_of_pool(scenario, pool)
    return inter_bandwidth(topology, nodes) if nodes > 1 else intra_bandwidth(topology)


def present_rows(pool: Pool, ffn: str, problem: Balance) -> IntArray:
    """Return where experts lie now, [layer, slot]: the pool's placement, or contiguous blocks."""
    if pool.placement is None:
        row = np.arange(problem.places, dtype=np.int64) % problem.experts
        return np.tile(row, (problem.layers, 1))
    slots = np.array(pool.placement.ffns[ffn].slots, dtype=np.int64)
    return np.array(np.broadcast_to(slots, (problem.layers, slots.shape[1])))


def _solve(
    part: _Kind, plan: BalancePlan, scenario: ScenarioSpec, pool: Pool, limits: Limits, tell: Progress | None
) -> Solution[IntArray]:
    """Solve one FFN's problem; ranks are numbered so that as many experts as possible stay where they are."""
    problem, same = part.problem, part.present.shape[1] == part.problem.places
    if plan.wanted is not None:
        return fewest_replicas(problem, plan.wanted, limits, spread=part.spread, on_progress=tell)
    if plan.max_moved is not None and same:
        most = int(plan.max_moved // expert_bytes(scenario.model, part.name, scenario.deployment.precision))
        return rebalance(problem, part.present, most, limits, spread=part.spread)
    found = balance(
        problem, limits, start=part.present if same else None, spread=part.spread, on_progress=tell
    )
    rows = found.answer
    if same:
        return replace(found, answer=align(part.present, rows, pool.parallelism.ep, problem.experts))
    if plan.max_moved is not None:
        need = _moved(scenario, {part.name: part.present}, {part.name: rows}, pool)
        if need > plan.max_moved:
            short = format_quantity(need - plan.max_moved, "B")
            raise NoResult(
                f"max_moved: another number of slots than now moves {format_quantity(need, 'B')}, {short} more"
            )
    return found


def nodes_of_pool(scenario: ScenarioSpec, pool: Pool) -> int:
    """Return the nodes that the expert-parallel ranks of a pool's replica lie on."""
    nodes = group_shape(scenario.topology(), pool.parallelism.tp * pool.parallelism.dp).nodes
    return min(nodes, pool.parallelism.ep)


def _others(scenario: ScenarioSpec, plan: BalancePlan, pool: Pool, parts: list[_Kind]) -> dict[str, Placed]:
    """Return the placements that engines would choose, valued on the same loads."""
    made: dict[str, dict[str, IntArray]] = {}
    nodes = nodes_of_pool(scenario, pool)
    for part in parts:
        for key, rows in baselines(part.problem).items():
            made.setdefault(key, {})[part.name] = rows
        groups, problem = plan.groups or part.ffn.groups, part.problem
        if groups > 1 and groups % nodes == 0 and problem.redundant % nodes == 0 and nodes > 1:
            pooled = np.average(problem.relative(), axis=0, weights=problem.mix)
            rows = eplb(pooled, problem.places, groups, nodes, problem.ranks)
            made.setdefault("EPLB hierarchical", {})[part.name] = rows
        if pool.placement is not None and part.present.shape[1] == problem.places:
            made.setdefault("present", {})[part.name] = part.present
    found = {}
    for key, rows_of in made.items():
        if len(rows_of) == len(parts):
            found[key] = _placed(scenario, pool, parts, rows_of, key)
    return found


def _placed(
    scenario: ScenarioSpec,
    pool: Pool,
    parts: list[_Kind],
    rows: dict[str, IntArray],
    name: str,
) -> Placed:
    ranks, total = pool.parallelism.ep, scenario.model.moe_layers
    scenarios = parts[0].problem.scenarios
    load, each_layer = np.ones((scenarios, total, ranks)), np.ones(total)
    slots: list[IntArray] = [np.empty(0, dtype=np.int64)] * total
    for part in parts:
        table = part.problem.relative()
        for s in range(scenarios):
            load[s, list(part.layers)] = rank_loads(table[s], rows[part.name], ranks)
        for index, layer in enumerate(part.layers):
            slots[layer] = rows[part.name][index]
        each = load[:, list(part.layers)].max(axis=2)
        mix = part.problem.mix
        each_layer[list(part.layers)] = each.max(axis=0) if mix is None else mix @ each
    placement = placement_of(scenario, ranks, slots, name)
    return Placed(placement, float(each_layer.mean()), load)


def pool_to_place(scenario: ScenarioSpec, name: str | None) -> tuple[str, Pool]:
    """Return the pool whose experts are placed: the one named, else the last (the one that decodes).

    Raises
    ------
    SpecError : no such pool, or one whose experts are not spread
    """
    pools = scenario.deployment.pools
    chosen = name or list(pools)[-1]
    if chosen not in pools:
        raise SpecError(f"plan.pool {chosen!r}: expected one of the pools: {', '.join(pools)}")
    pool = pools[chosen]
    if pool.parallelism.ep < 2:
        raise SpecError(
            f"deployment.{chosen}.parallelism.ep 1: expected experts spread over at least 2 ranks"
        )
    return chosen, pool


def device_expert_bytes(scenario: ScenarioSpec, pool: Pool, ffn: str) -> float:
    """Return the bytes of one expert on one device: whole, or its share when experts are cut over devices."""
    whole = expert_bytes(scenario.model, ffn, scenario.deployment.precision)
    return whole / pool.parallelism.moe_tp


def with_placement(scenario: ScenarioSpec, pool: str, placement: PlacementSpec | None) -> ScenarioSpec:
    """Return the scenario with another placement in one pool."""
    how = scenario.deployment
    changed = how.pools[pool].model_copy(update={"placement": placement})
    return scenario.model_copy(update={"deployment": how.model_copy(update={pool: changed})})


def _must_fit(scenario: ScenarioSpec, pool: str, placement: PlacementSpec) -> None:
    """Raise ``NoResult`` with the missing bytes when the placement's slots do not fit."""
    placed = with_placement(scenario, pool, placement)
    how = placed.deployment
    try:
        memory_plan(placed.model, placed.topology(), how.pools[pool], how.precision, how.speculation)
    except NoResult as error:
        slots = ", ".join(f"{placement.slots_per_rank(name)} of {name}" for name in placement.ffns)
        raise NoResult(f"memory: with {slots} expert slots per rank, {error}") from None
