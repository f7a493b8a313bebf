"""Move a pool through time: step ends, arrivals, runs of equal steps; enqueue, release, failure."""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import math

import numba as nb

from moesim.sim.kernel.blocks import allocate, available, match_prefix, register, release_blocks
from moesim.sim.kernel.price import commit_step, decode_seconds, step_seconds
from moesim.sim.kernel.schedule import pop_waiting, push_back, schedule_lane

__all__ = ["advance", "cached_by_replica", "enqueue", "fail_replica", "fits", "release", "wake"]

_OUTSIDE, _WAITING, _RUNNING, _HELD, _FINISHED, _REJECTED = 0, 1, 2, 3, 4, 5
_ITL_LOW, _ITL_SCALE, _ITL_BINS = 1e-5, 1.0 / math.log(1.02), 932


@nb.njit(cache=True)
def _bin(gap):
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
def _present(p, replica, change, now):
    rep = p.rep[replica]
    rep.area += rep.present * (now - rep.area_t)
    rep.area_t = now
    rep.present += change


@nb.njit(cache=True)
def _record(p, replica, lane, now, seconds, used):
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
def _used(p, lane):
    return 1.0 - available(p, lane) / p.lane[lane].total


@nb.njit(cache=True)
def _missing(p, r, tokens):
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
                    p.hist[3, _bin(now - req.last)] += 1
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
        _present(p, replica, -1, now)
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
def _finish_step(p, engine, now):
    replica = p.eng[engine].replica
    rep = p.rep[replica]
    lanes = p.cfg[0].lanes
    used = 0.0
    for k in range(lanes):
        used = max(used, _used(p, engine * lanes + k))
    _record(p, replica, engine * lanes, now, now - p.eng[engine].start, used)
    for k in range(lanes):
        _finish_lane(p, engine, engine * lanes + k, now)
    rep.inflight -= 1
    if rep.inflight == 0:
        rep.busy += now - rep.busy_since
    p.eng[engine].busy = 0


@nb.njit(cache=True)
def _steps_until_change(p, engine):
    """Whole decode steps that can pass before a request ends, a window fills, KV blocks run out or a wait is over."""
    cfg = p.cfg[0]
    lanes = cfg.lanes
    steps = 2**30
    for k in range(lanes):
        lane = engine * lanes + k
        state = p.lane[lane]
        if state.running == 0 and state.waiting == 0:
            continue
        if not state.steady:
            return 0
        if state.hidden > 0:
            steps = min(steps, cfg.poll_steps - state.since)
        if state.holding:
            steps = min(steps, cfg.wait_steps - state.waited + 1)
        for i in range(state.running):
            r = p.seats[0, lane, i]
            steps = min(steps, p.req[r].output - p.req[r].generated - 1)
            for term in range(p.attn.shape[0]):
                window = int(p.attn[term, 0])
                if window > 0 and p.req[r].done + 1 < window:
                    steps = min(steps, window - p.req[r].done)
    for k in range(lanes):
        lane = engine * lanes + k
        while steps > 1:
            need = 0
            for i in range(p.lane[lane].running):
                r = p.seats[0, lane, i]
                need += _missing(p, r, p.req[r].done + steps)
            if need <= available(p, lane):
                break
            steps //= 2
    return steps


@nb.njit(cache=True)
def _used_after(p, lane, steps):
    need = 0
    for i in range(p.lane[lane].running):
        r = p.seats[0, lane, i]
        need += _missing(p, r, p.req[r].done + steps)
    return 1.0 - (available(p, lane) - need) / p.lane[lane].total


