"""Clusters: experts of a layer into groups of near-equal load (MoETuner's first program), exact by subsets."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from moesim.errors import NoResult, SpecError
from moesim.plan.affinity.problem import FloatArray, IntArray

__all__ = ["cluster_layer", "cluster_layers", "deviation"]

_EXACT_EXPERTS = 12


def deviation(load: FloatArray, cluster: IntArray, clusters: int) -> float:
    """Return ``sum_c |T_c - mean|``, MoETuner's Eq. 1 for one layer."""
    carried = np.bincount(cluster, weights=load, minlength=clusters)
    return float(np.abs(carried - load.sum() / clusters).sum())


def cluster_layer(load: npt.ArrayLike, clusters: int, *, equal: bool = True) -> IntArray:
    """Return the cluster of each expert with the least sum of deviations from the mean load.

    The printed program (arXiv:2502.06643 section 4.2) lacks "every expert in exactly one cluster", which is added; it
    lets sizes differ (``equal=False``). Exact up to 12 experts by dynamic programming over subsets; beyond that
    equal clusters only, by longest load first and swaps until none helps.

    Parameters
    ----------
    load : float [expert], tokens
    equal : all clusters of one size, which its Eq. 13 then holds by itself

    Raises
    ------
    NoResult : fewer experts than clusters, or no equal sizes
    SpecError : unequal sizes asked for more than 12 experts
    """
    loads = np.asarray(load, dtype=np.float64)
    experts = len(loads)
    if experts < clusters:
        raise NoResult(f"{experts} experts in {clusters} clusters: {clusters - experts} short of one each")
    if equal and experts % clusters:
        raise NoResult(f"{experts} experts do not split into {clusters} equal clusters")
    if experts <= _EXACT_EXPERTS:
        return _by_subsets(loads, clusters, experts // clusters if equal else None)
    if not equal:
        raise SpecError(f"clusters of free size: expected at most {_EXACT_EXPERTS} experts, found {experts}")
    return _by_swaps(loads, clusters)


def cluster_layers(loads: FloatArray, clusters: int, *, equal: bool = True) -> IntArray:
    """Return ``cluster_layer`` of every layer, [layer, expert]."""
    return np.stack([cluster_layer(load, clusters, equal=equal) for load in loads])


@lru_cache(maxsize=8)
def _subsets(experts: int, size: int | None) -> dict[int, IntArray]:
    """Return by remaining set of experts the subsets that hold its lowest expert (so that order does not count)."""
    everyone = np.arange(1, 1 << experts, dtype=np.int64)
    bits = ((everyone[:, None] >> np.arange(experts)) & 1).sum(axis=1)
    right = everyone if size is None else everyone[bits == size]
    found = {}
    for left in range(1, 1 << experts):
        lowest = left & -left
        found[left] = right[((right & left) == right) & ((right & lowest) > 0)]
    return found


def _by_subsets(loads: FloatArray, clusters: int, size: int | None) -> IntArray:
    experts = len(loads)
    everyone = np.arange(1 << experts)
    carried = ((everyone[:, None] >> np.arange(experts)) & 1) @ loads
    off = np.abs(carried - loads.sum() / clusters)
    options = _subsets(experts, size)
    best = np.full((clusters + 1, 1 << experts), np.inf)
    first = np.zeros((clusters + 1, 1 << experts), dtype=np.int64)
    best[0, 0] = 0.0
    for number in range(1, clusters + 1):
        for left, subsets in options.items():
            if not len(subsets):
                continue
            cost = off[subsets] + best[number - 1, left ^ subsets]
            at = int(cost.argmin())
            best[number, left], first[number, left] = cost[at], subsets[at]
    found = np.empty(experts, dtype=np.int64)
    left = (1 << experts) - 1
    for number in range(clusters, 0, -1):
        taken = int(first[number, left])
        found[[e for e in range(experts) if taken >> e & 1]] = clusters - number
        left ^= taken
    return found


def _by_swaps(loads: FloatArray, clusters: int) -> IntArray:
    share = len(loads) // clusters
    found = np.empty(len(loads), dtype=np.int64)
    carried, room = np.zeros(clusters), np.full(clusters, share)
    for expert in np.argsort(-loads, kind="stable").tolist():
        at = int(np.argmin(np.where(room > 0, carried, np.inf)))
        found[expert] = at
        carried[at] += loads[expert]
        room[at] -= 1
    mean = loads.sum() / clusters
    for _ in range(100 * len(loads)):
        shift = loads[None, :] - loads[:, None]  # what the row's cluster gains when row and column swap
        here, there = carried[found][:, None], carried[found][None, :]
        change = (
            np.abs(here + shift - mean)
            + np.abs(there - shift - mean)
            - np.abs(here - mean)
            - np.abs(there - mean)
        )
        change[found[:, None] == found[None, :]] = 0.0
        i, j = np.unravel_index(int(change.argmin()), change.shape)
        if change[i, j] >= -1e-12 * max(mean, 1e-300):
            break
        carried[found[i]] += shift[i, j]
        carried[found[j]] -= shift[i, j]
        found[i], found[j] = found[j], found[i]
    return found
