"""References: every kernel's mathematics once more, in float64 and the plainest PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = [
    "attention",
    "dequantised",
    "moe_ffn",
    "pack_int4",
    "paged_decode",
    "product",
    "rmsnorm_residual",
    "softmax_topk",
    "tolerance",
]


def tolerance(dtype: str, terms: int, roundings: int = 1) -> float:
    """Return the largest error, relative to the largest reference value, that rounding explains.

    ``roundings`` half-units of the stored type (doubled for safety), and a random walk of ``terms`` float32
    additions (four standard deviations).

    Parameters
    ----------
    dtype : ``fp32``, ``bf16`` or ``fp16``
    terms : length of the longest sum
    roundings : how often a value passes through ``dtype``, the result included
    """
    unit = {"fp32": 2.0**-23, "fp16": 2.0**-10, "bf16": 2.0**-7}[dtype]
    return float(roundings * unit + 4.0 * 2.0**-23 * terms**0.5)


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return ``x @ weight.T`` in float64; x [m, k], weight [n, k]."""
    return x.double() @ weight.double().T


def moe_ffn(
    x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """Return the gated MoE layer in float64, one token and one choice at a time.

    Parameters
    ----------
    x : [tokens, hidden]
    gate_up : [experts, 2 * inner, hidden], gate rows first
    down : [experts, hidden, inner]
    weights, ids : [tokens, top_k] routing weights and experts
    """
    import torch

    out = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    inner = down.shape[2]
    for token in range(x.shape[0]):
        for choice in range(ids.shape[1]):
            expert = int(ids[token, choice])
            both = gate_up[expert].double() @ x[token].double()
            hidden = torch.nn.functional.silu(both[:inner]) * both[inner:]
            out[token] += weights[token, choice].double() * (down[expert].double() @ hidden)
    return out


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool) -> torch.Tensor:
    """Return softmax attention in float64; q [b, heads, s, d], k and v [b, kv_heads, t, d], last rows aligned."""
    import torch

    group = q.shape[1] // k.shape[1]
    keys, values = (part.double().repeat_interleave(group, 1) for part in (k, v))
    scores = q.double() @ keys.transpose(-1, -2) / q.shape[-1] ** 0.5
    if causal:
        s, t = scores.shape[-2:]
        allowed = torch.ones(s, t, dtype=torch.bool, device=q.device).tril(t - s)
        scores = scores.masked_fill(~allowed, float("-inf"))
    return torch.softmax(scores, -1) @ values


def paged_decode(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, table: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """Return one decode step over a paged cache in float64.

    Parameters
    ----------
    q : [batch, heads, dim]
    keys, values : [pages, page, kv_heads, dim]
    table : [batch, pages of the longest sequence] page numbers
    lengths : [batch] tokens in the cache, at least 1
    """
    import torch

    rows = []
    for sequence in range(q.shape[0]):
        length = int(lengths[sequence])
        pages = table[sequence].long()
        k = keys[pages].flatten(0, 1)[:length].transpose(0, 1)[None]
        v = values[pages].flatten(0, 1)[:length].transpose(0, 1)[None]
        rows.append(attention(q[sequence][None, :, None, :], k, v, causal=False)[0, :, 0])
    return torch.stack(rows)


def rmsnorm_residual(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (``norm(x + residual) * weight``, ``x + residual``) in float64; x and residual [rows, width]."""
    total = x.double() + residual.double()
    scale = (total.square().mean(-1, keepdim=True) + eps).rsqrt()
    return total * scale * weight.double(), total


def softmax_topk(logits: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ``top_k`` largest softmax weights, renormalised, and their experts; logits [rows, experts]."""
    import torch

    weights, ids = torch.softmax(logits.double(), -1).topk(top_k, -1)
    return weights / weights.sum(-1, keepdim=True), ids


def pack_int4(codes: torch.Tensor) -> torch.Tensor:
    """Pack codes 0..15 of [n, k] into bytes [n, k / 2]: byte j holds code j (low) and code j + k / 2 (high).

    Halves rather than neighbours share a byte, so that a kernel reads two contiguous stripes of activations.
    """
    import torch

    half = codes.shape[1] // 2
    low, high = codes[:, :half].to(torch.uint8), codes[:, half:].to(torch.uint8)
    return low | (high << 4)


def dequantised(packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return the float64 weights [n, k] of ``pack_int4`` codes: ``(code - 8) * scale`` of the code's group.

    Parameters
    ----------
    packed : [n, k / 2] uint8
    scales : [n, k / group]
    """
    import torch

    codes = torch.cat((packed & 15, packed >> 4), 1).double() - 8.0
    group = codes.shape[1] // scales.shape[1]
    return codes * scales.double().repeat_interleave(group, 1)
