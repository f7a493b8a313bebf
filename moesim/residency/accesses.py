"""Accesses: what a run asks of its experts, request by request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moesim.errors import SpecError

if TYPE_CHECKING:
    from moesim.policies.prefetch import PrefetchRule
    from moesim.routing.trace import RoutingTrace

__all__ = ["Accesses", "Guesses", "batch_accesses", "guesses_of", "token_accesses"]

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Accesses:
    """Requests in order of time. One request is a set of experts that are needed at once: a layer of one step.

    An expert's key is ``layer * experts + expert``. The same form serves models chosen per prompt and adapters
    chosen per task: one layer, whose experts they are.

    Attributes
    ----------
    keys : int32 [use], different ones in each request, heaviest first
    start : int64 [request + 1], first use of each request
    layer : int32 [request]
    fresh : bool [request]; True: a new sequence starts here, and rules that learn per sequence forget
    tokens : float64 [use], tokens that use the expert
    above : float64 [use], router weight ranked above the expert, as a share; the least over its tokens
    layers, experts : numbers of them; keys are below their product
    """

    keys: npt.NDArray[np.int32]
    start: IntArray
    layer: npt.NDArray[np.int32]
    fresh: npt.NDArray[np.bool_]
    tokens: FloatArray
    above: FloatArray
    layers: int
    experts: int

    def __post_init__(self) -> None:
        uses, requests = len(self.keys), len(self.start) - 1
        if requests < 1 or self.start[0] != 0 or self.start[-1] != uses or np.any(np.diff(self.start) < 0):
            raise SpecError("accesses: start: expected rising offsets from 0 to the number of uses")
        if self.layer.shape != (requests,) or self.fresh.shape != (requests,):
            raise SpecError(f"accesses: layer and fresh: expected one entry for each of {requests} requests")
        if self.tokens.shape != (uses,) or self.above.shape != (uses,):
            raise SpecError(f"accesses: tokens and above: expected one entry for each of {uses} uses")
        if uses and (self.keys.min() < 0 or self.keys.max() >= self.layers * self.experts):
            raise SpecError(f"accesses: expected keys 0..{self.layers * self.experts - 1}")
        if self.layer.min() < 0 or self.layer.max() >= self.layers:
            raise SpecError(f"accesses: expected layers 0..{self.layers - 1}")
        if np.any(self.keys // self.experts != np.repeat(self.layer, np.diff(self.start))):
            raise SpecError("accesses: expected every expert in the layer of its request")
        pair = np.repeat(np.arange(requests), np.diff(self.start)) * (self.layers * self.experts) + self.keys
        pair.sort()  # np.unique hashes, and takes minutes for millions of such regular numbers
        if np.any(pair[1:] == pair[:-1]):
            raise SpecError("accesses: expected different experts in each request")

    @property
    def requests(self) -> int:
        """How many there are."""
        return len(self.layer)

    @property
    def request_of(self) -> IntArray:
        """Request of each use, [use]."""
        return np.repeat(np.arange(self.requests), np.diff(self.start))


@dataclass(frozen=True, slots=True, eq=False)
class Guesses:
    """Experts that each request is guessed to need.

    Attributes
    ----------
    keys : int32 [guess], likeliest first
    start : int64 [request + 1], first guess of each request
    lead : requests between the end of the one that reveals a guess and the one it is for, at least 1
    """

    keys: npt.NDArray[np.int32]
    start: IntArray
    lead: int


def token_accesses(trace: RoutingTrace, *, together: bool = True) -> Accesses:
    """Return the requests of a trace played token by token, layer by layer.

    Parameters
    ----------
    together : a token's experts of a layer are one request; otherwise each is a request of its own, heaviest first,
        and may push out the one before it
    """
    tokens, layers, k = trace.experts.shape
    keys = trace.experts.astype(np.int32) + (np.arange(layers, dtype=np.int32) * trace.total)[:, None]
    step = 1 if not together else k
    uses = tokens * layers * k
    first = np.zeros((tokens, layers, k // step), dtype=bool)
    first[trace.offset, 0, 0] = True
    return Accesses(
        keys=keys.reshape(-1),
        start=np.arange(0, uses + 1, step),
        layer=np.tile(np.repeat(np.arange(layers, dtype=np.int32), k // step), tokens),
        fresh=first.reshape(-1),
        tokens=np.ones(uses),
        above=_above(trace.weights).reshape(-1),
        layers=layers,
        experts=trace.total,
    )


def batch_accesses(trace: RoutingTrace, batch: int) -> Accesses:
    """Return the requests of ``batch`` lanes that decode together, each playing a contiguous part of the trace.

    One request is the union of a layer's experts over the lanes, those of most tokens first. What does not fill the
    lanes evenly is left out. Sequences start at different times in different lanes, so only the first request is
    fresh.

    Raises
    ------
    SpecError : fewer tokens than lanes
    """
    rows = _lanes(trace, batch)
    steps, layers = rows.shape[0], trace.layers
    above = _above(trace.weights)[rows]  # [step, lane, layer, k]
    chosen = trace.experts[rows].astype(np.int64)
    request = np.arange(steps)[:, None, None, None] * layers + np.arange(layers)[:, None]
    flat = (request * trace.total + chosen).ravel()
    pair, inverse, count = np.unique(flat, return_inverse=True, return_counts=True)
    least = np.full(len(pair), np.inf)
    np.minimum.at(least, inverse, above.ravel())
    request, expert = np.divmod(pair, trace.total)
    order = np.lexsort((expert, least, -count, request))
    request, expert = request[order], expert[order]
    layer = (request % layers).astype(np.int32)
    fresh = np.zeros(steps * layers, dtype=bool)
    fresh[0] = True
    return Accesses(
        keys=(layer * trace.total + expert).astype(np.int32),
        start=np.searchsorted(request, np.arange(steps * layers + 1)),
        layer=np.tile(np.arange(layers, dtype=np.int32), steps),
        fresh=fresh,
        tokens=count[order].astype(np.float64),
        above=least[order],
        layers=layers,
        experts=trace.total,
    )


def guesses_of(
    rule: PrefetchRule, trace: RoutingTrace, history: RoutingTrace | None = None, batch: int | None = None
) -> Guesses:
    """Return what ``rule`` guesses for the requests of ``token_accesses`` (``batch``: of ``batch_accesses``).

    Raises
    ------
    SpecError : as the rule's; fewer tokens than lanes
    """
    guess = rule.guess(trace.experts, trace.total, None if history is None else history.experts)
    tokens, layers, most = guess.shape
    if batch is None:
        named = guess.reshape(tokens * layers, most)
        request = np.repeat(np.arange(tokens * layers), (named >= 0).sum(axis=1))
        expert = named[named >= 0].astype(np.int64)
        # a name may come twice: the first counts
        _, first = np.unique(request * trace.total + expert, return_index=True)
        first.sort()
        request, expert = request[first], expert[first]
        requests = tokens * layers
    else:
        rows = _lanes(trace, batch)
        requests = len(rows) * layers
        wide = np.arange(len(rows))[:, None, None, None] * layers + np.arange(layers)[:, None]
        chosen = guess[rows].astype(np.int64)
        flat = np.broadcast_to(wide, chosen.shape)[chosen >= 0] * trace.total + chosen[chosen >= 0]
        pair, count = np.unique(flat, return_counts=True)
        request, expert = np.divmod(pair, trace.total)
        order = np.lexsort((expert, -count, request))
        request, expert = request[order], expert[order]
    keys = (request % layers) * trace.total + expert
    return Guesses(keys.astype(np.int32), np.searchsorted(request, np.arange(requests + 1)), rule.lead)


def _lanes(trace: RoutingTrace, batch: int) -> IntArray:
    """Return the token that each lane plays at each step, [step, lane]."""
    steps = len(trace.experts) // batch if batch > 0 else 0
    if steps == 0:
        raise SpecError(f"batch {batch}: expected 1 to the {len(trace.experts)} tokens of the trace")
    return np.arange(batch)[None, :] * steps + np.arange(steps)[:, None]


def _above(weights: npt.NDArray[np.float32]) -> FloatArray:
    """Return the share of router weight that a token ranks above each expert, [token, layer, k]."""
    wide = weights.astype(np.float64)
    total = wide.sum(axis=2, keepdims=True)
    before = np.cumsum(wide, axis=2) - wide
    return np.asarray(np.divide(before, total, out=np.zeros_like(wide), where=total > 0))