@nb.njit(cache=True)
def _run_steps(p, engine, now, limit, most):
    """Run up to ``most`` equal decode steps that end by ``limit``; returns how many, and the time reached."""
    cfg = p.cfg[0]
    lanes, terms = cfg.lanes, p.attn.shape[0]
    replica = p.eng[engine].replica
    rep = p.rep[replica]
    first = engine * lanes
    group, rows = 0, 0
    for k in range(lanes):
        lane = first + k
        group += p.lane[lane].tokens
        rows += p.lane[lane].running
        for term in range(terms):
            window = int(p.attn[term, 0])
            keys, slope = 0, 0
            for i in range(p.lane[lane].running):
                context = p.req[p.seats[0, lane, i]].done + 1
                if window < 0:
                    keys += 1
                elif window == 0 or context < window:
                    keys += context
                    slope += 1
                else:
                    keys += window
            p.scratch[k, term, 2] = keys
            p.scratch[k, term, 3] = slope
    ran = 0
    while ran < most:
        worst, slowest = -1.0, 0
        for k in range(lanes):
            lane = first + k
            total = p.table[0, p.lane[lane].tokens] + p.table[2, p.lane[lane].rows]
            for term in range(terms):
                keys = p.scratch[k, term, 2] + ran * p.scratch[k, term, 3]
                seconds = decode_seconds(p, term, keys, p.lane[lane].running, 1)
                p.scratch[k, term, 0] = seconds
                p.scratch[k, term, 1] = 0.0
                total += seconds + 0.0
            if total > worst:
                worst, slowest = total, k
        work = cfg.overhead_s + worst + p.table[1, group]
        straggle = 0.0
        if rep.slow != 1.0:
            straggle = work * (rep.slow - 1.0)
            work *= rep.slow
        end = now + work
        if end > limit:
            break
        commit_step(p, replica, first + slowest, slowest, group)
        rep.straggle_s += straggle
        rep.step_s += work
        rep.steps += 1
        rep.busy += end - now
        if ran == 0:
            for k in range(lanes):
                for i in range(p.lane[first + k].running):
                    p.hist[3, _bin(end - p.req[p.seats[0, first + k, i]].last)] += 1
        else:
            p.hist[3, _bin(end - now)] += rows
        if rep.timeline_seen % rep.timeline_stride:
            rep.timeline_seen += 1
        else:
            used = 0.0
            for k in range(lanes):
                used = max(used, _used_after(p, first + k, ran + 1))
            _record(p, replica, first, end, end - now, used)
        now = end
        ran += 1
    if ran > 0:
        for k in range(lanes):
            lane = first + k
            # the first of these steps has been counted when it was scheduled
            if cfg.poll_steps > 1 and p.lane[lane].running > 0:
                p.lane[lane].since = (p.lane[lane].since + ran - 1) % cfg.poll_steps
            if p.lane[lane].holding:
                p.lane[lane].waited += ran - 1
            for i in range(p.lane[lane].running):
                r = p.seats[0, lane, i]
                missing = _missing(p, r, p.req[r].done + ran)
                allocate(p, lane, missing)
                p.req[r].held += missing
                p.req[r].done += ran
                p.req[r].generated += ran
                p.req[r].last = now
            rep.peak = max(rep.peak, _used(p, lane))
        rep.decode_tokens += ran * rows
        rep.tokens += ran * rows
    return ran, now


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
            rep.peak = max(rep.peak, _used(p, engine * lanes + k))
        if not (cfg.fast and cfg.stages == 1 and cfg.draft == 0) or now + 0.5 * rep.step_last > limit:
            break  # not even one step is likely to end in time; both ways give the same answer
        most = _steps_until_change(p, engine)
        if most < 1:
            break
        ran, now = _run_steps(p, engine, now, limit, most)
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
    _present(p, replica, 1, now)
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
        _present(p, replica, -1, now)
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
            _finish_step(p, best, at)
        limit = min(until, arrival)
        if stop:
            if p.outbox[0] > left:
                limit = at  # whatever reacts to the departure may reach this engine
            limit = min(limit, second)
        _start_step(p, best, at, limit)
        if stop and p.outbox[0] > left:
            break
    return last, position
