"""Microbenchmarks: each op of the small transformer alone, over a grid of sizes, with cold weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moesim.calibrate.local import ops

if TYPE_CHECKING:
    import torch

__all__ = ["MICRO", "Dims", "MicroOp", "Pool", "Ready", "points"]

Dims = tuple[int, ...]
"""Sizes of one call, in the order of ``MicroOp.dims``."""

Call = Callable[[], Any]
Ready = Callable[[], Call]
"""Runs what comes before the op in the model, and returns the call to time."""

_VALUE = 4  # bytes of a float32
# rows of an expert are any number: the grid avoids multiples of 4 and 6, which kernels like better than others
_ROWS = (1, 2, 3, 5, 7, 10, 15, 21, 31, 45, 65, 93, 135, 259, 515, 1027)
_FEW_ROWS = (1, 5, 17, 67, 259, 1027)
_FEEDER = 512  # inner width of the product that writes an op's input


@dataclass(frozen=True, slots=True)
class MicroOp:
    """How one op is benchmarked.

    Attributes
    ----------
    dims : names of the sizes
    grid : benchmarked values of each size
    tiny : sizes of a call whose time is overhead alone
    ready : from sizes and cold memory to the benchmark
    flop, bytes : work of one call
    """

    dims: tuple[str, ...]
    grid: tuple[tuple[int, ...], ...]
    tiny: Dims
    ready: Callable[[Dims, Pool], Ready]
    flop: Callable[[Dims], float]
    bytes: Callable[[Dims], float]


def _normal(*shape: int) -> torch.Tensor:
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


class Pool:
    """Cold memory: hands out weights so that each was last touched one full turn of the pool ago."""

    def __init__(self, megabytes: int = 384) -> None:
        import torch

        part = torch.randn(8 * 2**20 // _VALUE, generator=torch.Generator().manual_seed(7)) * 0.04
        self._values = part.repeat(megabytes // 8)
        self._next = 0
        self._rows = _normal(4, 512)

    def weight(self, n: int, k: int) -> torch.Tensor:
        """Return the next [n, k] matrix."""
        if self._next + n * k > len(self._values):
            self._next = 0
        found = self._values[self._next : self._next + n * k].view(n, k)
        self._next += (n * k + 15) // 16 * 16  # keep the alignment of separate allocations
        return found

    def sweep(self) -> None:
        """Stream 4 MiB of weights through a product: what one expert does to the caches."""
        ops.product(self._rows, self.weight(2048, 512))


def _product(dims: Dims, pool: Pool) -> Ready:
    m, n, k = dims
    x = _normal(m, k)

    def ready() -> Call:
        weight = pool.weight(n, k)
        x.mul_(1.0)
        return lambda: ops.product(x, weight)

    return ready


def _norm(dims: Dims, _pool: Pool) -> Ready:
    x, weight = _normal(*dims), _normal(dims[1])

    def ready() -> Call:
        fresh = ops.add(x, x)
        return lambda: ops.norm(fresh, weight)

    return ready


def _add(dims: Dims, pool: Pool) -> Ready:
    m, h = dims
    x, before = _normal(m, h), _normal(m, h)

    def ready() -> Call:
        fresh = ops.product(before, pool.weight(h, h))
        return lambda: ops.add(x, fresh)

    return ready


def _clear(dims: Dims, _pool: Pool) -> Ready:
    x = _normal(*dims)
    return lambda: lambda: ops.clear(x)


def _glu(dims: Dims, pool: Pool) -> Ready:
    m, i = dims
    before = _normal(m, _FEEDER)

    def ready() -> Call:
        both = ops.product(before, pool.weight(2 * i, _FEEDER))
        return lambda: ops.glu(both)

    return ready


def _attend(dims: Dims, pool: Pool) -> Ready:
    batch, length, heads = dims
    before, turn = _normal(batch * length, _FEEDER), ops.rotations(length, 64)

    def ready() -> Call:
        qkv = ops.product(before, pool.weight(3 * heads * 64, _FEEDER))
        return lambda: ops.attend(qkv, batch, 64, turn)

    return ready


def _select(dims: Dims, pool: Pool) -> Ready:
    m, experts, top_k = dims
    before = _normal(m, _FEEDER)

    def ready() -> Call:
        logits = ops.product(before, pool.weight(experts, _FEEDER))
        return lambda: ops.select(logits, top_k)

    return ready


def _rows(m: int) -> torch.Tensor:
    import torch

    return torch.randperm(2 * m, generator=torch.Generator().manual_seed(m))[:m].sort().values


def _collect(dims: Dims, _pool: Pool) -> Ready:
    m, h = dims
    x, rows = _normal(2 * m, h), _rows(m)
    return lambda: lambda: ops.collect(x, rows, 0, m)


def _combine(dims: Dims, pool: Pool) -> Ready:
    m, h = dims
    out, before, rows, shares = _normal(2 * m, h), _normal(m, _FEEDER), _rows(m), _normal(m)

    def ready() -> Call:
        values = ops.product(before, pool.weight(h, _FEEDER))
        return lambda: ops.combine(out, rows, values, shares, 0)

    return ready


def _plane(columns: float) -> Callable[[Dims], float]:
    """Return bytes of ``columns`` values for each of the m x h."""
    return lambda dims: columns * dims[0] * dims[1] * _VALUE


MICRO: Mapping[str, MicroOp] = {
    "product": MicroOp(
        ("m", "n", "k"),
        (_ROWS, (384, 1024, 2048), (384, 1024)),
        (1, 8, 8),
        _product,
        lambda d: 2.0 * d[0] * d[1] * d[2],
        lambda d: float(d[0] * d[2] + d[1] * d[2] + d[0] * d[1]) * _VALUE,
    ),
    "score": MicroOp(
        ("m", "n", "k"),
        (_FEW_ROWS, (4, 16, 64), (384, 1024)),
        (1, 4, 8),
        _product,
        lambda d: 2.0 * d[0] * d[1] * d[2],
        lambda d: float(d[0] * d[2] + d[1] * d[2] + d[0] * d[1]) * _VALUE,
    ),
    "norm": MicroOp(
        ("m", "h"), (_FEW_ROWS, (384, 1024)), (1, 8), _norm, lambda d: 4.0 * d[0] * d[1], _plane(2)
    ),
    "add": MicroOp(
        ("m", "h"), (_FEW_ROWS, (384, 1024)), (1, 8), _add, lambda d: 1.0 * d[0] * d[1], _plane(3)
    ),
    "clear": MicroOp(("m", "h"), (_FEW_ROWS, (384, 1024)), (1, 8), _clear, lambda _: 0.0, _plane(1)),
    "glu": MicroOp(
        ("m", "i"), (_FEW_ROWS, (384, 1024)), (1, 8), _glu, lambda d: 5.0 * d[0] * d[1], _plane(5)
    ),
    "collect": MicroOp(("m", "h"), (_FEW_ROWS, (384, 1024)), (1, 8), _collect, lambda _: 0.0, _plane(2)),
    "combine": MicroOp(
        ("m", "h"), (_FEW_ROWS, (384, 1024)), (1, 8), _combine, lambda d: 2.0 * d[0] * d[1], _plane(5)
    ),
    "select": MicroOp(
        ("m", "experts", "top_k"),
        (_FEW_ROWS, (4, 64), (1, 4)),
        (1, 4, 1),
        _select,
        lambda d: 4.0 * d[0] * d[1],
        lambda d: float(d[0] * (3 * d[1] + 12 * d[2])) * _VALUE,
    ),
    "attend": MicroOp(
        ("batch", "length", "heads"),
        ((1, 8), (16, 32, 64, 128, 256, 512), (4, 16)),
        (1, 1, 1),
        _attend,
        lambda d: 4.0 * d[0] * d[2] * d[1] ** 2 * 64 / 2,
        lambda d: float(d[0] * d[1] * d[2] * 64 * 12) * _VALUE,
    ),
}


def points(flop_limit: float = 2.5e9) -> Iterator[tuple[str, Dims]]:
    """Yield every (op, sizes) to benchmark: the tiny call first, then the grid without its largest corner."""
    for name, op in MICRO.items():
        yield name, op.tiny
        for dims in itertools.product(*op.grid):
            if dims != op.tiny and op.flop(dims) <= flop_limit:
                yield name, dims
