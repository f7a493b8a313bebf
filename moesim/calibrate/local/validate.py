"""Validate: measure microbenchmarks and forward passes in turns, predict the passes, set both side by side."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from moesim.calibrate.local import micro, ops, predict
from moesim.calibrate.local.model import Architecture, Network, build, forward, moe_layer
from moesim.calibrate.measure.device import cache_bytes, torch_module
from moesim.calibrate.measure.timing import Spread, quiet, spread
from moesim.errors import SpecError

if TYPE_CHECKING:
    import torch

__all__ = ["SCOPES", "Comparison", "Scope", "Target", "Validation", "targets", "validate_local"]

Part = Literal["forward", "moe_layer"]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Target:
    """A pass to predict: the whole transformer, or its MoE layers alone (per layer), over batch x length tokens."""

    part: Part
    sizes: Architecture
    batch: int
    length: int


@dataclass(frozen=True, slots=True)
class Scope:
    """How much to validate.

    Attributes
    ----------
    architectures, shapes : every pair of them is a target, as forward pass and as MoE layer
    rounds : turns of microbenchmarks and targets, at most
    budget_s : seconds after which no new round begins, with five rounds at least
    """

    architectures: tuple[Architecture, ...]
    shapes: tuple[tuple[int, int], ...]
    rounds: int
    budget_s: float


_ARCHITECTURES = (
    Architecture(512, 768, 8, 2),
    Architecture(448, 896, 32, 2),
    Architecture(640, 512, 16, 4),
    Architecture(768, 640, 6, 1),
)
_SHAPES = ((1, 48), (2, 96), (1, 350), (4, 160))

_LEAST = 5
"""Rounds without which a median says little."""

SCOPES: dict[str, Scope] = {
    "ci": Scope(_ARCHITECTURES[:3], _SHAPES[:3], 12, 60.0),
    "full": Scope(
        (*_ARCHITECTURES, Architecture(576, 448, 48, 6), Architecture(704, 960, 12, 3)),
        (*_SHAPES, (8, 40), (2, 240)),
        15,
        300.0,
    ),
}
"""``ci`` ends within 90 seconds on two cores; ``full`` takes about six minutes."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One target, measured and predicted.

    Attributes
    ----------
    target : what was run
    measured : CPU seconds of the thread over the rounds
    wall : seconds on the wall over the rounds; longer where other programs use the core
    predicted_s : from microbenchmarks, with the rows per expert that the router really gave
    uniform_s : the same, with rows per expert drawn from a router that likes all experts alike
    bound_s : overheads and roofline alone, with the real rows per expert
    """

    target: Target
    measured: Spread
    wall: Spread
    predicted_s: float
    uniform_s: float
    bound_s: float = float("nan")

    @property
    def error(self) -> float:
        """Signed relative error of the prediction."""
        return self.predicted_s / self.measured.median - 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Validation:
    """All targets, and the microbenchmarks they were predicted from.

    Attributes
    ----------
    comparisons : one per target
    benchmarks : CPU seconds of every (op, sizes)
    rounds : how many turns were made
    """

    comparisons: tuple[Comparison, ...]
    benchmarks: dict[tuple[str, micro.Dims], Spread]
    rounds: int

    def median_ape(self, part: Part | None = None, *, uniform: bool = False) -> float:
        """Return the median absolute relative error of the forward passes, the MoE layers, or (None) all.

        ``uniform`` judges the prediction that did not know the routing.
        """
        chosen = [c for c in self.comparisons if part in {None, c.target.part}]
        errors = [abs(c.uniform_s / c.measured.median - 1.0 if uniform else c.error) for c in chosen]
        return float(np.median(errors))


def targets(scope: Scope) -> tuple[Target, ...]:
    """Return every pair of architecture and shape, as forward pass and as MoE layer."""
    return tuple(
        Target(part, sizes, batch, length)
        for sizes, (batch, length) in itertools.product(scope.architectures, scope.shapes)
        for part in ("forward", "moe_layer")
    )


def validate_local(scope: str | Scope = "ci", progress: Progress | None = None, seed: int = 0) -> Validation:
    """Run the suite local-cpu on this machine, with one thread.

    A round times every microbenchmark a few times and every target once; a drift of the clock rate or of the
    neighbours' load so meets both sides alike. Times are CPU seconds of the thread: on a shared machine they leave
    out the moments in which another program had the core. A prediction knows the microbenchmarks and how many
    rows each expert got (``predicted_s``), or the microbenchmarks alone (``uniform_s``); it has never seen the
    time of a pass.

    Parameters
    ----------
    scope : ``ci``, ``full`` or a ``Scope``
    progress : called after every round
    seed : of weights and tokens

    Raises
    ------
    SpecError : unknown scope
    DataMissing : PyTorch is not installed
    """
    if isinstance(scope, str):
        if scope not in SCOPES:
            raise SpecError(f"local-cpu scope {scope!r}: expected {' or '.join(SCOPES)}")
        scope = SCOPES[scope]
    torch = torch_module()
    with _one_thread(), torch.inference_mode():
        pool = micro.Pool()
        points = list(micro.points())
        ready = {(name, dims): micro.MICRO[name].ready(dims, pool) for name, dims in points}
        runs = _runs(targets(scope), seed)
        empty = _clock_cost()
        bench: dict[tuple[str, micro.Dims], list[float]] = {point: [] for point in points}
        cpu: list[list[Sequence[float]]] = [[] for _ in runs]
        wall: list[list[Sequence[float]]] = [[] for _ in runs]
        for point in points:  # warm-up
            pool.sweep()
            ready[point]()()
        begin, rounds = time.perf_counter(), 0
        with quiet():
            while rounds < scope.rounds and (rounds < _LEAST or time.perf_counter() - begin < scope.budget_s):
                for point in points:
                    bench[point] += _benchmark(pool, ready[point], empty, bench[point])
                for run, own, clock in zip(runs, cpu, wall, strict=True):
                    first, second = _both_clocks(run.calls)
                    own.append(first)
                    clock.append(second)
                rounds += 1
                if progress is not None:
                    progress(rounds, scope.rounds, f"{len(points)} microbenchmarks, {len(runs)} targets")
    benchmarks = {point: spread(samples) for point, samples in bench.items()}
    curves = predict.fit({point: found.median for point, found in benchmarks.items()})
    comparisons = tuple(
        Comparison(
            run.target,
            _over_calls(own),
            _over_calls(clock),
            float(np.mean([predict.seconds(curves, work) for work in run.works])),
            float(np.mean([predict.seconds(curves, work) for work in run.uniform])),
            float(np.mean([predict.bound_seconds(curves, work) for work in run.works])),
        )
        for run, own, clock in zip(runs, cpu, wall, strict=True)
    )
    return Validation(comparisons, benchmarks, rounds)


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """A target ready to run: calls on different weights, the work of each by its real routing, and by a drawn one."""

    target: Target
    calls: Sequence[Callable[[], Any]]
    works: Sequence[predict.Work]
    uniform: Sequence[predict.Work]


def _drawn(sizes: Architecture, rows: int, random: np.random.Generator) -> list[int]:
    """Return rows per expert when each token chooses distinct experts, all alike."""
    chosen = np.argsort(random.random((rows, sizes.experts)), axis=1)[:, : sizes.top_k]
    return [int(count) for count in np.bincount(chosen.ravel(), minlength=sizes.experts)]


def _runs(wanted: Sequence[Target], seed: int) -> list[_Run]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    random = np.random.default_rng(seed)
    networks: dict[Architecture, list[Network]] = {}
    runs = []
    for target in wanted:
        sizes = target.sizes
        if sizes not in networks:
            networks[sizes] = [build(sizes, seed + i) for i in range(_network_copies(sizes))]
        rows = target.batch * target.length
        calls, works, uniform = [], [], []
        for network in networks[sizes]:
            if target.part == "forward":
                tokens = torch.randint(
                    0, sizes.vocabulary, (target.batch, target.length), generator=generator
                )
                loads: list[list[int]] = []
                call = partial(forward, network, tokens, ops.rotations(target.length, 64))
                call(loads)
                calls.append(call)
                works.append(predict.forward_work(sizes, target.batch, target.length, loads))
                drawn = [_drawn(sizes, rows, random) for _ in network.layers]
                uniform.append(predict.forward_work(sizes, target.batch, target.length, drawn))
                continue
            for layer in network.layers:
                x: torch.Tensor = torch.randn(rows, sizes.hidden, generator=generator)
                loads = []
                call = partial(moe_layer, x, layer, sizes.top_k)
                call(loads)
                calls.append(call)
                works.append(predict.moe_work(sizes, rows, loads[0]))
                uniform.append(predict.moe_work(sizes, rows, _drawn(sizes, rows, random)))
        runs.append(_Run(target, calls, works, uniform))
    return runs


def _network_copies(sizes: Architecture) -> int:
    """Return how many networks to rotate, so that weights come from main memory: three caches' worth."""
    layer = 4 * sizes.hidden**2 + 3 * sizes.experts * sizes.hidden * sizes.inner
    one = 4 * (sizes.layers * layer + 2 * sizes.vocabulary * sizes.hidden)
    return max(1, min(16, -(-3 * cache_bytes("cpu") // one)))


def _benchmark(pool: micro.Pool, ready: micro.Ready, empty: float, before: Sequence[float]) -> list[float]:
    """Time one microbenchmark four times, or once when it is slow."""
    samples = []
    for _ in range(1 if before and before[0] > 5e-3 else 4):
        pool.sweep()
        call = ready()
        begin = time.thread_time()
        call()
        samples.append(max(time.thread_time() - begin - empty, 1e-8))
    return samples


def _both_clocks(calls: Sequence[Callable[[], Any]]) -> tuple[list[float], list[float]]:
    """Return CPU seconds and wall seconds of each call."""
    cpu, wall = [], []
    for call in calls:
        began, own = time.perf_counter(), time.thread_time()
        call()
        cpu.append(time.thread_time() - own)
        wall.append(time.perf_counter() - began)
    return cpu, wall


def _over_calls(rounds: Sequence[Sequence[float]]) -> Spread:
    """Return the mean over calls of each one's spread over the rounds: a moment's trouble does not enter the mean.

    Parameters
    ----------
    rounds : seconds of every call, round by round
    """
    each = [spread(samples) for samples in zip(*rounds, strict=True)]
    middle, low, high, least = (
        float(np.mean([getattr(one, name) for one in each])) for name in ("median", "p10", "p90", "least")
    )
    return Spread(middle, low, high, least, len(rounds))


def _clock_cost() -> float:
    """Return the seconds between two readings of the CPU clock with nothing in between."""
    samples = []
    for _ in range(2000):
        begin = time.thread_time()
        samples.append(time.thread_time() - begin)
    return float(np.median(samples))


@contextmanager
def _one_thread() -> Iterator[None]:
    torch = torch_module()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
