"""Book: what a finished step did to its requests, its replica and the samples kept of it."""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import math

import numba as nb

from moesim.sim.kernel.blocks import available, register, release_blocks

__all__ = ["finish_step", "gap_bin", "missing_blocks", "note_present", "record_step", "used_share"]

_HELD, _FINISHED = 3, 4
_ITL_LOW, _ITL_SCALE, _ITL_BINS = 1e-5, 1.0 / math.log(1.02), 932


@nb.njit(cache=True)
def gap_bin(gap):
    """Return the histogram bin of a gap between tokens; 0 holds gaps below the lowest edge."""
    if gap < _ITL_LOW:
        return 0
    return min(1 + int(math.log(gap / _ITL_LOW) * _ITL_SCALE), _ITL_BINS - 1)


@nb.njit(cache=True)
def _mix(x):
    """splitmix64: a stateless stream, so draws do not depend on the order of steps."""
    x = x + nb.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> nb.uint64(30))) * nb.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> nb.uint64(27))) * nb.uint64(0x94D049BB133111EB)
    return x ^ (x >> nb.uint64(31))


@nb.njit(cache=True)
def _accepted(p, r):
    """Draft tokens accepted in this step: independent trials, stopping at the first refusal."""
    cfg = p.cfg[0]
    key = _mix(_mix(cfg.seed + nb.uint64(r)) + nb.uint64(p.req[r].generated))
    count = 0
    while count < cfg.draft:
        key = _mix(key)
        if float(key >> nb.uint64(11)) * (1.0 / 9007199254740992.0) >= cfg.acceptance:
            break
        count += 1
    return count


@nb.njit(cache=True)
def note_present(p, replica, change, now):
    """Book the requests present up to ``now``, then change their number."""
    rep = p.rep[replica]
    rep.area += rep.present * (now - rep.area_t)
    rep.area_t = now
    rep.present += change


@nb.njit(cache=True)
def record_step(p, replica, lane, now, seconds, used):
    """Keep every ``stride``-th step; when the buffer is full, drop every other row and double the stride."""
    rep = p.rep[replica]
    seen = rep.timeline_seen
    rep.timeline_seen = seen + 1
    if seen % rep.timeline_stride:
        return
    cap = p.timeline.shape[1]
    if rep.timeline_n == cap:
        for i in range(cap // 2):
            p.timeline[replica, i] = p.timeline[replica, 2 * i]
        rep.timeline_n = cap // 2
        rep.timeline_stride *= 2
        if seen % rep.timeline_stride:
            return
    row = p.timeline[replica, rep.timeline_n]
    first = replica * p.cfg[0].stages * p.cfg[0].lanes
    waiting, running, tokens = 0, 0, 0
    for k in range(p.cfg[0].stages * p.cfg[0].lanes):
        waiting += p.lane[first + k].waiting
        running += p.lane[first + k].running
    base = lane - lane % p.cfg[0].lanes
    for k in range(p.cfg[0].lanes):
        tokens += p.lane[base + k].tokens
    row[0], row[1], row[2], row[3], row[4], row[5] = now, waiting, running, used, tokens, seconds
    rep.timeline_n += 1


@nb.njit(cache=True)
def used_share(p, lane):
    """Return the share of a lane's KV blocks that requests hold."""
    return 1.0 - available(p, lane) / p.lane[lane].total


@nb.njit(cache=True)
def missing_blocks(p, r, tokens):
    """Return the blocks that request ``r`` lacks for ``tokens`` tokens."""
    have = p.req[r].held + p.req[r].shared * p.cfg[0].hash_blocks
    return max(0, (tokens + p.cfg[0].block - 1) // p.cfg[0].block - have)


@nb.njit(cache=True)
def _finish_lane(p, engine, lane, now):
    """Book the tokens of the finished step; requests that are through leave, the others keep their order."""
    cfg = p.cfg[0]
    replica = p.eng[engine].replica
    kept = 0
    for i in range(p.lane[lane].running):
        r = p.seats[0, lane, i]
        n = p.seats[1, lane, i]
        req = p.req[r]
        leaves = False
        if n > 0:
            before = req.done
            decode = req.input + req.generated - before == 1 and req.generated > 0
            extra = min(_accepted(p, r), req.output - req.generated - 1) if decode and cfg.draft > 0 else 0
            req.done = before + 1 + extra if decode else before + n
            if not decode:
                p.rep[replica].prefill_tokens += n
                register(p, lane, r, before, req.done)
            if req.done - extra >= req.input + req.generated:
                if req.generated == 0:
                    req.first = now
                else:
                    p.hist[3, gap_bin(now - req.last)] += 1
                p.hist[3, 0] += extra
                req.last = now
                req.generated += 1 + extra
                p.rep[replica].decode_tokens += 1 + extra
                p.rep[replica].tokens += 1 + extra
                leaves = cfg.stop_first == 1 or req.generated >= req.output
        if not leaves:
            p.seats[0, lane, kept] = r
            p.seats[1, lane, kept] = n
            kept += 1
            continue
        p.rep[replica].tokens -= req.input + req.generated
        note_present(p, replica, -1, now)
        if req.generated >= req.output:
            req.status = _FINISHED
            req.finish = now
            before = available(p, lane)
            release_blocks(p, lane, r)
            if cfg.ahead:  # the next step was chosen while this one ran
                p.lane[lane].late_seats += 1
                p.lane[lane].late_blocks += available(p, lane) - before
        else:
            req.status = _HELD
        p.outbox[0] += 1
        p.outbox[p.outbox[0]] = r
    p.lane[lane].running = kept


@nb.njit(cache=True)
def finish_step(p, engine, now):
    """Book the step that ends at ``now`` on every lane of the engine."""
    replica = p.eng[engine].replica
    rep = p.rep[replica]
    lanes = p.cfg[0].lanes
    used = 0.0
    for k in range(lanes):
        used = max(used, used_share(p, engine * lanes + k))
    record_step(p, replica, engine * lanes, now, now - p.eng[engine].start, used)
    for k in range(lanes):
        _finish_lane(p, engine, engine * lanes + k, now)
    rep.inflight -= 1
    if rep.inflight == 0:
        rep.busy += now - rep.busy_since
    p.eng[engine].busy = 0
