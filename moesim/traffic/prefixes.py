"""Prefixes: block ids of shared prompts and of conversations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from moesim.spec.arrivals import Diurnal, Profile
from moesim.spec.traffic import QuantileGap
from moesim.streams import stream
from moesim.traffic.arrivals import arrival_times
from moesim.traffic.lengths import clip_lengths, draw_lengths, quantile
from moesim.traffic.requests import dense, dense_within

if TYPE_CHECKING:
    from moesim.spec.arrivals import Arrivals
    from moesim.spec.traffic import LogNormalGap, Sessions, SharedPrefix, TrafficSpec

__all__ = ["Conversations", "draw_sessions", "shared_blocks", "shared_groups"]

Floats = npt.NDArray[np.float64]
Longs = npt.NDArray[np.int64]
Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Conversations:
    """The requests of many sessions in order of arrival.

    Attributes
    ----------
    arrival_s, input_tokens, output_tokens, session : [n]
    block_offset : [n + 1]
    block_hash : [total] ids by first appearance
    """

    arrival_s: Floats
    input_tokens: Longs
    output_tokens: Longs
    session: Longs
    block_offset: Longs
    block_hash: Ints


def shared_groups(prefix: SharedPrefix, n: int, seed: int) -> Longs:
    """Draw the prefix group of each request [n], -1 for none. Stream ``prefix.group`` is used."""
    weights = np.arange(1, prefix.groups + 1, dtype=np.float64) ** -prefix.zipf
    cumulative = np.cumsum(weights)
    draws = stream(seed, "prefix.group").random((n, 2))
    group = np.searchsorted(cumulative, draws[:, 0] * cumulative[-1], side="right")
    return np.where(draws[:, 1] < prefix.share, np.minimum(group, prefix.groups - 1), -1)


def shared_blocks(prefix: SharedPrefix, group: Longs, inputs: Longs) -> tuple[Longs, Ints]:
    """Return (block_offset [n + 1], block_hash [total]): whole blocks inside the prefix are shared."""
    size = prefix.block_tokens
    shared = np.where(group >= 0, np.minimum(prefix.tokens, inputs) // size, 0)
    offset, owner, place = _flat(-(-inputs // size))
    width = prefix.tokens // size
    known = prefix.groups * width  # keys below are the groups' blocks, those above are nobody else's
    keys = known + np.arange(len(owner))
    rows = np.flatnonzero(place < shared[owner])
    keys[rows] = group[owner[rows]] * width + place[rows]
    return offset, dense_within(keys, known + len(owner))


def draw_sessions(traffic: TrafficSpec, prefix: Sessions, n: int, seed: int) -> Conversations:
    """Draw the first ``n`` requests, in order of arrival, of sessions that start by ``traffic.arrivals``.

    Sessions start long before time 0, so the request rate holds from the beginning; of those under way, the
    turns before time 0 are cut off.
    """
    lead = _lead(traffic.arrivals, prefix)
    rate = traffic.mean_rate or 1.0
    sessions = 64 + int(1.3 * (n + lead * rate) / prefix.mean_turns)
    while True:
        start = arrival_times(traffic.arrivals, sessions, seed, squeeze=prefix.mean_turns) - lead
        turns = _turns(prefix, sessions, seed)
        first = np.concatenate([[0], np.cumsum(turns)])
        session = np.repeat(np.arange(sessions), turns)
        turn = np.arange(first[-1]) - first[session]
        when = _times(prefix, start, turn, first, seed)
        # only times before the last start are final: later sessions cannot come in between
        if np.count_nonzero((when >= 0) & (when < start[-1])) >= n:
            break
        sessions *= 2
    inputs, outputs, kept = _contents(traffic, prefix, turn, np.repeat(turns == 1, turns), seed)
    order = np.argsort(when, kind="stable")
    begin = int(np.searchsorted(when[order], 0.0, side="left"))
    order = order[begin : begin + n]
    offset, blocks = _session_blocks(prefix, inputs, kept, order)
    label = dense(session[order]).astype(np.int64)
    return Conversations(when[order], inputs[order], outputs[order], label, offset, blocks)


def _lead(arrivals: Arrivals, prefix: Sessions) -> float:
    """Return seconds of traffic before time 0: longer than a session, and whole periods of the arrivals."""
    mean, deviation = _moments(prefix.gap)
    gaps = len(prefix.turns) - 1
    lead = gaps * mean + 4 * float(np.sqrt(gaps)) * deviation
    if isinstance(arrivals, Profile):
        period = arrivals.bin * len(arrivals.weights)
    elif isinstance(arrivals, Diurnal):
        period = arrivals.period
    else:
        return lead
    return float(np.ceil(lead / period)) * period


def _turns(prefix: Sessions, sessions: int, seed: int) -> Longs:
    cumulative = np.cumsum(prefix.turns)
    u = stream(seed, "prefix.turns").random(sessions)
    return np.asarray(
        1 + np.minimum(np.searchsorted(cumulative, u * cumulative[-1], side="right"), len(cumulative) - 1)
    )


def _times(prefix: Sessions, start: Floats, turn: Longs, first: Longs, seed: int) -> Floats:
    gaps = np.where(turn > 0, _gap(prefix.gap, stream(seed, "prefix.gap").random(len(turn))), 0.0)
    session = np.repeat(np.arange(len(start)), np.diff(first))
    when = start[session]
    for depth in range(1, int(turn.max(initial=0)) + 1):  # turn by turn, so that sums do not depend on n
        rows = np.flatnonzero(turn == depth)
        when[rows] = when[rows - 1] + gaps[rows]
    return when


def _gap(gap: QuantileGap | LogNormalGap, u: Floats) -> Floats:
    if isinstance(gap, QuantileGap):
        return np.asarray(np.interp(u, gap.levels, gap.times))
    variance = np.log1p(gap.cv**2)
    return np.asarray(np.exp(np.log(gap.mean) - variance / 2 + np.sqrt(variance) * ndtri(u)))


def _moments(gap: QuantileGap | LogNormalGap) -> tuple[float, float]:
    """Return mean and standard deviation in seconds."""
    if not isinstance(gap, QuantileGap):
        return gap.mean, gap.mean * gap.cv
    low, high = np.array(gap.times[:-1]), np.array(gap.times[1:])
    mass = np.diff(gap.levels)
    mean = float(mass @ (low + high)) / 2
    square = float(mass @ (low**2 + low * high + high**2)) / 3
    return mean, float(np.sqrt(max(square - mean**2, 0.0)))


def _contents(
    traffic: TrafficSpec, prefix: Sessions, turn: Longs, single: Bools, seed: int
) -> tuple[Longs, Longs, Longs]:
    """Return (inputs, outputs, kept): tokens of each turn, and how many the last prompt had already."""
    drawn, outputs = draw_lengths(traffic.lengths, len(turn), seed)
    growth = stream(seed, "prefix.growth").random(len(turn))
    rewrite = stream(seed, "prefix.rewrite").random((len(turn), 2))
    u = stream(seed, "prefix.first").random(len(turn))
    if prefix.first is not None:
        drawn = quantile(u, prefix.first)
    if prefix.single is not None:
        drawn = np.where(single, quantile(u, prefix.single), drawn)
    inputs, outputs = clip_lengths(drawn, outputs, traffic.clip)
    kept = np.zeros(len(turn), np.int64)
    for depth in range(1, int(turn.max(initial=0)) + 1):
        rows = np.flatnonzero(turn == depth)
        last = inputs[rows - 1]
        keep, added = _continue(prefix, last, growth[rows], rewrite[rows])
        inputs[rows], outputs[rows] = clip_lengths(keep + added, outputs[rows], traffic.clip)
        kept[rows] = np.minimum(keep, inputs[rows])
    return inputs, outputs, kept


def _continue(prefix: Sessions, last: Longs, growth: Floats, rewrite: Floats) -> tuple[Longs, Longs]:
    """Return (kept, added) tokens [m] after prompts of ``last`` tokens, by uniform draws [m] and [m, 2]."""
    keep, added, rule = last.copy(), quantile(growth, prefix.growth), prefix.rewrite
    if rule is not None:
        rows = np.flatnonzero(rewrite[:, 0] < np.interp(last, rule.prompt, rule.share))
        share = np.interp(rewrite[rows, 1], rule.levels, rule.kept)
        keep[rows] = np.minimum(
            np.maximum((share * last[rows]).astype(np.int64), prefix.common_tokens), last[rows]
        )
        added[rows] = quantile(growth[rows], rule.growth)
    return keep, added


def _session_blocks(prefix: Sessions, inputs: Longs, kept: Longs, order: Longs) -> tuple[Longs, Ints]:
    """Return (block_offset, block_hash) in arrival order: a block belongs to the turn that wrote it."""
    size = prefix.block_tokens
    old = kept // size  # whole blocks that the turn before had too
    common = np.minimum(prefix.common_tokens, inputs) // size
    offset, owner, place = _flat(-(-inputs[order] // size))
    writer = order[owner]
    rows = np.flatnonzero(old[writer] > place)
    while len(rows):
        writer[rows] -= 1
        rows = rows[old[writer[rows]] > place[rows]]
    width = prefix.common_tokens // size
    begin = np.concatenate([[0], np.cumsum(-(-inputs // size))])
    keys = np.where(place < common[order][owner], place, width + begin[writer] + place)
    return offset, dense_within(keys, width + int(begin[-1]))


def _flat(counts: Longs) -> tuple[Longs, Longs, Longs]:
    """Return (offset [n + 1], row of each block, place of each block in its row)."""
    offset = np.concatenate([[0], np.cumsum(counts)])
    row = np.repeat(np.arange(len(counts)), counts)
    return offset, row, np.arange(offset[-1]) - offset[row]
