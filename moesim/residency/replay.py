"""Replay: hits, fetches and evictions of a trace under a policy; times follow from them where nothing contends."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moesim.errors import SpecError
from moesim.policies.eviction import NEVER, EvictionRule
from moesim.residency.accesses import Accesses, Guesses
from moesim.residency.cache import Cache
from moesim.residency.kernel import ADMISSIONS, CODES, next_use
from moesim.residency.kernel import replay as run
from moesim.routing.trace import RoutingTrace

__all__ = ["Outcome", "Replay", "activations", "replay"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class Outcome(IntEnum):
    """How one use of an expert was served."""

    HIT = 0
    FETCHED = 1
    FETCHED_LOW = 2
    HOST = 3
    SKIPPED = 4


class Requests(NamedTuple):
    """What the compiled replay reads, see ``Accesses``; clocks count the requests of a request's own part."""

    keys: Any
    start: Any
    layer: Any
    fresh: Any
    act: Any
    upcoming: Any
    clock: Any


class State(NamedTuple):
    """What the compiled replay changes: the cache, and what it knows of every expert, [key]."""

    capacity: Any
    group: Any
    slots: Any
    place: Any
    size: Any
    small: Any
    pinned: Any
    held: Any
    hold: Any
    stamp: Any
    last: Any
    uses: Any
    heavy: Any
    upcoming: Any
    probability: Any
    parent: Any
    begin: Any
    layers: int
    experts: int
    code: int
    admission: int
    p: Any
    seed: int
    events: Any
    noted: Any


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """What happened.

    Attributes
    ----------
    outcome : int8 [use], see ``Outcome``
    fetched, prefetched, dropped : bytes that came on demand, came on a guess, and left, [request]
    resident : bytes there after each request, [request]
    guessed, useful : experts prefetched for a request, and those of them that it used, [request]
    staged : most bytes beyond a part's capacity while a request was served: room its buffers need
    before : bytes there at the start
    held : 0 absent, 1 low, 2 full precision at the end, int8 [key]
    events : int32 [event, 3]: request, key, precision that came (1 low, 2 full) or 0 where it left, in order; empty
        unless asked for. What a guess moves is noted at the request whose end set it off
    """

    accesses: Accesses
    cache: Cache
    outcome: npt.NDArray[np.int8]
    fetched: FloatArray
    prefetched: FloatArray
    dropped: FloatArray
    resident: FloatArray
    guessed: IntArray
    useful: IntArray
    staged: float
    before: float
    held: npt.NDArray[np.int8]
    events: npt.NDArray[np.int32]

    def share(self, outcome: Outcome = Outcome.HIT) -> float:
        """Return the share of uses with this outcome."""
        return float(np.mean(self.outcome == outcome))

    def hit_rate_by_layer(self) -> FloatArray:
        """Return the share of uses that found their expert, [layer]; NaN where there were none."""
        layer = self.accesses.keys // self.accesses.experts
        hits = np.bincount(layer[self.outcome == Outcome.HIT], minlength=self.accesses.layers)
        uses = np.bincount(layer, minlength=self.accesses.layers)
        return np.asarray(np.divide(hits, uses, out=np.full(len(uses), np.nan), where=uses > 0))

    def misses_by_request(self) -> IntArray:
        """Return the experts fetched on demand by each request, [request]."""
        fetched = (self.outcome == Outcome.FETCHED) | (self.outcome == Outcome.FETCHED_LOW)
        count = np.concatenate([[0], np.cumsum(fetched)])
        return np.asarray(count[self.accesses.start[1:]] - count[self.accesses.start[:-1]])


def activations(history: RoutingTrace, entries: int) -> FloatArray:
    """Return how often each of at most ``entries`` recorded sequences used each expert, [entry, layer, experts].

    More sequences than that are thinned to those that differ most: the longest first, then always the one least
    like all chosen (MoE-Infinity, arXiv 2401.14361, clusters its sequences to the same end).
    """
    mask = history.mask()
    counts: FloatArray = np.add.reduceat(mask, history.offset, axis=0, dtype=np.float64)
    if len(counts) <= entries:
        return counts
    norm = np.linalg.norm(counts, axis=2, keepdims=True)
    unit = np.divide(counts, norm, out=np.zeros_like(counts), where=norm > 0).reshape(len(counts), -1)
    chosen = [int(np.argmax(history.length))]
    alike = unit @ unit[chosen[0]]
    while len(chosen) < entries:
        alike[chosen] = np.inf
        chosen.append(int(np.argmin(alike)))
        alike = np.maximum(alike, unit @ unit[chosen[-1]])
    return np.asarray(counts[np.sort(chosen)])


