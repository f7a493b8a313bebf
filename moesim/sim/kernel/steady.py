"""Steady: runs of decode steps whose batch cannot change, in one tight loop."""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import numba as nb

from moesim.sim.kernel.blocks import allocate, available
from moesim.sim.kernel.book import gap_bin, missing_blocks, record_step, used_share
from moesim.sim.kernel.price import commit_step, decode_seconds

__all__ = ["run_steps", "steps_until_change"]


@nb.njit(cache=True)
def steps_until_change(p, engine):
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
                need += missing_blocks(p, r, p.req[r].done + steps)
            if need <= available(p, lane):
                break
            steps //= 2
    return steps


@nb.njit(cache=True)
def _used_after(p, lane, steps):
    need = 0
    for i in range(p.lane[lane].running):
        r = p.seats[0, lane, i]
        need += missing_blocks(p, r, p.req[r].done + steps)
    return 1.0 - (available(p, lane) - need) / p.lane[lane].total


@nb.njit(cache=True)
def run_steps(p, engine, now, limit, most):
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
                    p.hist[3, gap_bin(end - p.req[p.seats[0, first + k, i]].last)] += 1
        else:
            p.hist[3, gap_bin(end - now)] += rows
        if rep.timeline_seen % rep.timeline_stride:
            rep.timeline_seen += 1
        else:
            used = 0.0
            for k in range(lanes):
                used = max(used, _used_after(p, first + k, ran + 1))
            record_step(p, replica, first, end, end - now, used)
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
                missing = missing_blocks(p, r, p.req[r].done + ran)
                allocate(p, lane, missing)
                p.req[r].held += missing
                p.req[r].done += ran
                p.req[r].generated += ran
                p.req[r].last = now
            rep.peak = max(rep.peak, used_share(p, lane))
        rep.decode_tokens += ran * rows
        rep.tokens += ran * rows
    return ran, now
