"""Setup: from a resolved scenario to pools that can run: memory, pricing, links."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from moesim.cost.memory import MemoryPlan, memory_plan
from moesim.cost.overheads import Overhead, with_overhead
from moesim.cost.pricing import StepPricing
from moesim.cost.stepprice import step_pricing
from moesim.sim.calibration import Tables, calibrated
from moesim.sim.pool import PoolSetup
from moesim.sim.routing_load import routing_load
from moesim.sim.transfer import KvPath
from moesim.spec.deployment import Pool as PoolSpec
from moesim.spec.deployment import Speculation
from moesim.spec.parameters import cache_bytes
from moesim.spec.scenario import ScenarioSpec
from moesim.spec.topology import (
    Topology,
    host_bandwidth,
    inter_bandwidth,
    inter_latency,
    intra_bandwidth,
    intra_latency,
)

__all__ = ["PoolParts", "draft_seconds", "kv_path", "pool_parts"]


@dataclass(frozen=True, slots=True)
class PoolParts:
    """One pool of a scenario, sized and priced.

    Attributes
    ----------
    setup : for the simulator
    memory : bytes per device
    initial : replicas in service at the start
    topology : where it runs
    notes : assumptions made on the way
    intervals : how far simulated latencies have been from measured ones, see ``Calibration``
    """

    setup: PoolSetup
    memory: MemoryPlan
    initial: int
    topology: Topology
    notes: tuple[str, ...]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)


def pool_parts(
    scenario: ScenarioSpec,
    name: str,
    spec: PoolSpec,
    beside: Path | None = None,
    tables: Tables | None = None,
) -> PoolParts:
    """Size and price one pool.

    Parameters
    ----------
    beside : file that the relative path of a calibration starts from
    tables : see ``calibrated``

    Raises
    ------
    NoResult : the model does not fit, or the device lacks an arithmetic type
    DataMissing, SpecError : the calibration cannot be read
    """
    topology = scenario.topology()
    deployment = scenario.deployment
    speculation = deployment.speculation if name != "prefill" else None
    memory = memory_plan(scenario.model, topology, spec, deployment.precision, speculation)
    load, notes = routing_load(scenario, topology, spec)
    engine = spec.engine
    known = calibrated(
        deployment.calibration, engine, topology.device, beside, tables, experts=load is not None
    )
    pricing = step_pricing(
        scenario.model, topology, spec, deployment.precision, load, speculation, known.chain
    )
    if known.host != Overhead():
        pricing = with_overhead(pricing, known.host)
    draft = draft_seconds(pricing, speculation)
    if speculation is not None:
        notes += ("Drafting costs its stated share of a plain decode step of one sequence without context.",)
    host = host_bandwidth(topology)
    block = memory.kv_bytes_per_token * engine.block_tokens
    scaling = deployment.autoscaling
    grows = scaling is not None and name == list(deployment.pools)[-1]
    setup = PoolSetup(
        name=name,
        replicas=max(spec.replicas, scaling.max_replicas) if scaling is not None and grows else spec.replicas,
        pricing=pricing,
        engine=engine,
        stages=spec.parallelism.pp,
        kv_blocks=memory.kv_blocks_per_lane // spec.parallelism.pp,  # the stages' batches share the cache
        max_len=engine.max_model_len or scenario.model.context,
        swap_s_per_block=0.0 if math.isinf(host) else block / host,
        speculation=speculation,
        draft_s=draft,
    )
    told = (*pricing.notes, *known.notes, *memory.notes, *notes)
    return PoolParts(setup, memory, spec.replicas, topology, told, known.intervals)


def draft_seconds(pricing: StepPricing, speculation: Speculation | None) -> float:
    """Return seconds of drafting per step: the stated share of a plain decode step without context."""
    if speculation is None:
        return 0.0
    tables = (pricing.lane_s, pricing.group_s, pricing.head_s)
    return speculation.draft_cost * (pricing.overhead_s + sum(float(t[:, 1].sum()) for t in tables))


def kv_path(scenario: ScenarioSpec, parts: dict[str, PoolParts]) -> KvPath | None:
    """Return how KV moves from the prefill to the decode pool, or None when one pool does both.

    Each device of the smaller replica moves its shard over its own link: inside the node when the cluster is one
    node, else over its network adapter.
    """
    if "prefill" not in parts:
        return None
    topology = parts["prefill"].topology
    devices = min(p.setup.pricing.devices for p in parts.values())
    kv_dtype = scenario.deployment.precision.kv_cache or scenario.model.weights.kv_cache
    if topology.nodes == 1:
        rate, latency = intra_bandwidth(topology), intra_latency(topology)
    else:
        rate, latency = inter_bandwidth(topology), inter_latency(topology)
    return KvPath(cache_bytes(scenario.model, kv_dtype), rate * devices, latency)
