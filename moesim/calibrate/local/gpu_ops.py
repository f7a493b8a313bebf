"""GPU ops: microbenchmarks of the transformer's pieces on a GPU, the project's Triton kernels among them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from moesim.calibrate.local import ops
from moesim.calibrate.local.micro import Dims
from moesim.calibrate.measure.case import copies, normal
from moesim.calibrate.measure.timing import Calls

if TYPE_CHECKING:
    import torch

__all__ = ["EPSILON", "HEAD", "OPS", "Bench", "GpuOp", "points"]

EPSILON = 1e-6
HEAD = 64
"""Width of an attention head."""
_ROWS = (1, 3, 10, 30, 90, 270, 810, 2430, 7290)
_FEW_ROWS = (1, 10, 90, 810, 7290)
_WIDTHS = (512, 2048, 8192)


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and in what type microbenchmarks run; buffers rotate over three times ``cache`` bytes."""

    device: str
    dtype: str
    cache: int

    @property
    def size(self) -> int:
        """Bytes per value."""
        return {"fp32": 4, "bf16": 2, "fp16": 2}[self.dtype]

    def normal(self, seed: int, *shape: int, scale: float = 1.0) -> torch.Tensor:
        """Return normal values on the device."""
        return normal(seed, *shape, dtype=self.dtype, device=self.device, scale=scale)


@dataclass(frozen=True, slots=True)
class GpuOp:
    """How one op is benchmarked; as ``micro.MicroOp``, but for ``calls``.

    Attributes
    ----------
    calls : from sizes to the same call on rotating buffers
    """

    dims: tuple[str, ...]
    grid: tuple[tuple[int, ...], ...]
    tiny: Dims
    calls: Callable[[Dims, Bench], Calls]
    flop: Callable[[Dims], float]
    bytes: Callable[[Dims], float]


def _product(dims: Dims, bench: Bench) -> Calls:
    m, n, k = dims
    x, sets = bench.normal(0, m, k), copies(bench.size * n * k, bench.cache)
    weights = [bench.normal(i + 1, n, k, scale=k**-0.5) for i in range(sets)]
    return [partial(ops.product, x, weight) for weight in weights]


def _gather(dims: Dims, bench: Bench) -> Calls:
    import torch

    m, h = dims
    sets = copies(bench.size * 2 * m * h, bench.cache)
    order = torch.randperm(2 * m, generator=torch.Generator().manual_seed(m))[:m].to(bench.device)
    return [partial(bench.normal(i, 2 * m, h).index_select, 0, order) for i in range(sets)]


def _norm(dims: Dims, bench: Bench) -> Calls:
    from moesim.calibrate.kernels.rowwise import rmsnorm_residual

    m, h = dims
    weight, sets = bench.normal(0, h), copies(bench.size * 4 * m * h, bench.cache)
    return [
        partial(
            rmsnorm_residual, bench.normal(2 * i + 1, m, h), bench.normal(2 * i + 2, m, h), weight, EPSILON
        )
        for i in range(sets)
    ]


def _attend(dims: Dims, bench: Bench) -> Calls:
    batch, length, heads = dims
    shape = (batch * length, 3 * heads * HEAD)
    sets = copies(bench.size * shape[0] * shape[1], bench.cache)
    turn = turned(length, bench)
    return [partial(ops.attend, bench.normal(i, *shape), batch, HEAD, turn) for i in range(sets)]


