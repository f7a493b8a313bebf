"""Fit: from a recorded trace to the tables of a traffic spec, as ``workloads/traffic/derive.py`` does."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moesim.errors import SpecError

if TYPE_CHECKING:
    from moesim.traffic.readers import Trace

__all__ = ["SessionFit", "fit_joint", "fit_operational_cv", "fit_quantiles", "fit_sessions", "fit_weights"]

Floats = npt.NDArray[np.float64]
Longs = npt.NDArray[np.int64]


def fit_quantiles(values: npt.NDArray[np.generic], points: int) -> tuple[Floats, Floats]:
    """Return (levels, values), each [<= points]: a piecewise-linear quantile function close to the sample's.

    The segment with the largest area between table and sample (its share of the Wasserstein distance) is
    split at its worst place until ``points`` are used, so atoms and tails get the points they need.

    Raises
    ------
    SpecError : no values, or fewer than two points
    """
    if len(values) == 0 or points < 2:
        raise SpecError("fit_quantiles: expected at least one value and two points")
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    ordered = np.concatenate([ordered[:1], ordered, ordered[-1:]])
    levels = np.concatenate([[0.0], (np.arange(len(ordered) - 2) + 0.5) / (len(ordered) - 2), [1.0]])
    chosen = {0, len(ordered) - 1}
    queue = [_worst(levels, ordered, 0, len(ordered) - 1)]
    while queue and len(chosen) < points:
        area, middle, low, high = heapq.heappop(queue)
        if area == 0:
            break
        chosen.add(middle)
        for left, right in ((low, middle), (middle, high)):
            if right - left > 1:
                heapq.heappush(queue, _worst(levels, ordered, left, right))
    index = np.array(sorted(chosen))
    return levels[index], ordered[index]


def _worst(levels: Floats, ordered: Floats, low: int, high: int) -> tuple[float, int, int, int]:
    """Return (minus the area between chord and sample, its worst index, low, high)."""
    inside = slice(low + 1, high)
    chord = np.interp(levels[inside], levels[[low, high]], ordered[[low, high]])
    error = np.abs(ordered[inside] - chord)
    return -float(error.sum()), low + 1 + int(error.argmax()), low, high


def fit_joint(inputs: Longs, outputs: Longs, bins: int) -> Longs:
    """Return the copula histogram [bins, bins] of two samples [n]: counts over equal slices of both ranks.

    Ties are ranked in the order of the sample, so every row and column sums to n / bins within one.
    """
    ranks = []
    for values in (inputs, outputs):
        rank = np.empty(len(values), np.int64)
        rank[np.argsort(values, kind="stable")] = np.arange(len(values))
        ranks.append(rank * bins // len(values))
    return np.bincount(ranks[0] * bins + ranks[1], minlength=bins * bins).reshape(bins, bins)


def fit_weights(arrival_s: Floats, width: float) -> Longs:
    """Return requests per bin of ``width`` seconds [bins], bins starting at 0 and covering the last arrival.

    The last bin is part-empty when the trace ends inside it; it is left out unless it is the only one.
    """
    counts = np.bincount((arrival_s / width).astype(np.int64))
    whole = max(int(arrival_s[-1] / width), 1)
    return counts[:whole]


def fit_operational_cv(arrival_s: Floats, weights: Longs, width: float) -> float:
    """Return the CV of the gaps after time is scaled so that the profile's rate is one everywhere.

    1 is what a Poisson process with this profile shows; burstiness inside the bins is above.
    """
    mass = np.concatenate([[0.0], np.cumsum(weights)])
    edges = np.arange(len(weights) + 1) * width
    gaps = np.diff(np.interp(arrival_s[arrival_s < edges[-1]], edges, mass))
    return float(gaps.std() / gaps.mean())


@dataclass(frozen=True, slots=True, eq=False)
class SessionFit:
    """How the requests of a trace with block hashes continue each other.

    Attributes
    ----------
    parent : [n] the request that last wrote the end of the shared prefix, -1 for the first of a session
    turn : [n] 0 for the first of a session
    session : [n] ids by first appearance
    shared_blocks : [n] leading blocks seen before in the trace
    common_blocks : leading blocks that every request shares
    reuse : share of all blocks that had been seen before (an unbounded prefix cache's hit rate)
    kept_tokens : [n] tokens of the parent's prompt that the request starts with, 0 for the first of a session
    """

    parent: Longs
    turn: Longs
    session: Longs
    shared_blocks: Longs
    common_blocks: int
    reuse: float
    kept_tokens: Longs


def fit_sessions(trace: Trace) -> SessionFit:
    """Reconstruct conversations from block hashes.

    A request continues the last one that holds its longest known prefix.
    Prefixes that all requests share (a system prompt) make no conversation.

    Raises
    ------
    SpecError : the trace has no block hashes
    """
    if trace.block_tokens == 0:
        raise SpecError("sessions are reconstructed from block hashes, the trace has none")
    n, offset = len(trace), trace.block_offset
    rows = [trace.block_hash[offset[i] : offset[i + 1]].tolist() for i in range(n)]
    common = _common_prefix(rows)
    parent, shared = np.full(n, -1, np.int64), np.zeros(n, np.int64)
    turn, session = np.zeros(n, np.int64), np.zeros(n, np.int64)
    last: dict[int, int] = {}
    sessions = 0
    for i, blocks in enumerate(rows):
        known = 0
        while known < len(blocks) and blocks[known] in last:
            known += 1
        shared[i] = known
        if known > common:
            parent[i] = last[blocks[known - 1]]
            turn[i], session[i] = turn[parent[i]] + 1, session[parent[i]]
        else:
            session[i] = sessions
            sessions += 1
        last.update(dict.fromkeys(blocks, i))
    size = trace.block_tokens
    before = trace.input_tokens[parent]
    # a whole-history continuation shares the part-filled last block's tokens too, though its hash differs
    kept = np.where(shared >= before // size, before, shared * size)
    kept = np.where(parent >= 0, np.minimum(kept, trace.input_tokens), 0)
    return SessionFit(parent, turn, session, shared, common, float(shared.sum() / offset[-1]), kept)


def _common_prefix(rows: list[list[int]]) -> int:
    shortest = min(rows, key=len)
    length = len(shortest)
    for row in rows:
        while row[:length] != shortest[:length]:
            length -= 1
    return length
