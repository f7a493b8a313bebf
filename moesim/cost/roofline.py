"""Roofline: the least time an op can take, and the chain of estimators that may know better.

An estimator is asked for the seconds of an op at every token count; it answers NaN where it does not know.
The chain takes the first answer of measured -> fitted -> bound. If nobody knows, that is an error: nothing is
invented.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from moesim.cost import collectives
from moesim.cost.attention import AttentionShape, bound_term
from moesim.cost.precision import peak
from moesim.errors import DataMissing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moesim.cost.ops import Exchange, IntArray, Op
    from moesim.cost.pricing import AttentionTerm, FloatArray
    from moesim.spec.hardware import DeviceSpec

__all__ = [
    "Chain",
    "Cost",
    "Estimator",
    "Launch",
    "Origin",
    "Place",
    "Roofline",
    "exchange_seconds",
    "roofline_seconds",
]

Origin = Literal["measured", "fitted", "bound"]
_ORIGINS: tuple[Origin, ...] = ("measured", "fitted", "bound")


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds and work, and how many of the seconds come from each kind of source.

    Attributes
    ----------
    seconds, flop, bytes : of one device
    sources : seconds by origin (``measured``, ``fitted``, ``bound``); they add up to ``seconds``
    """

    seconds: float = 0.0
    flop: float = 0.0
    bytes: float = 0.0
    sources: tuple[tuple[Origin, float], ...] = ()

    def then(self, other: Cost) -> Cost:
        """Return the cost of this, then ``other``."""
        return Cost(
            self.seconds + other.seconds,
            self.flop + other.flop,
            self.bytes + other.bytes,
            _add(self.sources, other.sources),
        )

    def overlapped(self, other: Cost) -> Cost:
        """Return the cost of both at once: the longer time with its sources, the work of both."""
        longer = self if self.seconds >= other.seconds else other
        return Cost(longer.seconds, self.flop + other.flop, self.bytes + other.bytes, longer.sources)

    def repeated(self, times: float) -> Cost:
        """Return the cost of doing this ``times`` times."""
        sources = tuple((origin, seconds * times) for origin, seconds in self.sources)
        return Cost(self.seconds * times, self.flop * times, self.bytes * times, sources)

    def share(self, origin: Origin) -> float:
        """Return the part of the seconds that comes from ``origin``, 0..1."""
        return dict(self.sources).get(origin, 0.0) / self.seconds if self.seconds else 0.0


def _add(
    a: tuple[tuple[Origin, float], ...], b: tuple[tuple[Origin, float], ...]
) -> tuple[tuple[Origin, float], ...]:
    first, second = dict(a), dict(b)
    return tuple((o, first.get(o, 0.0) + second.get(o, 0.0)) for o in _ORIGINS if o in first or o in second)


@dataclass(frozen=True, slots=True)
class Launch:
    """Seconds to start one kernel: small batches replay a captured graph, larger ones launch one by one.

    Attributes
    ----------
    eager_s, graph_s : per kernel
    graph_tokens : largest batch that was captured; -1 without graphs
    """

    eager_s: float
    graph_s: float
    graph_tokens: int

    def seconds(self, tokens: IntArray) -> FloatArray:
        """Return seconds per kernel, shape of ``tokens``; nothing is launched for 0 tokens."""
        each = np.where(tokens <= self.graph_tokens, self.graph_s, self.eager_s)
        return np.where(tokens > 0, each, 0.0)

    @property
    def decode_s(self) -> float:
        """Per kernel of a decode step."""
        return self.graph_s if self.graph_tokens >= 0 else self.eager_s


@dataclass(frozen=True, slots=True)
class Place:
    """Where an op runs: the device, and how kernels are started."""

    device: DeviceSpec
    launch: Launch


class Estimator(Protocol):
    """Knows, or does not know, how long an op takes. Estimators live with what they were fitted from."""

    @property
    def origin(self) -> Origin:
        """What kind of knowledge this is."""

    def seconds(self, op: Op, place: Place) -> FloatArray:
        """Return seconds of all layers of ``op``, [tokens], launches included; NaN where unknown."""

    def attention(self, shape: AttentionShape, place: Place) -> AttentionTerm | None:
        """Return the coefficients of one kind of attention, or None where unknown."""


