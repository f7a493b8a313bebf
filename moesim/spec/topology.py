"""Topology: one cluster resolved to device, node and fabric, and what a group of its devices can reach."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moesim.errors import NoResult, SpecError
from moesim.files import catalog_names, find, nearest, read_yaml
from moesim.spec.base import load_spec
from moesim.spec.hardware import ClusterSpec, DeviceSpec, Fabric, Network, NodeSpec

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "GroupShape",
    "Topology",
    "crosses_leaf",
    "group_shape",
    "host_bandwidth",
    "inter_bandwidth",
    "inter_latency",
    "intra_bandwidth",
    "intra_latency",
    "resolve_cluster",
    "single_node_cluster",
]

_SEVERAL = re.compile(r"^\s*(\d+)\s*x\s+(\S+)\s*$", re.IGNORECASE)

# What one more switch hop costs: 3.7 us across leaves less 2.8 us inside one, InfiniBand, 64 bytes
# ("Insights into DeepSeek-V3", arXiv 2505.09343, Table 5). Catalog clusters state their own.
_SPINE_LATENCY = "0.9 us"


@dataclass(frozen=True, slots=True)
class GroupShape:
    """How a group of devices lies on the nodes.

    Attributes
    ----------
    per_node : devices of the group on its fullest node
    nodes : nodes the group touches
    """

    per_node: int
    nodes: int


@dataclass(frozen=True, slots=True)
class Topology:
    """One cluster with its names resolved.

    Attributes
    ----------
    device : the one kind of device in it
    node : the one kind of node in it
    cluster : nodes and fabric
    """

    device: DeviceSpec
    node: NodeSpec
    cluster: ClusterSpec

    @property
    def name(self) -> str:
        """The cluster's name."""
        return self.cluster.name

    @property
    def devices(self) -> int:
        """Devices of the whole cluster."""
        return self.node.devices * self.cluster.nodes

    @property
    def devices_per_node(self) -> int:
        """Devices of one node."""
        return self.node.devices

    @property
    def nodes(self) -> int:
        """Nodes of the cluster."""
        return self.cluster.nodes