def replay(
    accesses: Accesses,
    cache: Cache,
    eviction: EvictionRule,
    *,
    guesses: Guesses | None = None,
    act: npt.NDArray[np.int8] | None = None,
    history: FloatArray | None = None,
    cold: bool = False,
    forget: bool = False,
    log: bool = False,
) -> Replay:
    """Play ``accesses`` through ``cache``.

    A request is served as a set: it hits what is there when it starts, fetches the rest, and then as much leaves as
    the capacity asks for (arXiv 2608.07911 calls this event-atomic). Guesses for a later request are fetched when
    the request before their ``lead`` ends; they and their targets are kept until then.

    Parameters
    ----------
    guesses : experts to prefetch; none: no prefetching
    act : what to do when an expert is absent, ``moesim.policies.miss.Act`` [use]; none: always fetch
    history : activations of recorded sequences for a rule that matches them, as ``activations`` returns
    cold : the cache is emptied where a sequence starts, but for pinned experts
    forget : rules forget counts where a sequence starts
    log : note every arrival and departure

    Raises
    ------
    SpecError : shapes that do not agree; a rule that needs probabilities or a history, and there is none
    """
    if (len(cache.part), cache.experts) != (accesses.layers, accesses.experts):
        raise SpecError(
            f"replay: the cache has {len(cache.part)} layers of {cache.experts} experts, the accesses "
            f"{accesses.layers} of {accesses.experts}"
        )
    if eviction.probable and not cache.probability.any():
        raise SpecError("replay: this eviction rule needs the probability of every expert")
    if eviction.matched and (history is None or history.shape[1:] != (accesses.layers, accesses.experts)):
        raise SpecError("replay: this eviction rule needs activations of recorded sequences of this shape")
    if act is not None and act.shape != accesses.keys.shape:
        raise SpecError(f"replay: act: expected one entry for each of {len(accesses.keys)} uses")
    if guesses is not None and (len(guesses.start) != accesses.requests + 1 or guesses.lead < 1):
        raise SpecError(f"replay: guesses: expected offsets for {accesses.requests} requests, lead >= 1")
    recorded = history if eviction.matched and history is not None else np.zeros((0, 1, 1))
    unit, share = _recorded(recorded, accesses)
    requests, first = _requests(accesses, cache, act, cold=cold)
    guessed_at_most = 0 if guesses is None else len(guesses.keys)
    room = 2 * (len(accesses.keys) + guessed_at_most + len(cache.size)) if log else 0
    state = _state(cache, accesses, eviction, first, room)
    outcome, moved, guessed, staged = run(
        requests,
        state,
        np.zeros(0, dtype=np.int32) if guesses is None else guesses.keys,
        np.zeros(0, dtype=np.int64) if guesses is None else guesses.start,
        1 if guesses is None else guesses.lead,
        unit,
        share,
        cold,
        forget,
    )
    return Replay(
        accesses=accesses,
        cache=cache,
        outcome=outcome,
        fetched=moved[:, 0],
        prefetched=moved[:, 1],
        dropped=moved[:, 2],
        resident=moved[:, 3],
        guessed=guessed[:, 0],
        useful=guessed[:, 1],
        staged=float(staged),
        before=float(cache.used().sum()),
        held=state.held,
        events=state.events[: int(state.noted[0])],
    )


def _requests(
    accesses: Accesses, cache: Cache, act: npt.NDArray[np.int8] | None, *, cold: bool
) -> tuple[Requests, FloatArray]:
    """Return the requests, and the time of each expert's first use, [key]."""
    part = cache.part[accesses.layer]
    clock = np.zeros(accesses.requests)
    for index in range(len(cache.capacity)):
        mine = part == index
        clock[mine] = np.arange(int(mine.sum()))
    upcoming, first = next_use(
        accesses.keys, accesses.start, accesses.fresh, clock, len(cache.size), cold, NEVER
    )
    wanted = np.zeros(len(accesses.keys), dtype=np.int8) if act is None else act.astype(np.int8)
    return Requests(
        accesses.keys, accesses.start, accesses.layer, accesses.fresh, wanted, upcoming, clock
    ), first


def _state(cache: Cache, accesses: Accesses, eviction: EvictionRule, first: FloatArray, room: int) -> State:
    keys = len(cache.size)
    parts = len(cache.capacity)
    widest = int(np.bincount(cache.part, minlength=parts).max()) * cache.experts
    return State(
        capacity=cache.capacity,
        group=cache.part,
        slots=np.zeros((parts, widest), dtype=np.int64),
        place=np.zeros(keys, dtype=np.int64),
        size=cache.size,
        small=cache.small,
        pinned=cache.pinned,
        held=np.where(cache.resident, 2, 0).astype(np.int8),
        hold=np.full(keys, -1, dtype=np.int64),
        stamp=np.full(keys, -1, dtype=np.int64),
        last=np.full(keys, -1.0),
        uses=np.zeros(keys),
        heavy=np.zeros(keys),
        upcoming=first,
        probability=cache.probability.copy(),
        parent=cache.parent,
        begin=np.zeros(parts),
        layers=accesses.layers,
        experts=accesses.experts,
        code=CODES[eviction.model_dump()["policy"]],
        admission=ADMISSIONS[eviction.admission],
        p=eviction.parameters(),
        seed=int(eviction.model_dump().get("seed", 0)),
        events=np.zeros((room, 3), dtype=np.int32),
        noted=np.zeros(1, dtype=np.int64),
    )


def _recorded(history: FloatArray, accesses: Accesses) -> tuple[FloatArray, FloatArray]:
    """Return recorded activations as unit rows and as shares of their layer's, [layer, expert, entry]."""
    if len(history) == 0:
        empty = np.zeros((accesses.layers, accesses.experts, 0))
        return empty, empty
    total, norm = history.sum(axis=2, keepdims=True), np.linalg.norm(history, axis=2, keepdims=True)
    share = np.divide(history, total, out=np.zeros_like(history), where=total > 0)
    unit = np.divide(history, norm, out=np.zeros_like(history), where=norm > 0)
    return np.ascontiguousarray(unit.transpose(1, 2, 0)), np.ascontiguousarray(share.transpose(1, 2, 0))
