"""Published: throughputs that others reported with all their inputs, priced by our step tables."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import PositiveFloat, PositiveInt

from moesim.cost.pricing import AttentionTerm, StepPricing
from moesim.cost.roofline import Chain
from moesim.cost.stepprice import step_pricing
from moesim.files import read_yaml
from moesim.sim.routing_load import routing_load
from moesim.spec.base import Spec, load_spec, validate
from moesim.spec.deployment import Deployment, Engine, Parallelism, Pool, Run
from moesim.spec.model import ModelSpec
from moesim.spec.scenario import ScenarioSpec
from moesim.spec.topology import resolve_cluster
from moesim.spec.traffic import TrafficSpec

__all__ = ["LeftOut", "Published", "PublishedPoint", "published_points", "step_split", "tokens_per_s"]


class PublishedPoint(Spec):
    """One figure and everything that decides it."""

    name: str
    model: str
    node: str
    cluster: str
    """Catalog entry whose fabric and nodes these are; ``nodes`` of them."""
    nodes: PositiveInt
    dp: PositiveInt
    ep: PositiveInt
    phase: Literal["prefill", "decode"]
    batch: PositiveInt
    """Sequences per device in one step."""
    context: PositiveInt
    """Keys per decoding sequence, or tokens per prompt."""
    overlapped: bool
    """Two micro-batches: exchange hides behind computation, or computation behind exchange."""
    tokens_per_s_per_device: PositiveFloat
    source: str


class LeftOut(Spec):
    """A published figure that cannot be replayed."""

    what: str
    why: str


class Published(Spec):
    """Published figures."""

    kind: Literal["published_points"]
    points: tuple[PublishedPoint, ...]
    left_out: tuple[LeftOut, ...]


def published_points() -> Published:
    """Return the figures that are replayed, and those that cannot be."""
    path = Path(__file__).with_suffix(".yaml")
    return validate(Published, read_yaml(path, path.name))


def tokens_per_s(point: PublishedPoint, chain: Chain | None = None) -> float:
    """Return predicted tokens per second and device of a point; balanced routing, as all of them state or imply.

    Parameters
    ----------
    chain : estimators, best first; by default the roofline bound: then the most that physics allows

    Raises
    ------
    NoResult : the model does not fit the devices
    """
    tokens = point.batch * (point.context if point.phase == "prefill" else 1)
    engine = Engine(max_num_seqs=point.batch, max_num_batched_tokens=tokens)
    pool = Pool(parallelism=Parallelism(tp=1, dp=point.dp, ep=point.ep), engine=engine)
    topology = resolve_cluster(point.cluster)
    cluster = topology.cluster.model_copy(update={"nodes": point.nodes})
    traffic = TrafficSpec.model_validate(
        {
            "kind": "traffic", "name": "published", "arrivals": {"kind": "closed_loop", "concurrency": 1},
            "lengths": {"kind": "fixed", "input": 1, "output": 1},
        }
    )  # fmt: skip
    scenario = ScenarioSpec(
        kind="scenario",
        name=point.name,
        cluster=cluster,
        node=topology.node,
        device=topology.device,
        model=load_spec(ModelSpec, point.model, "model"),
        traffic=traffic,
        deployment=Deployment(serve=pool),
        run=Run(requests=1),
    )
    load, _ = routing_load(scenario, scenario.topology(), pool)
    pricing = step_pricing(scenario.model, scenario.topology(), pool, None, load, chain=chain)
    compute, exchange = step_split(pricing, point)
    seconds = max(compute, exchange) if point.overlapped else compute + exchange
    return tokens / seconds


def step_split(pricing: StepPricing, point: PublishedPoint) -> tuple[float, float]:
    """Return seconds of computation and of exchange in one step with all lanes alike."""
    tokens = point.batch * (point.context if point.phase == "prefill" else 1)
    exchange = pricing.overhead_s
    compute = float(pricing.lane_s[:, tokens].sum() + pricing.head_s[:, point.batch].sum())
    for info, row in zip(pricing.group_ops, pricing.group_s, strict=True):
        if info.kind == "collective":
            exchange += float(row[tokens * pricing.lanes])
        else:
            compute += float(row[tokens * pricing.lanes])
    return compute + sum(_attention(term, point) for term in pricing.attention), exchange


def _attention(term: AttentionTerm, point: PublishedPoint) -> float:
    """Return seconds of one kind of attention, by the formula of ``AttentionTerm``."""
    n, c = point.batch, point.context
    keys = c if term.window == 0 else 1 if term.window < 0 else min(c, term.window)
    if point.phase == "decode":
        bound = term.launch_s + max(
            n * keys * term.decode_flop_s, n * keys * term.decode_kv_s + n * term.decode_seq_s
        )
        return bound * _slack(term.decode_grid, n, keys)
    past = np.arange(1, c + 1)
    each = past if term.window == 0 else np.ones(c) if term.window < 0 else np.minimum(past, term.window)
    pairs = n * float(each.sum())
    bound = term.launch_s + max(
        pairs * term.prefill_flop_s,
        n * (1 if term.window < 0 else c) * term.prefill_kv_s + n * c * term.prefill_token_s,
    )
    return bound * _slack(term.prefill_grid, n * c, pairs / (n * c))


def _slack(
    grid: np.ndarray[tuple[int, ...], np.dtype[np.float64]] | None, count: float, keys: float
) -> float:
    if grid is None:
        return 1.0
    x = float(np.clip(np.log2(max(count, 1)), 0, grid.shape[0] - 1))
    y = float(np.clip(np.log2(max(keys, 1)), 0, grid.shape[1] - 1))
    rows = [float(np.interp(y, np.arange(grid.shape[1]), row)) for row in grid]
    return float(np.interp(x, np.arange(grid.shape[0]), rows))