def exchange_seconds(exchange: Exchange) -> FloatArray:
    """Return seconds of one collective, [tokens], without its launch."""
    size, group = exchange.size, exchange.group
    if exchange.pattern == "all_reduce":
        return collectives.all_reduce(size, group)
    if exchange.pattern == "all_gather":
        return collectives.all_gather(size, group)
    if exchange.pattern == "reduce_scatter":
        return collectives.reduce_scatter(size, group)
    if exchange.pattern == "p2p":
        return collectives.p2p(size, group)
    return collectives.all_to_all(
        size, group, exchange.copies, exchange.ranks_per_token, exchange.nodes_per_token
    )


def roofline_seconds(op: Op, place: Place) -> FloatArray:
    """Return ``layers * (launches * launch + max(flop / peak, bytes / bandwidth))``, [tokens].

    Raises
    ------
    NoResult : the device has no peak for the op's arithmetic
    """
    if op.exchange is not None:
        work = exchange_seconds(op.exchange)
    else:
        work = op.bytes / place.device.main.bandwidth
        if np.any(op.flop):
            work = np.maximum(work, op.flop / peak(place.device, op.dtype))
    return np.asarray(op.layers * (op.launches * place.launch.seconds(op.tokens) + work))


@dataclass(frozen=True, slots=True)
class Roofline:
    """The estimator that always knows: what physics and the datasheet allow."""

    origin: Origin = "bound"

    def seconds(self, op: Op, place: Place) -> FloatArray:
        """Return the roofline bound, [tokens]."""
        return roofline_seconds(op, place)

    def attention(self, shape: AttentionShape, place: Place) -> AttentionTerm:
        """Return the roofline coefficients."""
        return bound_term(shape, place.device, place.launch.decode_s)


@dataclass(frozen=True, slots=True)
class Chain:
    """Estimators, best first."""

    estimators: Sequence[Estimator] = (Roofline(),)

    def seconds(self, op: Op, place: Place) -> tuple[FloatArray, Origin]:
        """Return seconds [tokens] and the origin of most of the points.

        Raises
        ------
        DataMissing : some token count is known to no estimator
        """
        result, origin = self._points(op, place)
        count = np.bincount(origin, minlength=len(_ORIGINS))
        return result, _ORIGINS[int(count.argmax())]

    def cost(self, op: Op, place: Place) -> list[Cost]:
        """Return the cost at each token count of ``op``, in order, each with its own origin."""
        seconds, origin = self._points(op, place)
        work = zip(seconds, op.flop * op.layers, op.bytes * op.layers, origin, strict=True)
        return [Cost(float(s), float(f), float(b), ((_ORIGINS[o], float(s)),)) for s, f, b, o in work]

    def _points(self, op: Op, place: Place) -> tuple[FloatArray, IntArray]:
        result = np.full(op.tokens.shape, np.nan)
        origin = np.zeros(op.tokens.shape, dtype=np.int64)
        for estimator in self.estimators:
            unknown = np.isnan(result)
            if not unknown.any():
                break
            result = np.where(unknown, estimator.seconds(op, place), result)
            origin[unknown & ~np.isnan(result)] = _ORIGINS.index(estimator.origin)
        if np.isnan(result).any():
            first = int(op.tokens[np.isnan(result)][0])
            raise DataMissing(f"{op.name} at {first} tokens on {place.device.name}: no estimator knows it")
        return result, origin

    def attention(self, shape: AttentionShape, place: Place) -> AttentionTerm:
        """Return the coefficients of one kind of attention from the first estimator that knows.

        Raises
        ------
        DataMissing : no estimator knows
        """
        for estimator in self.estimators:
            term = estimator.attention(shape, place)
            if term is not None:
                return term
        raise DataMissing(f"attention {shape.name} on {place.device.name}: no estimator knows it")
