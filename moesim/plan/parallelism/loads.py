"""Loads: the router's expectations for many cuts, computed at few token counts and once per set of ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moesim.cost.load import RoutingLoad
from moesim.routing.alike import straggler_alike
from moesim.routing.expected import expected_distinct, expected_distinct_ranks, rank_shares, straggler_factor
from moesim.routing.placed import distinct_bins, slot_bins
from moesim.routing.popularity import layer_popularity
from moesim.spec.model import ModelSpec, MoeFfn
from moesim.spec.topology import Topology, group_shape

if TYPE_CHECKING:
    from moesim.spec.deployment import Parallelism
    from moesim.spec.routing import RoutingSpec

__all__ = ["Loads"]

_NODES = 28


class Loads:
    """Routing loads by cut, experts in contiguous blocks over the ranks; curves are linear between token counts.

    The straggler factor of experts of unlike popularity takes a second or so per number of ranks, so it is kept.
    """

    def __init__(
        self, model: ModelSpec, topology: Topology, routing: RoutingSpec | None, longest: int
    ) -> None:
        self.kinds = {name: f for name, f in model.ffns.items() if isinstance(f, MoeFfn)}
        self.topology, self.routing, self.longest = topology, routing, longest
        self.tokens = np.unique(np.r_[0:9, np.geomspace(9, max(longest, 10), _NODES).astype(np.int64)])
        self._kept: dict[tuple[str, int, int], RoutingLoad] = {}

    def of(self, cut: Parallelism) -> dict[str, RoutingLoad] | None:
        """Return one load per kind of routed FFN, None for a dense model."""
        if not self.kinds:
            return None
        nodes = min(group_shape(self.topology, cut.tp * cut.dp).nodes, cut.ep)
        return {name: self._load(name, ffn, cut.ep, nodes) for name, ffn in self.kinds.items()}

    def _load(self, name: str, ffn: MoeFfn, ranks: int, nodes: int) -> RoutingLoad:
        known = self._kept.get((name, ranks, nodes))
        if known is not None:
            return known
        popularity = layer_popularity(self.routing, ffn.experts, ffn.top_k)
        placement = np.arange(ffn.experts) * ranks // ffn.experts
        straggler = np.ones(len(self.tokens))
        if ranks > 1 and ffn.experts % ranks == 0 and np.ptp(popularity) == 0:
            straggler = straggler_alike(ffn.experts, ffn.top_k, self.tokens, ranks)
        elif ranks > 1:
            straggler = straggler_factor(
                popularity, ffn.top_k, self.tokens, rank_shares(ffn.experts, placement)
            )
        made = RoutingLoad(
            distinct=expected_distinct(popularity, ffn.top_k, self.tokens),
            straggler=straggler,
            knots=self.tokens,
            ranks_per_token=_bins(ffn, ranks),
            nodes_per_token=_bins(ffn, nodes),
            slots_per_rank=-(-ffn.experts // ranks),
        )
        self._kept[name, ranks, nodes] = made
        return made


def _bins(ffn: MoeFfn, bins: int) -> float:
    """Return how many of ``bins`` blocks of experts one token needs, every expert alike."""
    if bins == 1:
        return 1.0
    if ffn.experts % bins == 0:
        return expected_distinct_ranks(ffn.experts, ffn.top_k, bins, ffn.groups, ffn.top_groups)
    parts = slot_bins(np.arange(ffn.experts), np.arange(ffn.experts) * bins // ffn.experts, ffn.experts)
    return float(distinct_bins(np.ones(ffn.experts), ffn.top_k, parts)[0])
