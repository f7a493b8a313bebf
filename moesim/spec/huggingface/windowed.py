"""Families that mix full and sliding-window attention: gpt-oss, Gemma 4, MiMo-V2, Step-3.x."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moesim.spec.huggingface.grouped import grouped_query
from moesim.spec.huggingface.latent import deepseek_experts
from moesim.spec.huggingface.parts import DRAFTS_UNKNOWN, Block, Parts

if TYPE_CHECKING:
    from moesim.spec.huggingface.config import Config

__all__ = ["gemma4", "gpt_oss", "mimo_v2", "step3"]


def _types(c: Config, layers: int) -> list[str]:
    types = c.items("layer_types", layers)
    wrong = sorted(set(types) - {"full_attention", "sliding_attention"})
    if wrong:
        raise c.error("layer_types", f"expected full_attention or sliding_attention, found {wrong[0]!r}")
    return ["full" if kind == "full_attention" else "window" for kind in types]


def gpt_oss(c: Config) -> Parts:
    """gpt-oss: biases everywhere, one learned sink per head, windows in every other layer."""
    layers = c.integer("num_hidden_layers")
    full = {**grouped_query(c, bias=True), "output_bias": True, "sinks": True}
    experts = {
        "kind": "moe",
        "experts": c.integer("num_local_experts", "num_experts"),
        "top_k": c.integer("num_experts_per_tok", "experts_per_token"),
        "intermediate": c.integer("intermediate_size"),
        "bias": True,
        "router_bias": True,
    }
    window = c.integer("sliding_window")
    blocks: list[Block] = [(kind, "moe") for kind in _types(c, layers)]
    return Parts({"window": {**full, "window": window}, "full": full}, {"moe": experts}, blocks)


def gemma4(c: Config) -> Parts:
    """Gemma 4: wider heads and shared key/value projection in full layers; a dense FFN beside the experts."""
    layers = c.integer("num_hidden_layers")
    local = {**grouped_query(c, qk_norm=True), "window": c.integer("sliding_window")}
    full = {
        **local,
        "window": None,
        "head_dim": c.integer("global_head_dim", default=local["head_dim"]),
        "kv_heads": c.integer("num_global_key_value_heads", default=local["kv_heads"]),
        "k_equals_v": c.flag("attention_k_eq_v"),
    }
    width = c.integer("intermediate_size")
    for key in ("hidden_size_per_layer_input", "num_kv_shared_layers"):
        if c.integer(key, default=0):
            raise c.error(key, "expected 0: this part of Gemma is not understood")
    c.skip("vocab_size_per_layer_input")
    if c.flag("enable_moe_block"):
        ffn: dict[str, Any] = {
            "kind": "moe",
            "experts": c.integer("num_experts"),
            "top_k": c.integer("top_k_experts", "num_experts_per_tok"),
            "intermediate": c.integer("moe_intermediate_size", "expert_intermediate_size"),
            "dense_residual": width,
        }
        name = "moe"
    else:
        ffn, name = {"kind": "dense", "intermediate": width}, "dense"
    blocks: list[Block] = [(kind, name) for kind in _types(c, layers)]
    return Parts({"window": local, "full": full}, {name: ffn}, blocks)


def mimo_v2(c: Config) -> Parts:
    """MiMo-V2: windows with their own head counts, narrower values, sinks where the config says so."""
    layers = c.integer("num_hidden_layers")
    full = {
        **grouped_query(c),
        "v_head_dim": c.integer("v_head_dim"),
        "sinks": c.flag("add_full_attention_sink_bias"),
    }
    window = {
        **full,
        "heads": c.integer("swa_num_attention_heads", default=full["heads"]),
        "kv_heads": c.integer("swa_num_key_value_heads", default=full["kv_heads"]),
        "head_dim": c.integer("swa_head_dim", default=full["head_dim"]),
        "v_head_dim": c.integer("swa_v_head_dim", default=full["v_head_dim"]),
        "window": c.integer("sliding_window", "sliding_window_size"),
        "sinks": c.flag("add_swa_attention_sink_bias"),
    }
    c.skip("attention_chunk_size", "attention_value_scale")
    pattern, moe = c.items("hybrid_layer_pattern", layers), c.items("moe_layer_freq", layers)
    ffns = {
        "dense": {"kind": "dense", "intermediate": c.integer("intermediate_size")},
        "moe": deepseek_experts(c),
    }
    blocks: list[Block] = [
        ("window" if pattern[i] else "full", "moe" if moe[i] else "dense") for i in range(layers)
    ]
    return Parts({"full": full, "window": window}, ffns, blocks)


def step3(c: Config) -> Parts:
    """Step-3.5 and 3.7 Flash: one full layer in four, dense first layers, one shared expert."""
    layers, first = c.integer("num_hidden_layers"), c.integer("first_k_dense_replace", default=0)
    full = grouped_query(c)
    shared = c.integer("n_shared_experts", default=0)
    experts = {
        "kind": "moe",
        "experts": c.integer("num_experts"),
        "top_k": c.integer("num_experts_per_tok"),
        "intermediate": c.integer("moe_intermediate_size"),
        "shared_experts": shared,
        "shared_intermediate": shared * c.integer("share_expert_dim", default=0),
        "router_bias": c.flag("use_moe_router_bias"),
    }
    dense = {"kind": "dense", "intermediate": c.integer("intermediate_size")}
    window = {**full, "window": c.integer("sliding_window")}
    kinds = _types(c, layers)
    blocks: list[Block] = [(kinds[i], "dense" if i < first else "moe") for i in range(layers)]
    drafts = c.integer("num_nextn_predict_layers", default=0)
    notes = [DRAFTS_UNKNOWN] if drafts else []
    ffns = {"dense": dense, "moe": experts}
    return Parts({"full": full, "window": window}, ffns, blocks, mtp_layers=drafts, notes=notes)