def turned(length: int, bench: Bench) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rotary positions on the device, in its type."""
    like = bench.normal(0, 1)
    cosine, sine = ops.rotations(length, HEAD)
    return cosine.to(like), sine.to(like)


def _select(dims: Dims, bench: Bench) -> Calls:
    from moesim.calibrate.kernels.rowwise import softmax_topk

    m, experts, top_k = dims
    sets = copies(bench.size * m * experts, bench.cache)
    return [partial(softmax_topk, bench.normal(i, m, experts), top_k) for i in range(sets)]


def _experts(dims: Dims, bench: Bench) -> Calls:
    from moesim.calibrate.kernels.grouped_gemm import fused_moe
    from moesim.calibrate.kernels.rowwise import softmax_topk

    m, h, i, e, top_k = dims
    weights, ids = softmax_topk(bench.normal(1, m, e), top_k)
    x, sets = bench.normal(0, m, h), copies(bench.size * 3.0 * e * h * i, bench.cache, 8)
    return [
        partial(
            fused_moe,
            x,
            bench.normal(2 * s + 2, e, 2 * i, h, scale=h**-0.5),
            bench.normal(2 * s + 3, e, h, i, scale=i**-0.5),
            weights,
            ids,
        )
        for s in range(sets)
    ]


def touched(tokens: float, experts: int, top_k: int) -> float:
    """Return how many distinct experts ``tokens`` choose on average, when all are liked alike.

    >>> touched(1, 8, 2)
    2.0
    """
    return float(experts * (1 - (1 - top_k / experts) ** tokens))


def _expert_bytes(d: Dims) -> float:
    m, h, i, e, k = d
    return 2.0 * (3 * touched(m, e, k) * h * i + m * k * (2 * h + 2 * i) + 2 * m * h)


OPS: Mapping[str, GpuOp] = {
    "product": GpuOp(
        ("m", "n", "k"),
        (_ROWS, _WIDTHS, _WIDTHS),
        (1, 16, 16),
        _product,
        lambda d: 2.0 * d[0] * d[1] * d[2],
        lambda d: 2.0 * (d[0] * d[2] + d[1] * d[2] + d[0] * d[1]),
    ),
    "score": GpuOp(
        ("m", "n", "k"),
        (_FEW_ROWS, (8, 64), _WIDTHS),
        (1, 4, 16),
        _product,
        lambda d: 2.0 * d[0] * d[1] * d[2],
        lambda d: 2.0 * (d[0] * d[2] + d[1] * d[2] + d[0] * d[1]),
    ),
    "gather": GpuOp(
        ("m", "h"), (_FEW_ROWS, _WIDTHS), (1, 16), _gather, lambda _: 0.0, lambda d: 4.0 * d[0] * d[1]
    ),
    "norm": GpuOp(
        ("m", "h"), (_FEW_ROWS, _WIDTHS), (1, 16), _norm, lambda _: 0.0, lambda d: 8.0 * d[0] * d[1]
    ),
    "attend": GpuOp(
        ("batch", "length", "heads"),
        ((1, 8), (32, 128, 512, 2048), (8, 64)),
        (1, 1, 1),
        _attend,
        lambda d: 2.0 * d[0] * d[2] * d[1] ** 2 * HEAD,
        lambda d: 2.0 * 12 * d[0] * d[1] * d[2] * HEAD,
    ),
    "select": GpuOp(
        ("m", "experts", "top_k"),
        (_FEW_ROWS, (8, 64), (1, 8)),
        (1, 4, 1),
        _select,
        lambda _: 0.0,
        lambda d: float(d[0] * (2 * d[1] + 8 * d[2])),
    ),
    "experts": GpuOp(
        ("m", "h", "i", "experts", "top_k"),
        ((1, 4, 16, 64, 256, 1024, 4096), (1024, 4096), (512, 2048), (8, 64), (1, 4)),
        (1, 16, 16, 2, 1),
        _experts,
        lambda d: 6.0 * d[0] * d[4] * d[1] * d[2],
        _expert_bytes,
    ),
}
"""Work is counted at two bytes a value."""


def points(ops_: Mapping[str, GpuOp] = OPS) -> Iterator[tuple[str, Dims]]:
    """Yield every (op, sizes) to benchmark: the tiny call first, then the grid."""
    for name, op in ops_.items():
        yield name, op.tiny
        yield from ((name, dims) for dims in itertools.product(*op.grid) if dims != op.tiny)
