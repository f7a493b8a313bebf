"""Expert cases: the routed part of an MoE layer, from tokens and their experts to the weighted sum."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from moesim.calibrate.kernels import reference
from moesim.calibrate.measure.case import Case, copies, largest_error, normal, sampled, value_bytes
from moesim.calibrate.measure.record import Point

if TYPE_CHECKING:
    import torch

__all__ = ["assign", "loop_moe", "moe_ffn"]

_SKEW = (
    1.2  # exponent of the skewed popularity: the most popular of 64 experts draws about a fifth of the tokens
)


def assign(point: Point, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw routing weights and distinct experts per token, [tokens, top_k] each.

    ``variant`` says how: ``uniform`` (all experts alike) or ``skewed`` (popularity falls with rank ** -1.2).
    """
    import torch

    tokens, experts, top_k = point["tokens"], point["experts"], point["top_k"]
    generator = torch.Generator().manual_seed(seed)
    popularity = torch.ones(experts)
    if point.variant == "skewed":
        popularity = torch.arange(1, experts + 1).float() ** -_SKEW
    # Gumbel noise on log popularity: top-k of it draws without replacement
    noise = -torch.log(-torch.log(torch.rand(tokens, experts, generator=generator).clamp(1e-9, 1 - 1e-7)))
    ids = (popularity.log() + noise).topk(top_k, -1).indices
    weights = torch.rand(tokens, top_k, generator=generator) + 0.1
    weights /= weights.sum(-1, keepdim=True)
    return weights.to(point.device), ids.int().to(point.device)


def loop_moe(
    x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """Run the experts one after the other with plain products; shapes as in ``reference.moe_ffn``."""
    import torch

    top_k = ids.shape[1]
    flat = ids.reshape(-1).long()
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=len(gate_up)).tolist()
    shares = weights.reshape(-1)[order, None].to(x.dtype)
    out = torch.zeros_like(x)
    first = 0
    for expert, count in enumerate(counts):
        if count:
            rows = order[first : first + count] // top_k
            gate, up = torch.nn.functional.linear(x[rows], gate_up[expert]).chunk(2, -1)
            values = torch.nn.functional.linear(torch.nn.functional.silu(gate) * up, down[expert])
            out.index_add_(0, rows, values * shares[first : first + count])
            first += count
    return out


def moe_ffn(point: Point, cache: int) -> Case:
    """Make the gated MoE layer ready: a loop over experts, or the Triton grouped product.

    ``bytes`` counts the weights of the distinct experts alone; the number goes into the record.
    """
    import torch

    hidden, inner, experts = point["hidden"], point["inner"], point["experts"]
    tokens, top_k = point["tokens"], point["top_k"]
    size = value_bytes(point.dtype)
    expert_bytes = 3.0 * hidden * inner * size
    make = partial(normal, dtype=point.dtype, device=point.device)
    x = make(0, tokens, hidden)
    weights, ids = assign(point, 1)
    load = torch.bincount(ids.reshape(-1).long(), minlength=experts)
    distinct, busiest = int((load > 0).sum()), int(load.max())
    sets = [
        (
            make(2 * i + 1, experts, 2 * inner, hidden, scale=hidden**-0.5),
            make(2 * i + 2, experts, hidden, inner, scale=inner**-0.5),
        )
        for i in range(copies(expert_bytes * distinct, cache, 8))
    ]
    kernel: Any = loop_moe
    if point.kernel == "triton":
        from moesim.calibrate.kernels import grouped_gemm

        kernel = grouped_gemm.fused_moe
    rows = sampled(tokens, 8)

    def check() -> float:
        got = kernel(x, *sets[0], weights, ids)[rows]
        return largest_error(got, reference.moe_ffn(x[rows], *sets[0], weights[rows], ids[rows]))

    return Case(
        [partial(kernel, x, *pair, weights, ids) for pair in sets],
        6.0 * tokens * top_k * hidden * inner,
        expert_bytes * distinct + 2.0 * tokens * hidden * size,
        check,
        reference.tolerance(point.dtype, hidden + inner, 4),
        (("distinct", distinct), ("max_rows", busiest)),
        eager=point.kernel == "loop",  # the loop waits for the row counts, which no graph can do
    )
