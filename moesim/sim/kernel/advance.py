"""Move a pool through time: step ends and arrivals; enqueue, release, failure."""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import math

import numba as nb

from moesim.sim.kernel.blocks import match_prefix, release_blocks
from moesim.sim.kernel.book import finish_step, note_present, used_share
from moesim.sim.kernel.price import step_seconds
from moesim.sim.kernel.schedule import pop_waiting, push_back, schedule_lane
from moesim.sim.kernel.steady import run_steps, steps_until_change

__all__ = ["advance", "cached_by_replica", "enqueue", "fail_replica", "fits", "release", "wake"]

_OUTSIDE, _HELD, _REJECTED = 0, 3, 5


@nb.njit(cache=True)
def _start_step(p, engine, now, limit):
    """Schedule and start the next step of an idle engine; equal decode steps that end by ``limit`` run at once."""
    cfg = p.cfg[0]
    replica = p.eng[engine].replica
    rep = p.rep[replica]
    lanes = cfg.lanes
    if cfg.stages > 1 and p.stage[replica, 0] > now:
        p.eng[engine].end = p.stage[replica, 0]
        return
    while True:
        total = 0
        for _ in range(
            1 + cfg.ahead
        ):  # a step chosen ahead may be empty for want of what was just given back
            for k in range(lanes):
                schedule_lane(p, engine * lanes + k, replica, now)
                total += p.lane[engine * lanes + k].tokens
            if total > 0:
                break
        if total == 0:
            p.eng[engine].end = math.inf
            return
        for k in range(lanes):
            rep.peak = max(rep.peak, used_share(p, engine * lanes + k))
        if not (cfg.fast and cfg.stages == 1 and cfg.draft == 0) or now + 0.5 * rep.step_last > limit:
            break  # not even one step is likely to end in time; both ways give the same answer
        most = steps_until_change(p, engine)
        if most < 1:
            break
        ran, now = run_steps(p, engine, now, limit, most)
        if ran == 0:
            break
    seconds = step_seconds(p, engine)
    rep.step_last = seconds
    p.eng[engine].start = now
    p.eng[engine].busy = 1
    if cfg.stages == 1:
        p.eng[engine].end = now + seconds
    else:
        at = now
        for s in range(cfg.stages):
            at = max(at, p.stage[replica, s]) + seconds * p.stage[p.stage.shape[0] - 1, s]
            p.stage[replica, s] = at
            if s + 1 < cfg.stages:
                at += p.table[3, total]
                rep.hop_s += p.table[3, total]
                rep.step_s += p.table[3, total]
        p.eng[engine].end = at
    rep.step_s += seconds
    rep.steps += 1
    if rep.inflight == 0:
        rep.busy_since = now
    rep.inflight += 1


@nb.njit(cache=True)
def fits(p, r):
    """Say whether an empty lane could serve request ``r`` to its end."""
    cfg = p.cfg[0]
    req = p.req[r]
    longest = req.input + req.output
    blocks = (longest + cfg.draft + cfg.block - 1) // cfg.block
    if longest > cfg.max_len or blocks > p.lane[0].total:
        return False
    return cfg.chunked == 1 or cfg.decode_side == 1 or req.input <= cfg.max_tokens


