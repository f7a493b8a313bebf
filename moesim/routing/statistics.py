"""Statistics of a routing trace: the figures a model of routing must reproduce. Pure functions, vectorised."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moesim.errors import SpecError
from moesim.streams import stream

if TYPE_CHECKING:
    from collections.abc import Iterable

    from moesim.routing.trace import RoutingTrace

__all__ = [
    "BATCHES",
    "distinct_consecutive",
    "distinct_mixed",
    "distinct_windows",
    "hottest_over_mean",
    "independent_overlap",
    "lagged_overlap",
    "lru_hit_rate",
    "popularity",
    "previous_overlap",
    "stack_distances",
    "top1_information",
    "transitions",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Batch sizes of the distinct-expert curves."""


def popularity(trace: RoutingTrace) -> FloatArray:
    """Return the probability that a token uses an expert, [layer, E]; rows sum to k."""
    count = np.stack([np.bincount(layer.ravel(), minlength=trace.total) for layer in _by_layer(trace)])
    return np.asarray(count / len(trace.experts))


def hottest_over_mean(trace: RoutingTrace) -> FloatArray:
    """Return the load of each layer's hottest expert over the mean expert's, [layer]."""
    q = popularity(trace)
    return np.asarray(q.max(axis=1) * trace.total / trace.top_k)


def previous_overlap(trace: RoutingTrace) -> FloatArray:
    """Return the share of a token's experts that the previous token of its sequence used too, [layer]."""
    found = lagged_overlap(trace, 1)
    if np.isnan(found).any():
        raise SpecError("overlap: expected a sequence of at least two tokens")
    return found


