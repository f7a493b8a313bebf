"""Ops: the pieces of the small transformer; the model calls them and the microbenchmarks time them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["add", "attend", "clear", "collect", "combine", "glu", "norm", "product", "rotations", "select"]


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return x [m, k] times weight [n, k] transposed."""
    import torch

    return torch.nn.functional.linear(x, weight)


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return RMSNorm of the rows of x [m, h]."""
    import torch

    return torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, 1e-6)


def add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return x + y, both [m, h]."""
    return x + y


def clear(x: torch.Tensor) -> torch.Tensor:
    """Return zeros of the shape of x [m, h]."""
    import torch

    return torch.zeros_like(x)


def glu(both: torch.Tensor) -> torch.Tensor:
    """Return silu(first half) * second half of the columns of [m, 2 i]."""
    import torch

    gate, up = both.chunk(2, -1)
    return torch.nn.functional.silu(gate) * up


def rotations(length: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosine and sine [length, dim / 2] of the rotary position code (base 10000)."""
    import torch

    rates = 10_000.0 ** (-torch.arange(0, dim, 2) / dim)
    angles = torch.arange(length)[:, None] * rates[None, :]
    return angles.cos(), angles.sin()


def attend(qkv: torch.Tensor, batch: int, dim: int, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Return causal attention with rotary positions.

    Parameters
    ----------
    qkv : [batch * length, 3 * heads * dim]
    turn : ``rotations`` of the length

    Returns
    -------
    [batch * length, heads * dim]
    """
    import torch

    length = qkv.shape[0] // batch
    q, k, v = qkv.view(batch, length, 3, -1, dim).permute(2, 0, 3, 1, 4)
    q, k = _rotated(q, turn), _rotated(k, turn)
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return mixed.transpose(1, 2).reshape(batch * length, -1)


def _rotated(x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    import torch

    cosine, sine = turn
    first, second = x.chunk(2, -1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1)


def select(logits: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Choose experts and sort the (token, choice) pairs by expert.

    Parameters
    ----------
    logits : [m, experts]

    Returns
    -------
    weights : [m * top_k] renormalised, in sorted order
    tokens : [m * top_k] rows of the pairs, sorted by expert
    counts : pairs per expert
    """
    import torch

    weights, ids = torch.softmax(logits, -1).topk(top_k, -1)
    weights = weights / weights.sum(-1, keepdim=True)
    flat = ids.view(-1)
    order = flat.argsort(stable=True)
    counts: list[int] = torch.bincount(flat, minlength=logits.shape[1]).tolist()
    return weights.view(-1)[order], order // top_k, counts


def collect(
    x: torch.Tensor, tokens: torch.Tensor, first: int, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows of one expert: their tokens [count] and values [count, h]."""
    rows = tokens[first : first + count]
    return rows, x[rows]


def combine(
    out: torch.Tensor, rows: torch.Tensor, values: torch.Tensor, weights: torch.Tensor, first: int
) -> None:
    """Add ``values`` [count, h], times their routing weights, to the rows of ``out`` in place."""
    out.index_add_(0, rows, values * weights[first : first + len(rows), None])
