"""What a lane does next: continue running requests, preempt when KV blocks run out, admit waiting ones."""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import numba as nb

from moesim.sim.kernel.blocks import allocate, available, match_prefix, release_blocks, take_prefix

__all__ = ["pop_waiting", "push_back", "push_front", "schedule_lane"]

_WAITING, _RUNNING = 1, 2


@nb.njit(cache=True)
def _class(p, r):
    """Queue of a request: first come first served knows one."""
    return p.req[r].cls if p.cfg[0].priority else 0


@nb.njit(cache=True)
def push_back(p, lane, r):
    """Queue a request behind the others of its class."""
    cls = _class(p, r)
    p.req[r].next = -1
    p.req[r].status = _WAITING
    tail = p.queue[1, lane, cls]
    if tail >= 0:
        p.req[tail].next = r
    else:
        p.queue[0, lane, cls] = r
    p.queue[1, lane, cls] = r
    p.lane[lane].waiting += 1


@nb.njit(cache=True)
def push_front(p, lane, r):
    """Queue a preempted request before the others of its class."""
    cls = _class(p, r)
    p.req[r].status = _WAITING
    p.req[r].next = p.queue[0, lane, cls]
    if p.queue[0, lane, cls] < 0:
        p.queue[1, lane, cls] = r
    p.queue[0, lane, cls] = r
    p.lane[lane].waiting += 1


@nb.njit(cache=True)
def pop_waiting(p, lane, cls):
    """Take the first request of a class off the queue."""
    r = p.queue[0, lane, cls]
    p.queue[0, lane, cls] = p.req[r].next
    if p.req[r].next < 0:
        p.queue[1, lane, cls] = -1
    p.req[r].next = -1
    p.lane[lane].waiting -= 1
    return r


@nb.njit(cache=True)
def _blocks_for(p, r, tokens):
    """Blocks missing for ``tokens`` tokens of request ``r``."""
    have = p.req[r].held + p.req[r].shared * p.cfg[0].hash_blocks
    return (tokens + p.cfg[0].block - 1) // p.cfg[0].block - have


@nb.njit(cache=True)
def _victim(p, lane):
    """Index of the running request to preempt: the last one, or the last of the lowest class."""
    last = p.lane[lane].running - 1
    if not p.cfg[0].priority:
        return last
    worst = last
    for j in range(last, -1, -1):
        if p.req[p.seats[0, lane, j]].cls > p.req[p.seats[0, lane, worst]].cls:
            worst = j
    return worst


@nb.njit(cache=True)
def _preempt(p, lane, replica, j):
    """Take running request number ``j`` off the batch; its tokens are computed again, or swapped back, later."""
    r = p.seats[0, lane, j]
    for k in range(j, p.lane[lane].running - 1):
        p.seats[0, lane, k] = p.seats[0, lane, k + 1]
        p.seats[1, lane, k] = p.seats[1, lane, k + 1]
    p.lane[lane].running -= 1
    p.seats[1, lane, p.lane[lane].running] = 0
    if p.cfg[0].swap:
        p.req[r].swapped = 1
        p.lane[lane].swap_blocks += (p.req[r].done + p.cfg[0].block - 1) // p.cfg[0].block
    else:
        p.req[r].done = 0
    release_blocks(p, lane, r)
    p.req[r].preemptions += 1
    p.rep[replica].preemptions += 1
    push_front(p, lane, r)


@nb.njit(cache=True)
def _book(p, lane, i, n, emits, decode):
    p.seats[1, lane, i] = n
    p.lane[lane].tokens += n
    if decode:
        p.lane[lane].decodes += 1
        p.lane[lane].rows += n
    else:
        p.lane[lane].prefills += 1
        p.lane[lane].rows += emits


@nb.njit(cache=True)
def _unbook(p, lane, r, n):
    """Undo ``_book`` for a request that is preempted after it was scheduled in this step; returns decode tokens."""
    if n == 0:
        return 0
    p.lane[lane].tokens -= n
    if p.req[r].input + p.req[r].generated - p.req[r].done == 1 and p.req[r].generated > 0:
        p.lane[lane].decodes -= 1
        p.lane[lane].rows -= n
        return n
    p.lane[lane].prefills -= 1
    if p.req[r].done + n >= p.req[r].input + p.req[r].generated:
        p.lane[lane].rows -= 1
    return 0


