"""Mixers: parameters of one attention, recurrent mixer or FFN, from its dimensions alone."""

from __future__ import annotations

from moesim.errors import SpecError
from moesim.files import nearest
from moesim.spec.model import Attention, GroupedQuery, LinearAttention, ModelSpec, MultiLatent

__all__ = ["attention_named", "convolution_channels", "mixer_parameters", "mlp_parameters"]


def mlp_parameters(width: int, intermediate: int, *, gated: bool, bias: bool) -> int:
    """Return the parameters of a feed-forward network: three matrices when gated, else two."""
    matrices = 3 if gated else 2
    return matrices * width * intermediate + (
        ((matrices - 1) * intermediate + width) if bias and intermediate else 0
    )


def mixer_parameters(d: int, mixer: Attention) -> int:
    """Return the parameters of one mixer at model width ``d``: projections, biases, inner norms, indexer."""
    if isinstance(mixer, GroupedQuery):
        return _grouped_query(d, mixer)
    if isinstance(mixer, MultiLatent):
        return _multi_latent(d, mixer)
    if isinstance(mixer, LinearAttention):
        return _linear(d, mixer)
    return 0


def _grouped_query(d: int, a: GroupedQuery) -> int:
    value = a.v_head_dim or a.head_dim
    queries, keys, values = a.heads * a.head_dim, a.kv_heads * a.head_dim, a.kv_heads * value
    if a.shares_kv:
        keys = values = 0
    elif a.k_equals_v:
        values = 0
    projected = queries + keys + values
    total = d * projected + a.heads * value * d + (projected if a.bias else 0) + (d if a.output_bias else 0)
    total += d * a.heads * value if a.gate else 0
    if a.qk_norm:
        total += queries + keys if a.qk_norm_whole else a.head_dim * (1 if a.shares_kv else 2)
    index = d * a.index_heads * a.index_head_dim + d * a.index_head_dim if a.index_heads else 0
    return total + (a.heads if a.sinks else 0) + index


def _multi_latent(d: int, a: MultiLatent) -> int:
    key = a.qk_nope_head_dim + a.qk_rope_head_dim
    queries = (
        d * a.q_lora_rank + a.q_lora_rank + a.q_lora_rank * a.heads * key
        if a.q_lora_rank
        else d * a.heads * key
    )
    latent = d * (a.kv_lora_rank + a.qk_rope_head_dim) + a.kv_lora_rank
    expand = a.kv_lora_rank * a.heads * (a.qk_nope_head_dim + a.v_head_dim)
    out = a.heads * a.v_head_dim * d * (2 if a.gate else 1)
    index = 0
    if a.index_heads and not a.index_shared:
        # queries from the compressed query, one key with a layer norm, one weight per head
        index = (
            (a.q_lora_rank or d) * a.index_heads * a.index_head_dim
            + (d + 2) * a.index_head_dim
            + d * a.index_heads
        )
    return queries + latent + expand + out + index


def convolution_channels(a: LinearAttention) -> int:
    """Return the channels that pass the causal convolution: queries, keys and values (0 without one)."""
    return 2 * a.key_heads * a.key_dim + a.heads * a.head_dim if a.conv_kernel else 0


def _linear(d: int, a: LinearAttention) -> int:
    keys, values = a.key_heads * a.key_dim, a.heads * a.head_dim
    total = d * (2 * keys + values) + values * d + convolution_channels(a) * a.conv_kernel
    gate = d * values if a.gate else 0
    if a.flavor == "gated_delta":  # write strength and decay per head; one norm shared by the heads
        return total + gate + 2 * d * a.heads + 2 * a.heads + a.head_dim
    if a.flavor == "mamba2":  # step size per head; A, D and step bias; convolution bias; norm over all heads
        return total + gate + d * a.heads + 3 * a.heads + convolution_channels(a) + values
    if a.flavor == "lightning":
        return total + gate + values
    # KDA: decay per key channel through a low-rank pair, write strength per head, the gate low-rank as well
    low_rank = d * a.head_dim + a.head_dim * values if a.gate else 0
    low_rank = gate if a.full_rank_gate else low_rank
    decay = d * a.head_dim + a.head_dim * keys + keys + a.heads
    return total + low_rank + decay + d * a.heads + a.head_dim


def attention_named(model: ModelSpec, name: str) -> Attention:
    """Return the attention ``name`` of ``model``.

    Raises
    ------
    SpecError : no such attention; the message carries the nearest name
    """
    try:
        return model.attentions[name]
    except KeyError:
        raise SpecError(f"{model.name}: no attention {name!r}{nearest(name, model.attentions)}") from None
