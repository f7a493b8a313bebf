"""Traffic: scenarios of expert loads from a recorded trace, and how loads vary within a scenario."""

from __future__ import annotations

from typing import Final

import numpy as np

from moesim.errors import SpecError
from moesim.plan.balance.problem import FloatArray
from moesim.routing.trace import RoutingTrace

__all__ = ["group_loads", "sequence_loads", "spread_of"]

_DIRECTIONS: Final = 8


def sequence_loads(trace: RoutingTrace) -> FloatArray:
    """Return how often each sequence chose each expert, float64 [sequence, layer, expert]."""
    count = len(trace.length)
    found = np.empty((count, trace.layers, trace.total))
    first = trace.sequence[:, None] * trace.total
    for layer in range(trace.layers):
        flat = (first + trace.experts[:, layer].astype(np.int64)).ravel()
        found[:, layer] = np.bincount(flat, minlength=count * trace.total).reshape(count, trace.total)
    return found


def group_loads(trace: RoutingTrace, smallest: int = 1) -> tuple[tuple[str, ...], FloatArray]:
    """Return the groups of a trace and their loads, float64 [group, layer, expert], one scenario per group.

    Parameters
    ----------
    smallest : groups of fewer sequences are left out

    Raises
    ------
    SpecError : no group has that many sequences
    """
    names, index, size = np.unique(trace.group, return_inverse=True, return_counts=True)
    kept = np.flatnonzero(size >= smallest)
    if not len(kept):
        raise SpecError(f"groups: none has {smallest} sequences, the largest has {size.max()}")
    each = sequence_loads(trace)
    table = np.stack([each[index == group].sum(axis=0) for group in kept])
    return tuple(str(names[group]) for group in kept), table


def spread_of(
    samples: FloatArray, scenario: np.ndarray, ranks: int, directions: int = _DIRECTIONS
) -> FloatArray:
    """Return the main directions in which relative loads vary within scenarios, float64 [direction, layer, expert].

    Principal components of the samples' shares around their scenario's, each sample weighted by its load and each
    scenario alike. Their lengths are standard deviations in units of a rank's mean load.

    Parameters
    ----------
    samples : float64 [sample, layer, expert], loads of sequences, requests or windows
    scenario : int [sample], the scenario of each
    ranks : devices that share a layer
    """
    count, layers, experts = samples.shape
    if len(scenario) != count or not count:
        raise SpecError(f"{len(scenario)} scenarios of {count} samples: expected one each")
    found = np.zeros((directions, layers, experts))
    for layer in range(layers):
        covariance = np.zeros((experts, experts))
        groups = np.unique(scenario)
        for group in groups:
            load = samples[scenario == group, layer]
            total = load.sum(axis=1, keepdims=True)
            if not total.sum():
                continue
            off = load / np.maximum(total, 1.0) - load.sum(axis=0) / total.sum()
            covariance += (off * (total / total.sum())).T @ off / len(groups)
        value, vector = np.linalg.eigh(covariance * ranks**2)
        kept = min(directions, experts)
        main = vector[:, ::-1][:, :kept] * np.sqrt(np.maximum(value[::-1][:kept], 0.0))
        found[:kept, layer] = main.T
    return found
