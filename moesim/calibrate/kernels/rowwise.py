"""Row-wise kernels: RMSNorm with the residual added, and top-k routing; one program per row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["rmsnorm_residual", "softmax_topk"]


@triton.jit
def _norm(x, residual, weight, out, total_out, width, eps, BW: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BW)
    inside = column < width
    total = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(residual + row * width + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(total_out + row * width + column, total.to(total_out.dtype.element_ty), mask=inside)
    scale = tl.rsqrt(tl.sum(total * total, 0) / width + eps)
    factor = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + column, (total * scale * factor).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _route(logits, weights, ids, experts, K: tl.constexpr, BK: tl.constexpr, BE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    expert = tl.arange(0, BE)
    raw = tl.load(logits + row * experts + expert, mask=expert < experts, other=float("-inf")).to(tl.float32)
    shifted = tl.exp(raw - tl.max(raw, 0))
    left = tl.where(expert < experts, shifted / tl.sum(shifted, 0), -1.0)
    place = tl.arange(0, BK)
    chosen = tl.zeros((BK,), tl.float32)
    which = tl.zeros((BK,), tl.int32)
    for choice in tl.static_range(K):
        best = tl.argmax(left, 0)
        chosen = tl.where(place == choice, tl.max(left, 0), chosen)
        which = tl.where(place == choice, best, which)
        left = tl.where(expert == best, -1.0, left)
    tl.store(weights + row * K + place, chosen / tl.sum(chosen, 0), mask=place < K)
    tl.store(ids + row * K + place, which, mask=place < K)


def rmsnorm_residual(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``norm(x + residual) * weight`` and ``x + residual``; x and residual [rows, width], weight [width]."""
    rows, width = x.shape
    out, total = torch.empty_like(x), torch.empty_like(x)
    block = triton.next_power_of_2(width)
    warps = 4 if block <= 4096 else 8
    _norm[(rows,)](x, residual, weight, out, total, width, eps, BW=block, num_warps=warps)
    return out, total


def softmax_topk(logits: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the renormalised weights [rows, top_k] float32 and experts [rows, top_k] int32 of the largest logits.

    Parameters
    ----------
    logits : [rows, experts]
    top_k : at most ``experts``; equal logits go to the lower expert
    """
    rows, experts = logits.shape
    weights = torch.empty((rows, top_k), dtype=torch.float32, device=logits.device)
    ids = torch.empty((rows, top_k), dtype=torch.int32, device=logits.device)
    _route[(rows,)](
        logits,
        weights,
        ids,
        experts,
        K=top_k,
        BK=triton.next_power_of_2(top_k),
        BE=triton.next_power_of_2(experts),
        num_warps=1 if experts <= 256 else 4,
    )
    return weights, ids
