"""GPU: the small MoE transformer on a GPU, its experts in Triton, predicted from microbenchmarks alone."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from moesim.calibrate.local import gpu_ops, ops, predict
from moesim.calibrate.local.gpu_ops import EPSILON, HEAD, OPS, Bench, GpuOp
from moesim.calibrate.local.micro import Dims
from moesim.calibrate.local.model import Architecture, Layer, Network, build
from moesim.calibrate.local.predict import Work
from moesim.calibrate.local.validate import Comparison, Scope, Validation, targets
from moesim.calibrate.measure.device import cache_bytes, torch_module
from moesim.calibrate.measure.timing import Calls, quiet, sample, sample_cuda, spread

if TYPE_CHECKING:
    import torch

__all__ = [
    "GPU_SCOPE",
    "OPS",
    "cpu_timer",
    "forward",
    "forward_work",
    "moe_layer",
    "moe_work",
    "validate_gpu",
]

_ARCHITECTURES = (
    Architecture(1536, 1024, 16, 2, vocabulary=8192),
    Architecture(2560, 768, 48, 3, vocabulary=8192),
    Architecture(3072, 1408, 12, 2, vocabulary=8192),
    Architecture(1280, 640, 32, 4, vocabulary=8192),
)
GPU_SCOPE = Scope(_ARCHITECTURES, ((1, 40), (1, 333), (2, 700), (4, 1500), (6, 100)), 5, 300.0)
"""No op of any target has a benchmarked size."""

Timer = Callable[[Calls], list[float]]


def moe_layer(x: torch.Tensor, layer: Layer, top_k: int) -> torch.Tensor:
    """Run the routed experts of one layer by the fused kernels; x [m, h]."""
    from moesim.calibrate.kernels.grouped_gemm import fused_moe
    from moesim.calibrate.kernels.rowwise import softmax_topk

    weights, ids = softmax_topk(ops.product(x, layer.router), top_k)
    return fused_moe(x, layer.gate_up, layer.down, weights, ids)


def forward(
    network: Network, tokens: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor], nothing: torch.Tensor
) -> torch.Tensor:
    """Prefill ``tokens`` [batch, length] and return the logits of the last position, [batch, vocabulary].

    Nothing travels to the host, so a graph can hold the whole pass.

    Parameters
    ----------
    turn : rotary positions of the length
    nothing : zeros [batch * length, h], what the first norm adds
    """
    from moesim.calibrate.kernels.rowwise import rmsnorm_residual

    batch, length = tokens.shape
    total, update = network.embedding.index_select(0, tokens.reshape(-1)), nothing
    for layer in network.layers:
        seen, total = rmsnorm_residual(update, total, layer.before_attention, EPSILON)
        mixed = ops.attend(ops.product(seen, layer.qkv), batch, HEAD, turn)
        seen, total = rmsnorm_residual(ops.product(mixed, layer.out), total, layer.before_experts, EPSILON)
        update = moe_layer(seen, layer, network.sizes.top_k)
    ends = [part.view(batch, length, -1)[:, -1].contiguous() for part in (update, total)]
    return ops.product(rmsnorm_residual(ends[0], ends[1], network.last, EPSILON)[0], network.head)


def moe_work(sizes: Architecture, rows: int) -> Work:
    """Return the calls of one MoE layer over ``rows`` tokens."""
    work: Work = Counter()
    work["score", (rows, sizes.experts, sizes.hidden)] += 1
    work["select", (rows, sizes.experts, sizes.top_k)] += 1
    work["experts", (rows, sizes.hidden, sizes.inner, sizes.experts, sizes.top_k)] += 1
    return work


def forward_work(sizes: Architecture, batch: int, length: int) -> Work:
    """Return the calls of a prefill of ``batch`` sequences."""
    rows, h = batch * length, sizes.hidden
    work: Work = Counter()
    work["gather", (rows, h)] += 1
    for _ in range(sizes.layers):
        work["norm", (rows, h)] += 2
        work["product", (rows, 3 * h, h)] += 1
        work["attend", (batch, length, sizes.heads)] += 1
        work["product", (rows, h, h)] += 1
        work += moe_work(sizes, rows)
    work["gather", (batch, h)] += 2
    work["norm", (batch, h)] += 1
    work["product", (batch, sizes.vocabulary, h)] += 1
    return work


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    calls: Calls
    work: Work


def validate_gpu(
    scope: Scope = GPU_SCOPE,
    *,
    table: Mapping[str, GpuOp] = OPS,
    bench: Bench | None = None,
    timer: Timer | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    seed: int = 0,
) -> Validation:
    """Run the suite local-gpu: every microbenchmark and every pass in turns, as graphs timed by events.

    Parameters
    ----------
    scope : architectures, shapes, rounds
    table : ops and their grids
    bench, timer : device, type and clock; by default the GPU in bf16 and ``sample_cuda``
    seed : of weights and tokens

    Raises
    ------
    DataMissing : PyTorch is not installed
    """
    torch = torch_module()
    bench = bench or Bench("cuda", "bf16", cache_bytes("cuda"))
    clock = timer or _events
    names = list(gpu_ops.points(table))
    measured: dict[tuple[str, Dims], list[float]] = {point: [] for point in names}
    wanted = targets(scope)
    times: list[list[float]] = [[] for _ in wanted]
    works: list[Work] = []
    begin, rounds = time.perf_counter(), 0
    with torch.inference_mode(), quiet():
        while rounds < scope.rounds and (rounds < 2 or time.perf_counter() - begin < scope.budget_s):
            for name, dims in names:
                measured[name, dims] += clock(table[name].calls(dims, bench))
            works = []
            for index, run in enumerate(_runs(scope, bench, seed)):
                times[index] += clock(run.calls)
                works.append(run.work)
            rounds += 1
            if progress is not None:
                progress(rounds, scope.rounds, f"{len(names)} microbenchmarks, {len(wanted)} targets")
    benchmarks = {point: spread(samples) for point, samples in measured.items()}
    curves = predict.fit({point: found.median for point, found in benchmarks.items()}, table)
    comparisons = tuple(
        Comparison(
            target,
            spread(own),
            spread(own),
            predict.seconds(curves, work),
            predict.seconds(curves, work),  # the grouped kernel is predicted without rows per expert
            predict.bound_seconds(curves, work),
        )
        for target, own, work in zip(wanted, times, works, strict=True)
    )
    return Validation(comparisons, benchmarks, rounds)


def _events(calls: Calls) -> list[float]:
    return sample_cuda(calls, 5, 2e-3, 0.5)[0]


def cpu_timer(calls: Calls) -> list[float]:
    """Return seconds per call by the clock on the wall: for tests of the suite's mechanics in the interpreter."""
    return sample(calls, 3, 0.0, 0.0)


