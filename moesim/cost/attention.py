"""Attention: projections of each mixer as ops, and attention itself as coefficients per key and query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moesim.cost.layout import Layout, kv_heads_per_device, layer_counts
from moesim.cost.ops import Exchange, IntArray, Op, gemm, memory_op, scaled, transfer
from moesim.cost.precision import Format, peak
from moesim.cost.pricing import AttentionTerm
from moesim.spec.model import GroupedQuery, LinearAttention, MultiLatent
from moesim.spec.parameters import state_bytes_per_sequence

if TYPE_CHECKING:
    from moesim.spec.hardware import DeviceSpec, Dtype

__all__ = ["AttentionShape", "attention_shapes", "bound_term", "mixer_ops"]

_DELTA_FLOP = 7
"""Operations per state value and token of a gated delta rule: decay 1, read 2, rank-1 write 2, query 2."""
_SCAN_FLOP = 5
"""The same for Mamba-2 and lightning attention: decay 1, rank-1 write 2, query 2."""


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Work of one kind of attention on one device, per layer.

    Attributes
    ----------
    name : the model's name for it, plus ``.index`` for an indexer and ``.expand`` for the context of latent
        attention
    kind : ``gqa``, ``mla``, ``index``, ``expand``, ``recurrent``
    window : as in ``AttentionTerm``
    heads, kv_heads, head_dim : on this device
    launches : kernels per layer and phase
    decode_pair_flop, prefill_pair_flop : operations per (query, key) pair, all heads
    decode_key_bytes, prefill_key_bytes : bytes read per key
    prefill_key_flop : operations per key read (re-expanding cached latents)
    sequence_bytes : bytes per decoding sequence: query, output, cache write
    token_bytes : the same per prefill token
    own_keys_free : the chunk's own keys cost nothing here (an op of the lane already made them)
    """

    name: str
    kind: str
    layers: int
    window: int
    dtype: Dtype
    heads: int
    kv_heads: int
    head_dim: int
    launches: int = 1
    decode_pair_flop: float = 0.0
    prefill_pair_flop: float = 0.0
    decode_key_bytes: float = 0.0
    prefill_key_bytes: float = 0.0
    prefill_key_flop: float = 0.0
    sequence_bytes: float = 0.0
    token_bytes: float = 0.0
    own_keys_free: bool = False


def bound_term(shape: AttentionShape, device: DeviceSpec, launch_s: float) -> AttentionTerm:
    """Return the roofline coefficients of ``shape`` on ``device``, all its layers.

    Raises
    ------
    NoResult : the device has no peak for the arithmetic
    """
    layers, rate, read = shape.layers, peak(device, shape.dtype), device.main.bandwidth
    key = layers * max(shape.prefill_key_bytes / read, shape.prefill_key_flop / rate)
    return AttentionTerm(
        name=shape.name,
        window=shape.window,
        launch_s=layers * shape.launches * launch_s,
        decode_flop_s=layers * shape.decode_pair_flop / rate,
        decode_kv_s=layers * shape.decode_key_bytes / read,
        decode_seq_s=layers * shape.sequence_bytes / read,
        prefill_flop_s=layers * shape.prefill_pair_flop / rate,
        prefill_kv_s=key,
        prefill_token_s=layers * shape.token_bytes / read - (key if shape.own_keys_free else 0.0),
    )


def attention_shapes(layout: Layout) -> tuple[AttentionShape, ...]:
    """Return every kind of attention of the model, indexers and context expansion apart, in layer order."""
    shapes: list[AttentionShape] = []
    for name, layers in layer_counts(layout.model)[0].items():
        mixer = layout.model.attentions[name]
        if isinstance(mixer, GroupedQuery):
            shapes += _gqa_shapes(layout, name, mixer, layers)
        elif isinstance(mixer, MultiLatent):
            shapes += _mla_shapes(layout, name, mixer, layers)
        elif isinstance(mixer, LinearAttention):
            shapes.append(_recurrent_shape(layout, name, mixer, layers))
    return tuple(shapes)