@nb.njit(cache=True)
def _continue(p, lane, replica, budget, chunk, decodes, prefills):
    """Schedule running requests in order; returns what is left of budget and chunk, and whether any was preempted."""
    preempted = False
    i = 0
    while i < p.lane[lane].running:
        r = p.seats[0, lane, i]
        need = p.req[r].input + p.req[r].generated - p.req[r].done
        decode = need == 1 and p.req[r].generated > 0
        if (decode and not decodes) or (not decode and not prefills) or p.seats[1, lane, i] > 0:
            i += 1
            continue
        n = 1 + p.cfg[0].draft if decode else min(need, chunk)
        n = min(n, budget)
        if n <= 0 or (decode and n <= p.cfg[0].draft):
            i += 1
            continue
        missing = _blocks_for(p, r, p.req[r].done + n)
        stopped = False
        while missing > 0 and not allocate(p, lane, missing):
            preempted = True
            j = _victim(p, lane)
            loser = p.seats[0, lane, j]
            booked = p.seats[1, lane, j]
            budget += booked
            chunk += booked - _unbook(p, lane, loser, booked)
            _preempt(p, lane, replica, j)
            if j == i:
                stopped = True
                break
            if j < i:
                i -= 1
        if stopped:
            continue
        if missing > 0:
            p.req[r].held += missing
        _book(p, lane, i, n, 1 if n == need else 0, decode)
        budget -= n
        if not decode:
            chunk -= n
        i += 1
    return budget, chunk, preempted


