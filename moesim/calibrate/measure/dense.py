"""Dense cases: products, dequantising products, RMSNorm with residual, top-k routing."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from moesim.calibrate.kernels import reference
from moesim.calibrate.measure.case import Case, copies, largest_error, normal, sampled, value_bytes
from moesim.calibrate.measure.record import Point

if TYPE_CHECKING:
    import torch

__all__ = ["dequant_gemm", "gemm", "rmsnorm_residual", "topk_routing"]

_EPS = 1e-6


def gemm(point: Point, cache: int) -> Case:
    """Make ``x [m, k] @ w [n, k].T`` ready; weights rotate, so they come from main memory."""
    import torch

    m, n, k = point["m"], point["n"], point["k"]
    size = value_bytes(point.dtype)
    sets = copies(n * k * size, cache)
    x = normal(0, m, k, dtype=point.dtype, device=point.device)
    weights = [
        normal(1 + i, n, k, dtype=point.dtype, device=point.device, scale=k**-0.5) for i in range(sets)
    ]
    rows = sampled(m)

    def check() -> float:
        got = torch.nn.functional.linear(x, weights[0])[rows]
        return largest_error(got, reference.product(x[rows], weights[0]))

    return Case(
        [partial(torch.nn.functional.linear, x, w) for w in weights],
        2.0 * m * n * k,
        float(m * k + n * k + m * n) * size,
        check,
        reference.tolerance(point.dtype, k),
    )


def _dequantised_product(x: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Expand the weights in ``x``'s type, then multiply: what plain PyTorch has to do."""
    import torch

    codes = torch.cat((packed & 15, packed >> 4), 1).to(x.dtype) - 8
    weights = codes.view(len(codes), scales.shape[1], -1) * scales[:, :, None]
    return torch.nn.functional.linear(x, weights.view(len(codes), -1))


def dequant_gemm(point: Point, cache: int) -> Case:
    """Make the product with 4-bit weights ready: by PyTorch in two steps, or by the Triton kernel in one."""
    import torch

    m, n, k, group = point["m"], point["n"], point["k"], point["group"]
    size = value_bytes(point.dtype)
    weight_bytes = n * k / 2 + n * k / group * size
    x = normal(0, m, k, dtype=point.dtype, device=point.device)
    sets = []
    for i in range(copies(weight_bytes, cache)):
        generator = torch.Generator(point.device).manual_seed(i)
        packed = torch.randint(
            0, 256, (n, k // 2), generator=generator, device=point.device, dtype=torch.uint8
        )
        scales = normal(i, n, k // group, dtype=point.dtype, device=point.device).abs() * k**-0.5
        sets.append((packed, scales))
    kernel: Any = _dequantised_product
    if point.kernel == "triton":
        from moesim.calibrate.kernels import dequant_gemm as own

        kernel = own.dequant_gemm
    rows = sampled(m)

    def check() -> float:
        want = reference.product(x[rows], reference.dequantised(*sets[0]))
        return largest_error(kernel(x, *sets[0])[rows], want)

    return Case(
        [partial(kernel, x, *pair) for pair in sets],
        2.0 * m * n * k,
        float(m * k + m * n) * size + weight_bytes,
        check,
        reference.tolerance(point.dtype, k, 3),
    )


def rmsnorm_residual(point: Point, cache: int) -> Case:
    """Make ``norm(x + residual) * weight`` ready, which also returns the sum."""
    import torch

    m, hidden = point["m"], point["hidden"]
    size = value_bytes(point.dtype)
    weight = normal(0, hidden, dtype=point.dtype, device=point.device)
    sets = [
        (
            normal(2 * i + 1, m, hidden, dtype=point.dtype, device=point.device),
            normal(2 * i + 2, m, hidden, dtype=point.dtype, device=point.device),
        )
        for i in range(copies(4.0 * m * hidden * size, cache))
    ]

    def plain(x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total = x + residual
        return torch.nn.functional.rms_norm(total, (hidden,), weight, _EPS), total

    run: Any = plain
    if point.kernel == "triton":
        from moesim.calibrate.kernels import rowwise

        run = partial(_own_norm, rowwise.rmsnorm_residual, weight)
    rows = sampled(m)

    def check() -> float:
        x, residual = sets[0]
        want = reference.rmsnorm_residual(x[rows], residual[rows], weight, _EPS)
        return max(largest_error(g[rows], w) for g, w in zip(run(x, residual), want, strict=True))

    return Case(
        [partial(run, *pair) for pair in sets],
        6.0 * m * hidden,
        float(4 * m * hidden + hidden) * size,
        check,
        reference.tolerance(point.dtype, hidden, 3),  # the sum is rounded before it is normalised
    )


def _own_norm(kernel: Any, weight: torch.Tensor, x: torch.Tensor, residual: torch.Tensor) -> Any:
    return kernel(x, residual, weight, _EPS)


def _plain_routing(logits: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    weights, ids = torch.softmax(logits.float(), -1).topk(top_k, -1)
    return weights / weights.sum(-1, keepdim=True), ids


def topk_routing(point: Point, cache: int) -> Case:
    """Make softmax, top-k and renormalisation of router logits [tokens, experts] ready."""
    import torch

    tokens, experts, top_k = point["tokens"], point["experts"], point["top_k"]
    size = value_bytes(point.dtype)
    sets = [
        normal(i, tokens, experts, dtype=point.dtype, device=point.device)
        for i in range(copies(tokens * experts * size, cache))
    ]
    kernel: Any = _plain_routing
    if point.kernel == "triton":
        from moesim.calibrate.kernels import rowwise

        kernel = rowwise.softmax_topk

    def check() -> float:
        # logits of a 2-byte type tie, so the chosen experts are judged by their probability, not by number
        weights, ids = kernel(sets[0], top_k)
        ids = ids.long()
        if any(len(set(row)) != top_k for row in ids.tolist()):
            return float("inf")
        probabilities = torch.softmax(sets[0].double(), -1).gather(-1, ids)
        want, _ = reference.softmax_topk(sets[0], top_k)
        chosen = probabilities / probabilities.sum(-1, keepdim=True)
        return max(largest_error(chosen, want), largest_error(weights, want))

    return Case(
        [partial(kernel, logits, top_k) for logits in sets],
        4.0 * tokens * experts,
        float(tokens * experts * size + tokens * top_k * 8),
        check,
        reference.tolerance("fp32", experts, 4),
    )
