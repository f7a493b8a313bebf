"""Setup: a composition on nodes, resolved to bytes, rates and the seconds of every run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moesim.cost.dataflow import Execution, copy_bandwidth, execution_of, run_seconds
from moesim.cost.layout import Layout
from moesim.cost.memory import usable_bytes
from moesim.errors import NoResult, SpecError
from moesim.policies.composition import Batching, Dispatch, make_batching, make_dispatch
from moesim.policies.eviction import EvictionRule, make_eviction
from moesim.spec.deployment import Parallelism
from moesim.spec.parameters import weight_bytes
from moesim.units import format_quantity

if TYPE_CHECKING:
    from pathlib import Path

    from moesim.spec.composition import CompositionServing, CompositionSpec, MeasuredRun, PriceRun
    from moesim.spec.model import ModelSpec
    from moesim.spec.topology import Topology

__all__ = ["CompositionSetup", "RunPrice", "composition_setup"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class RunPrice:
    """Seconds of one run of one model on a node, remembered by batch and lengths.

    Attributes
    ----------
    price : (prompt tokens, output tokens, prompts of the batch) -> seconds
    """

    price: Callable[[int, int, int], float]
    known: dict[tuple[int, int, int], float] = field(default_factory=dict)

    def seconds(self, prompt: int, output: int, batch: int) -> float:
        """Return the seconds of a batch; the longest prompt and answer of it set the length."""
        key = (prompt, output, batch)
        if key not in self.known:
            self.known[key] = self.price(*key)
        return self.known[key]


@dataclass(frozen=True, slots=True, eq=False)
class CompositionSetup:
    """Everything a run needs.

    Attributes
    ----------
    names : of the E experts, copies counted
    size : stored bytes, [E]
    share : of the prompts that end at each expert, [E], sums to 1
    probability : of the prompts that pass through it, on the way too, [E]
    parent : expert that a prompt passes before this one, -1 for none, [E]
    category_share, category_expert : share of every category [C], and the shares of experts in it [C, E]
    price : of a run of each expert, [E]
    router : of a run of the router, None without one
    router_output : tokens that the router writes
    nodes : equal nodes
    capacity : bytes for experts in main memory, per node
    copy_bytes_per_s, copy_latency_s : from the backing tier into main memory, one copy at a time
    held : nodes that keep the weights of an expert, [nodes, E]
    resident : experts in main memory at the start, per node, [nodes, E]
    """

    names: tuple[str, ...]
    size: FloatArray
    share: FloatArray
    probability: FloatArray
    parent: IntArray
    category_share: FloatArray
    category_expert: FloatArray
    price: tuple[RunPrice, ...]
    router: RunPrice | None
    router_output: int
    router_batch: int
    nodes: int
    capacity: float
    copy_bytes_per_s: float
    copy_latency_s: float
    held: npt.NDArray[np.bool_]
    resident: npt.NDArray[np.bool_]
    eviction: EvictionRule
    batching: Batching
    dispatch: Dispatch
    max_batch: int
    ahead: int

    def switch_seconds(self, expert: int) -> float:
        """Return the seconds of one copy into main memory on a free path."""
        return self.copy_latency_s + float(self.size[expert]) / self.copy_bytes_per_s

    def chain(self, expert: int) -> tuple[int, ...]:
        """Return the experts a prompt passes, its own last."""
        made = [expert]
        while self.parent[made[0]] >= 0:
            made.insert(0, int(self.parent[made[0]]))
        return tuple(made)


def composition_setup(
    composition: CompositionSpec, topology: Topology, serving: CompositionServing, beside: Path | None = None
) -> CompositionSetup:
    """Resolve a composition on equal nodes.

    Parameters
    ----------
    topology : one node and its device; ``serving.nodes`` says how many there are
    beside : file that relative model paths start from

    Raises
    ------
    NoResult : an expert does not fit main memory, or all together do not fit the nodes, with the bytes that are short
    SpecError : no such model or tier
    """
    models = composition.models(beside)
    names: list[str] = []
    size: list[float] = []
    stored: list[float] = []
    share: list[float] = []
    prices: list[RunPrice] = []
    parent: list[str] = []
    first: dict[str, int] = {}
    for expert in composition.experts:
        first[expert.name] = len(names)
        one = expert.bytes if expert.bytes is not None else weight_bytes(models[expert.model])
        price = _price(expert.run, models.get(expert.model), topology, serving)
        weights = np.arange(1, expert.copies + 1, dtype=np.float64) ** -expert.skew
        for copy, part in enumerate(weights / weights.sum()):
            names.append(expert.name if expert.copies == 1 else f"{expert.name} #{copy + 1}")
            size.append(one)
            stored.append(one + expert.segment)
            share.append(expert.share * part)
            prices.append(price)
            parent.append(expert.after)
    own = np.array(share)
    parents = np.array([first[name] if name else -1 for name in parent], dtype=np.int64)
    categories, choice = _categories(composition, first, own)
    total = categories @ choice
    router = None if composition.router is None else _price(
        composition.router.run, models[composition.router.model], topology, serving
    )  # fmt: skip
    held_by_router = 0.0 if composition.router is None else weight_bytes(models[composition.router.model])
    capacity = usable_bytes(topology) * topology.devices_per_node - held_by_router - serving.reserved
    sizes = np.array(size)
    rate, latency = (
        copy_bandwidth(topology, serving.backing, serving.links),
        _latency(topology, serving.backing),
    )
    if sizes.max() > capacity:
        worst = int(sizes.argmax())
        have = format_quantity(max(capacity, 0.0), "B")
        raise NoResult(
            f"{names[worst]}: {format_quantity(sizes[worst], 'B')} of weights, the node has {have} for experts"
        )
    probability = _passing(total, parents)
    held = _held(np.array(stored), probability, capacity, topology, serving)
    return CompositionSetup(
        names=tuple(names), size=sizes, share=total, probability=probability, parent=parents,
        category_share=categories, category_expert=choice, price=tuple(prices), router=router,
        router_output=composition.router.output if composition.router else 0, router_batch=serving.router_batch,
        nodes=serving.nodes, capacity=capacity, copy_bytes_per_s=rate, copy_latency_s=latency, held=held,
        resident=_warm(sizes, probability, held, capacity, serving.resident), eviction=make_eviction(serving.eviction),
        batching=make_batching(serving.batching), dispatch=make_dispatch(serving.dispatch), max_batch=serving.max_batch,
        ahead=serving.ahead,
    )  # fmt: skip


def _price(
    run: MeasuredRun | PriceRun, model: ModelSpec | None, topology: Topology, serving: CompositionServing
) -> RunPrice:
    if run.kind == "measured":
        return RunPrice(lambda _prompt, _output, batch: run.fixed + run.per_prompt * batch)
    if model is None:
        raise SpecError("run: without a model expected a measured run")
    layout = _layout(model, topology)
    execution = _execution(topology, serving)
    return RunPrice(
        lambda prompt, output, batch: (
            run.start + run_seconds(layout, execution, topology.device, prompt, output, batch)
        )
    )


def _layout(model: ModelSpec, topology: Topology) -> Layout:
    """Cut the model over the whole node, or over the most of its devices that divide the heads."""
    devices = topology.devices_per_node
    for tp in (tp for tp in range(devices, 1, -1) if devices % tp == 0):
        try:
            return Layout.of(model, topology, Parallelism(tp=tp))
        except SpecError:
            continue
    return Layout.of(model, topology, Parallelism())


def _execution(topology: Topology, serving: CompositionServing) -> Execution:
    device = topology.device
    made = execution_of(
        device,
        fused=device.dataflow is not None,
        orchestration=serving.orchestration,
        bandwidth=serving.bandwidth,
    )
    launch = made.launch_s if serving.kernel is None else serving.kernel
    return Execution(made.fused, made.bandwidth, launch, made.units)


def _categories(
    composition: CompositionSpec, first: dict[str, int], own: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return category shares [C] and expert shares within each [C, E]; without categories one that is all."""
    if not composition.categories:
        return np.ones(1), (own / own.sum())[None, :]
    copies = {expert.name: expert.copies for expert in composition.experts}
    share = np.array([c.share for c in composition.categories])
    choice = np.zeros((len(share), len(own)))
    for row, category in enumerate(composition.categories):
        at = slice(first[category.expert], first[category.expert] + copies[category.expert])
        part = own[at] if own[at].sum() > 0 else np.ones(copies[category.expert])
        choice[row, at] = part / part.sum()
    if composition.unsure:
        sure = np.array([c.name != composition.general for c in composition.categories])
        moved = float((share[sure] * composition.unsure).sum())
        share = np.where(sure, share * (1 - composition.unsure), share + moved)
    return share / share.sum(), choice


