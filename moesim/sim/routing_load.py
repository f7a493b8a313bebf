"""Routing load: what the scenario's routing does to the experts' work, as curves for the cost model."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.interpolate import PchipInterpolator

from moesim.cost.load import RoutingLoad
from moesim.routing.expected import expected_distinct, expected_distinct_ranks, rank_shares, straggler_factor
from moesim.routing.placed import (
    distinct_bins,
    distinct_bins_of_groups,
    distinct_bins_of_trace,
    imbalance,
    rank_of_slot,
    slot_bins,
    slot_shares,
)
from moesim.routing.popularity import layer_popularity, popularity_of_layers
from moesim.routing.store import load_trace
from moesim.spec.deployment import Pool
from moesim.spec.model import MoeFfn
from moesim.spec.placement import PlacementSpec, moe_layers
from moesim.spec.routing import Recorded
from moesim.spec.scenario import ScenarioSpec
from moesim.spec.topology import Topology, group_shape

__all__ = ["expert_rank", "node_of_rank", "placed_experts", "placed_loads", "routing_load"]

FloatArray = np.ndarray[Any, np.dtype[np.float64]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]

_MANY = 2048
"""Layers times experts above which a default placement's curve is interpolated too: exact ones would take a minute."""
_CURVES = 8
"""Layers, of evenly spread imbalance, whose straggler curves stand for all layers of a placement."""


def routing_load(
    scenario: ScenarioSpec, topology: Topology, pool: Pool
) -> tuple[dict[str, RoutingLoad] | None, tuple[str, ...]]:
    """Return one load per kind of routed FFN of the model (None for a dense model), and the assumptions made.

    The curves reach ``dp * max_num_batched_tokens`` tokens, the most that one step of a replica can hold. Without a
    placement, experts lie in contiguous blocks.
    """
    model = scenario.model
    kinds = {name: f for name, f in model.ffns.items() if isinstance(f, MoeFfn)}
    if not kinds:
        return None, ()
    tokens = np.arange(pool.parallelism.dp * pool.engine.max_num_batched_tokens + 1)
    nodes = min(group_shape(topology, pool.parallelism.tp * pool.parallelism.dp).nodes, pool.parallelism.ep)
    source = scenario.routing.name if scenario.routing is not None else "uniform choice (no routing given)"
    note = f"Experts touched and the busiest rank's load follow {source}; tokens of one step choose independently."
    if pool.placement is not None:
        where = (
            f"Experts lie as placement {pool.placement.name} says; replicas share an expert's tokens evenly."
        )
        return _placed(scenario, pool.placement, tokens, nodes), (note, where)
    loads = {}
    for name, ffn in kinds.items():
        popularity = layer_popularity(scenario.routing, ffn.experts, ffn.top_k)
        ranks = pool.parallelism.ep
        placement = expert_rank(ffn.experts, ranks)
        loads[name] = RoutingLoad(
            distinct=expected_distinct(popularity, ffn.top_k, tokens),
            straggler=_straggler(popularity, ffn.top_k, tokens, placement)
            if popularity.size > _MANY and ffn.experts % ranks == 0
            else straggler_factor(popularity, ffn.top_k, tokens, rank_shares(ffn.experts, placement)),
            ranks_per_token=_distinct_bins(ffn, ranks),
            nodes_per_token=_distinct_bins(ffn, nodes),
            slots_per_rank=math.ceil(ffn.experts / ranks),
        )
    return loads, (note,)