def group_shape(topology: Topology, group: int) -> GroupShape:
    """Lay ``group`` devices contiguously, filling each node before the next, from the start of a node.

    Raises
    ------
    NoResult : the cluster has fewer devices
    ValueError : ``group`` is not positive
    """
    if group < 1:
        raise ValueError(f"a group needs at least one device, not {group}")
    if group > topology.devices:
        raise NoResult(f"{topology.name}: {group} devices asked for, the cluster has {topology.devices}")
    per_node = topology.devices_per_node
    return GroupShape(min(group, per_node), -(-group // per_node))


def intra_bandwidth(topology: Topology, group: int | None = None) -> float:
    """Return the B/s, one way, that one device can exchange with the rest of its group inside the node.

    A mesh has a fixed share of its links to each peer, so a part of the node reaches only that part of the
    links: ``bandwidth * (group - 1) / (devices - 1)``. A switch gives its full rate to any group.

    Parameters
    ----------
    topology : where
    group : devices of the group inside one node; the whole node when left out

    Returns
    -------
    float : infinite for a single device, which has nothing to cross

    Raises
    ------
    NoResult : the node has fewer devices
    """
    devices = topology.devices_per_node
    group = devices if group is None else group
    if group > devices:
        raise NoResult(f"{topology.node.name}: {group} devices asked for, the node has {devices}")
    link = topology.node.link
    if group <= 1 or link.bandwidth is None:
        return math.inf
    if link.topology == "mesh":
        return link.bandwidth * (group - 1) / (devices - 1)
    return link.bandwidth


def inter_bandwidth(topology: Topology, nodes: int | None = None, *, same_rail: bool = True) -> float:
    """Return the B/s, one way, that one device has to other nodes: adapters times rate over devices.

    Parameters
    ----------
    topology : where
    nodes : nodes of the group; all when left out. One node crosses nothing: infinite
    same_rail : on a rail-optimised fabric, only devices of the same index talk to each other

    Raises
    ------
    NoResult : the nodes have no network
    """
    nodes = topology.nodes if nodes is None else nodes
    if nodes <= 1:
        return math.inf
    network = _network(topology)
    rate = network.nics * network.bandwidth / topology.devices_per_node
    if crosses_leaf(topology, nodes, same_rail=same_rail):
        return rate / topology.cluster.fabric.oversubscription
    return rate


def intra_latency(topology: Topology) -> float:
    """Return the seconds of one hop inside the node for a small message; zero for a single device."""
    return topology.node.link.latency if topology.devices_per_node > 1 else 0.0


def inter_latency(topology: Topology, nodes: int | None = None, *, same_rail: bool = True) -> float:
    """Return the seconds of a small message to another node, with the spine hop where it leaves its leaf.

    Raises
    ------
    NoResult : the nodes have no network
    """
    nodes = topology.nodes if nodes is None else nodes
    if nodes <= 1:
        return 0.0
    latency = _network(topology).latency
    if crosses_leaf(topology, nodes, same_rail=same_rail):
        latency += topology.cluster.fabric.spine_latency
    return latency


def crosses_leaf(topology: Topology, nodes: int, *, same_rail: bool = True) -> bool:
    """Tell whether a group of ``nodes`` nodes, laid contiguously, must leave its leaf switch.

    On a rail-optimised fabric a leaf is one rail of ``leaf_nodes`` nodes, so devices of different index
    always meet at the spine; elsewhere the rail makes no difference.
    """
    fabric = topology.cluster.fabric
    if nodes <= 1 or fabric.kind in {"single_switch", "nvlink_domain", "none"}:
        return False
    if fabric.kind == "rail_optimised" and not same_rail:
        return True
    return nodes > fabric.leaf_nodes


def host_bandwidth(topology: Topology, tier: str | None = None) -> float:
    """Return the B/s, one way, that one device reads from its host when all devices of the node read at once.

    The links are shared evenly, and so is the tier behind them: the smaller of the two limits.

    Parameters
    ----------
    topology : where
    tier : host tier, e.g. ``ddr`` or ``nvme``; the links alone when left out

    Returns
    -------
    float : infinite where host and device share one memory and no tier is named

    Raises
    ------
    SpecError : the host has no such tier
    """
    host, devices = topology.node.host, topology.devices_per_node
    link = math.inf if host.link_bandwidth is None else host.link_bandwidth * host.links / devices
    if tier is None:
        return link
    if tier not in host.memory:
        known = ", ".join(host.memory) or "none"
        hint = nearest(tier, host.memory)
        raise SpecError(f"{topology.node.name}: no host tier {tier!r}, it has {known}{hint}")
    return min(link, host.memory[tier].bandwidth / devices)


def resolve_cluster(name_or_path: str, beside: Path | None = None) -> Topology:
    """Find a cluster and resolve the node and device it names.

    Accepted, first match wins: ``4x dgx-h100`` (an ad-hoc non-blocking cluster of a node), a path to a
    cluster or node file, a cluster's catalog name, a node's catalog name (one node).

    Parameters
    ----------
    name_or_path : as above
    beside : file that mentions it; relative paths are looked for next to it first

    Raises
    ------
    SpecError : nothing of that name (with the closest one), or a file that is wrong
    """
    several = _SEVERAL.match(name_or_path)
    if several:
        return _nodes_of(several.group(2), int(several.group(1)), beside)
    if name_or_path.endswith((".yaml", ".yml")):
        path = find(name_or_path, "cluster", beside)
        data = read_yaml(path).data
        if isinstance(data, dict) and data.get("kind") == "node":
            return single_node_cluster(name_or_path, beside)
        return _resolve(load_spec(ClusterSpec, name_or_path, "cluster", beside), path)
    if name_or_path in catalog_names("cluster"):
        return _resolve(load_spec(ClusterSpec, name_or_path, "cluster"), find(name_or_path, "cluster"))
    if name_or_path in catalog_names("node"):
        return single_node_cluster(name_or_path)
    hint = nearest(name_or_path, (*catalog_names("cluster"), *catalog_names("node")))
    where = "(moesim list clusters, moesim list nodes)"
    raise SpecError(f"{name_or_path}: no cluster or node of that name in the catalog{hint} {where}")


def single_node_cluster(node_name: str, beside: Path | None = None) -> Topology:
    """Return the cluster that is one node, named after it.

    Raises
    ------
    SpecError : no such node
    """
    return _nodes_of(node_name, 1, beside)


def _nodes_of(node_name: str, count: int, beside: Path | None) -> Topology:
    if count < 1:
        raise SpecError(f"{count}x {node_name}: expected at least one node")
    node = load_spec(NodeSpec, node_name, "node", beside)
    fabric = Fabric(kind="none")
    if count > 1:
        fabric = Fabric.model_validate({"kind": "fat_tree", "spine_latency": _SPINE_LATENCY})
    name = node.name if count == 1 else f"{count}x {node.name}"
    cluster = ClusterSpec(kind="cluster", name=name, node=node_name, nodes=count, fabric=fabric)
    return _resolve(cluster, beside)


def _resolve(cluster: ClusterSpec, beside: Path | None) -> Topology:
    node_path = find(cluster.node, "node", beside)
    node = load_spec(NodeSpec, cluster.node, "node", beside)
    device = load_spec(DeviceSpec, node.device, "device", node_path)
    if cluster.nodes > 1 and node.network is None:
        raise SpecError(f"{cluster.name}: {cluster.nodes} nodes, but the node {node.name} has no network")
    return Topology(device, node, cluster)


def _network(topology: Topology) -> Network:
    network = topology.node.network
    if network is None:
        raise NoResult(f"{topology.node.name}: the node has no network, a group cannot leave it")
    return network
