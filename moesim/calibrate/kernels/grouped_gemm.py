"""Grouped product: the MoE layer as two Triton launches over rows sorted by expert."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from moesim.calibrate.kernels.sorting import ExpertBlocks, sort_tokens

__all__ = ["block_rows_for", "fused_moe", "grouped_gemm"]


@triton.jit
def _grouped(
    a,
    w,
    out,
    slots,
    block_expert,
    row_weight,
    n,
    k,
    pairs,
    expert_stride,
    ROWS_PER_INPUT: tl.constexpr,
    GATED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    block = tl.program_id(0)
    expert = tl.load(block_expert + block)
    if expert >= 0:
        slot = tl.load(slots + block * BM + tl.arange(0, BM))
        live = slot < pairs
        row = (slot // ROWS_PER_INPUT).to(tl.int64)
        column = tl.program_id(1) * BN + tl.arange(0, BN)
        inside = column < n
        depth = tl.arange(0, BK)
        a_at = a + row[:, None] * k + depth[None, :]
        w_at = w + expert.to(tl.int64) * expert_stride + column[None, :].to(tl.int64) * k + depth[:, None]
        acc = tl.zeros((BM, BN), tl.float32)
        up = tl.zeros((BM, BN), tl.float32)
        for start in range(0, k, BK):
            left = depth < k - start
            x = tl.load(a_at + start, mask=live[:, None] & left[None, :], other=0.0)
            y = tl.load(w_at + start, mask=inside[None, :] & left[:, None], other=0.0)
            acc = tl.dot(x, y, acc, input_precision="ieee")
            if GATED:
                z = tl.load(w_at + n * k + start, mask=inside[None, :] & left[:, None], other=0.0)
                up = tl.dot(x, z, up, input_precision="ieee")
        if GATED:
            acc = acc * tl.sigmoid(acc) * up
        if WEIGHTED:
            acc = acc * tl.load(row_weight + slot, mask=live, other=0.0).to(tl.float32)[:, None]
        out_at = out + slot[:, None].to(tl.int64) * n + column[None, :]
        tl.store(out_at, acc.to(out.dtype.element_ty), mask=live[:, None] & inside[None, :])


def grouped_gemm(
    a: torch.Tensor,
    w: torch.Tensor,
    blocks: ExpertBlocks,
    *,
    rows_per_input: int,
    gated: bool = False,
    row_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiply each row by its expert's matrix.

    Parameters
    ----------
    a : [pairs / rows_per_input, k]; pair ``p`` reads row ``p // rows_per_input``
    w : [experts, n, k], or [experts, 2 n, k] with ``gated`` (gate rows first)
    blocks : rows sorted by expert
    rows_per_input : ``top_k`` for the first product of a layer, 1 for the second
    gated : return ``silu(gate) * up``
    row_weight : [pairs], multiplies each output row

    Returns
    -------
    [pairs, n] in ``a``'s dtype
    """
    n = w.shape[1] // 2 if gated else w.shape[1]
    k = w.shape[2]
    out = torch.empty((blocks.pairs, n), dtype=a.dtype, device=a.device)
    tile = _tile(blocks.block_rows, gated=gated)
    grid = (blocks.experts.numel(), triton.cdiv(n, tile["BN"]))
    _grouped[grid](
        a,
        w,
        out,
        blocks.slots,
        blocks.experts,
        out if row_weight is None else row_weight,
        n,
        k,
        blocks.pairs,
        w.stride(0),
        ROWS_PER_INPUT=rows_per_input,
        GATED=gated,
        WEIGHTED=row_weight is not None,
        BM=blocks.block_rows,
        **tile,
    )
    return out


def _tile(block_rows: int, *, gated: bool) -> dict[str, Any]:
    """Few rows wait for weights: more stages. Many rows wait for the tensor cores: larger tiles, more warps.

    All stages together stay below 100 kB for 2-byte types, the least shared memory of the GPUs in the catalog.
    """
    if block_rows <= 32:
        return {"BN": 64, "BK": 64, "num_warps": 4, "num_stages": 4}
    return {"BN": 64 if gated else 128, "BK": 64, "num_warps": 8 if block_rows > 64 else 4, "num_stages": 3}


def block_rows_for(pairs: int, experts: int) -> int:
    """Return rows per block: the power of two nearest above the mean rows per expert, within 16 and 128."""
    mean = max(1, pairs // experts)
    return min(128, max(16, 1 << (mean - 1).bit_length()))


def fused_moe(
    x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """Run a gated MoE layer: sort, gate and up product with SwiGLU, weighted down product, sum over choices.

    Parameters
    ----------
    x : [tokens, hidden]
    gate_up : [experts, 2 * inner, hidden], gate rows first
    down : [experts, hidden, inner]
    weights, ids : [tokens, top_k]

    Returns
    -------
    [tokens, hidden] in ``x``'s dtype
    """
    tokens, top_k = ids.shape
    experts = gate_up.shape[0]
    blocks = sort_tokens(ids, experts, block_rows_for(tokens * top_k, experts))
    inner = grouped_gemm(x, gate_up, blocks, rows_per_input=top_k, gated=True)
    pairs = grouped_gemm(inner, down, blocks, rows_per_input=1, row_weight=weights.reshape(-1))
    return pairs.view(tokens, top_k, -1).sum(1)
