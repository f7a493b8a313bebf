"""Dequantising product: activations times 4-bit weights, expanded in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["dequant_gemm"]


@triton.jit
def _dequant(
    x,
    packed,
    scales,
    out,
    m,
    n,
    k,
    GROUP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    live = row < m
    inside = column < n
    depth = tl.arange(0, BK)
    half = k // 2
    groups = k // GROUP
    x_at = x + row[:, None].to(tl.int64) * k + depth[None, :]
    w_at = packed + column[None, :].to(tl.int64) * half + depth[:, None]
    s_at = scales + column * groups
    acc = tl.zeros((BM, BN), tl.float32)
    # a group is a whole number of tiles (BK divides GROUP), so one scale per column serves the whole tile
    for start in range(0, half, BK):
        code = tl.load(w_at + start, mask=inside[None, :], other=0)
        low_scale = tl.load(s_at + start // GROUP, mask=inside, other=0.0)
        high_scale = tl.load(s_at + (start + half) // GROUP, mask=inside, other=0.0)
        low = ((code & 15).to(tl.float32) - 8.0) * low_scale.to(tl.float32)[None, :]
        high = ((code >> 4).to(tl.float32) - 8.0) * high_scale.to(tl.float32)[None, :]
        left = tl.load(x_at + start, mask=live[:, None], other=0.0)
        right = tl.load(x_at + half + start, mask=live[:, None], other=0.0)
        acc = tl.dot(left, low.to(left.dtype), acc, input_precision="ieee")
        acc = tl.dot(right, high.to(right.dtype), acc, input_precision="ieee")
    at = out + row[:, None].to(tl.int64) * n + column[None, :]
    tl.store(at, acc.to(out.dtype.element_ty), mask=live[:, None] & inside[None, :])


def dequant_gemm(x: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return ``x @ w.T`` for 4-bit weights.

    Parameters
    ----------
    x : [m, k]
    packed : [n, k / 2] uint8; byte j holds code j (low bits) and code j + k / 2 (high bits); weight = code - 8
    scales : [n, k / group] multiplies the group's weights; ``k / 2`` and ``group`` are multiples of 32

    Returns
    -------
    [m, n] in ``x``'s dtype

    Raises
    ------
    ValueError : sizes that the tiles do not divide
    """
    m, k = x.shape
    n = packed.shape[0]
    group = k // scales.shape[1]
    tile = next((size for size in (64, 32) if group % size == 0 and (k // 2) % group == 0), 0)
    if not tile:
        raise ValueError(
            f"k / 2 = {k // 2} and group = {group}: expected k / 2 in whole groups of a multiple of 32"
        )
    out = torch.empty((m, n), dtype=x.dtype, device=x.device)
    rows = min(64, max(16, triton.next_power_of_2(m)))
    grid = (triton.cdiv(m, rows), triton.cdiv(n, 64))
    _dequant[grid](
        x, packed, scales, out, m, n, k, GROUP=group, BM=rows, BN=64, BK=tile, num_warps=4, num_stages=3
    )
    return out