@nb.njit(cache=True)
def enqueue(p, r, replica, now):
    """Queue request ``r`` on the least loaded lane of ``replica``; False (and REJECTED) when it can never fit."""
    cfg = p.cfg[0]
    req = p.req[r]
    if not fits(p, r):
        req.status = _REJECTED
        return False
    width = cfg.stages * cfg.lanes
    first = replica * width
    best = first
    for lane in range(first + 1, first + width):
        if p.lane[lane].waiting + p.lane[lane].running < p.lane[best].waiting + p.lane[best].running:
            best = lane
    req.lane = best
    if cfg.decode_side:
        req.decode_replica = replica
    else:
        req.replica = replica
    push_back(p, best, r)
    if cfg.poll_steps > 1 or cfg.ahead:
        p.lane[best].hidden += 1
    note_present(p, replica, 1, now)
    p.rep[replica].tokens += req.input + req.generated
    wake(p, best // cfg.lanes, now)
    return True


@nb.njit(cache=True)
def wake(p, engine, now):
    """Let an idle engine look at its queues at ``now``."""
    if not p.eng[engine].busy and p.eng[engine].end == math.inf and p.rep[p.eng[engine].replica].alive:
        p.eng[engine].end = now


@nb.njit(cache=True)
def release(p, r, now):
    """Give back the blocks of a prefilled request whose KV has been moved away."""
    lane = p.req[r].lane
    release_blocks(p, lane, r)
    p.req[r].status = _OUTSIDE
    wake(p, lane // p.cfg[0].lanes, now)


@nb.njit(cache=True)
def cached_by_replica(p, r, out):
    """Write into ``out`` [replicas] the prompt tokens of request ``r`` that the best lane of each replica caches."""
    width = p.cfg[0].stages * p.cfg[0].lanes
    for replica in range(out.shape[0]):
        out[replica] = 0
        for lane in range(replica * width, (replica + 1) * width):
            out[replica] = max(out[replica], match_prefix(p, lane, r))


@nb.njit(cache=True)
def fail_replica(p, replica, now):
    """Stop a replica: the step in progress is lost, its cache is cold, its requests go to the outbox."""
    cfg = p.cfg[0]
    rep = p.rep[replica]
    if rep.inflight > 0:
        rep.busy += now - rep.busy_since
        rep.inflight = 0
    rep.alive = 0
    for engine in range(replica * cfg.stages, (replica + 1) * cfg.stages):
        p.eng[engine].busy = 0
        p.eng[engine].end = math.inf
    for s in range(cfg.stages):
        p.stage[replica, s] = 0.0
    width = cfg.stages * cfg.lanes
    for lane in range(replica * width, (replica + 1) * width):
        for i in range(p.lane[lane].running):
            _expel(p, replica, lane, p.seats[0, lane, i], now, True)
        p.lane[lane].running = 0
        p.lane[lane].hidden = 0
        p.lane[lane].late_seats = 0
        p.lane[lane].late_blocks = 0
        p.lane[lane].waited = 0
        for cls in range(p.queue.shape[2]):
            while p.queue[0, lane, cls] >= 0:
                _expel(p, replica, lane, pop_waiting(p, lane, cls), now, True)
    if cfg.stop_first:
        for r in range(p.req.shape[0]):
            if p.req[r].status == _HELD and p.req[r].replica == replica:
                _expel(p, replica, p.req[r].lane, r, now, False)
    for lane in range(replica * width, (replica + 1) * width):
        for block in range(p.prefix.shape[2]):
            p.prefix[0, lane, block] = -1
        p.lane[lane].free = p.lane[lane].total
        p.lane[lane].idle = 0
        p.lane[lane].lru_head = -1
        p.lane[lane].lru_tail = -1


@nb.njit(cache=True)
def _expel(p, replica, lane, r, now, present):
    release_blocks(p, lane, r)
    if present:
        note_present(p, replica, -1, now)
        p.rep[replica].tokens -= p.req[r].input + p.req[r].generated
    p.req[r].done = 0
    p.req[r].swapped = 0
    p.req[r].restarts += 1
    p.req[r].status = _OUTSIDE
    p.outbox[0] += 1
    p.outbox[p.outbox[0]] = r


@nb.njit(cache=True)
def advance(p, low, high, until, stop, feed_t, feed_r, feed_replica, position):
    """Run replicas ``low..high-1`` to time ``until``.

    ``feed_*`` holds arrivals in order of time for these replicas, from ``position`` on. With ``stop`` the call returns
    after the first step that lets a request leave. Returns the time of the last event handled and the next position.
    A step that ends at the very moment of an arrival ends first; an idle engine sees all arrivals of that moment.
    """
    cfg = p.cfg[0]
    lo, hi = low * cfg.stages, high * cfg.stages
    last = -math.inf
    while True:
        best, at, second = -1, math.inf, math.inf
        for engine in range(lo, hi):
            end = p.eng[engine].end
            if end < at:
                best, at, second = engine, end, at
            elif end < second:
                second = end
        arrival = feed_t[position] if position < feed_t.shape[0] else math.inf
        if arrival < at or (arrival == at and best >= 0 and not p.eng[best].busy):
            if arrival > until:
                break
            enqueue(p, feed_r[position], feed_replica[position], arrival)
            position += 1
            last = arrival
            continue
        if at > until or best < 0:
            break
        last = at
        left = p.outbox[0]
        if p.eng[best].busy:
            finish_step(p, best, at)
        limit = min(until, arrival)
        if stop:
            if p.outbox[0] > left:
                limit = at  # whatever reacts to the departure may reach this engine
            limit = min(limit, second)
        _start_step(p, best, at, limit)
        if stop and p.outbox[0] > left:
            break
    return last, position