def expert_rank(experts: int, ranks: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the expert-parallel rank of each expert, contiguous blocks as vLLM lays them, [experts]."""
    return np.arange(experts) * ranks // experts


def node_of_rank(ranks: int, nodes: int) -> IntArray:
    """Return the node of each expert-parallel rank, [rank]: ranks fill one node before the next."""
    return np.arange(ranks) * nodes // ranks


def placed_loads(scenario: ScenarioSpec, placement: PlacementSpec) -> dict[str, tuple[FloatArray, IntArray]]:
    """Return, by FFN, share of choices of each expert [layer, E] and expert in each slot [layer, slot].

    Layers are those of the FFN, in the model's order; shares of a layer sum to 1.
    """
    model, layers = scenario.model, moe_layers(scenario.model)
    found = {}
    for name, rows in layers.items():
        ffn = model.ffns[name]
        assert isinstance(ffn, MoeFfn)
        share = popularity_of_layers(scenario.routing, ffn.experts, ffn.top_k, model.moe_layers)[list(rows)]
        slots = np.array(placement.ffns[name].slots, dtype=np.int64)
        found[name] = (share, np.broadcast_to(slots, (len(rows), slots.shape[1])))
    return found


def placed_experts(scenario: ScenarioSpec, placement: PlacementSpec) -> dict[str, np.ndarray[Any, Any]]:
    """Return columns ``layer``, ``expert``, ``rank``, ``load``: one row per slot, its share of the layer's work."""
    layers, columns = moe_layers(scenario.model), []
    for name, (share, slots) in placed_loads(scenario, placement).items():
        rank = np.broadcast_to(rank_of_slot(slots.shape[1], placement.ranks), slots.shape)
        layer = np.broadcast_to(np.array(layers[name])[:, None], slots.shape)
        columns.append(np.stack([layer, slots, rank]).reshape(3, -1))
        columns.append(slot_shares(share, slots).reshape(1, -1))
    whole = np.concatenate(columns[::2], axis=1)
    load = np.concatenate(columns[1::2], axis=1)[0]
    order = np.argsort(whole[0], kind="stable")
    named = dict(zip(("layer", "expert", "rank"), whole[:, order].astype(np.int64), strict=True))
    return {**named, "load": load[order]}


def _placed(
    scenario: ScenarioSpec, placement: PlacementSpec, tokens: IntArray, nodes: int
) -> dict[str, RoutingLoad]:
    """Return loads with physical slots in the place of experts: each is touched, and loaded, by itself."""
    loads, layers = {}, moe_layers(scenario.model)
    for name, (share, slots) in placed_loads(scenario, placement).items():
        ffn = scenario.model.ffns[name]
        assert isinstance(ffn, MoeFfn)
        shares = slot_shares(share, slots)
        rank = rank_of_slot(slots.shape[1], placement.ranks)
        lying = [
            _bins(scenario, ffn, layers[name], share, slot_bins(slots, where, ffn.experts))
            for where in (rank, node_of_rank(placement.ranks, nodes)[rank])
        ]
        loads[name] = RoutingLoad(
            distinct=expected_distinct(shares, ffn.top_k, tokens),
            straggler=_straggler(shares, ffn.top_k, tokens, rank),
            ranks_per_token=lying[0],
            nodes_per_token=lying[1],
            slots_per_rank=slots.shape[1] // placement.ranks,
        )
    return loads


def _straggler(shares: FloatArray, k: int, tokens: IntArray, rank: IntArray) -> FloatArray:
    """Return the mean over layers of the busiest rank's factor, [tokens], from slot shares [layer, slot].

    The factor falls smoothly with the tokens of a step, so it is computed at powers of two and interpolated between
    , for layers of evenly spread long-run imbalance: within 1.5 % of computing all layers everywhere (tests).
    """
    ranks = int(rank.max()) + 1
    long_run = imbalance(shares.reshape(len(shares), ranks, -1).sum(axis=2))
    parts = np.array_split(np.argsort(long_run, kind="stable"), min(_CURVES, len(shares)))
    top = max(int(tokens.max()), 1)
    grid = np.unique(np.append(2 ** np.arange(int(math.log2(top)) + 1), top))
    known = [straggler_factor(shares[part[len(part) // 2]], k, grid, rank) for part in parts]
    mean = np.average(known, axis=0, weights=[len(part) for part in parts])
    if len(grid) == 1:
        return np.full(tokens.shape, mean[0])
    found = PchipInterpolator(np.log(grid), np.log(mean))(np.log(np.maximum(tokens, 1)))
    return np.asarray(np.where(tokens > 0, np.maximum(np.exp(found), 1.0), 1.0))


def _bins(
    scenario: ScenarioSpec, ffn: MoeFfn, layers: tuple[int, ...], share: FloatArray, parts: FloatArray
) -> float:
    """Return how many bins of ``parts`` [layer, E, bin] a token's experts lie on, mean over layers."""
    if parts.shape[2] == 1:
        return 1.0
    routing = scenario.routing
    if routing is not None and isinstance(routing.router, Recorded):
        return float(distinct_bins_of_trace(load_trace(routing), layers, parts).mean())
    if ffn.top_groups < ffn.groups:
        return float(distinct_bins_of_groups(ffn.top_k, parts, ffn.groups, ffn.top_groups).mean())
    return float(distinct_bins(share, ffn.top_k, parts).mean())


def _distinct_bins(ffn: MoeFfn, bins: int) -> float:
    """Return how many of ``bins`` ranks (or nodes) the experts of one token lie on, uniform choice."""
    if bins == 1:
        return 1.0
    if ffn.experts % bins == 0:
        return expected_distinct_ranks(ffn.experts, ffn.top_k, bins, ffn.groups, ffn.top_groups)
    held = np.bincount(expert_rank(ffn.experts, bins), minlength=bins)
    every = math.comb(ffn.experts, ffn.top_k)
    return float(sum(1 - math.comb(ffn.experts - int(n), ffn.top_k) / every for n in held))
