"""Baselines: contiguous blocks, a random deal, alternating assignment, and ExFlow's recursive bipartition."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from moesim.plan.affinity.kernel import anneal
from moesim.plan.affinity.problem import Affinity, FloatArray, IntArray, Topology, hop_cost, hops
from moesim.plan.affinity.rounding import place_layer
from moesim.streams import stream

__all__ = ["BASELINES", "alternating", "bipartition", "contiguous", "random_deal"]

_STEPS = 300
"""Annealing steps per expert and layer of one bipartition."""
_SWEEPS = 100


def contiguous(problem: Affinity, seed: int = 0) -> IntArray:  # noqa: ARG001 - one signature for all baselines
    """Return experts in order, equal blocks on every device (vLLM's ``linear``, Megatron's default)."""
    row = np.arange(problem.experts, dtype=np.int64) // problem.share
    return np.tile(row, (problem.layers, 1))


def random_deal(problem: Affinity, seed: int = 0) -> IntArray:
    """Return a random placement with equal shares."""
    random = stream(seed, "affinity random")
    row = np.repeat(np.arange(problem.topology.devices, dtype=np.int64), problem.share)
    return np.stack([random.permutation(row) for _ in range(problem.layers)])


def alternating(problem: Affinity, seed: int = 0) -> IntArray:
    """Return what re-placing one layer after another exactly, its neighbours held, ends at from a random deal."""
    placement = random_deal(problem, seed)
    saved = problem.topology.node_hop - hop_cost(problem.topology)
    devices = np.arange(problem.topology.devices)
    best = hops(problem, placement).weighted
    for _ in range(_SWEEPS):
        for layer in range(problem.layers):
            gain = np.zeros((problem.experts, len(devices)))
            if layer:
                gain += problem.counts[layer - 1].T @ saved[placement[layer - 1]]
            if layer + 1 < problem.layers:
                gain += problem.counts[layer] @ saved[placement[layer + 1]]
            placement[layer] = place_layer(gain, problem.share)
        cost = hops(problem, placement).weighted
        if cost >= best - 1e-12 * abs(best):
            break
        best = cost
    return placement


def bipartition(problem: Affinity, seed: int = 0) -> IntArray:
    """Return ExFlow's default: halve the experts of all layers, then each half, by the hops between the halves.

    A halving sees only transitions inside its part, as solve_affinity.py does; here it is annealed, where ExFlow gives
    Gurobi 60 seconds. An odd number of devices is split into that many parts at once.
    """
    placement = np.zeros((problem.layers, problem.experts), dtype=np.int64)
    random = stream(seed, "affinity bipartition")

    def halve(members: IntArray, devices: int, first: int) -> None:
        """Place ``members`` [layer, expert] on ``devices`` devices from ``first`` on."""
        if devices == 1:
            np.put_along_axis(placement, members, first, axis=1)
            return
        parts = 2 if devices % 2 == 0 else devices
        inside = np.stack(
            [
                count[np.ix_(low, high)]
                for count, low, high in zip(problem.counts, members[:-1], members[1:], strict=True)
            ]
        )
        side = _parted(inside, parts, int(random.integers(2**31)))
        for part in range(parts):
            chosen = np.nonzero(side == part)[1].reshape(problem.layers, -1)
            halve(
                np.take_along_axis(members, chosen, axis=1),
                devices // parts,
                first + part * (devices // parts),
            )

    everyone = np.tile(np.arange(problem.experts, dtype=np.int64), (problem.layers, 1))
    halve(everyone, problem.topology.devices, 0)
    return placement


def _parted(counts: FloatArray, parts: int, seed: int) -> IntArray:
    problem = Affinity(counts, Topology.flat(parts))
    start = contiguous(problem)
    unit = max(problem.total, 1e-300) / (len(counts) * problem.experts)
    steps = _STEPS * start.size
    load = np.zeros(start.shape)
    return anneal(counts, np.eye(parts), load, 0.0, start, steps, 0.2 * unit, 0.005 * unit, seed)[1]


BASELINES: dict[str, Callable[[Affinity, int], IntArray]] = {
    "contiguous": contiguous,
    "random": random_deal,
    "alternating": alternating,
    "bipartition": bipartition,
}
"""Name -> rule(problem, seed)."""