def mixer_ops(layout: Layout, tokens: IntArray, name: str, layers: int, suffix: str = "") -> list[Op]:
    """Return the projections around attention ``name``, without attention itself, for one lane's tokens."""
    mixer = layout.model.attentions[name]
    if isinstance(mixer, GroupedQuery):
        ops = _gqa_ops(layout, tokens, mixer, layers, suffix)
    elif isinstance(mixer, MultiLatent):
        ops = _mla_ops(layout, tokens, mixer, layers, suffix)
    elif isinstance(mixer, LinearAttention):
        ops = _linear_ops(layout, tokens, mixer, layers, suffix)
    else:
        ops = []
    return ops


def _quantise(
    layout: Layout, tokens: IntArray, width: int, weights: Format, layers: int, name: str
) -> list[Op]:
    """Return the pass that turns activations into the products' type, none where they run in 16 bits."""
    if not weights.quantises:
        return []
    size = width * (layout.formats.activation_bytes + weights.input_bytes)
    return [memory_op(name, "lane", tokens, size, weights.compute, layers)]


def _gqa_ops(layout: Layout, tokens: IntArray, a: GroupedQuery, layers: int, suffix: str) -> list[Op]:
    d, tp, weights, wide = (
        layout.model.hidden,
        layout.parallelism.tp,
        layout.formats.attention,
        layout.formats,
    )
    value = a.v_head_dim or a.head_dim
    heads, kv = a.heads // tp, kv_heads_per_device(a, tp)
    queries, keys, values = heads * a.head_dim, kv * a.head_dim, kv * value
    keys, values = (0, 0) if a.shares_kv else (keys, 0 if a.k_equals_v else values)
    columns = queries + keys + values + (heads * value if a.gate else 0)
    if a.index_heads and not a.index_shared:
        columns += a.index_heads * a.index_head_dim + a.index_head_dim
    act = wide.activation_bytes
    ops = _quantise(layout, tokens, d, weights, layers, f"qkv_quantise{suffix}")
    ops.append(gemm(f"qkv_proj{suffix}", "lane", tokens, columns, d, weights, layers, output_bytes=act))
    if a.qk_norm_whole:
        ops += _whole_norm(layout, tokens, queries + keys, layers, suffix)
    ops.append(memory_op(f"rope{suffix}", "lane", tokens, 2 * act * (queries + keys), wide.core, layers))
    if a.gate:
        ops.append(
            memory_op(f"output_gate{suffix}", "lane", tokens, 3 * act * heads * value, wide.core, layers)
        )
    ops += _quantise(layout, tokens, heads * value, weights, layers, f"o_quantise{suffix}")
    ops.append(gemm(f"o_proj{suffix}", "lane", tokens, d, heads * value, weights, layers, output_bytes=act))
    return ops


def _whole_norm(layout: Layout, tokens: IntArray, width: int, layers: int, suffix: str) -> list[Op]:
    """Return the norm of all heads of q and k at once: sums of squares, their all-reduce (fp32), and the scaling.

    Norms of single heads are fused with the rotation in the engines and counted there. Source: vLLM, minimax_m2.py.
    """
    act, core = layout.formats.activation_bytes, layout.formats.core
    ops = [memory_op(f"qk_norm{suffix}", "lane", tokens, 3 * act * width, core, layers, launches=2)]
    if layout.tensor.ranks > 1:
        sums = Exchange("all_reduce", layout.tensor, scaled(tokens, 2 * 4.0))
        ops.append(transfer(f"qk_norm_all_reduce{suffix}", "lane", tokens, sums, core, layers))
    return ops


