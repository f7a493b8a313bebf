"""Replay: a whole trace through one tier of cache, request by request, counting and not timing."""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import numba as nb
import numpy as np

from moesim.residency.kernel.score import draw, value

__all__ = ["next_use", "replay"]


@nb.njit(cache=True)
def next_use(keys, start, fresh, clock, count, cold, never):
    """Time of the next use of each use's expert by its cache's clock, [use], and of the first use of each, [key].

    None is seen behind a cold start.
    """
    upcoming = np.full(len(keys), never)
    following = np.full(count, never)
    for r in range(len(start) - 2, -1, -1):
        for i in range(start[r], start[r + 1]):
            upcoming[i] = following[keys[i]]
        for i in range(start[r], start[r + 1]):
            following[keys[i]] = clock[r]
        if cold and fresh[r]:
            following[:] = never
    return upcoming, following


@nb.njit(cache=True)
def _match(dot, norm, unit_mean, share, probability):
    """Set ``probability`` to the recorded sequence that resembles this one most, layer by layer (cosine)."""
    layers, entries = dot.shape
    best, chosen = -1.0, -1
    for c in range(entries):
        alike = 0.0
        for layer in range(layers):
            if norm[layer] > 0.0:
                alike += dot[layer, c] / np.sqrt(norm[layer])
        if alike > best:
            best, chosen = alike, c
    experts = share.shape[1]
    for layer in range(layers):
        for e in range(experts):
            k = layer * experts + e
            probability[k] = share[layer, e, chosen] if best > 0.0 else unit_mean[layer, e]


@nb.njit(cache=True)
def _victim(s, g, n, r, now, at, mode):
    """Return the least valuable resident of cache ``g``, -1 for none.

    mode 0: any; 1: not one that came with this request; 2: the latest that came with this request.
    """
    best, least, oldest = -1, np.inf, np.inf
    for j in range(n):
        k = s.slots[g, j]
        if s.pinned[k] or s.hold[k] > r:
            continue
        came = s.stamp[k] == r
        if mode == 2:
            if came:
                best = k
            continue
        if mode == 1 and came:
            continue
        layer = k // s.experts
        ahead = (layer - at) % s.layers
        if ahead == 0:
            ahead = s.layers
        orphan = 1.0 if s.parent[k] >= 0 and s.held[s.parent[k]] == 0 else 0.0
        chance = draw(now, k, s.seed) if s.code == 3 else 0.0
        begin = s.begin[g]
        last = s.last[k] - begin if s.last[k] >= begin else -1.0
        v = value(
            s.code, s.p, now - begin, last, s.uses[k], s.heavy[k], s.upcoming[k] - begin, s.probability[k],
            float(ahead), float(s.layers), orphan, chance,
        )  # fmt: skip
        if v < least or (v == least and (last < oldest or (last == oldest and k < best))):
            best, least, oldest = k, v, last
    return best


@nb.njit(cache=True)
def _note(s, r, k, width):
    if len(s.events) > 0:
        n = s.noted[0]
        s.events[n, 0], s.events[n, 1], s.events[n, 2] = r, k, width
        s.noted[0] = n + 1


@nb.njit(cache=True)
def _leave(s, g, n, k, r):
    _note(s, r, k, 0)
    j = s.place[k]
    moved = s.slots[g, n - 1]
    s.slots[g, j] = moved
    s.place[moved] = j
    gone = s.size[k] if s.held[k] == 2 else s.small[k]
    s.held[k] = 0
    return gone


