"""Suites: which points to measure on a device, quick (a minute or so) or full."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

from moesim.calibrate.kernels import runs_on
from moesim.calibrate.measure.collectives import COLLECTIVES
from moesim.calibrate.measure.record import Point

__all__ = ["SUITES", "Effort", "Suite", "available_ranks", "suite_points"]

Suite = Literal["quick", "full"]


@dataclass(frozen=True, slots=True)
class Effort:
    """How long a point is measured.

    Attributes
    ----------
    repeats : timed blocks
    block_s : seconds a block should last
    budget_s : seconds after which a slow point stops, with 3 blocks at least
    """

    repeats: int
    block_s: float
    budget_s: float


SUITES: dict[Suite, Effort] = {"quick": Effort(15, 2e-3, 0.5), "full": Effort(50, 5e-3, 5.0)}

_KIB, _MIB = 2**10, 2**20
# the shapes of shipped models: OLMoE, Qwen3-30B-A3B, Mixtral 8x7B (hidden, inner, experts, top_k)
_LAYERS = ((2048, 1024, 64, 8), (2048, 768, 128, 8), (4096, 14336, 8, 2))
_HEADS = ((16, 16, 128), (32, 4, 128), (32, 8, 128))  # heads, kv_heads, head_dim of the same models


def suite_points(device: Literal["cpu", "cuda"], suite: Suite, ranks: int) -> list[Point]:
    """Return the points of a suite; Triton kernels only where they are compiled, collectives only for several ranks.

    Parameters
    ----------
    ranks : processes for collectives; 1 for none
    """
    found = list(_work(device, suite))
    sizes = (4 * _KIB, _MIB, 16 * _MIB) if suite == "quick" else tuple(4**i * _KIB for i in range(1, 9))
    backend = "nccl" if device == "cuda" else "gloo"
    if ranks > 1:
        found += [
            Point(op, backend, device, "fp32", (("size", size), ("ranks", ranks)))
            for op, size in product(COLLECTIVES, sizes)
        ]
    return found


def _work(device: Literal["cpu", "cuda"], suite: Suite) -> Iterator[Point]:
    quick, gpu = suite == "quick", device == "cuda"
    dtypes = ("bf16", "fp16") if gpu and not quick else ("bf16",) if gpu else ("fp32", "bf16")
    main = dtypes[0]
    triton = ("triton",) if gpu and runs_on("cuda") else ()
    rows = (1, 16, 128) if quick else tuple(2**i for i in range(14 if gpu else 11))
    widths = ((2048, 2048), (1024, 2048)) if quick else tuple(product((1024, 2048, 4096, 8192), repeat=2))
    if gpu and quick:
        widths = ((4096, 4096), (8192, 4096))
        rows = (1, 16, 128, 1024, 4096)
    for dtype, m, (n, k) in product(dtypes, rows, widths):
        if gpu or m * n * k <= 2**34:
            yield Point("gemm", "torch", device, dtype, (("m", m), ("n", n), ("k", k)))
    for kernel, m, (n, k) in product(("torch", *triton), rows[:4], widths[:2] if quick else widths):
        yield Point("dequant_gemm", kernel, device, main, (("m", m), ("n", n), ("k", k), ("group", 128)))
    layers = _LAYERS if gpu else _LAYERS[:2]
    tokens = (1, 8, 64) if quick else (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    if gpu:
        tokens = (1, 16, 128, 1024) if quick else tuple(2**i for i in range(14))
    kinds = ("uniform", "skewed")
    for kernel, (h, i, e, top_k), t, kind in product(
        ("loop", *triton), layers[:1] if quick else layers, tokens, kinds
    ):
        dims = (("hidden", h), ("inner", i), ("experts", e), ("top_k", top_k), ("tokens", t))
        yield Point("moe_ffn", kernel, device, main, dims, kind)
    yield from _attention(device, main, triton, quick=quick)
    hidden = (2048,) if quick else (1024, 2048, 4096, 8192)
    for kernel, m, h in product(("torch", *triton), rows, hidden):
        yield Point("rmsnorm_residual", kernel, device, main, (("m", m), ("hidden", h)))
    for kernel, m, (e, top_k) in product(("torch", *triton), rows, ((8, 2), (64, 8), (128, 8))):
        yield Point("topk_routing", kernel, device, "fp32", (("tokens", m), ("experts", e), ("top_k", top_k)))
    yield from _moving(device, quick=quick)


def _attention(device: str, dtype: str, triton: tuple[str, ...], *, quick: bool) -> Iterator[Point]:
    heads = _HEADS[:2] if quick else _HEADS
    batches = (1, 8) if quick else (1, 2, 4, 8, 16, 32, 64)
    lengths = (256, 2048) if quick else (128, 512, 2048, 8192, 32768)
    limit = 2**30 if device == "cpu" else 2**34  # bytes of the cache
    for kernel, (h, kv, d), b, s in product(("sdpa", *triton), heads, batches, lengths):
        dims = (("batch", b), ("length", s), ("heads", h), ("kv_heads", kv), ("head_dim", d))
        if 8 * b * s * kv * d <= limit:
            page = (("page", 16),) if kernel == "triton" else ()
            yield Point("decode_attention", kernel, device, dtype, (*dims, *page))
    prompts = (128, 512) if quick else (128, 256, 512, 1024, 2048, 4096, 8192)
    work = 2**33 if device == "cpu" else 2**42
    for (h, kv, d), b, s in product(heads, (1, 4), prompts):
        if 2 * b * h * d * s * s <= work:
            dims = (("batch", b), ("length", s), ("heads", h), ("kv_heads", kv), ("head_dim", d))
            yield Point("prefill_attention", "sdpa", device, dtype, dims)


def _moving(device: str, *, quick: bool) -> Iterator[Point]:
    sizes = (_MIB, 64 * _MIB) if quick else tuple(4**i * _KIB for i in range(1, 10))
    for size in sizes:
        yield Point("copy", "torch", device, "fp32", (("size", size),))
    if device == "cuda":
        for direction, kind, size in product(("h2d", "d2h"), ("pinned", "pageable"), sizes):
            yield Point("transfer", "torch", device, "fp32", (("size", size),), f"{direction}-{kind}")
        yield Point("launch", "torch", device, "fp32", (("launches", 100),), "graph")
    yield Point("launch", "torch", device, "fp32", (("launches", 100),), "eager")
    reads = (128 * _KIB, 16 * _MIB) if quick else tuple(4**i * _KIB for i in range(1, 8))
    for variant, size in product(("direct", "cached"), reads):
        yield Point("storage_read", "os", "cpu", "bytes", (("size", size),), variant)


def available_ranks(device: str) -> int:
    """Return how many ranks collectives can have on this machine: its GPUs, or two processes of a CPU."""
    if device == "cuda":
        import torch

        return int(torch.cuda.device_count())
    return 2 if (os.cpu_count() or 1) >= 2 else 1
