"""Chain: the best way through layers when each layer may choose between a few groupings, exact by Viterbi.

A grouping does not say which device a group is on: between two layers the groups are matched by linear assignment,
inside nodes first and then the nodes. What a later layer's labels are does not matter to an earlier boundary, so the
boundaries need only the groupings of their two layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moesim.plan.affinity.kernel import match
from moesim.plan.affinity.onethread import one_blas_thread
from moesim.plan.affinity.problem import Affinity, FloatArray, IntArray, Topology

__all__ = ["Nesting", "canonical", "nesting", "splice", "viterbi"]

_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class Nesting:
    """Groups in which devices can be renamed freely: ``outer`` groups of ``inner`` devices.

    Attributes
    ----------
    outer_weight : saved by a transition that stays in its outer group
    inner_weight : saved beyond that by one that stays on its device
    """

    outer: int
    inner: int
    outer_weight: float
    inner_weight: float


def nesting(topology: Topology) -> Nesting:
    """Return the renamings under which the topology looks the same."""
    extra = topology.node_hop - topology.device_hop
    if topology.nodes == 1 or extra == 0:
        return Nesting(1, topology.devices, 0.0, topology.device_hop)
    if topology.per_node == 1:
        return Nesting(1, topology.devices, 0.0, topology.node_hop)
    return Nesting(topology.nodes, topology.per_node, extra, topology.device_hop)


def canonical(placements: IntArray, nested: Nesting) -> IntArray:
    """Return placements of one layer with devices renamed in order of first use, [n, expert], without repeats."""
    found = np.empty_like(placements)
    for n, row in enumerate(placements.tolist()):
        nodes: dict[int, int] = {}
        devices: dict[int, int] = {}
        used = [0] * nested.outer
        for device in row:
            node = nodes.setdefault(device // nested.inner, len(nodes))
            if device not in devices:
                devices[device] = node * nested.inner + used[node]
                used[node] += 1
        found[n] = [devices[device] for device in row]
    return np.unique(found, axis=0)


def _spread(states: IntArray, devices: int) -> FloatArray:
    """Return indicators, [state, device, expert]."""
    return np.asarray((states[:, None, :] == np.arange(devices)[None, :, None]).astype(np.float64))


def _matched(flow: FloatArray, nested: Nesting) -> tuple[FloatArray, IntArray]:
    """Return the weight saved by the best renaming of the later layer, [n], and the new name's device, [n, device].

    Parameters
    ----------
    flow : [n, device, device] transitions between groups, inner groups next to one another

    Returns
    -------
    saved, partner : group g of the earlier layer shares its device with group ``partner[n, g]`` of the later
    """
    if nested.outer == 1:
        total, partner = match(flow)
        return nested.inner_weight * total, partner
    number, outer, inner = len(flow), nested.outer, nested.inner
    blocks = flow.reshape(number, outer, inner, outer, inner).transpose(0, 1, 3, 2, 4)
    total, within = match(np.ascontiguousarray(blocks).reshape(-1, inner, inner))
    worth = nested.inner_weight * total.reshape(number, outer, outer)
    worth += nested.outer_weight * blocks.sum(axis=(3, 4))
    saved, across = match(worth)
    within = within.reshape(number, outer, outer, inner)
    chosen = np.take_along_axis(within, across[:, :, None, None], axis=2)[:, :, 0]
    return saved, (across[:, :, None] * inner + chosen).reshape(number, -1)


@one_blas_thread()
def viterbi(counts: FloatArray, states: list[IntArray], nested: Nesting) -> tuple[float, IntArray]:
    """Return the most weight saved by one grouping per layer, devices named freely, and a placement that saves it.

    Parameters
    ----------
    counts : [layer - 1, expert, expert]
    states : per layer [state, expert] groupings to choose from
    """
    devices = nested.outer * nested.inner
    best = np.zeros(len(states[0]))
    came: list[npt.NDArray[np.intp]] = []
    for boundary, count in enumerate(counts):
        here, after = _spread(states[boundary], devices), _spread(states[boundary + 1], devices)
        moved = here @ count  # [state, device, expert]
        right = after.reshape(-1, after.shape[2]).T
        step = max(1, _CHUNK // (len(after) * devices * devices))
        saved = np.empty((len(here), len(after)))
        for low in range(0, len(here), step):
            part = moved[low : low + step]
            flow = (part.reshape(-1, part.shape[2]) @ right).reshape(len(part), devices, len(after), devices)
            table = np.ascontiguousarray(flow.transpose(0, 2, 1, 3)).reshape(-1, devices, devices)
            saved[low : low + step] = _matched(table, nested)[0].reshape(len(part), -1)
        reach = best[:, None] + saved
        came.append(reach.argmax(axis=0))
        best = reach.max(axis=0)
    at = int(best.argmax())
    path = [at]
    for pointers in reversed(came):
        path.append(int(pointers[path[-1]]))
    path.reverse()
    placement = np.empty((len(states), states[0].shape[1]), dtype=np.int64)
    name = np.arange(devices)
    placement[0] = states[0][path[0]]
    for boundary, count in enumerate(counts):
        low, high = states[boundary][path[boundary]], states[boundary + 1][path[boundary + 1]]
        flow = np.zeros((1, devices, devices))
        np.add.at(flow[0], (low[:, None], high[None, :]), count)
        partner = _matched(flow, nested)[1][0]
        renamed = np.empty(devices, dtype=np.int64)
        renamed[partner] = name
        name = renamed
        placement[boundary + 1] = name[high]
    return float(best[at]), placement


def splice(problem: Affinity, placements: list[IntArray]) -> IntArray:
    """Return the best placement that takes every layer's grouping from one of the placements given, exactly.

    It is at least as good as the best of them, and often much better: good stretches of one placement are joined to
    good stretches of another, with devices renamed at the seams.
    """
    nested = nesting(problem.topology)
    stacked = np.stack(placements)
    states = [canonical(stacked[:, layer], nested) for layer in range(problem.layers)]
    return viterbi(problem.counts, states, nested)[1]
