"""Paged decode attention: one query per sequence over a paged cache, split along the sequence."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["paged_decode", "splits_for"]

_LOG2_E = 1.4426950408889634


@triton.jit
def _partial(
    q,
    keys,
    values,
    table,
    lengths,
    part_out,
    part_max,
    part_sum,
    scale,
    table_width,
    split_tokens,
    splits,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BG: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    PAGE: tl.constexpr,
    BS: tl.constexpr,
):
    sequence = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    length = tl.load(lengths + sequence)
    begin = split * split_tokens
    end = tl.minimum(begin + split_tokens, length)
    member = tl.arange(0, BG)
    real = member < GROUP
    head = kv_head * GROUP + member
    dim = tl.arange(0, BD)
    wide = dim < D
    query = tl.load(
        q + (sequence * HEADS + head)[:, None] * D + dim[None, :],
        mask=real[:, None] & wide[None, :],
        other=0.0,
    )
    top = tl.full((BG,), float("-inf"), tl.float32)
    total = tl.zeros((BG,), tl.float32)
    acc = tl.zeros((BG, BD), tl.float32)
    for start in range(begin, end, BS):
        position = start + tl.arange(0, BS)
        live = position < end
        page = tl.load(table + sequence * table_width + position // PAGE, mask=live, other=0).to(tl.int64)
        at = ((page * PAGE + position % PAGE) * KV_HEADS + kv_head) * D
        block = live[:, None] & wide[None, :]
        key = tl.load(keys + at[:, None] + dim[None, :], mask=block, other=0.0)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        score = tl.where(live[None, :], score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        weight = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(top - higher)
        value = tl.load(values + at[:, None] + dim[None, :], mask=block, other=0.0)
        acc = tl.dot(weight.to(value.dtype), value, acc * shrink[:, None], input_precision="ieee")
        total = total * shrink + tl.sum(weight, 1)
        top = higher
    row = (sequence * HEADS + head) * splits + split
    tl.store(part_out + row[:, None] * D + dim[None, :], acc, mask=real[:, None] & wide[None, :])
    tl.store(part_max + row, top, mask=real)
    tl.store(part_sum + row, total, mask=real)


@triton.jit
def _combine(part_out, part_max, part_sum, out, splits, D: tl.constexpr, BD: tl.constexpr, BP: tl.constexpr):
    row = tl.program_id(0)
    part = tl.arange(0, BP)
    there = part < splits
    top = tl.load(part_max + row * splits + part, mask=there, other=float("-inf"))
    share = tl.where(there, tl.exp2(top - tl.max(top, 0)), 0.0)
    total = tl.sum(share * tl.load(part_sum + row * splits + part, mask=there, other=0.0), 0)
    dim = tl.arange(0, BD)
    block = there[:, None] & (dim < D)[None, :]
    parts = tl.load(part_out + (row * splits + part)[:, None] * D + dim[None, :], mask=block, other=0.0)
    result = tl.sum(parts * share[:, None], 0) / total
    tl.store(out + row * D + dim, result.to(out.dtype.element_ty), mask=dim < D)


def splits_for(batch: int, kv_heads: int, longest: int, units: int) -> int:
    """Return into how many parts a sequence is cut: two waves of programs, at least 256 tokens each, at most 64."""
    wanted = -(-2 * units // (batch * kv_heads))
    return max(1, min(wanted, longest // 256, 64))


def paged_decode(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    table: torch.Tensor,
    lengths: torch.Tensor,
    *,
    splits: int = 1,
) -> torch.Tensor:
    """Attend with one query per sequence over its cached tokens.

    Parameters
    ----------
    q : [batch, heads, dim]
    keys, values : [pages, page, kv_heads, dim], contiguous
    table : [batch, width] int32 page numbers; ``width * page`` covers the longest sequence
    lengths : [batch] int32, each at least 1
    splits : parts each sequence is cut into, so that a small batch fills the device

    Returns
    -------
    [batch, heads, dim] in ``q``'s dtype
    """
    batch, heads, dim = q.shape
    page, kv_heads = keys.shape[1], keys.shape[2]
    longest = table.shape[1] * page
    part_out = torch.empty((batch, heads, splits, dim), dtype=torch.float32, device=q.device)
    part_max = torch.empty((batch, heads, splits), dtype=torch.float32, device=q.device)
    part_sum = torch.empty_like(part_max)
    out = torch.empty_like(q)
    group = heads // kv_heads
    block_dim = triton.next_power_of_2(dim)
    _partial[(batch, kv_heads, splits)](
        q,
        keys,
        values,
        table,
        lengths,
        part_out,
        part_max,
        part_sum,
        _LOG2_E / dim**0.5,
        table.shape[1],
        -(-longest // splits),
        splits,
        HEADS=heads,
        KV_HEADS=kv_heads,
        GROUP=group,
        BG=max(16, triton.next_power_of_2(group)),
        D=dim,
        BD=block_dim,
        PAGE=page,
        BS=64,
        num_warps=4,
    )
    _combine[(batch * heads,)](
        part_out,
        part_max,
        part_sum,
        out,
        splits,
        D=dim,
        BD=block_dim,
        BP=triton.next_power_of_2(splits),
    )
    return out
