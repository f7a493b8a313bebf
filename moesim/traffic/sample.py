"""Sample: a traffic spec and a seed to the requests of one run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moesim.errors import SpecError
from moesim.spec.traffic import (
    ClosedLoop,
    Sessions,
    SharedPrefix,
    TraceArrivals,
    TraceBlocks,
    TraceLengths,
    TrafficSpec,
)
from moesim.streams import stream
from moesim.traffic.arrivals import arrival_times
from moesim.traffic.lengths import clip_lengths, draw_lengths, within
from moesim.traffic.prefixes import draw_sessions, shared_blocks, shared_groups
from moesim.traffic.readers import Trace, read_trace
from moesim.traffic.requests import Requests, dense, make_requests

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["sample"]

Longs = npt.NDArray[np.int64]

_MOST_REQUESTS = 2**27


def sample(
    traffic: TrafficSpec,
    seed: int,
    requests: int | None = None,
    horizon_s: float | None = None,
    beside: Path | None = None,
) -> Requests:
    """Draw (or read) the requests of one run.

    The same arguments give the same arrays in any process. Arrivals, input lengths, output lengths, prefixes
    and priorities use separate named streams, so changing one leaves the others' numbers alone; and fewer
    requests are a prefix of more.

    Parameters
    ----------
    traffic : what is offered
    seed : non-negative
    requests : stop after this many, warm-up included; none: horizon, closed loop or trace say how many
    horizon_s : open loop: only arrivals before this time, in seconds; closed loop: left to the simulator
    beside : the file that named the trace, for relative paths

    Returns
    -------
    Requests, at least one

    Raises
    ------
    SpecError : nothing says how many requests; a trace too short; clipping or the horizon leaves none
    DataMissing : the trace file is not there
    """
    _check_extent(requests, horizon_s)
    source = _Source(traffic, seed, None if traffic.trace is None else read_trace(traffic.trace, beside))
    arrivals = traffic.arrivals
    if isinstance(arrivals, ClosedLoop):
        return _closed_loop(source, arrivals, requests)
    if requests is None and horizon_s is None and not source.traced:
        raise SpecError(
            f"traffic {traffic.name}: expected run.requests or run.horizon, the arrivals never end"
        )
    if requests is not None or horizon_s is None:
        drawn = source.draw(requests)
        return drawn if horizon_s is None else _before(drawn, horizon_s, traffic)
    n = 1024 if traffic.mean_rate is None else 64 + int(1.1 * traffic.mean_rate * horizon_s)
    while True:
        n = min(n, source.available or _MOST_REQUESTS)
        drawn = source.draw(n)
        if drawn.arrival_s[-1] >= horizon_s or n == source.available:
            return _before(drawn, horizon_s, traffic)
        if n == _MOST_REQUESTS:
            raise SpecError(f"traffic {traffic.name}: more than {n} requests before {horizon_s:g} s")
        n *= 2


@dataclass(frozen=True, slots=True)
class _Source:
    """Draws the first n requests, again and again with growing n where the horizon decides."""

    traffic: TrafficSpec
    seed: int
    trace: Trace | None

    @property
    def traced(self) -> bool:
        """Whether the trace decides when requests come."""
        return isinstance(self.traffic.arrivals, TraceArrivals)

    @property
    def rows(self) -> Longs | None:
        """Trace rows in play, None when no part is read from the trace."""
        trace, lengths = self.trace, self.traffic.lengths
        if trace is None or not (self.traced or isinstance(lengths, TraceLengths)):
            return None
        if isinstance(lengths, TraceLengths) and self.traffic.clip.rule == "drop":
            return np.flatnonzero(within(trace.input_tokens, trace.output_tokens, self.traffic.clip))
        return np.arange(len(trace))

    @property
    def available(self) -> int | None:
        """Most requests there are, None without bound."""
        rows, lengths = self.rows, self.traffic.lengths
        endless = isinstance(lengths, TraceLengths) and lengths.repeat and not self.traced
        return None if rows is None or endless else len(rows)

    def draw(self, requests: int | None) -> Requests:
        """Return the first ``requests``; None is all the trace has."""
        available = self.available
        n = requests if requests is not None else available
        name = self.traffic.name
        if n is None:
            raise SpecError(f"traffic {name}: expected run.requests, the trace repeats without end")
        if available is not None and n > available:
            hint = "" if self.traced else " (lengths.repeat: true starts again)"
            raise SpecError(f"traffic {name}: {n} requests asked for, the trace has {available}{hint}")
        if n == 0:
            raise SpecError(f"traffic {name}: clip drops every request of the trace")
        if isinstance(self.traffic.prefix, Sessions):
            return self._sessions(self.traffic.prefix, n)
        rows = self.rows
        taken = None if rows is None else rows[np.arange(n) % len(rows)]
        return self._independent(n, taken)

    def _sessions(self, prefix: Sessions, n: int) -> Requests:
        talk = draw_sessions(self.traffic, prefix, n, self.seed)
        return make_requests(
            talk.arrival_s,
            talk.input_tokens,
            talk.output_tokens,
            priority=self._priorities(n),
            session=talk.session,
            block_offset=talk.block_offset,
            block_hash=talk.block_hash,
            block_tokens=prefix.block_tokens,
        )

    def _independent(self, n: int, rows: Longs | None) -> Requests:
        inputs, outputs, group = self._lengths(n, rows)
        offset, blocks, block_tokens = None, None, 0
        prefix, trace = self.traffic.prefix, self.trace
        if isinstance(prefix, SharedPrefix) and group is not None:
            offset, blocks = shared_blocks(prefix, group, inputs)
            block_tokens = prefix.block_tokens
        elif isinstance(prefix, TraceBlocks) and trace is not None and rows is not None:
            offset, blocks, block_tokens = self._trace_blocks(trace, rows, inputs)
        # a trace's own labels belong to its rows; lengths drawn anew are other requests
        labelled = trace if isinstance(self.traffic.lengths, TraceLengths) else None
        priority, session = self._priorities(n), None
        if labelled is not None and rows is not None:
            session = labelled.session[rows]
            priority = priority if self.traffic.priorities else labelled.priority[rows]
        return make_requests(
            self._times(n, rows),
            inputs,
            outputs,
            priority=priority,
            session=session,
            block_offset=offset,
            block_hash=blocks,
            block_tokens=block_tokens,
        )

    def _times(self, n: int, rows: Longs | None) -> npt.NDArray[np.float64]:
        arrivals = self.traffic.arrivals
        if isinstance(arrivals, ClosedLoop):
            return np.zeros(n)
        if isinstance(arrivals, TraceArrivals) and self.trace is not None and rows is not None:
            times = self.trace.arrival_s[rows]
            return np.asarray((times - times[0]) / arrivals.scale)
        return arrival_times(arrivals, n, self.seed)

    def _lengths(self, n: int, rows: Longs | None) -> tuple[Longs, Longs, Longs | None]:
        """Return (inputs, outputs, prefix group), clipped; dropped ones are replaced by later draws."""
        traffic, trace = self.traffic, self.trace
        prefix = traffic.prefix
        drawn = n
        while True:
            if isinstance(traffic.lengths, TraceLengths) and trace is not None and rows is not None:
                inputs, outputs = trace.input_tokens[rows], trace.output_tokens[rows]
            else:
                inputs, outputs = draw_lengths(traffic.lengths, drawn, self.seed)
            group = shared_groups(prefix, drawn, self.seed) if isinstance(prefix, SharedPrefix) else None
            if isinstance(prefix, SharedPrefix) and prefix.on_top and group is not None:
                inputs = inputs + np.where(group >= 0, prefix.tokens, 0)
            if traffic.clip.rule != "drop" or isinstance(traffic.lengths, TraceLengths):
                return *clip_lengths(inputs, outputs, traffic.clip), group
            kept = np.flatnonzero(within(inputs, outputs, traffic.clip))
            if len(kept) >= n:
                kept = kept[:n]
                return inputs[kept], outputs[kept], None if group is None else group[kept]
            if drawn >= 64 * n + 2**20:
                raise SpecError(f"traffic {traffic.name}: clip drops more than 98 % of the requests")
            drawn *= 2

    def _trace_blocks(
        self, trace: Trace, rows: Longs, inputs: Longs
    ) -> tuple[Longs, npt.NDArray[np.int32], int]:
        if trace.block_tokens == 0:
            raise SpecError(
                f"traffic {self.traffic.name}: the trace has no block hashes (trace.columns.blocks)"
            )
        first = trace.block_offset[rows]
        # a clipped prompt has fewer blocks
        counts = np.minimum(trace.block_offset[rows + 1] - first, -(-inputs // trace.block_tokens))
        offset = np.concatenate([[0], np.cumsum(counts)])
        index = np.arange(offset[-1]) + np.repeat(first - offset[:-1], counts)
        return offset, dense(trace.block_hash[index]), trace.block_tokens

    def _priorities(self, n: int) -> npt.NDArray[np.int64]:
        shares = list(self.traffic.priorities.values())
        if not shares:
            return np.zeros(n, np.int64)
        cumulative = np.cumsum(shares)
        u = stream(self.seed, "priority").random(n) * cumulative[-1]
        index = np.minimum(np.searchsorted(cumulative, u, side="right"), len(shares) - 1)
        return np.asarray(len(shares) - 1 - index)


def _check_extent(requests: int | None, horizon_s: float | None) -> None:
    if requests is not None and not 1 <= requests <= _MOST_REQUESTS:
        raise SpecError(f"requests {requests}: expected 1 to {_MOST_REQUESTS}")
    if horizon_s is not None and not 0 < horizon_s < float("inf"):
        raise SpecError(f"horizon {horizon_s:g} s: expected a positive time")


def _closed_loop(source: _Source, arrivals: ClosedLoop, requests: int | None) -> Requests:
    warmup = arrivals.concurrency * arrivals.warmup_per_slot
    n = requests
    if n is None and arrivals.requests_per_slot is not None:
        n = warmup + arrivals.concurrency * arrivals.requests_per_slot
    if n is None and source.available is None:
        name = source.traffic.name
        raise SpecError(f"traffic {name}: a closed loop needs arrivals.requests_per_slot or run.requests")
    drawn = source.draw(n)
    if warmup >= len(drawn):
        raise SpecError(
            f"traffic {source.traffic.name}: {len(drawn)} requests do not exceed the {warmup} of warm-up"
        )
    return replace(drawn, concurrency=arrivals.concurrency, warmup=warmup)


def _before(drawn: Requests, horizon_s: float, traffic: TrafficSpec) -> Requests:
    count = int(np.searchsorted(drawn.arrival_s, horizon_s, side="left"))
    if count == 0:
        raise SpecError(f"traffic {traffic.name}: no request arrives before {horizon_s:g} s")
    return drawn if count == len(drawn) else drawn.slice(0, count)
