"""FLOPs per token under a named convention: papers mean four different things by the word."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from moesim.spec.model import GroupedQuery, ModelSpec, MultiLatent
from moesim.spec.parameters import parameter_count

__all__ = ["FlopConvention", "attention_width", "flops_per_token"]

FlopConvention = Literal["forward", "linear", "macs", "training"]
"""``forward``: 2 per multiply-add of every product, attention over the context included.
``linear``: the same without attention scores (AdaMoE's ratios).
``macs``: multiply-adds of ``linear``, often printed as "GFLOPs" (DiT-MoE).
``training``: forward and backward, ``6 N + 12 L d s`` (DeepSeekMoE), over the whole sequence, not causal."""


def attention_width(model: ModelSpec) -> float:
    """Return heads times (key width + value width) / 2 over all decoder layers: ``L d`` of plain attention.

    Latent attention counts the expanded heads of prefill; recurrent mixers do not grow with the context: 0.
    """
    total = 0.0
    for name, layers in Counter(name for name, _ in model.blocks()).items():
        a = model.attentions[name]
        if isinstance(a, GroupedQuery):
            total += layers * a.heads * (a.head_dim + (a.v_head_dim or a.head_dim)) / 2
        elif isinstance(a, MultiLatent):
            total += layers * a.heads * (a.qk_nope_head_dim + a.qk_rope_head_dim + a.v_head_dim) / 2
    return total


def flops_per_token(model: ModelSpec, convention: FlopConvention = "forward", context: float = 0.0) -> float:
    """Return operations per token.

    Parameters
    ----------
    model : the input embedding is a lookup and costs nothing; a tied head is still a product
    convention : see ``FlopConvention``
    context : keys each query attends to (``training``: the sequence length); sliding windows are not cut

    """
    count = parameter_count(model)
    weights = count.active - (0 if model.tied_embeddings else count.embedding)
    if convention == "macs":
        return float(weights)
    if convention == "linear":
        return 2.0 * weights
    width = attention_width(model)
    if convention == "training":
        return 6.0 * weights + 12.0 * width * context
    return 2.0 * weights + 4.0 * width * context