@nb.njit(cache=True)
def _admit(p, lane, replica, now, budget, chunk):
    """Admit waiting requests, highest class first, until something is short."""
    cfg = p.cfg[0]
    seats = cfg.max_seqs - p.lane[lane].late_seats
    while p.lane[lane].running < seats and budget > 0 and p.lane[lane].waiting > p.lane[lane].hidden:
        cls = 0
        while cls < p.queue.shape[2] and p.queue[0, lane, cls] < 0:
            cls += 1
        if cls == p.queue.shape[2]:
            return
        r = p.queue[0, lane, cls]
        if p.req[r].swapped:
            done, hit = p.req[r].done, 0
        else:
            hit = 0 if p.req[r].done > 0 else match_prefix(p, lane, r)
            done = p.req[r].done + hit
        need = p.req[r].input + p.req[r].generated - done
        decode = need == 1 and p.req[r].generated > 0
        n = 1 + cfg.draft if decode else min(need, chunk)
        if not cfg.chunked and n < need and p.lane[lane].tokens > 0:
            return  # a prompt is not cut while others share its step
        n = min(n, budget)
        if n <= 0 or (decode and n < 1 + cfg.draft):
            return
        tokens = done + n
        if cfg.admission == 1:
            tokens = max(tokens, p.req[r].input + p.req[r].generated)
        elif cfg.admission == 2:
            tokens = max(tokens, p.req[r].input + p.req[r].output)
        # blocks of the hit that are idle now stop being available once they are referenced
        idle_hit = 0
        if hit > 0:
            lo = p.req[r].block_lo
            for j in range(hit // cfg.hash_tokens):
                if p.prefix[0, lane, p.blocks[0, lo + j]] == 0:
                    idle_hit += cfg.hash_blocks
        missing = max(0, _blocks_for(p, r, tokens) - hit // cfg.block)
        # the margin spares those who run; with nobody running it would only block
        margin = cfg.watermark * p.lane[lane].total if p.lane[lane].running > 0 else 0.0
        if missing + idle_hit + margin > available(p, lane):
            return
        if hit > 0:
            take_prefix(p, lane, r, hit)
            p.rep[replica].cached_tokens += hit
            if p.req[r].scheduled != p.req[r].scheduled:  # NaN: first admission
                p.req[r].cached = hit
        allocate(p, lane, missing)
        p.req[r].held += missing
        pop_waiting(p, lane, cls)
        if p.req[r].swapped:
            p.req[r].swapped = 0
            p.lane[lane].swap_blocks += (done + cfg.block - 1) // cfg.block
        p.req[r].done = done
        p.req[r].status = _RUNNING
        if p.req[r].scheduled != p.req[r].scheduled:
            p.req[r].scheduled = now
        i = p.lane[lane].running
        p.seats[0, lane, i] = r
        p.lane[lane].running = i + 1
        p.lane[lane].waited = 0
        _book(p, lane, i, n, 1 if n == need else 0, decode)
        budget -= n
        if not decode:
            chunk -= n


@nb.njit(cache=True)
def _look(p, lane, prefilled):
    """Let the lane see who came: every ``poll_steps`` decode steps, after a prefill, or when it has nothing to do."""
    state, cfg = p.lane[lane], p.cfg[0]
    state.since += 1
    if state.running == 0 or prefilled or state.since >= cfg.poll_steps:
        state.hidden = 0
        state.since = 0


@nb.njit(cache=True)
def _catch_up(state):
    """Learn who came and what was given back while the last step ran; says whether there was anything."""
    news = state.hidden > 0 or state.late_seats > 0
    state.hidden = 0
    state.late_seats = 0
    state.late_blocks = 0
    return news


@nb.njit(cache=True)
def _holds_back(p, lane):
    """Say whether new prompts still wait for company, and count the step they wait.

    A wait that is over stays over until somebody is admitted, however long blocks are short.
    """
    state, cfg = p.lane[lane], p.cfg[0]
    if cfg.wait_steps == 0 or state.decodes == 0 or state.waiting == 0:
        state.waited = 0
        return False
    if state.waited >= cfg.wait_steps:
        return False
    tokens = state.tokens
    for cls in range(p.queue.shape[2]):
        r = p.queue[0, lane, cls]
        while r >= 0 and tokens < cfg.wait_tokens:
            tokens += p.req[r].input + p.req[r].generated - p.req[r].done
            r = p.req[r].next
    if tokens >= cfg.wait_tokens:
        return False
    state.waited += 1
    state.holding = 1
    return True


@nb.njit(cache=True)
def schedule_lane(p, lane, replica, now):
    """Fill the lane's batch for a step that starts at ``now``; ``tokens`` is 0 when there is nothing to do."""
    cfg = p.cfg[0]
    state = p.lane[lane]
    if cfg.poll_steps > 1:
        _look(p, lane, state.prefills > 0)
    elif cfg.ahead and state.running == 0:
        _catch_up(state)  # with no step in progress there is nothing to be ahead of
    state.tokens = 0
    state.rows = 0
    state.decodes = 0
    state.prefills = 0
    state.swap_blocks = 0
    state.steady = 0
    state.holding = 0
    for i in range(state.running):
        p.seats[1, lane, i] = 0
    budget, chunk = cfg.max_tokens, cfg.prefill_chunk
    if cfg.prefill_first:
        budget, chunk, preempted = _continue(p, lane, replica, budget, chunk, False, True)
        if not preempted:
            _admit(p, lane, replica, now, budget, chunk)
        if state.prefills == 0:
            budget = cfg.max_tokens - state.tokens
            budget, chunk, again = _continue(p, lane, replica, budget, chunk, True, False)
            preempted = preempted or again
    else:
        budget, chunk, preempted = _continue(p, lane, replica, budget, chunk, True, True)
        if not preempted and not _holds_back(p, lane):
            _admit(p, lane, replica, now, budget, chunk)
    # a pure decode batch with nobody preempted or swapped in repeats until something changes
    if (
        not preempted
        and state.swap_blocks == 0
        and state.prefills == 0
        and state.decodes == state.running
        and state.decodes > 0
    ):
        state.steady = 1
    if cfg.ahead and _catch_up(state):
        state.steady = 0  # the next step knows more than this one did
