"""Collectives: seconds to move data between devices, bytes over each tier over its bandwidth, plus latency.

Two tiers: the link inside a node (NVLink, PCIe, ...) and the network between nodes. Every function takes
bytes of any shape, returns seconds of the same shape, and tries the algorithms a library would: the fastest
one counts. Zero bytes cost nothing, and so does a group of one rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from moesim.cost.pricing import FloatArray
from moesim.errors import SpecError

__all__ = [
    "ALL_GATHER",
    "ALL_REDUCE",
    "Group",
    "all_gather",
    "all_reduce",
    "all_to_all",
    "all_to_all_deduplicated",
    "all_to_all_flat",
    "exchange_bytes",
    "p2p",
    "reduce_scatter",
]

LinkTopology = Literal["switch", "mesh", "pcie_tree", "ring", "torus", "single"]


@dataclass(frozen=True, slots=True)
class Group:
    """Ranks that communicate, spread evenly over nodes.

    Attributes
    ----------
    ranks : devices in the group
    nodes : nodes they sit on; ``ranks / nodes`` per node
    intra_bandwidth, inter_bandwidth : B/s one way per device, inside and between nodes
    intra_latency, inter_latency : seconds of one hop with a small message
    topology : shape of the link inside the node
    """

    ranks: int
    nodes: int = 1
    intra_bandwidth: float = math.inf
    inter_bandwidth: float = math.inf
    intra_latency: float = 0.0
    inter_latency: float = 0.0
    topology: LinkTopology = "switch"

    def __post_init__(self) -> None:
        if self.ranks < 1 or not 1 <= self.nodes <= self.ranks:
            raise SpecError(f"{self.ranks} ranks on {self.nodes} nodes: expected 1 <= nodes <= ranks")
        if min(self.intra_bandwidth, self.inter_bandwidth) <= 0:
            raise SpecError("expected positive bandwidths between devices")

    @property
    def per_node(self) -> float:
        """Ranks on one node."""
        return self.ranks / self.nodes

    @property
    def congestion(self) -> float:
        """How much slower an exchange between all pairs is than each device's link rate, from the bisection.

        A switch or mesh carries all pairs at full rate. In a PCIe tree and in a ring the traffic between two
        halves, ``(p/2)(p/2)/(p-1)`` of one device's bytes each way, shares one device's bandwidth; a square
        torus has ``sqrt(p)/2`` of it.
        """
        p = self.per_node
        if p <= 2 or self.topology in {"switch", "mesh", "single"}:
            return 1.0
        crossing = p * p / (4 * (p - 1))
        return max(1.0, crossing * 2 / math.sqrt(p) if self.topology == "torus" else crossing)


def _seconds(size: npt.ArrayLike, group: Group, latency: float, per_byte: float) -> FloatArray:
    data = np.asarray(size, dtype=np.float64)
    if group.ranks == 1:
        return np.zeros(data.shape)
    return np.where(data > 0, latency + data * per_byte, 0.0)


def _pipe(group: Group) -> float:
    """Bandwidth at which a ring or tree streams: all adapters of a node carry its share together."""
    if group.nodes == 1:
        return group.intra_bandwidth
    return min(group.intra_bandwidth, group.per_node * group.inter_bandwidth)


def _hop(group: Group) -> float:
    return group.intra_latency if group.nodes == 1 else max(group.intra_latency, group.inter_latency)


def _ring_reduce(size: npt.ArrayLike, group: Group) -> FloatArray:
    n = group.ranks
    return _seconds(size, group, 2 * (n - 1) * _hop(group), 2 * (n - 1) / n / _pipe(group))


def _tree_reduce(size: npt.ArrayLike, group: Group) -> FloatArray:
    inside = math.ceil(math.log2(group.per_node)) * group.intra_latency
    between = math.ceil(math.log2(group.nodes)) * group.inter_latency
    return _seconds(size, group, 2 * (inside + between), 2 / _pipe(group))


def _one_shot_reduce(size: npt.ArrayLike, group: Group) -> FloatArray:
    if group.nodes > 1:
        return np.full(np.shape(size), np.inf)
    per_byte = (group.ranks - 1) * group.congestion / group.intra_bandwidth
    return _seconds(size, group, group.intra_latency, per_byte)


def _hierarchical_reduce(size: npt.ArrayLike, group: Group) -> FloatArray:
    p, nodes = group.per_node, group.nodes
    inside = 2 * (p - 1) / p * group.congestion / group.intra_bandwidth
    between = 2 * (nodes - 1) / nodes / p / group.inter_bandwidth
    latency = (2 * group.intra_latency if p > 1 else 0.0) + 2 * math.ceil(
        math.log2(nodes)
    ) * group.inter_latency
    return _seconds(size, group, latency, inside + between)


def _ring_gather(size: npt.ArrayLike, group: Group) -> FloatArray:
    n = group.ranks
    return _seconds(size, group, (n - 1) * _hop(group), (n - 1) / n / _pipe(group))


def _hierarchical_gather(size: npt.ArrayLike, group: Group) -> FloatArray:
    p, nodes = group.per_node, group.nodes
    inside = (p - 1) / p * group.congestion / group.intra_bandwidth
    between = (nodes - 1) / nodes / p / group.inter_bandwidth
    latency = (group.intra_latency if p > 1 else 0.0) + math.ceil(math.log2(nodes)) * group.inter_latency
    return _seconds(size, group, latency, inside + between)


Algorithm = Callable[[npt.ArrayLike, Group], FloatArray]
ALL_REDUCE: dict[str, Algorithm] = {
    "ring": _ring_reduce,
    "tree": _tree_reduce,
    "one_shot": _one_shot_reduce,
    "hierarchical": _hierarchical_reduce,
}
"""ring: 2(n-1) steps; tree: pipelined up and down; one_shot: every rank reads all others (small messages);
hierarchical: reduce-scatter inside the node, all-reduce between, all-gather inside (one node: two-shot)."""
ALL_GATHER: dict[str, Algorithm] = {"ring": _ring_gather, "hierarchical": _hierarchical_gather}


def _best(table: dict[str, Algorithm], size: npt.ArrayLike, group: Group) -> FloatArray:
    return np.asarray(np.min([rule(size, group) for rule in table.values()], axis=0), dtype=np.float64)


def all_reduce(size: npt.ArrayLike, group: Group) -> FloatArray:
    """Return seconds to sum a buffer of ``size`` bytes over the group, fastest of ``ALL_REDUCE``."""
    return _best(ALL_REDUCE, size, group)


def all_gather(size: npt.ArrayLike, group: Group) -> FloatArray:
    """Return seconds until every rank holds the whole ``size`` bytes, of which each brought its share."""
    return _best(ALL_GATHER, size, group)


def reduce_scatter(size: npt.ArrayLike, group: Group) -> FloatArray:
    """Return seconds to sum ``size`` bytes and leave each rank its share: an all-gather run backwards."""
    return _best(ALL_GATHER, size, group)


def p2p(size: npt.ArrayLike, group: Group) -> FloatArray:
    """Return seconds to send ``size`` bytes to another rank, over the network if the group spans nodes."""
    if group.nodes > 1:
        return _seconds(size, group, group.inter_latency, 1 / group.inter_bandwidth)
    return _seconds(size, group, group.intra_latency, 1 / group.intra_bandwidth)


def exchange_bytes(
    size: npt.ArrayLike, group: Group, ranks_per_token: float, nodes_per_token: float
) -> tuple[FloatArray, FloatArray]:
    """Return (network, link) bytes of one device in an expert exchange, copies to one target sent once.

    Parameters
    ----------
    size : bytes of one copy of all the tokens that a device holds
    ranks_per_token, nodes_per_token : distinct ranks and nodes that a token's experts sit on

    Returns
    -------
    network : ``size * nodes_per_token * (1 - 1/nodes)``: one copy per distinct other node
    link : ``size * ranks_per_token``: one copy per distinct rank, forwarded inside the target's node. A
        rank's copy to itself passes the same buffers and is counted; DeepEP's published table fits that count
    """
    data = np.asarray(size, dtype=np.float64)
    return data * (nodes_per_token * (1 - 1 / group.nodes)), data * ranks_per_token


def all_to_all_flat(size: npt.ArrayLike, group: Group, copies: float) -> FloatArray:
    """Return seconds of an exchange in which every copy goes straight to its target rank.

    Network and link run side by side: ``max(size c (1 - 1/N) / network, size c (1/N - 1/G) f / link)`` and
    one hop.

    Parameters
    ----------
    size : bytes of one copy of all the tokens that a device holds
    copies : c, copies of each token: experts per token
    """
    data = np.asarray(size, dtype=np.float64) * copies
    between = data * (1 - 1 / group.nodes) / group.inter_bandwidth
    inside = data * (1 / group.nodes - 1 / group.ranks) * group.congestion / group.intra_bandwidth
    return _seconds(np.maximum(between, inside), group, _hop(group), 1.0)


def all_to_all_deduplicated(
    size: npt.ArrayLike, group: Group, ranks_per_token: float, nodes_per_token: float
) -> FloatArray:
    """Return seconds of a hierarchical exchange: one copy per distinct node, then one per rank inside it.

    ``max(network bytes / network, link bytes / link)`` (see ``exchange_bytes``): the two stages are
    pipelined, and whichever is slower binds. This is DeepEP's normal kernel (DeepSeek-V3, arXiv:2412.19437
    section 3.2.2).
    """
    network, link = exchange_bytes(size, group, ranks_per_token, nodes_per_token)
    slower = np.maximum(network / group.inter_bandwidth, link * group.congestion / group.intra_bandwidth)
    latency = group.intra_latency + (group.inter_latency if group.nodes > 1 else 0.0)
    return _seconds(slower, group, latency, 1.0)


def all_to_all(
    size: npt.ArrayLike, group: Group, copies: float, ranks_per_token: float, nodes_per_token: float
) -> FloatArray:
    """Return seconds of an expert exchange, the faster of flat and deduplicated."""
    flat = all_to_all_flat(size, group, copies)
    return np.minimum(flat, all_to_all_deduplicated(size, group, ranks_per_token, nodes_per_token))