def _passing(share: FloatArray, parent: IntArray) -> FloatArray:
    """Return the share of prompts that use each expert, those on the way to another included."""
    passing = share.copy()
    for expert in range(len(share)):
        above = int(parent[expert])
        seen = {expert}
        while above >= 0:
            if above in seen:
                raise SpecError("experts: after: expected no circle")
            seen.add(above)
            passing[above] += share[expert]
            above = int(parent[above])
    return np.minimum(passing, 1.0)


def _latency(topology: Topology, tier: str) -> float:
    device, host = topology.device.memory, topology.node.host
    return device[tier].latency if tier in device else host.memory[tier].latency + host.link_latency


def _held(
    size: FloatArray,
    probability: FloatArray,
    capacity: float,
    topology: Topology,
    serving: CompositionServing,
) -> npt.NDArray[np.bool_]:
    """Return which node keeps which expert: all of them everywhere if they fit, else dealt out by probability."""
    device, host = topology.device.memory, topology.node.host
    count = serving.nodes
    below = device[serving.backing].capacity * topology.devices_per_node if serving.backing in device else (
        host.memory[serving.backing].capacity
    )  # fmt: skip
    room = below + (capacity if serving.spill else 0.0)
    if size.sum() <= room:
        return np.ones((count, len(size)), dtype=np.bool_)
    if size.sum() > room * count:
        short = format_quantity(float(size.sum() - room * count), "B")
        raise NoResult(
            f"{len(size)} experts of {format_quantity(float(size.sum()), 'B')} do not fit {count} x "
            f"{topology.node.name} with {format_quantity(room, 'B')} each, {short} short"
        )
    held = np.zeros((count, len(size)), dtype=np.bool_)
    left, load = np.full(count, room), np.zeros(count)
    for expert in np.lexsort((-probability, -size)):
        free = np.flatnonzero(left >= size[expert])
        if not len(free):
            raise NoResult(
                f"{len(size)} experts do not pack into {count} nodes of {format_quantity(room, 'B')}"
            )
        node = int(free[np.argmin(load[free])])
        held[node, expert] = True
        left[node] -= size[expert]
        load[node] += probability[expert]
    return held


def _warm(
    size: FloatArray, probability: FloatArray, held: npt.NDArray[np.bool_], capacity: float, how: str
) -> npt.NDArray[np.bool_]:
    resident = np.zeros(held.shape, dtype=np.bool_)
    if how == "cold":
        return resident
    for node in range(len(held)):
        left = capacity
        for expert in np.argsort(-probability, kind="stable"):
            if held[node, expert] and size[expert] <= left:
                resident[node, expert] = True
                left -= size[expert]
    return resident
