"""Rounding: from one layer's grouping along the relaxation to all others, one linear assignment per layer."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from moesim.plan.affinity.kernel import anneal_layer
from moesim.plan.affinity.problem import FloatArray, IntArray
from moesim.streams import stream

__all__ = ["follow", "place_layer", "saved_weights"]

_STEPS = 400
"""Steps per expert of the first layer's grouping."""


def saved_weights(levels: tuple[tuple[int, float], ...], devices: int) -> FloatArray:
    """Return what a transition between two devices saves against one between the farthest, [device, device]."""
    saved = np.zeros((devices, devices))
    for groups, weight in levels:
        group = np.arange(devices) * groups // devices
        saved += weight * (group[:, None] == group[None, :])
    return saved


def place_layer(gain: FloatArray, share: int) -> IntArray:
    """Return the device of each expert, ``share`` on each, of the largest total gain [expert, device]; exact."""
    rows, slots = linear_sum_assignment(np.repeat(gain, share, axis=1), maximize=True)
    placed = np.empty(len(gain), dtype=np.int64)
    placed[rows] = slots // share
    return placed


def follow(
    across: list[FloatArray],
    within: list[FloatArray],
    levels: tuple[tuple[int, float], ...],
    devices: int,
    first: int,
    seed: int,
) -> IntArray:
    """Return a placement that begins at layer ``first`` and follows the relaxation up and down.

    Parameters
    ----------
    across, within : per level of ``levels`` [boundary, expert, expert] and [layer, expert, expert], see ``Relaxed``
    levels : (groups, weight) as ``Topology.levels``
    """
    layers, experts = within[0].shape[:2]
    share = experts // devices
    random = stream(seed, f"affinity rounding {first}")
    start = random.permutation(np.repeat(np.arange(devices), share))
    placement = np.empty((layers, experts), dtype=np.int64)
    alike = np.zeros((experts, experts))
    for (_, weight), table in zip(levels, within, strict=True):
        alike += weight * table[first]
    saved = saved_weights(levels, devices)
    unit = max(weight for _, weight in levels)
    placement[first] = anneal_layer(
        alike / unit, saved / unit, start, _STEPS * experts, 0.5, 0.02, int(random.integers(2**31))
    )
    for layer in [*range(first + 1, layers), *range(first - 1, -1, -1)]:
        before = layer - 1 if layer > first else layer + 1
        gain = np.zeros((experts, devices))
        for (groups, weight), table in zip(levels, across, strict=True):
            group = np.arange(devices) * groups // devices
            member = (group[placement[before]][:, None] == group[None, :]).astype(np.float64)
            with_ = table[before].T @ member if layer > first else table[layer] @ member
            gain += weight * with_
        placement[layer] = place_layer(gain, share)
    return placement
