"""Placed: what a placement of experts makes of routing: load of every rank, and ranks and nodes per token.

Planner and simulator count with these functions, so a plan's objective is the simulator's own number. Replicas of an
expert share its tokens evenly, each token going to one of them at random.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moesim.errors import SpecError
from moesim.routing.expected import inclusion
from moesim.routing.gate import limit_groups

if TYPE_CHECKING:
    from moesim.routing.trace import RoutingTrace

__all__ = [
    "copies_per_expert",
    "distinct_bins",
    "distinct_bins_of_groups",
    "distinct_bins_of_trace",
    "imbalance",
    "rank_loads",
    "rank_of_slot",
    "slot_bins",
    "slot_shares",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_SCORED_TOKENS = 1 << 15
_TRACE_TOKENS = 1 << 12
"""Tokens of a trace that are looked at together: [tokens, bins] floats stay small."""


def copies_per_expert(slots: npt.ArrayLike, experts: int) -> IntArray:
    """Return how many slots hold each expert, [layer, E], from the expert in each slot, [layer, slot].

    >>> copies_per_expert([[0, 1, 2, 0]], 3)
    array([[2, 1, 1]])
    """
    table = np.atleast_2d(np.asarray(slots, dtype=np.int64))
    counted = np.zeros((len(table), experts), dtype=np.int64)
    np.add.at(counted, (np.arange(len(table))[:, None], table), 1)
    return counted


def rank_of_slot(slots: int, ranks: int) -> IntArray:
    """Return the rank of each physical slot, [slot]: equal blocks in order.

    Raises
    ------
    SpecError : the ranks do not divide the slots
    """
    if ranks < 1 or slots % ranks:
        raise SpecError(f"{slots} slots on {ranks} ranks: expected a multiple of the ranks")
    return np.arange(slots) // (slots // ranks)


def slot_shares(loads: npt.ArrayLike, slots: npt.ArrayLike) -> FloatArray:
    """Return the load of each slot: its expert's, split evenly over the expert's slots.

    Parameters
    ----------
    loads : [layer, E] counts or shares of choices
    slots : [layer, slot] expert in each slot; one row for all layers

    Returns
    -------
    [layer, slot]

    >>> slot_shares([[6.0, 2.0]], [[0, 1, 0, 0]])
    array([[2., 2., 2., 2.]])
    """
    table = np.atleast_2d(np.asarray(loads, dtype=np.float64))
    held = np.atleast_2d(np.asarray(slots, dtype=np.int64))
    held = np.broadcast_to(held, (len(table), held.shape[1]))
    copies = copies_per_expert(held, table.shape[1])
    if np.any((copies == 0) & (table > 0)):
        layer, expert = (int(axis[0]) for axis in np.nonzero((copies == 0) & (table > 0)))
        raise SpecError(f"placement: layer {layer} has no slot for expert {expert}, which has load")
    return np.asarray(np.take_along_axis(table / np.maximum(copies, 1), held, axis=1))


def rank_loads(loads: npt.ArrayLike, slots: npt.ArrayLike, ranks: int) -> FloatArray:
    """Return the load of each rank, [layer, rank]; see ``slot_shares``.

    >>> rank_loads([[4.0, 2.0, 1.0, 1.0]], [[0, 1, 2, 3]], 2)
    array([[6., 2.]])
    """
    shares = slot_shares(loads, slots)
    if shares.shape[1] % ranks:
        raise SpecError(f"{shares.shape[1]} slots on {ranks} ranks: expected a multiple of the ranks")
    return np.asarray(shares.reshape(len(shares), ranks, -1).sum(axis=2))


def imbalance(rank_load: npt.ArrayLike) -> FloatArray:
    """Return the busiest rank's load over the mean, [...], from loads [..., rank]; 1 where nothing is loaded.

    >>> imbalance([[6.0, 2.0], [0.0, 0.0]])
    array([1.5, 1. ])
    """
    table = np.asarray(rank_load, dtype=np.float64)
    mean = table.mean(axis=-1)
    return np.asarray(np.divide(table.max(axis=-1), mean, out=np.ones_like(mean), where=mean > 0))


def slot_bins(slots: npt.ArrayLike, bin_of_slot: npt.ArrayLike, experts: int) -> FloatArray:
    """Return which part of each expert's tokens goes to each bin (rank or node), [layer, E, bin]; rows sum to 1."""
    held = np.atleast_2d(np.asarray(slots, dtype=np.int64))
    bins = np.asarray(bin_of_slot, dtype=np.int64)
    parts = np.zeros((len(held), experts, int(bins.max()) + 1))
    np.add.at(parts, (np.arange(len(held))[:, None], held, bins[None, :]), 1.0)
    return np.asarray(parts / np.maximum(parts.sum(axis=2, keepdims=True), 1.0))