def lagged_overlap(trace: RoutingTrace, lag: int) -> FloatArray:
    """Return the share of a token's experts that the token ``lag`` before it used too, [layer]; NaN without any."""
    if lag < 1:
        raise SpecError(f"lag {lag}: expected at least 1")
    sequence = trace.sequence
    follows = np.flatnonzero(sequence[lag:] == sequence[:-lag]) + lag
    if len(follows) == 0:
        return np.full(trace.layers, np.nan)
    total = np.zeros(trace.layers)
    for part in np.array_split(follows, max(1, len(follows) // 8192)):
        now, before = trace.experts[part], trace.experts[part - lag]
        total += (now[..., :, None] == before[..., None, :]).sum(axis=(0, 2, 3))
    return np.asarray(total / (len(follows) * trace.top_k))


def independent_overlap(trace: RoutingTrace) -> FloatArray:
    """Return what ``previous_overlap`` would be for independent tokens of this popularity, [layer]."""
    q = popularity(trace)
    return np.asarray((q * q).sum(axis=1) / trace.top_k)


def transitions(trace: RoutingTrace, top1: bool = False) -> FloatArray:  # noqa: FBT001, FBT002 - one clear switch
    """Return how often a token uses e in a layer and f in the next, [layer - 1, E, E], counts.

    Parameters
    ----------
    top1 : count the heaviest experts only; otherwise all k x k pairs
    """
    chosen = trace.experts[:, :, :1] if top1 else trace.experts
    low, high = chosen[:, :-1, :, None].astype(np.int64), chosen[:, 1:, None, :].astype(np.int64)
    pair = low * trace.total + high  # [token, layer - 1, k, k]
    size = trace.total**2
    rows = [np.bincount(pair[:, layer].ravel(), minlength=size) for layer in range(pair.shape[1])]
    return np.asarray(rows, dtype=np.float64).reshape(-1, trace.total, trace.total)


def top1_information(trace: RoutingTrace, corrected: bool = True) -> FloatArray:  # noqa: FBT001, FBT002 - as above
    """Return the mutual information of the heaviest experts of adjacent layers, [layer - 1], bits.

    Plug-in estimate from counts. It is too large by about (cells - rows - columns + 1) / (2 N ln 2) for N tokens,
    counting occupied cells, rows and columns (Miller-Madow); this is subtracted when ``corrected``. Compare traces
    of equal size only: what remains of the bias then cancels.
    """
    joint = transitions(trace, top1=True)
    number = joint.sum(axis=(1, 2))
    p = joint / number[:, None, None]
    row, column = p.sum(axis=2, keepdims=True), p.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = np.where(p > 0, p * np.log2(p / (row * column)), 0.0).sum(axis=(1, 2))
    if not corrected:
        return np.asarray(bits)
    cells = (joint > 0).sum(axis=(1, 2))
    margins = (row > 0).sum(axis=(1, 2)) + (column > 0).sum(axis=(1, 2))
    return np.asarray(bits - (cells - margins + 1) / (2 * number * np.log(2)))


def stack_distances(trace: RoutingTrace) -> IntArray:
    """Return the histogram of LRU stack distances, [E + 1]: entry d counts reuses after d other experts.

    Each layer of each sequence starts cold; the last entry counts first uses. A token's experts are used one after
    another, the heaviest first.
    """
    order = np.argsort(-trace.length, kind="stable")
    length, offset = trace.length[order], trace.offset[order]
    last = np.full((len(order), trace.layers, trace.total), -1, dtype=np.int32)
    histogram = np.zeros(trace.total + 1, dtype=np.int64)
    clock = 0
    for token in range(int(length[0])):
        alive = int((length > token).sum())
        chosen = trace.experts[offset[:alive] + token].astype(np.int64)
        for place in range(trace.top_k):
            expert = chosen[:, :, place, None]
            used = np.take_along_axis(last[:alive], expert, axis=2)
            distance = (last[:alive] > used).sum(axis=2)
            distance[used[..., 0] < 0] = trace.total
            histogram += np.bincount(distance.ravel(), minlength=trace.total + 1)
            np.put_along_axis(last[:alive], expert, clock, axis=2)
            clock += 1
    return histogram


def lru_hit_rate(trace: RoutingTrace, slots: Iterable[int]) -> FloatArray:
    """Return the hit rate of a per-layer LRU cache of so many experts, [slots], mean over layers and sequences."""
    histogram = stack_distances(trace)
    hits = np.concatenate([[0], np.cumsum(histogram[:-1])])
    wanted = np.asarray(list(slots), dtype=np.int64)
    if wanted.size and (wanted.min() < 0 or wanted.max() > trace.total):
        raise SpecError(f"slots {wanted.tolist()}: expected 0..{trace.total}")
    return np.asarray(hits[wanted] / histogram.sum())


def distinct_consecutive(trace: RoutingTrace, batches: Iterable[int] = BATCHES) -> FloatArray:
    """Return distinct experts per layer in b consecutive tokens of one sequence, [batch]; prefill is so.

    Mean over layers and over all windows that lie end to end from each sequence's start; NaN where no sequence is
    long enough.
    """
    return np.asarray([distinct_windows(trace, batch).mean() for batch in batches])


def distinct_windows(trace: RoutingTrace, batch: int) -> FloatArray:
    """Return distinct experts in ``batch`` consecutive tokens of one sequence, [layer]; see above."""
    if batch < 1:
        raise SpecError(f"batch {batch}: expected at least 1")
    windows = trace.length // batch
    starts = np.repeat(trace.offset, windows) + batch * _ramp(windows)
    if len(starts) == 0:
        return np.full(trace.layers, np.nan)
    total = np.zeros(trace.layers)
    for part in np.array_split(starts, -(-len(starts) // 1024)):
        touched = np.zeros((len(part), trace.layers, trace.total), dtype=bool)
        for step in range(batch):
            np.put_along_axis(touched, trace.experts[part + step].astype(np.int64), values=True, axis=2)
        total += touched.sum(axis=(0, 2))
    return np.asarray(total / len(starts))


def distinct_mixed(
    trace: RoutingTrace, batches: Iterable[int] = BATCHES, draws: int = 512, seed: int = 0
) -> FloatArray:
    """Return distinct experts per layer in a batch of b tokens drawn from all sequences, [batch]; decode is so.

    Tokens are drawn without replacement from the whole trace: a decode batch mixes requests at different points.
    Mean over layers and ``draws`` batches; NaN where the trace has fewer tokens.
    """
    hit = trace.mask()
    generator = stream(seed, "routing distinct mixed")
    out = []
    for batch in batches:
        if batch > len(hit):
            out.append(np.nan)
            continue
        total = 0
        for _ in range(draws):
            total += int(
                hit[generator.choice(len(hit), batch, replace=False, shuffle=False)].any(axis=0).sum()
            )
        out.append(total / (draws * trace.layers))
    return np.asarray(out)


def _by_layer(trace: RoutingTrace) -> npt.NDArray[np.int16]:
    return np.moveaxis(trace.experts, 1, 0)


def _ramp(counts: IntArray) -> IntArray:
    """Return 0..c-1 for each count c, one after another."""
    return np.asarray(np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts))
