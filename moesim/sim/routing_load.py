"""Routing load: what the scenario's routing does to the experts' work, as curves for the cost model."""

from __future__ import annotations

import math

import numpy as np

from moesim.cost.load import RoutingLoad
from moesim.routing.expected import expected_distinct, expected_distinct_ranks, rank_shares, straggler_factor
from moesim.routing.popularity import layer_popularity
from moesim.spec.deployment import Pool
from moesim.spec.model import MoeFfn
from moesim.spec.scenario import ScenarioSpec
from moesim.spec.topology import Topology, group_shape

__all__ = ["expert_rank", "routing_load"]


def routing_load(
    scenario: ScenarioSpec, topology: Topology, pool: Pool
) -> tuple[dict[str, RoutingLoad] | None, tuple[str, ...]]:
    """Return one load per kind of routed FFN of the model (None for a dense model), and the assumptions made.

    The curves reach ``dp * max_num_batched_tokens`` tokens, the most that one step of a replica can hold.
    """
    model = scenario.model
    kinds = {name: f for name, f in model.ffns.items() if isinstance(f, MoeFfn)}
    if not kinds:
        return None, ()
    tokens = np.arange(pool.parallelism.dp * pool.engine.max_num_batched_tokens + 1)
    loads, notes = {}, []
    for name, ffn in kinds.items():
        popularity = layer_popularity(scenario.routing, ffn.experts, ffn.top_k)
        ranks = pool.parallelism.ep
        placement = expert_rank(ffn.experts, ranks)
        nodes = group_shape(topology, pool.parallelism.tp * pool.parallelism.dp).nodes
        loads[name] = RoutingLoad(
            distinct=expected_distinct(popularity, ffn.top_k, tokens),
            straggler=straggler_factor(popularity, ffn.top_k, tokens, rank_shares(ffn.experts, placement)),
            ranks_per_token=_distinct_bins(ffn, ranks),
            nodes_per_token=_distinct_bins(ffn, min(nodes, ranks)),
            slots_per_rank=math.ceil(ffn.experts / ranks),
        )
        source = (
            scenario.routing.name if scenario.routing is not None else "uniform choice (no routing given)"
        )
        notes.append(
            f"Experts touched and the busiest rank's load follow {source}; tokens of one step choose independently."
        )
    return loads, tuple(dict.fromkeys(notes))


def expert_rank(experts: int, ranks: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the expert-parallel rank of each expert, contiguous blocks as vLLM lays them, [experts]."""
    return np.arange(experts) * ranks // experts


def _distinct_bins(ffn: MoeFfn, bins: int) -> float:
    """Return how many of ``bins`` ranks (or nodes) the experts of one token lie on, uniform choice."""
    if bins == 1:
        return 1.0
    if ffn.experts % bins == 0:
        return expected_distinct_ranks(ffn.experts, ffn.top_k, bins, ffn.groups, ffn.top_groups)
    held = np.bincount(expert_rank(ffn.experts, bins), minlength=bins)
    every = math.comb(ffn.experts, ffn.top_k)
    return float(sum(1 - math.comb(ffn.experts - int(n), ffn.top_k) / every for n in held))
