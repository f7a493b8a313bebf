"""Laws of residency: what capacity and bookkeeping forbid, one function each. A broken one is our bug."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from moesim.errors import LawBroken
from moesim.residency.replay import Outcome, Replay

__all__ = [
    "LAWS",
    "belady_is_never_beaten",
    "bytes_are_conserved",
    "capacity_is_kept",
    "check",
    "lru_includes",
    "nothing_absent_is_used",
]

TOLERANCE = 1e-9


def capacity_is_kept(replay: Replay) -> None:
    """Keep every part of the tier within its capacity after each request; with a log part by part, else in sum."""
    capacity = replay.cache.capacity
    slack = TOLERANCE * max(float(capacity.sum()), 1.0)
    over = replay.resident - capacity.sum()
    if over.size and over.max() > slack:
        _broken("capacity_is_kept", f"request {int(over.argmax())}: {over.max():.6g} bytes too many")
    part = np.repeat(replay.cache.part, replay.cache.experts)
    held = np.bincount(part, weights=_bytes(replay, replay.held), minlength=len(capacity))
    if np.any(held > capacity + slack):
        _broken("capacity_is_kept", f"at the end: {held.tolist()} bytes, capacity {capacity.tolist()}")
    if len(replay.events) == 0:
        return
    # bytes of each part after the last event of each request
    delta, size = np.zeros(len(replay.events)), np.where(replay.cache.resident, replay.cache.size, 0.0)
    for index, (_, key, width) in enumerate(replay.events.tolist()):
        now = (0.0, float(replay.cache.small[key]), float(replay.cache.size[key]))[width]
        delta[index] = now - size[key]
        size[key] = now
    request, place = replay.events[:, 0], part[replay.events[:, 1]]
    for index, limit in enumerate(capacity.tolist()):
        mine = place == index
        total = float(replay.cache.used()[index]) + np.cumsum(delta[mine])
        last = np.diff(request[mine], append=-1) != 0
        if np.any(total[last] > limit + slack):
            _broken("capacity_is_kept", f"part {index} holds {total[last].max():.6g} of {limit:.6g} bytes")


def bytes_are_conserved(replay: Replay) -> None:
    """Conserve bytes: what was there plus what came is what left plus what is there, after every request."""
    came = np.cumsum(replay.fetched + replay.prefetched - replay.dropped)
    scale = max(replay.before + float(np.sum(replay.fetched + replay.prefetched)), 1.0)
    wrong = np.abs(replay.before + came - replay.resident)
    if wrong.size and wrong.max() > TOLERANCE * scale:
        _broken(
            "bytes_are_conserved", f"request {int(wrong.argmax())}: {wrong.max():.6g} bytes unaccounted for"
        )
    held = float(_bytes(replay, replay.held).sum())
    if abs(held - float(replay.resident[-1])) > TOLERANCE * scale:
        _broken("bytes_are_conserved", f"{held:.6g} bytes are held, {replay.resident[-1]:.6g} counted")


def nothing_absent_is_used(replay: Replay) -> None:
    """Let no use hit an expert that is not there when its request starts, nor fetch one that is. Needs a log."""
    if len(replay.events) == 0 and np.any(replay.outcome == Outcome.FETCHED):
        _broken("nothing_absent_is_used", "the replay was not logged")
    there = np.where(replay.cache.resident, 2, 0)
    events, at = replay.events.tolist(), 0
    a = replay.accesses
    for request in range(a.requests):
        while at < len(events) and events[at][0] < request:
            there[events[at][1]] = events[at][2]
            at += 1
        if a.fresh[request]:  # a cold start empties the cache before the request is served
            while at < len(events) and events[at][0] == request and events[at][2] == 0:
                there[events[at][1]] = 0
                at += 1
        for use in range(int(a.start[request]), int(a.start[request + 1])):
            key, outcome = int(a.keys[use]), int(replay.outcome[use])
            if outcome == Outcome.HIT and there[key] == 0:
                _broken("nothing_absent_is_used", f"request {request} hits expert {key}, which is not there")
            if outcome == Outcome.FETCHED and there[key] == 2:
                _broken("nothing_absent_is_used", f"request {request} fetches expert {key}, which is there")


def belady_is_never_beaten(replay: Replay, bound: Replay) -> None:
    """Let no demand replay fetch less than Belady's on the same requests and cache, experts being of equal size.

    ``bound`` is Belady's with admission ``better``, the least of all; where every request is one expert, also that
    with ``always``, for rules that admit always (sets that must stay leave ties which no next use decides). A cache
    filled from guesses is no demand replay.
    """
    if np.any(replay.prefetched) or replay.cache.size.min() != replay.cache.size.max():
        _broken("belady_is_never_beaten", "it holds for demand fetches of equal sizes only")
    got, least = float(replay.fetched.sum()), float(bound.fetched.sum())
    if got < least * (1 - TOLERANCE):
        _broken("belady_is_never_beaten", f"{got:.6g} bytes fetched, the bound says {least:.6g}")


def lru_includes(misses: Mapping[float, int]) -> None:
    """Let more capacity never raise the misses of LRU on one trace (Mattson's inclusion), misses by capacity.

    It holds where every part can hold a whole request.
    """
    order = sorted(misses)
    for small, large in itertools.pairwise(order):
        if misses[large] > misses[small]:
            _broken(
                "lru_includes",
                f"{misses[large]} misses with capacity {large:g}, {misses[small]} with {small:g}",
            )


LAWS: dict[str, Callable[[Replay], None]] = {
    "capacity_is_kept": capacity_is_kept,
    "bytes_are_conserved": bytes_are_conserved,
    "nothing_absent_is_used": nothing_absent_is_used,
}
"""Laws of a single replay. Two more compare several."""


def check(replay: Replay) -> None:
    """Check every law of a single logged replay.

    Raises
    ------
    LawBroken : with the first broken law
    """
    for law in LAWS.values():
        law(replay)


def _bytes(replay: Replay, held: npt.NDArray[np.int8]) -> npt.NDArray[np.float64]:
    full = np.where(held == 2, replay.cache.size, 0.0)
    return np.asarray(np.where(held == 1, replay.cache.small, full))


def _broken(law: str, detail: str) -> NoReturn:
    raise LawBroken(f"law {law}: {detail}")
