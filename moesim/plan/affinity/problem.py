"""Affinity: transitions between experts of adjacent layers, a topology, and the hops that a placement costs.

A placement is an integer array [layer, expert]: the device of each expert, equally many per device in every layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moesim.errors import NoResult, SpecError

__all__ = ["Affinity", "Hops", "Topology", "check_placement", "hop_cost", "hops"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Topology:
    """Devices in nodes, device d on node ``d // per_node``, and what a hop weighs.

    Attributes
    ----------
    nodes : nodes
    per_node : devices per node
    device_hop : weight of a hop to another device of the same node
    node_hop : weight of a hop to another node, at least ``device_hop``; 2 and 1 are ExFlow's weights
    """

    nodes: int
    per_node: int
    device_hop: float = 1.0
    node_hop: float = 2.0

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.per_node < 1:
            raise SpecError(f"{self.nodes} nodes of {self.per_node} devices: expected at least one of each")
        if not 0 <= self.device_hop <= self.node_hop < np.inf:
            raise SpecError(
                f"hops weigh {self.device_hop} inside and {self.node_hop} between nodes: "
                "expected 0 <= inside <= between"
            )

    @classmethod
    def flat(cls, devices: int, hop: float = 1.0) -> Topology:
        """Return devices that are all equally far apart."""
        return cls(1, devices, hop, max(hop, 0.0))

    @property
    def devices(self) -> int:
        """Devices in all nodes."""
        return self.nodes * self.per_node

    @property
    def node(self) -> IntArray:
        """Node of each device, [device]."""
        return np.arange(self.devices, dtype=np.int64) // self.per_node

    @property
    def levels(self) -> tuple[tuple[int, float], ...]:
        """Groupings that save weight: (groups, weight saved by staying inside one), only those that count.

        A hop costs the sum of the weights of the groupings whose border it crosses: nodes carry what a hop between
        nodes costs more than one inside.
        """
        found: list[tuple[int, float]] = []
        if self.nodes > 1:
            found.append(
                (self.nodes, self.node_hop - self.device_hop if self.per_node > 1 else self.node_hop)
            )
        if self.per_node > 1:
            found.append((self.devices, self.device_hop))
        return tuple((groups, weight) for groups, weight in found if weight > 0)


@dataclass(frozen=True, slots=True, eq=False)
class Affinity:
    """One affinity problem.

    Attributes
    ----------
    counts : float64 [layer - 1, expert, expert], tokens (or token pairs) that use e in a layer and f in the next
    topology : where devices are
    """

    counts: FloatArray
    topology: Topology

    def __post_init__(self) -> None:
        counts = np.ascontiguousarray(self.counts, dtype=np.float64)
        object.__setattr__(self, "counts", counts)
        if counts.ndim != 3 or 0 in counts.shape or counts.shape[1] != counts.shape[2]:
            raise SpecError(
                f"transitions of shape {counts.shape}: expected [layers - 1, experts, experts], not empty"
            )
        if not np.all(np.isfinite(counts)) or counts.min() < 0:
            raise SpecError("transitions: expected finite numbers, none negative")
        short = -self.experts % self.topology.devices
        if short:
            raise NoResult(
                f"{self.experts} experts do not split evenly over {self.topology.devices} devices: "
                f"{short} short of equal shares"
            )

    @property
    def layers(self) -> int:
        """MoE layers."""
        return len(self.counts) + 1

    @property
    def experts(self) -> int:
        """Experts per layer."""
        return int(self.counts.shape[1])

    @property
    def share(self) -> int:
        """Experts per device and layer."""
        return self.experts // self.topology.devices

    @property
    def total(self) -> float:
        """Transitions counted in all boundaries."""
        return float(self.counts.sum())


@dataclass(frozen=True, slots=True)
class Hops:
    """What a placement costs.

    Attributes
    ----------
    weighted : sum of counts times the weight of their hop: the objective
    device : transitions to another device of the same node
    node : transitions to another node
    total : all transitions
    boundaries : layer boundaries
    """

    weighted: float
    device: float
    node: float
    total: float
    boundaries: int

    @property
    def share(self) -> float:
        """Share of transitions that leave their device."""
        return (self.device + self.node) / self.total if self.total else 0.0

    @property
    def per_token(self) -> float:
        """Weighted hops of a token in one pass through all layers.

        ExFlow's printed cost (solve_affinity.py): 23.25 for uniform routing, 32 layers, 4 devices.
        """
        return self.weighted / self.total * self.boundaries if self.total else 0.0

    def intra(self, topology: Topology) -> float:
        """Return ExFlow's ``cintra``: hops per token inside nodes over the other devices of a node."""
        others = topology.per_node - 1
        return self.device / self.total * self.boundaries / others if self.total and others else 0.0

    def inter(self, topology: Topology) -> float:
        """Return ExFlow's ``cinter``: hops per token between nodes over the devices of the other nodes."""
        others = topology.per_node * (topology.nodes - 1)
        return self.node / self.total * self.boundaries / others if self.total and others else 0.0


def hop_cost(topology: Topology) -> FloatArray:
    """Return the weight of a hop between two devices, [device, device]; 0 on the diagonal."""
    node = topology.node
    cost = np.where(node[:, None] == node[None, :], topology.device_hop, topology.node_hop)
    np.fill_diagonal(cost, 0.0)
    return cost


def check_placement(problem: Affinity, placement: npt.ArrayLike) -> IntArray:
    """Return the placement as integers.

    Raises
    ------
    SpecError : wrong shape, an unknown device, unequal shares
    """
    found = np.asarray(placement)
    if found.shape != (problem.layers, problem.experts) or not np.issubdtype(found.dtype, np.integer):
        raise SpecError(
            f"placement {found.dtype} {found.shape}: expected integers {(problem.layers, problem.experts)}"
        )
    devices = problem.topology.devices
    if found.min() < 0 or found.max() >= devices:
        raise SpecError(f"placement {found.min()}..{found.max()}: expected devices 0..{devices - 1}")
    placed = found.astype(np.int64)
    for layer, row in enumerate(placed):
        count = np.bincount(row, minlength=devices)
        if np.any(count != problem.share):
            device = int(np.flatnonzero(count != problem.share)[0])
            raise SpecError(
                f"placement: layer {layer} puts {count[device]} experts on device {device}, "
                f"expected {problem.share}"
            )
    return placed


def hops(problem: Affinity, placement: npt.ArrayLike) -> Hops:
    """Return the hops of a placement: ExFlow's objective, aggregated over equal transitions.

    Raises
    ------
    SpecError : see ``check_placement``
    """
    placed = check_placement(problem, placement)
    topology = problem.topology
    low, high = placed[:-1, :, None], placed[1:, None, :]
    counts = problem.counts
    same_node = topology.node[low] == topology.node[high]
    node = float(counts[~same_node].sum())
    device = float(counts[same_node & (low != high)].sum())
    weighted = topology.device_hop * device + topology.node_hop * node
    return Hops(weighted, device, node, problem.total, len(counts))
