"""Timing: blocks of calls over rotating buffers, by the monotonic clock on a CPU and by events on a GPU."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "Calls",
    "Clock",
    "Spread",
    "block_seconds",
    "calls_per_block",
    "quiet",
    "sample",
    "sample_cuda",
    "spread",
]

Calls = Sequence[Callable[[], Any]]
"""The same work on different buffers, used in turn, so that no call finds its data in a cache by accident."""

Clock = Callable[[], float]
"""Seconds since some moment."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds per call over the blocks of a measurement.

    Attributes
    ----------
    median, p10, p90, least : seconds per call
    repeats : blocks
    """

    median: float
    p10: float
    p90: float
    least: float
    repeats: int


def spread(samples: Sequence[float]) -> Spread:
    """Return median, 10th and 90th percentile and least of ``samples`` (seconds per call, at least one)."""
    p10, median, p90 = np.percentile(np.asarray(samples, np.float64), (10.0, 50.0, 90.0))
    return Spread(float(median), float(p10), float(p90), float(min(samples)), len(samples))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Python's garbage collector out of the measurement."""
    before = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def block_seconds(calls: Calls, count: int, first: int, clock: Clock = time.perf_counter) -> float:
    """Return the mean seconds per call of ``count`` calls, beginning with buffer ``first``."""
    kinds = len(calls)
    chosen = [calls[(first + index) % kinds] for index in range(count)]
    begin = clock()
    for call in chosen:
        call()
    return (clock() - begin) / count


def calls_per_block(calls: Calls, block_s: float, clock: Clock = time.perf_counter) -> int:
    """Warm up and return how many calls fill ``block_s`` seconds (at least 1, at most 10000).

    Every buffer is used at least once, up to a second in all, so that first-touch costs are paid here.
    """
    begin = time.perf_counter()
    each = math.inf
    for index in range(max(3, len(calls))):
        each = min(each, block_seconds(calls, 1, index, clock))
        if time.perf_counter() - begin > 1.0:
            break
    return max(1, min(10_000, round(block_s / max(each, 1e-9))))


def sample(
    calls: Calls, repeats: int, block_s: float, budget_s: float, clock: Clock = time.perf_counter
) -> list[float]:
    """Return seconds per call of up to ``repeats`` blocks; slow work stops after ``budget_s`` and at least 3."""
    count = calls_per_block(calls, block_s, clock)
    begin, first, samples = time.perf_counter(), 0, []
    with quiet():
        for done in range(repeats):
            samples.append(block_seconds(calls, count, first, clock))
            first += count
            if done >= 2 and time.perf_counter() - begin > budget_s:
                break
    return samples


def sample_cuda(
    calls: Calls, repeats: int, block_s: float, budget_s: float, *, eager: bool = False
) -> tuple[list[float], str]:
    """Return seconds per call on the GPU, and how they were taken.

    A block is captured in a graph where the work allows it, so that launches cost nothing in between
    (``graph``); otherwise the calls are launched one by one between two events (``events``), and short kernels
    then show the host's launch rate. ``eager`` asks for the latter.
    """
    import torch

    count = min(200, max(_calls_per_block_cuda(calls, block_s), len(calls)))
    replay, how = _block(calls, count, eager=eager)
    begin, samples = time.perf_counter(), []
    with quiet():
        for done in range(repeats):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            replay()
            end.record()
            end.synchronize()
            samples.append(start.elapsed_time(end) * 1e-3 / count)
            if done >= 2 and time.perf_counter() - begin > budget_s:
                break
    return samples, how


def _calls_per_block_cuda(calls: Calls, block_s: float) -> int:
    """Warm up every buffer on the GPU and return how many calls fill ``block_s`` seconds."""
    import torch

    for call in calls:
        call()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for call in calls:
        call()
    torch.cuda.synchronize()
    each = (time.perf_counter() - begin) / len(calls)
    return max(1, round(block_s / max(each, 1e-9)))


def _block(calls: Calls, count: int, *, eager: bool) -> tuple[Callable[[], Any], str]:
    import torch

    chosen = [calls[index % len(calls)] for index in range(count)]

    def one_by_one() -> None:
        for call in chosen:
            call()

    if eager:
        return one_by_one, "events"
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            one_by_one()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            one_by_one()
        graph.replay()
        torch.cuda.synchronize()
    except RuntimeError:  # the work talks to the host, or allocates what a graph may not
        torch.cuda.synchronize()
        return one_by_one, "events"
    return graph.replay, "graph"
