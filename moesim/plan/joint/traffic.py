"""Traffic: bytes between devices that recorded tokens cause under a placement, by dispatch mode, token by token.

- ``return_home``: every chosen expert on another device gets a copy from the token's home and sends its answer back
  (Megatron-LM, DeepSpeed-MoE: two all-to-alls per layer).
- ``node_deduplicated``: one copy per distinct other node, to the device there with the sender's place in its node, from
  where each distinct device of the node gets one; answers are summed on the way back (DeepEP's normal kernels,
  DeepSeek-V3, arXiv:2412.19437 section 3.2.2).
- ``node_limited``: the same, but a token uses only the experts on the ``most_nodes`` nodes with the largest summed
  weight; the others are dropped, and how much weight is kept is told. What that does to accuracy is not.
- ``context_coherent``: the token stays where its heaviest expert of the last layer is (ExFlow, arXiv:2401.08383): the
  next layer's experts get copies from there, and their answers meet where the heaviest of them is. With top-1 routing
  a layer costs one copy or none. Once per token every other device gets its new context (``gathered``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from moesim.errors import SpecError
from moesim.plan.affinity.problem import FloatArray, IntArray, Topology
from moesim.routing.trace import RoutingTrace

__all__ = ["DispatchMode", "Traffic", "sequence_homes", "traffic"]

DispatchMode = Literal["return_home", "node_deduplicated", "node_limited", "context_coherent"]


@dataclass(frozen=True, slots=True, eq=False)
class Traffic:
    """Bytes that cross between devices.

    Attributes
    ----------
    dispatched : float64 [layer, device, device], from, to: tokens on their way to experts
    combined : float64 [layer, device, device], from, to: answers
    gathered : bytes that all devices receive of contexts, over all layers once; 0 unless context-coherent
    kept : share of the router's weight that is used, 1 unless node-limited
    topology : where devices are
    """

    dispatched: FloatArray
    combined: FloatArray
    gathered: float
    kept: float
    topology: Topology

    @property
    def sent(self) -> FloatArray:
        """Bytes both ways, [layer, device, device]."""
        return np.asarray(self.dispatched + self.combined)

    @property
    def between_nodes(self) -> float:
        """Bytes of all layers that cross between nodes."""
        node = self.topology.node
        return float(self.sent[:, node[:, None] != node[None, :]].sum())

    @property
    def inside_nodes(self) -> float:
        """Bytes of all layers that cross between devices of a node."""
        return float(self.sent.sum()) - self.between_nodes


def sequence_homes(trace: RoutingTrace, devices: int) -> IntArray:
    """Return a home device for every token, [token]: sequences dealt round robin, as attention-dp ranks take them."""
    return np.asarray(trace.sequence % devices, dtype=np.int64)


def traffic(
    trace: RoutingTrace,
    placement: npt.ArrayLike,
    home: npt.ArrayLike,
    topology: Topology,
    mode: DispatchMode,
    *,
    dispatch_bytes: float = 1.0,
    combine_bytes: float = 1.0,
    most_nodes: int | None = None,
) -> Traffic:
    """Count the bytes of every token of a trace.

    Parameters
    ----------
    placement : int [layer, expert], device of each expert
    home : int [token], device that holds the token's context
    dispatch_bytes, combine_bytes : of one copy of one token, out and back
    most_nodes : nodes a token may use, ``node_limited`` only

    Raises
    ------
    SpecError : shapes that do not fit the trace, an unknown device, ``most_nodes`` missing or out of place
    """
    placed, homes = np.asarray(placement, dtype=np.int64), np.asarray(home, dtype=np.int64)
    count = topology.devices
    if placed.shape != (trace.layers, trace.total) or homes.shape != (len(trace.experts),):
        raise SpecError(
            f"placement {placed.shape}, homes {homes.shape}: expected {(trace.layers, trace.total)} and one per token"
        )
    for what, found in (("placement", placed), ("homes", homes)):
        if found.min() < 0 or found.max() >= count:
            raise SpecError(f"{what} {found.min()}..{found.max()}: expected devices 0..{count - 1}")
    if (mode == "node_limited") != (most_nodes is not None) or (most_nodes is not None and most_nodes < 1):
        raise SpecError(
            f"most_nodes {most_nodes} with {mode}: expected at least 1 with node_limited, none otherwise"
        )
    out = np.zeros((trace.layers, count, count))
    back = np.zeros((trace.layers, count, count))
    kept = total = 0.0
    at = homes
    for layer in range(trace.layers):
        device = placed[layer][trace.experts[:, layer].astype(np.int64)]  # [token, k]
        if mode == "return_home":
            out[layer] = _flow(np.broadcast_to(homes[:, None], device.shape), device, count)
            back[layer] = out[layer].T
        elif mode == "context_coherent":
            out[layer] = _flow(np.broadcast_to(at[:, None], device.shape), device, count)
            at = device[:, 0]
            back[layer] = _flow(device[:, 1:], np.broadcast_to(at[:, None], device[:, 1:].shape), count)
        else:
            weight = trace.weights[:, layer].astype(np.float64)
            used = np.ones(device.shape, dtype=bool)
            if most_nodes is not None:
                used = _limited(topology.node[device], weight, topology.nodes, most_nodes)
            kept, total = kept + float(weight[used].sum()), total + float(weight.sum())
            out[layer] = _deduplicated(device, used, homes, topology)
            back[layer] = out[layer].T
    gathered = (count - 1) * len(homes) * dispatch_bytes if mode == "context_coherent" else 0.0
    return Traffic(
        out * dispatch_bytes, back * combine_bytes, gathered, kept / total if total else 1.0, topology
    )


def _flow(source: IntArray, target: IntArray, count: int) -> FloatArray:
    """Count copies from source to target devices; one that stays moves no bytes."""
    found = np.bincount((source * count + target).ravel(), minlength=count * count).reshape(count, count)
    np.fill_diagonal(found, 0)
    return found.astype(np.float64)


def _limited(node: IntArray, weight: FloatArray, nodes: int, most: int) -> npt.NDArray[np.bool_]:
    """Say which experts are on a token's ``most`` heaviest nodes, [token, k]; ties go to the lower node."""
    rows = np.arange(len(node))[:, None]
    heavy = np.zeros((len(node), nodes))
    np.add.at(heavy, (np.broadcast_to(rows, node.shape), node), weight)
    rank = np.argsort(np.argsort(-heavy, axis=1, kind="stable"), axis=1, kind="stable")
    return np.asarray(rank[rows, node] < most)


def _deduplicated(
    device: IntArray, used: npt.NDArray[np.bool_], homes: IntArray, topology: Topology
) -> FloatArray:
    """Count one copy per distinct other node to its entry device, and one per distinct device from there."""
    count, inner = topology.devices, topology.per_node
    rows = np.broadcast_to(np.arange(len(device))[:, None], device.shape)
    wanted = np.zeros((len(device), count), dtype=bool)
    wanted[rows[used], device[used]] = True
    token, target = np.nonzero(wanted)
    entry = target // inner * inner + homes[token] % inner
    found = _flow(entry, target, count)
    token, node = np.nonzero(wanted.reshape(len(device), topology.nodes, inner).any(axis=2))
    return found + _flow(homes[token], node * inner + homes[token] % inner, count)
