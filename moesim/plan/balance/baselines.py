"""Baselines: contiguous, round robin, vector LPT, and DeepSeek's EPLB (hierarchical and global), re-implemented.

EPLB's rules after https://github.com/deepseek-ai/EPLB (MIT), in our own words and vectorised over layers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moesim.errors import SpecError
from moesim.plan.balance.problem import Balance, FloatArray, IntArray

__all__ = ["baselines", "contiguous", "eplb", "pooled", "replicate", "round_robin", "vector_lpt"]


def contiguous(problem: Balance) -> IntArray:
    """Return experts in order, further slots in order again: vLLM's ``linear``, SGLang's ``trivial``."""
    row = np.arange(problem.places, dtype=np.int64) % problem.experts
    return np.tile(row, (problem.layers, 1))


def round_robin(problem: Balance) -> IntArray:
    """Return experts dealt out one by one to the ranks (vLLM's ``round_robin``)."""
    row = (np.arange(problem.places, dtype=np.int64) % problem.experts).reshape(problem.slots, problem.ranks)
    return np.tile(row.T.ravel(), (problem.layers, 1))


def _pack(weight: FloatArray, packs: int) -> tuple[IntArray, IntArray]:
    """Pack items [row, item] into packs of equal count: heaviest first, into the lightest pack with room.

    Returns the pack of every item and its place in there; ties go to the earlier item and the earlier pack.
    """
    rows, items = weight.shape
    room = items // packs
    if room == 1:  # EPLB leaves single items where they are
        return np.tile(np.arange(items), (rows, 1)), np.zeros((rows, items), dtype=np.int64)
    pack = np.empty((rows, items), dtype=np.int64)
    place = np.empty((rows, items), dtype=np.int64)
    load = np.zeros((rows, packs))
    filled = np.zeros((rows, packs), dtype=np.int64)
    row = np.arange(rows)
    for item in np.argsort(-weight, axis=1, kind="stable").T:
        chosen = np.where(filled < room, load, np.inf).argmin(axis=1)
        pack[row, item] = chosen
        place[row, item] = filled[row, chosen]
        load[row, chosen] += weight[row, item]
        filled[row, chosen] += 1
    return pack, place


def replicate(weight: FloatArray, extra: int) -> tuple[IntArray, IntArray]:
    """Copy the item of highest load per copy, ``extra`` times; exact for the smallest such maximum.

    Returns the item of every copy, [row, items + extra], the originals first, and the copies of each item.
    """
    rows, items = weight.shape
    owner = np.empty((rows, items + extra), dtype=np.int64)
    owner[:, :items] = np.arange(items)
    count = np.ones((rows, items), dtype=np.int64)
    row = np.arange(rows)
    for place in range(items, items + extra):
        hottest = (weight / count).argmax(axis=1)
        owner[:, place] = hottest
        count[row, hottest] += 1
    return owner, count


def eplb(weight: npt.ArrayLike, replicas: int, groups: int, nodes: int, gpus: int) -> IntArray:
    """Return EPLB's placement, int64 [layer, replicas], for expert loads ``weight`` [layer, expert].

    Hierarchical when the groups can be dealt out to the nodes evenly: groups to nodes, copies inside each node, copies
    to the node's GPUs. Global otherwise, as one group on one node.

    Raises
    ------
    SpecError : experts not divisible into groups, GPUs into nodes, replicas into GPUs, or fewer replicas than experts

    >>> eplb([[90, 132, 40, 61]], 6, 1, 1, 2).tolist()
    [[1, 3, 2, 1, 0, 0]]
    """
    load = np.asarray(weight, dtype=np.float64)
    layers, experts = load.shape
    if groups % nodes:
        groups, nodes = 1, 1
    for name, whole, part in (
        ("experts into groups", experts, groups),
        ("GPUs into nodes", gpus, nodes),
        ("replicas into GPUs", replicas, gpus),
    ):
        if part < 1 or whole % part:
            raise SpecError(f"EPLB deals out {name} evenly: expected {whole} to be a multiple of {part}")
    if replicas < experts:
        raise SpecError(f"EPLB: expected at least {experts} replicas, one per expert, not {replicas}")
    size = experts // groups
    node, seat = _pack(load.reshape(layers, groups, size).sum(axis=2), nodes)
    first = (node * (groups // nodes) + seat) * size
    position = (first[:, :, None] + np.arange(size)).reshape(layers, experts)
    expert_at = np.argsort(position, axis=1)
    inside = np.take_along_axis(load, expert_at, axis=1).reshape(layers * nodes, experts // nodes)
    owner, count = replicate(inside, (replicas - experts) // nodes)
    share = np.take_along_axis(inside / count, owner, axis=1)
    gpu, place = _pack(share, gpus // nodes)
    slot = gpu * (replicas // gpus) + place
    local = np.take_along_axis(owner, np.argsort(slot, axis=1), axis=1).reshape(layers, nodes, -1)
    local += np.arange(nodes)[:, None] * (experts // nodes)
    return np.take_along_axis(expert_at, local.reshape(layers, replicas), axis=1)


def pooled(problem: Balance) -> IntArray:
    """Return EPLB's global placement on the mean of the scenarios' relative loads (by ``mix`` where given)."""
    weight = np.average(problem.relative(), axis=0, weights=problem.mix)
    return eplb(weight, problem.places, 1, 1, problem.ranks)


def vector_lpt(problem: Balance) -> IntArray:
    """Return list scheduling over all scenarios: the largest first, to the rank whose worst scenario stays lowest.

    With one scenario and no redundancy this is LPT with equal slots. Copies are EPLB's of the worst scenario's load.
    """
    relative = problem.relative()
    worst = relative.max(axis=0)
    owner, count = replicate(worst, problem.redundant)
    placement = np.empty((problem.layers, problem.ranks, problem.slots), dtype=np.int64)
    for layer in range(problem.layers):
        share = relative[:, layer] / count[layer]
        load = np.zeros((problem.scenarios, problem.ranks))
        filled = np.zeros(problem.ranks, dtype=np.int64)
        size = (worst[layer] / count[layer])[owner[layer]]
        for expert in owner[layer][np.argsort(-size, kind="stable")]:
            after = (load + share[:, expert, None]).max(axis=0)
            rank = int(np.where(filled < problem.slots, after, np.inf).argmin())
            placement[layer, rank, filled[rank]] = expert
            load[:, rank] += share[:, expert]
            filled[rank] += 1
    return placement.reshape(problem.layers, -1)


def baselines(problem: Balance) -> dict[str, IntArray]:
    """Return the placements that a plan is compared with, by name."""
    return {
        "contiguous": contiguous(problem),
        "round robin": round_robin(problem),
        "vector LPT": vector_lpt(problem),
        "EPLB pooled": pooled(problem),
    }
