"""Seconds of the step that an engine is about to run, from the pricing tables; and where those seconds went."""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import math

import numba as nb

__all__ = ["commit_step", "decode_seconds", "lane_seconds", "step_seconds"]

_WINDOW, _LAUNCH, _DECODE_FLOP, _DECODE_KV, _DECODE_SEQ, _PREFILL_FLOP, _PREFILL_KV, _PREFILL_TOKEN = range(8)
_DECODE_GRID, _PREFILL_GRID, _TABLE = 8, 9, 10


@nb.njit(cache=True)
def _slack(grid, count, keys):
    """Seconds over bound at ``count`` queries with ``keys`` keys each: linear between powers of two, flat outside."""
    x = min(max(math.log2(max(count, 1.0)), 0.0), grid.shape[0] - 1.0)
    y = min(max(math.log2(max(keys, 1.0)), 0.0), grid.shape[1] - 1.0)
    i, j = min(int(x), grid.shape[0] - 2), min(int(y), grid.shape[1] - 2)
    u, v = x - i, y - j
    low = grid[i, j] * (1.0 - v) + grid[i, j + 1] * v
    high = grid[i + 1, j] * (1.0 - v) + grid[i + 1, j + 1] * v
    return low * (1.0 - u) + high * u


@nb.njit(cache=True)
def _between(nodes, first, count, x):
    """Index below ``x`` among nodes ``first..count-1``, and how far ``x`` is to the next (above 1: beyond the last)."""
    if count - first < 2 or x <= nodes[first]:
        return first, 0.0
    i = first
    while i < count - 2 and nodes[i + 1] <= x:
        i += 1
    return i, (x - nodes[i]) / (nodes[i + 1] - nodes[i])


@nb.njit(cache=True)
def _mixed(p, term, a, b, sequences, context):
    """Seconds at chunk node ``a`` and history node ``b``: linear in sequences and context."""
    t, axes = p.joint[term, a, b], p.axes
    if sequences == 0:
        return t[0, 0]
    c, u = _between(axes[2], 1, t.shape[0], sequences)
    d, v = _between(axes[3], 0, t.shape[1], context)
    c1, d1 = min(c + 1, t.shape[0] - 1), min(d + 1, t.shape[1] - 1)
    low = t[c, d] * (1.0 - v) + t[c, d1] * v
    high = t[c1, d] * (1.0 - v) + t[c1, d1] * v
    return low * (1.0 - u) + high * u


@nb.njit(cache=True)
def _joint_seconds(p, term, keys, sequences, pairs, tokens, longest):
    """Measured attention of a step that prefills ``tokens`` tokens beside ``sequences`` decoding ones."""
    count, nodes = p.joint.shape[1:3], p.axes
    context = keys / max(sequences, 1)
    a, u = _between(nodes[0], 1, count[0], float(tokens))
    history = pairs / tokens - 0.5 * (tokens + 1)
    if history >= 0.0:
        b, v = _between(nodes[1], 0, count[1], history)
        b1 = min(b + 1, count[1] - 1)
    else:
        b, b1 = 0, min(1, count[1] - 1)
        while b1 < count[1] - 1 and nodes[1, b1] < tokens:
            b1 += 1
        v = history / max(nodes[1, b1], 1.0)
    total = 0.0
    for k in range(2):
        at = min(a + k, count[0] - 1)
        low = _mixed(p, term, at, b, float(sequences), context)
        high = _mixed(p, term, at, b1, float(sequences), context)
        total += (low * (1.0 - v) + high * v) * (u if k else 1.0 - u)
    if sequences > 1 and count[0] > 1:  # the longest one ends last
        total += _mixed(p, term, 1, 0, 1.0, longest) - _mixed(p, term, 1, 0, 1.0, context)
    return total


@nb.njit(cache=True)
def decode_seconds(p, term, keys, sequences, queries):
    """Attention of ``sequences`` decoding sequences with ``queries`` tokens each over ``keys`` keys in all."""
    if sequences == 0:
        return 0.0
    a = p.attn[term]
    if a[_TABLE] > 0:
        return _mixed(p, term, 0, 0, float(sequences), keys / sequences)
    flop = keys * queries * a[_DECODE_FLOP]
    data = keys * a[_DECODE_KV] + sequences * queries * a[_DECODE_SEQ]
    bound = a[_LAUNCH] + max(flop, data)
    if a[_DECODE_GRID] > 0:
        return bound * _slack(p.slack[term, 0], float(sequences), keys / sequences)
    return bound