def _mla_ops(layout: Layout, tokens: IntArray, a: MultiLatent, layers: int, suffix: str) -> list[Op]:
    d, tp, weights, wide = (
        layout.model.hidden,
        layout.parallelism.tp,
        layout.formats.attention,
        layout.formats,
    )
    heads, act = a.heads // tp, wide.activation_bytes
    key = a.qk_nope_head_dim + a.qk_rope_head_dim
    latent = a.kv_lora_rank + a.qk_rope_head_dim

    def project(name: str, n: int, k: int, *, fresh: bool) -> list[Op]:
        before = _quantise(layout, tokens, k, weights, layers, f"{name}_quantise{suffix}") if fresh else []
        return [*before, gemm(f"{name}{suffix}", "lane", tokens, n, k, weights, layers, output_bytes=act)]

    # down-projections are not sharded: every device of the lane needs the whole latent
    if a.q_lora_rank:
        ops = project("qkv_a_proj", a.q_lora_rank + latent, d, fresh=True)
        ops += project("q_b_proj", heads * key, a.q_lora_rank, fresh=True)
    else:
        ops = project("q_proj", heads * key, d, fresh=True)
        ops += project("kv_a_proj", latent, d, fresh=False)
    rope = (heads + 1) * a.qk_rope_head_dim + a.kv_lora_rank
    ops.append(memory_op(f"rope{suffix}", "lane", tokens, 2 * act * rope, wide.core, layers))
    # the same product serves prefill (expand the latent) and decode (absorbed into query and output)
    ops += project("kv_b_proj", heads * (a.qk_nope_head_dim + a.v_head_dim), a.kv_lora_rank, fresh=True)
    if a.index_heads and not a.index_shared:
        ops += project("index_q_proj", a.index_heads * a.index_head_dim, a.q_lora_rank or d, fresh=False)
        ops += project("index_k_proj", a.index_head_dim + a.index_heads, d, fresh=False)
    if a.gate:
        ops += project("gate_proj", heads * a.v_head_dim, d, fresh=False)
    ops += project("o_proj", d, heads * a.v_head_dim, fresh=True)
    return ops


def _linear_ops(layout: Layout, tokens: IntArray, a: LinearAttention, layers: int, suffix: str) -> list[Op]:
    d, tp, weights, wide = (
        layout.model.hidden,
        layout.parallelism.tp,
        layout.formats.attention,
        layout.formats,
    )
    act, keys, values = wide.activation_bytes, a.key_heads * a.key_dim // tp, a.heads * a.head_dim // tp
    heads = a.heads // tp
    columns = 2 * keys + values
    if a.flavor == "kda":  # decay per key channel and gate are low-rank pairs, write strength per head
        columns += heads + a.head_dim * (2 if a.gate else 1)
        low_rank = keys + (values if a.gate else 0)
    else:
        columns += values if a.gate else 0
        columns += {"gated_delta": 2 * heads, "mamba2": heads, "lightning": 0}[a.flavor]
        low_rank = 0
    ops = _quantise(layout, tokens, d, weights, layers, f"in_quantise{suffix}")
    ops.append(gemm(f"in_proj{suffix}", "lane", tokens, columns, d, weights, layers, output_bytes=act))
    if low_rank:
        ops.append(gemm(f"low_rank_proj{suffix}", "lane", tokens, low_rank, a.head_dim, weights, layers))
    if a.conv_kernel:
        ops.append(
            memory_op(f"conv{suffix}", "lane", tokens, 2 * act * (2 * keys + values), wide.core, layers)
        )
    if a.gate:
        ops.append(memory_op(f"gated_norm{suffix}", "lane", tokens, 3 * act * values, wide.core, layers))
    ops += _quantise(layout, tokens, values, weights, layers, f"o_quantise{suffix}")
    ops.append(gemm(f"o_proj{suffix}", "lane", tokens, d, values, weights, layers, output_bytes=act))
    return ops