def _runs(scope: Scope, bench: Bench, seed: int) -> Iterator[_Run]:
    """Yield the passes in the order of ``targets``; one network is held at a time."""
    for sizes in scope.architectures:
        network = _moved(build(sizes, seed), bench)
        for batch, length in scope.shapes:
            yield from _passes(network, batch, length, bench, seed)


def _passes(network: Network, batch: int, length: int, bench: Bench, seed: int) -> list[_Run]:
    import torch

    sizes, rows = network.sizes, batch * length
    generator = torch.Generator().manual_seed(seed + rows)
    tokens = torch.randint(0, sizes.vocabulary, (batch, length), generator=generator).to(bench.device)
    nothing = torch.zeros_like(bench.normal(0, rows, sizes.hidden))
    turn = gpu_ops.turned(length, bench)
    x = bench.normal(seed + 1, rows, sizes.hidden)
    layers: list[Callable[[], Any]] = [partial(moe_layer, x, layer, sizes.top_k) for layer in network.layers]
    return [
        _Run([partial(forward, network, tokens, turn, nothing)], forward_work(sizes, batch, length)),
        _Run(layers, moe_work(sizes, rows)),
    ]


def _moved(network: Network, bench: Bench) -> Network:
    like = bench.normal(0, 1)

    def layer(old: Layer) -> Layer:
        return Layer(*(getattr(old, name).to(like) for name in Layer.__slots__))

    return replace(
        network,
        embedding=network.embedding.to(like),
        layers=tuple(layer(old) for old in network.layers),
        last=network.last.to(like),
        head=network.head.to(like),
    )