def distinct_bins(popularity: npt.ArrayLike, k: int, parts: FloatArray) -> FloatArray:
    """Return how many bins one token's experts lie on, [layer], expected over tokens of a popularity.

    The k experts are drawn by the distribution of largest entropy with these chances of use (conditional Poisson
    sampling; Chen, Dempster and Liu, Biometrika 81, 1994): for equal chances every set is equally likely, and the
    result is the closed form of ``expected_distinct_ranks``.

    Parameters
    ----------
    popularity : [layer, E] or [E], shares of choices, any scale
    k : experts per token
    parts : [layer, E, bin], see ``slot_bins``; one layer for all
    """
    q = np.atleast_2d(inclusion(popularity, k))
    odds = _odds(q, k)
    layers = max(len(odds), len(parts))
    odds = np.broadcast_to(odds, (layers, odds.shape[1]))
    parts = np.broadcast_to(parts, (layers, *parts.shape[1:]))
    missed = _elementary(odds[:, :, None] * (1 - parts), k)[..., k]  # weight of the sets that avoid a bin
    every = _elementary(odds[:, :, None], k)[..., k]
    return np.asarray((1 - missed / every).sum(axis=1))


def distinct_bins_of_groups(
    k: int, parts: FloatArray, groups: int, top_groups: int, seed: int = 20412
) -> FloatArray:
    """Return how many bins one token's experts lie on under node-limited routing, [layer], every expert alike.

    Scores are standard normal; the gate keeps the ``top_groups`` best groups and takes the top k inside (see
    ``expected_distinct_ranks``). 32,768 tokens with a fixed seed: standard error below 0.005.
    """
    layers, experts = parts.shape[:2]
    generator = np.random.default_rng(seed)
    total, step = np.zeros(layers), 1 << 12
    for _ in range(_SCORED_TOKENS // step):
        chosen = limit_groups(generator.standard_normal((step, experts)), k, groups, top_groups)
        for layer in range(layers):
            total[layer] += _touched(chosen, parts[layer])
    return total / _SCORED_TOKENS


def distinct_bins_of_trace(trace: RoutingTrace, layers: npt.ArrayLike, parts: FloatArray) -> FloatArray:
    """Return how many bins a recorded token's experts lie on, mean over tokens, [layer].

    Parameters
    ----------
    layers : rows of the trace that the layers of ``parts`` stand for, [layer]
    parts : [layer, E, bin]
    """
    rows = np.asarray(layers, dtype=np.int64)
    parts = np.broadcast_to(parts, (len(rows), *parts.shape[1:]))
    total = np.zeros(len(rows))
    for at in range(0, len(trace.experts), _TRACE_TOKENS):
        chosen = trace.experts[at : at + _TRACE_TOKENS].astype(np.int64)
        for index, row in enumerate(rows):
            total[index] += _touched(chosen[:, row], parts[index])
    return total / len(trace.experts)


def _touched(chosen: IntArray, parts: FloatArray) -> float:
    """Return the sum over tokens of expected distinct bins; chosen [token, k], parts [E, bin]."""
    missed = np.ones((len(chosen), parts.shape[1]))
    for column in chosen.T:
        missed *= 1 - parts[column]
    return float((1 - missed).sum())


def _elementary(weights: FloatArray, k: int) -> FloatArray:
    """Return elementary symmetric polynomials 0..k over axis 1, [layer, bin, k + 1] from [layer, E, bin]."""
    sums = np.zeros((weights.shape[0], weights.shape[2], k + 1))
    sums[..., 0] = 1.0
    for expert in range(weights.shape[1]):
        sums[..., 1:] += weights[:, expert, :, None] * sums[..., :-1].copy()
    return sums


def _odds(q: FloatArray, k: int) -> FloatArray:
    """Return weights [layer, E] of conditional Poisson sampling whose chances of use are ``q``, scaled to mean 1."""
    target = np.clip(q, 1e-12, 1 - 1e-9)
    odds = target / (1 - target)
    for _ in range(60):
        odds /= odds.mean(axis=1, keepdims=True)
        got = _inclusion_of_odds(odds, k)
        if np.abs(got - target).max() < 1e-10:
            break
        odds = odds * (target / got) * np.maximum((1 - got) / (1 - target), 1e-12)
    return np.asarray(odds / odds.mean(axis=1, keepdims=True))


def _inclusion_of_odds(odds: FloatArray, k: int) -> FloatArray:
    """Return chances of use under conditional Poisson sampling: w e_{k-1}(others) / e_k(all)."""
    every = _elementary(odds[:, :, None], k)[:, 0]  # [layer, k + 1]
    # without one expert: e_j(others) = e_j(all) - w e_{j-1}(others), stable while w is no giant beside the rest
    others = np.ones_like(odds)
    for j in range(1, k):
        others = np.maximum(every[:, j, None] - odds * others, 0.0)
    return np.asarray(np.clip(odds * others / every[:, k, None], 1e-15, 1 - 1e-12))