@nb.njit(cache=True)
def replay(a, s, guess_keys, guess_start, lead, unit, share, cold, forget):
    """Play all requests.

    Parameters
    ----------
    a : the requests (``Requests`` in ``moesim.residency.replay``)
    s : the cache (``State`` there), changed in place
    guess_keys, guess_start, lead : as in ``Guesses``; no guesses: an empty ``guess_start``
    unit, share : recorded sequences, [layer, expert, entry]: rows of unit length, and shares of a layer's uses
    cold, forget : empty the cache, forget counts, where a sequence starts

    Returns
    -------
    outcome : int8 [use]: 0 hit, 1 fetched, 2 fetched in low precision, 3 computed by the host, 4 skipped
    moved : float64 [request, 4]: bytes fetched, prefetched, dropped, resident afterwards
    guessed : int64 [request, 2]: experts prefetched for it, those of them that were there and used
    staged : most bytes beyond the capacity while a request was served
    """
    requests = len(a.start) - 1
    outcome = np.zeros(len(a.keys), dtype=np.int8)
    moved = np.zeros((requests, 4))
    guessed = np.zeros((requests, 2), dtype=np.int64)
    groups = len(s.capacity)
    filled = np.zeros(groups, dtype=np.int64)
    used = np.zeros(groups)
    total = 0.0
    for k in range(len(s.held)):
        if s.held[k] > 0:
            g = s.group[k // s.experts]
            s.slots[g, filled[g]] = k
            s.place[k] = filled[g]
            filled[g] += 1
            used[g] += s.size[k]
            total += s.size[k]
    guess_for = np.full(len(s.held), -1, dtype=np.int64)
    entries = unit.shape[2]
    dot = np.zeros((s.layers, entries))
    norm = np.zeros(s.layers)
    eam = np.zeros((s.layers, s.experts))
    mean = np.zeros((s.layers, s.experts))
    for layer in range(s.layers):
        for e in range(s.experts):
            for c in range(entries):
                mean[layer, e] += share[layer, e, c] / entries
    ticks = np.zeros(groups)
    staged = 0.0
    previous = s.layers
    for r in range(requests):
        at = a.layer[r]
        g = s.group[at]
        now = a.clock[r]
        if a.fresh[r]:
            if cold:
                for q in range(groups):
                    j = 0
                    while j < filled[q]:
                        k = s.slots[q, j]
                        if s.pinned[k]:
                            j += 1
                            continue
                        gone = _leave(s, q, filled[q], k, r)
                        filled[q] -= 1
                        used[q] -= gone
                        total -= gone
                        moved[r, 2] += gone
                s.hold[:] = -1
                guess_for[:] = -1
            if cold or forget:
                s.uses[:] = 0.0
                s.heavy[:] = 0.0
                s.begin[:] = ticks
            dot[:] = 0.0
            norm[:] = 0.0
            eam[:] = 0.0
        if entries > 0 and (at <= previous or a.fresh[r]):
            _match(dot, norm, mean, share, s.probability)
        previous = at
        for i in range(a.start[r], a.start[r + 1]):
            k = a.keys[i]
            act = a.act[i]
            s.last[k] = now
            s.uses[k] += 1.0
            if act == 0:
                s.heavy[k] += 1.0
            s.upcoming[k] = a.upcoming[i]
            if entries > 0:
                e = k % s.experts
                norm[at] += 2.0 * eam[at, e] + 1.0
                eam[at, e] += 1.0
                for c in range(entries):
                    dot[at, c] += unit[at, e, c]
            if s.held[k] == 2 or (s.held[k] == 1 and act != 0):
                if guess_for[k] == r:
                    guessed[r, 1] += 1
                continue
            if act == 2:
                outcome[i] = 3
                continue
            if act == 3:
                outcome[i] = 4
                continue
            if s.held[k] == 1:  # a copy of few bits makes way for the full one
                gone = _leave(s, g, filled[g], k, r)
                filled[g] -= 1
                used[g] -= gone
                total -= gone
                moved[r, 2] += gone
            outcome[i] = 1 if act == 0 else 2
            s.held[k] = 2 if act == 0 else 1
            s.stamp[k] = r
            _note(s, r, k, s.held[k])
            came = s.size[k] if act == 0 else s.small[k]
            s.slots[g, filled[g]] = k
            s.place[k] = filled[g]
            filled[g] += 1
            used[g] += came
            total += came
            moved[r, 0] += came
        staged = max(staged, used[g] - s.capacity[g])
        while used[g] > s.capacity[g]:
            mode = 1 if s.admission == 0 else (0 if s.admission == 1 else 2)
            k = _victim(s, g, filled[g], r, now, at, mode)
            if k < 0 and mode == 1:
                k = _victim(s, g, filled[g], r, now, at, 0)
            if k < 0:
                break
            gone = _leave(s, g, filled[g], k, r)
            filled[g] -= 1
            used[g] -= gone
            total -= gone
            moved[r, 2] += gone
        ticks[g] = now + 1.0
        b = r + lead
        if b + 1 < len(guess_start):
            q = s.group[a.layer[b]]
            for i in range(guess_start[b], guess_start[b + 1]):
                k = guess_keys[i]
                if s.held[k] == 0:
                    room = True
                    while used[q] + s.size[k] > s.capacity[q]:
                        out = -1
                        if s.admission != 2:
                            out = _victim(s, q, filled[q], r, ticks[q], at, 0)
                        if out < 0:
                            room = False
                            break
                        gone = _leave(s, q, filled[q], out, r)
                        filled[q] -= 1
                        used[q] -= gone
                        total -= gone
                        moved[r, 2] += gone
                    if not room:
                        continue
                    s.held[k] = 2
                    _note(s, r, k, 2)
                    s.slots[q, filled[q]] = k
                    s.place[k] = filled[q]
                    filled[q] += 1
                    used[q] += s.size[k]
                    total += s.size[k]
                    moved[r, 1] += s.size[k]
                    guessed[b, 0] += 1
                    guess_for[k] = b
                s.hold[k] = b
        moved[r, 3] = total
    return outcome, moved, guessed, staged
