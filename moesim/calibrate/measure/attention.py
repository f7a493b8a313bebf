"""Attention cases: a causal prompt, and one decode step over a contiguous or a paged cache."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from moesim.calibrate.kernels import reference
from moesim.calibrate.measure.case import Case, copies, largest_error, normal, sampled, value_bytes
from moesim.calibrate.measure.record import Point

if TYPE_CHECKING:
    import torch

__all__ = ["decode_attention", "prefill_attention"]


def prefill_attention(point: Point, cache: int) -> Case:
    """Make causal attention of ``batch`` prompts of ``length`` tokens ready (PyTorch's fused operator)."""
    import torch

    batch, length = point["batch"], point["length"]
    heads, kv_heads, dim = point["heads"], point["kv_heads"], point["head_dim"]
    size = value_bytes(point.dtype)
    moved = float(batch * length * dim * (2 * heads + 2 * kv_heads)) * size
    make = partial(normal, dtype=point.dtype, device=point.device)
    sets = [
        (
            make(3 * i, batch, heads, length, dim),
            make(3 * i + 1, batch, kv_heads, length, dim),
            make(3 * i + 2, batch, kv_heads, length, dim),
        )
        for i in range(copies(moved, cache))
    ]

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=kv_heads != heads
        )
        return out

    def check() -> float:
        q, k, v = (part[:1] for part in sets[0])
        return largest_error(run(*sets[0])[:1], reference.attention(q, k, v, causal=True))

    return Case(
        [partial(run, *part) for part in sets],
        2.0 * batch * heads * dim * length * (length + 1),
        moved,
        check,
        reference.tolerance(point.dtype, length, 3),
    )


def decode_attention(point: Point, cache: int) -> Case:
    """Make one decode step ready: ``sdpa`` over a contiguous cache, or the Triton kernel over a paged one.

    All sequences have ``length`` tokens; pages lie in random order.
    """
    batch, length = point["batch"], point["length"]
    heads, kv_heads, dim = point["heads"], point["kv_heads"], point["head_dim"]
    size = value_bytes(point.dtype)
    kv_bytes = 2.0 * batch * length * kv_heads * dim * size
    sets = copies(kv_bytes, cache, 16)
    build = _paged if point.kernel == "triton" else _contiguous
    calls, check = build(point, sets)
    return Case(
        calls,
        4.0 * batch * heads * dim * length,
        kv_bytes + 2.0 * batch * heads * dim * size,
        check,
        reference.tolerance(point.dtype, length, 3),
    )


def _contiguous(point: Point, sets: int) -> tuple[Any, Any]:
    import torch

    batch, length = point["batch"], point["length"]
    heads, kv_heads, dim = point["heads"], point["kv_heads"], point["head_dim"]
    make = partial(normal, dtype=point.dtype, device=point.device)
    q = make(0, batch, heads, 1, dim)
    caches = [
        (make(2 * i + 1, batch, kv_heads, length, dim), make(2 * i + 2, batch, kv_heads, length, dim))
        for i in range(sets)
    ]
    run = partial(torch.nn.functional.scaled_dot_product_attention, enable_gqa=kv_heads != heads)
    rows = sampled(batch, 4)

    def check() -> float:
        k, v = caches[0]
        want = reference.attention(q[rows], k[rows], v[rows], causal=False)
        return largest_error(run(q, k, v)[rows], want)

    return [partial(run, q, k, v) for k, v in caches], check


def _paged(point: Point, sets: int) -> tuple[Any, Any]:
    import torch

    from moesim.calibrate.kernels import paged_attention

    batch, length, page = point["batch"], point["length"], point["page"]
    heads, kv_heads, dim = point["heads"], point["kv_heads"], point["head_dim"]
    make = partial(normal, dtype=point.dtype, device=point.device)
    q = make(0, batch, heads, dim)
    width = -(-length // page)
    lengths = torch.full((batch,), length, dtype=torch.int32, device=point.device)
    units = 2
    if point.device == "cuda":
        units = torch.cuda.get_device_properties(0).multi_processor_count
    splits = paged_attention.splits_for(batch, kv_heads, length, units)
    caches = []
    for i in range(sets):
        order = torch.randperm(batch * width, generator=torch.Generator().manual_seed(i))
        table = order.int().view(batch, width).to(point.device)
        pages = (batch * width, page, kv_heads, dim)
        caches.append((make(2 * i + 1, *pages), make(2 * i + 2, *pages), table))
    run = partial(paged_attention.paged_decode, splits=splits)
    rows = sampled(batch, 4)

    def check() -> float:
        keys, values, table = caches[0]
        want = reference.paged_decode(q[rows], keys, values, table[rows], lengths[rows])
        return largest_error(run(q, keys, values, table, lengths)[rows], want)

    return [partial(run, q, *part, lengths) for part in caches], check
