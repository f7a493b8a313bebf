"""Requests: the sampled traffic that the simulator consumes, as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from moesim.errors import LawBroken

__all__ = ["Requests", "dense", "dense_within", "make_requests"]

Floats = npt.NDArray[np.float64]
Longs = npt.NDArray[np.int64]
Ints = npt.NDArray[np.int32]
Shorts = npt.NDArray[np.int16]
N = TypeVar("N", bound=np.integer)


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """n requests in the order they are offered. Make it with ``make_requests``, which checks every invariant.

    Attributes
    ----------
    arrival_s : [n] seconds since the start of the run, not falling; all 0.0 in a closed loop
    input_tokens : [n] prompt tokens, at least 1
    output_tokens : [n] generated tokens, at least 1
    priority : [n] higher first; all 0 without classes
    session : [n] conversation id, -1 for none
    block_offset : [n + 1] request i owns ``block_hash[block_offset[i]:block_offset[i + 1]]``
    block_hash : [total] ids 0..U-1 of the prompt's blocks; equal ids are equal prefixes. Empty when unused
    block_tokens : tokens per block, 0 when unused; the last block of a prompt may be part-filled
    concurrency : 0 is open loop; else so many requests are in flight, the next sent when one finishes
    warmup : the first so many requests are sent first and left out of the metrics
    """

    arrival_s: Floats
    input_tokens: Ints
    output_tokens: Ints
    priority: Shorts
    session: Ints
    block_offset: Longs
    block_hash: Ints
    block_tokens: int = 0
    concurrency: int = 0
    warmup: int = 0

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def total_tokens(self) -> int:
        """Input and output tokens of all requests."""
        return int(self.input_tokens.sum(dtype=np.int64) + self.output_tokens.sum(dtype=np.int64))

    @property
    def distinct_blocks(self) -> int:
        """Number U of different block ids."""
        return int(self.block_hash.max()) + 1 if len(self.block_hash) else 0

    def blocks(self, index: int) -> Ints:
        """Return the block ids of request ``index``."""
        return self.block_hash[self.block_offset[index] : self.block_offset[index + 1]]

    def slice(self, start: int, stop: int) -> Requests:
        """Return requests ``start`` to ``stop`` as Python slices do; block ids are renumbered, times kept."""
        start, stop, _ = slice(start, stop).indices(len(self))
        stop = max(start, stop)
        first, last = self.block_offset[start], self.block_offset[stop]
        return make_requests(
            self.arrival_s[start:stop],
            self.input_tokens[start:stop],
            self.output_tokens[start:stop],
            priority=self.priority[start:stop],
            session=self.session[start:stop],
            block_offset=self.block_offset[start : stop + 1] - first,
            block_hash=dense(self.block_hash[first:last].astype(np.int64)),
            block_tokens=self.block_tokens,
            concurrency=self.concurrency,
            warmup=max(0, min(self.warmup, stop) - start),
        )


def dense(keys: Longs) -> Ints:
    """Return ids 0..U-1 of ``keys`` [n] by first appearance: a prefix of the keys has a prefix of the ids."""
    return pd.factorize(keys)[0].astype(np.int32)


def dense_within(keys: Longs, bound: int) -> Ints:
    """Return the ids of ``dense``, faster, for ``keys`` [n] in 0..bound - 1; takes 8 * bound bytes."""
    first = np.full(bound, -1, np.int64)
    first[keys[::-1]] = np.arange(len(keys) - 1, -1, -1)  # the last write wins: the first appearance
    seen = first[keys]
    ids = np.cumsum(seen == np.arange(len(keys)), dtype=np.int32) - np.int32(1)
    return np.asarray(ids[seen])


def make_requests(
    arrival_s: Floats,
    input_tokens: npt.NDArray[np.integer],
    output_tokens: npt.NDArray[np.integer],
    *,
    priority: npt.NDArray[np.integer] | None = None,
    session: npt.NDArray[np.integer] | None = None,
    block_offset: Longs | None = None,
    block_hash: npt.NDArray[np.integer] | None = None,
    block_tokens: int = 0,
    concurrency: int = 0,
    warmup: int = 0,
) -> Requests:
    """Build ``Requests`` from arrays (copied, made read-only) and check every invariant.

    Raises
    ------
    LawBroken : an array has the wrong length, times fall or are not finite, lengths are below 1 or beyond
        int32, block offsets do not fit, ids are not 0..U-1, a request has more blocks than its prompt fills
    """
    n = len(arrival_s)
    times = np.array(arrival_s, dtype=np.float64)
    inputs = _narrow(input_tokens, np.int32, "input_tokens")
    outputs = _narrow(output_tokens, np.int32, "output_tokens")
    classes = _narrow(np.zeros(n, np.int16) if priority is None else priority, np.int16, "priority")
    sessions = _narrow(np.full(n, -1, np.int32) if session is None else session, np.int32, "session")
    offset = np.zeros(n + 1, np.int64) if block_offset is None else np.array(block_offset, dtype=np.int64)
    blocks = _narrow(np.zeros(0, np.int32) if block_hash is None else block_hash, np.int32, "block_hash")
    shapes = {array.shape for array in (times, inputs, outputs, classes, sessions)}
    _law(shapes == {(n,)}, f"columns must all have the shape ({n},), found {sorted(shapes)}")
    _law(bool(np.isfinite(times).all() and (times >= 0).all()), "arrival times must be finite, not negative")
    _law(bool((np.diff(times) >= 0).all()), "arrival times must not fall")
    _law(bool((inputs >= 1).all() and (outputs >= 1).all()), "at least one token in and out is needed")
    _law(bool((sessions >= -1).all()), "session ids are -1 or more")
    _law(concurrency >= 0 and (concurrency == 0 or not times.any()), "a closed loop has all arrivals at 0")
    _law(0 <= warmup <= n, "warmup is more than all requests")
    _check_blocks(inputs.astype(np.int64), offset, blocks, block_tokens)
    for array in (times, inputs, outputs, classes, sessions, offset, blocks):
        array.setflags(write=False)
    return Requests(
        times, inputs, outputs, classes, sessions, offset, blocks, block_tokens, concurrency, warmup
    )


def _check_blocks(inputs: Longs, offset: Longs, blocks: Ints, block_tokens: int) -> None:
    _law(offset.shape == (len(inputs) + 1,) and offset[0] == 0, "block_offset must have n + 1 entries from 0")
    counts = np.diff(offset)
    fits = bool((counts >= 0).all()) and int(offset[-1]) == len(blocks)
    _law(fits, "block_offset must rise to the number of blocks")
    _law(block_tokens >= 0, "block_tokens must not be negative")
    if block_tokens == 0:
        _law(len(blocks) == 0, "blocks need block_tokens")
        return
    filled = bool((counts <= -(-inputs // block_tokens)).all())
    _law(filled, "a request has more blocks than its prompt fills")
    if len(blocks):
        _law(int(blocks.min()) >= 0, "block ids must not be negative")
        used = int(blocks.max()) < len(blocks) and bool((np.bincount(blocks) > 0).all())
        _law(used, "block ids must be 0..U-1")


def _narrow(values: npt.NDArray[np.integer], kind: type[N], name: str) -> npt.NDArray[N]:
    array = np.asarray(values)
    _law(np.issubdtype(array.dtype, np.integer), f"{name} must be integers")
    bounds = np.iinfo(kind)
    fits = not array.size or bool(array.min() >= bounds.min and array.max() <= bounds.max)
    _law(fits, f"{name} is beyond {kind.__name__}")
    return array.astype(kind)


def _law(holds: bool, text: str) -> None:  # noqa: FBT001 - a condition, not a switch
    if not holds:
        raise LawBroken(f"requests: {text}")