def _index_shape(
    layout: Layout, name: str, a: GroupedQuery | MultiLatent, layers: int
) -> list[AttentionShape]:
    """Return the indexer that scores every cached position: fp8 keys, one fp32 scale per 128, replicated."""
    if not a.index_heads or a.index_shared:
        return []
    size = a.index_head_dim + 4.0 * -(-a.index_head_dim // 128)
    pair = 2.0 * a.index_heads * a.index_head_dim + 2.0 * a.index_heads
    token = a.index_heads * (a.index_head_dim + 4.0) + size
    return [
        AttentionShape(
            f"{name}.index", "index", layers, 0, layout.formats.index, a.index_heads, 1, a.index_head_dim,
            decode_pair_flop=pair, prefill_pair_flop=pair, decode_key_bytes=size, prefill_key_bytes=size,
            sequence_bytes=token, token_bytes=token,
        )
    ]  # fmt: skip


def _gqa_shapes(layout: Layout, name: str, a: GroupedQuery, layers: int) -> list[AttentionShape]:
    tp, wide = layout.parallelism.tp, layout.formats
    value = a.v_head_dim or a.head_dim
    heads, kv = a.heads // tp, kv_heads_per_device(a, tp)
    pair = 2.0 * heads * (a.head_dim + value)
    key = kv * (a.head_dim + value) * wide.kv_bytes
    token = heads * (a.head_dim + value) * wide.activation_bytes + (0.0 if a.shares_kv else key)
    window = min([w for w in (a.window, a.index_top_k if a.index_heads else 0) if w], default=0)
    shape = AttentionShape(
        name, "gqa", layers, window, wide.core, heads, kv, a.head_dim,
        decode_pair_flop=pair, prefill_pair_flop=pair, decode_key_bytes=key, prefill_key_bytes=key,
        sequence_bytes=token, token_bytes=token,
    )  # fmt: skip
    return [shape, *_index_shape(layout, name, a, layers)]


def _mla_shapes(layout: Layout, name: str, a: MultiLatent, layers: int) -> list[AttentionShape]:
    tp, wide = layout.parallelism.tp, layout.formats
    heads, act = a.heads // tp, wide.activation_bytes
    latent = a.kv_lora_rank + a.qk_rope_head_dim
    key = a.qk_nope_head_dim + a.qk_rope_head_dim
    absorbed = 2.0 * heads * (latent + a.kv_lora_rank)
    cached = latent * wide.kv_bytes  # one head, so every device of the lane keeps all of it
    sparse = bool(a.index_heads)
    sequence = heads * (latent + a.kv_lora_rank) * act + cached
    expanded = heads * (key + a.v_head_dim) * act
    window = min([w for w in (a.window, a.index_top_k if sparse else 0) if w], default=0)
    core = AttentionShape(
        name, "mla", layers, window, wide.core, heads, 1, latent,
        decode_pair_flop=absorbed,
        # sparse attention picks other keys for each query, so prefill reads latents as decode does
        prefill_pair_flop=absorbed if sparse else 2.0 * heads * (key + a.v_head_dim),
        decode_key_bytes=cached,
        prefill_key_bytes=cached if sparse else expanded,
        sequence_bytes=sequence,
        token_bytes=sequence if sparse else heads * (key + a.v_head_dim) * act + cached,
    )  # fmt: skip
    if sparse:
        return [core, *_index_shape(layout, name, a, layers)]
    up = a.kv_lora_rank * heads * (a.qk_nope_head_dim + a.v_head_dim)
    expand = AttentionShape(
        f"{name}.expand", "expand", layers, window, wide.attention.compute, heads, 1, latent, launches=0,
        prefill_key_flop=2.0 * up,
        prefill_key_bytes=cached + heads * (a.qk_nope_head_dim + a.v_head_dim) * act,
        own_keys_free=True,
    )  # fmt: skip
    return [core, expand]


def _recurrent_shape(layout: Layout, name: str, a: LinearAttention, layers: int) -> AttentionShape:
    tp, wide = layout.parallelism.tp, layout.formats
    heads = a.heads // tp
    flop = (
        (_DELTA_FLOP if a.flavor in {"gated_delta", "kda"} else _SCAN_FLOP) * heads * a.head_dim * a.key_dim
    )
    state = state_bytes_per_sequence(layout.model, name) / tp
    token = (2 * a.key_heads * a.key_dim / tp + 2 * heads * a.head_dim) * wide.activation_bytes
    return AttentionShape(
        name, "recurrent", layers, -1, wide.core, heads, a.key_heads // tp, a.key_dim,
        decode_pair_flop=flop, prefill_pair_flop=flop, decode_key_bytes=2 * state,
        sequence_bytes=token, token_bytes=token,
    )  # fmt: skip