@nb.njit(cache=True)
def _prefill_seconds(p, term, pairs, keys, tokens):
    if tokens == 0:
        return 0.0
    a = p.attn[term]
    bound = a[_LAUNCH] + max(pairs * a[_PREFILL_FLOP], keys * a[_PREFILL_KV] + tokens * a[_PREFILL_TOKEN])
    if a[_PREFILL_GRID] > 0:
        return bound * _slack(p.slack[term, 1], float(tokens), pairs / tokens)
    return bound


@nb.njit(cache=True)
def _pairs(past, tokens, window):
    """Sum of min(past + i, window) for i = 1..tokens (window 0: no limit)."""
    if window <= 0 or past + tokens <= window:
        return past * tokens + tokens * (tokens + 1) // 2
    inside = max(0, window - past)
    return past * inside + inside * (inside + 1) // 2 + (tokens - inside) * window


@nb.njit(cache=True)
def lane_seconds(p, lane, slot):
    """Seconds of one lane's own work (not the group ops); attention by term goes to ``scratch[slot]``."""
    count = p.lane[lane].running
    queries = p.cfg[0].draft + 1
    total = p.table[0, p.lane[lane].tokens] + p.table[2, p.lane[lane].rows]
    for term in range(p.attn.shape[0]):
        window = int(p.attn[term, _WINDOW])
        keys, sequences, pairs, read, tokens, longest = 0, 0, 0, 0, 0, 0
        for i in range(count):
            n = p.seats[1, lane, i]
            if n == 0:
                continue
            r = p.seats[0, lane, i]
            done = p.req[r].done
            if p.req[r].input + p.req[r].generated - done == 1 and p.req[r].generated > 0:
                sequences += 1
                context = done + n
                if window > 0:
                    context = min(context, window)
                keys += 1 if window < 0 else context
                longest = max(longest, context)
            else:
                tokens += n
                if window < 0:
                    pairs += n
                    read += 1
                else:
                    pairs += _pairs(done, n, window)
                    read += done + n if window == 0 else min(done + n, window + n - 1)
        decode = decode_seconds(p, term, keys, sequences, queries)
        if p.attn[term, _TABLE] > 0 and tokens > 0:  # what prefill adds to the step
            prefill = _joint_seconds(p, term, keys, sequences, pairs, tokens, float(longest)) - decode
        else:
            prefill = _prefill_seconds(p, term, pairs, read, tokens)
        p.scratch[slot, term, 0] = decode
        p.scratch[slot, term, 1] = prefill
        total += decode + prefill
    return total


@nb.njit(cache=True)
def commit_step(p, replica, lane, slot, group_tokens):
    """Book one step whose slowest lane is ``lane`` (attention in ``scratch[slot]``) into the breakdowns."""
    p.hist[0, p.lane[lane].tokens] += 1
    p.hist[2, p.lane[lane].rows] += 1
    p.hist[1, group_tokens] += 1
    for term in range(p.attn.shape[0]):
        p.spent[replica, term, 0] += p.scratch[slot, term, 0]
        p.spent[replica, term, 1] += p.scratch[slot, term, 1]
    p.rep[replica].overhead_s += p.cfg[0].overhead_s


@nb.njit(cache=True)
def step_seconds(p, engine):
    """Seconds of the step whose batches stand in the engine's lanes; books it. Stragglers, swaps, drafts included."""
    lanes = p.cfg[0].lanes
    first = engine * lanes
    replica = p.eng[engine].replica
    worst, slowest, group, swap, decodes = -1.0, 0, 0, 0, 0
    for slot in range(lanes):
        lane = first + slot
        group += p.lane[lane].tokens
        swap += p.lane[lane].swap_blocks
        decodes += p.lane[lane].decodes
        seconds = lane_seconds(p, lane, slot)
        if seconds > worst:
            worst, slowest = seconds, slot
    commit_step(p, replica, first + slowest, slowest, group)
    work = p.cfg[0].overhead_s + worst + p.table[1, group]
    if p.cfg[0].draft > 0 and decodes > 0:
        p.rep[replica].draft_s += p.cfg[0].draft_s
        work += p.cfg[0].draft_s
    if swap > 0:
        seconds = swap * p.cfg[0].swap_s_per_block
        p.rep[replica].swap_s += seconds
        work += seconds
    slow = p.rep[replica].slow
    if slow != 1.0:
        p.rep[replica].straggle_s += work * (slow - 1.0)
        work *= slow
    return work
