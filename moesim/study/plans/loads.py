"""Loads: what experts have to do, scenario by scenario, from a scenario's routing or from recordings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moesim.errors import SpecError
from moesim.plan.balance import group_loads, sequence_loads, spread_of
from moesim.routing.popularity import popularity_of_layers
from moesim.routing.recorded_loads import read_loads
from moesim.routing.store import load_trace
from moesim.routing.trace import RoutingTrace, read_trace
from moesim.spec.model import ModelSpec, MoeFfn
from moesim.spec.placement import moe_layers
from moesim.spec.planning import BalancePlan
from moesim.spec.routing import Recorded
from moesim.spec.scenario import ScenarioSpec

__all__ = ["Loads", "kinds", "loads_to_plan", "moe_rows", "trace_to_plan"]

FloatArray = npt.NDArray[np.float64]


def kinds(model: ModelSpec) -> dict[str, tuple[MoeFfn, tuple[int, ...]]]:
    """Return each routed FFN with its places among the MoE layers.

    Raises
    ------
    SpecError : a model without routed experts
    """
    found = {}
    for name, layers in moe_layers(model).items():
        ffn = model.ffns[name]
        assert isinstance(ffn, MoeFfn)
        found[name] = (ffn, layers)
    if not found:
        raise SpecError(f"{model.name} has no routed experts to place")
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Loads:
    """Expert loads to plan for.

    Attributes
    ----------
    names : of the load scenarios
    loads : [scenario, layer, expert] by FFN; scenarios keep their own totals, imbalance is taken inside each
    mix : weights of the scenarios' imbalances, summing to 1; none: the worst one counts
    spread : how loads vary inside scenarios, by FFN, where single sequences are known (``spread_of``)
    """

    names: tuple[str, ...]
    loads: dict[str, FloatArray]
    mix: FloatArray | None
    spread: dict[str, FloatArray]


def loads_to_plan(scenario: ScenarioSpec, plan: BalancePlan, ranks: int) -> Loads:
    """Return the loads that a plan section names.

    Raises
    ------
    SpecError : recordings of another number of layers or experts, a trace without groups where groups are asked
    """
    found = kinds(scenario.model)
    weights, spread = None, {}
    if plan.by_group:
        trace = trace_to_plan(scenario, plan.loads[0].path if plan.loads else "")
        names, whole = group_loads(trace)
        if names == ("",):
            raise SpecError("plan.by_group: expected a trace with sequence_group, this one names no groups")
        _, group = np.unique(trace.group, return_inverse=True)
        vary = spread_of(sequence_loads(trace), group, ranks)
        if trace.layers != scenario.model.moe_layers:
            raise SpecError(
                f"the trace has {trace.layers} layers, {scenario.model.name} {scenario.model.moe_layers} MoE layers"
            )
        loads = {name: whole[:, list(layers)] for name, (_, layers) in found.items()}
        spread = {name: vary[:, list(layers)] for name, (_, layers) in found.items()}
    elif plan.loads:
        names = tuple(file.name or Path(file.path).stem for file in plan.loads)
        recorded = [read_loads(Path(file.path), file.format).sum(axis=0) for file in plan.loads]
        rows = [moe_rows(part, scenario.model, f.path) for part, f in zip(recorded, plan.loads, strict=True)]
        if len({row.shape for row in rows}) != 1:
            raise SpecError("plan.loads: expected recordings of the same layers and experts")
        loads = {name: np.stack(rows)[:, list(layers)] for name, (_, layers) in found.items()}
        weights = np.array([file.weight for file in plan.loads])
    else:
        routing = scenario.routing
        names = (routing.name if routing is not None else "uniform choice",)
        loads = {}
        for name, (ffn, layers) in found.items():
            share = popularity_of_layers(routing, ffn.experts, ffn.top_k, scenario.model.moe_layers)
            loads[name] = share[None, list(layers)]
    for name, (ffn, _) in found.items():
        if loads[name].shape[2] != ffn.experts:
            got = loads[name].shape[2]
            raise SpecError(f"plan.loads: loads of {got} experts, {scenario.model.name} has {ffn.experts}")
    if weights is None:
        weights = np.ones(len(names))
    return Loads(names, loads, weights / weights.sum() if plan.count == "mix" else None, spread)


def trace_to_plan(scenario: ScenarioSpec, path: str) -> RoutingTrace:
    """Return the trace that a plan names, or the scenario's recorded routing.

    Raises
    ------
    SpecError : neither is there, or it has other experts than the model
    """
    routing, (ffn, _) = scenario.routing, next(iter(kinds(scenario.model).values()))
    if path:
        return read_trace(Path(path), ffn.experts)
    if routing is not None and isinstance(routing.router, Recorded):
        return load_trace(routing)
    raise SpecError("plan: expected a recorded trace, in the plan or as the scenario's routing (kind trace)")


def moe_rows(loads: FloatArray, model: ModelSpec, source: str) -> FloatArray:
    """Return the rows of MoE layers from recorded loads [layer, expert] of these, or of all layers, of a model.

    Raises
    ------
    SpecError : another number of layers, or load in a dense layer
    """
    blocks = [isinstance(model.ffns[ffn], MoeFfn) for _, ffn in model.blocks()]
    if len(loads) == model.moe_layers:
        return loads
    if len(loads) != len(blocks):
        raise SpecError(
            f"{source}: {len(loads)} layers, expected the {model.moe_layers} MoE layers of {model.name}, or all "
            f"{len(blocks)}"
        )
    dense = np.flatnonzero(~np.array(blocks))
    if loads[dense].sum() > 0:
        raise SpecError(
            f"{source}: layer {dense[loads[dense].sum(axis=1) > 0][0]} has load, it is dense in {model.name}"
        )
    return np.asarray(loads[np.array(blocks)])
