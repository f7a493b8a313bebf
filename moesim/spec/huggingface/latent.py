"""Families with multi-head latent attention: DeepSeek-V2 to V3.2, Kimi-K2, GLM-5; DeepSeekMoE before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moesim.spec.huggingface.grouped import grouped_query
from moesim.spec.huggingface.parts import Parts

if TYPE_CHECKING:
    from moesim.spec.huggingface.config import Config

__all__ = ["deepseek", "deepseek_experts", "deepseek_moe", "dense_first", "multi_latent"]


def multi_latent(c: Config) -> dict[str, Any]:
    """Read the keys of latent attention and, where there is one, of its indexer."""
    c.skip("head_dim", "num_key_value_heads", "qk_head_dim", "kv_channels")
    return {
        "kind": "mla",
        "heads": c.integer("num_attention_heads"),
        "q_lora_rank": c.integer("q_lora_rank", default=0),
        "kv_lora_rank": c.integer("kv_lora_rank"),
        "qk_nope_head_dim": c.integer("qk_nope_head_dim"),
        "qk_rope_head_dim": c.integer("qk_rope_head_dim"),
        "v_head_dim": c.integer("v_head_dim"),
        "index_heads": c.integer("index_n_heads", default=0),
        "index_head_dim": c.integer("index_head_dim", default=0),
        "index_top_k": c.integer("index_topk", default=0),
    }


def deepseek_experts(c: Config) -> dict[str, Any]:
    """Read routed and shared experts under DeepSeek's names (Kimi-Linear spells some differently)."""
    width = c.integer("moe_intermediate_size")
    shared = c.integer("n_shared_experts", "num_shared_experts", default=0)
    groups = c.integer("n_group", "num_expert_group", default=1) or 1
    top_groups = c.integer("topk_group", default=1) or 1
    greedy = c.raw("topk_method", default="") == "greedy"
    return {
        "kind": "moe",
        "experts": c.integer("n_routed_experts", "num_experts"),
        "top_k": c.integer("num_experts_per_tok", "num_experts_per_token"),
        "intermediate": width,
        "shared_experts": shared,
        "shared_intermediate": shared * width,
        "router_bias": c.raw("topk_method", default="") == "noaux_tc",
        "groups": 1 if greedy else groups,
        "top_groups": 1 if greedy else top_groups,
    }


def dense_first(c: Config, layers: int) -> list[str]:
    """Return ``dense`` or ``moe`` per layer: ``first_k_dense_replace``, then every ``moe_layer_freq``-th."""
    first = c.integer("first_k_dense_replace", default=0)
    if isinstance(c.raw("moe_layer_freq", default=1), list):
        flags = c.items("moe_layer_freq", layers)
    else:
        every = max(c.integer("moe_layer_freq", default=1), 1)
        flags = [i >= first and not i % every for i in range(layers)]
    return ["moe" if flag else "dense" for flag in flags]


def _ffns(c: Config, kinds: list[str]) -> dict[str, dict[str, Any]]:
    ffns: dict[str, dict[str, Any]] = {}
    width = c.integer("intermediate_size", default=0)
    if "dense" in kinds:
        ffns["dense"] = {"kind": "dense", "intermediate": width or c.integer("intermediate_size")}
    if "moe" in kinds:
        ffns["moe"] = deepseek_experts(c)
    return ffns


def deepseek(c: Config) -> Parts:
    """DeepSeek-V2, V3, V3.2, Kimi-K2, GLM-5; in GLM-5.2 most layers reuse an earlier indexer's positions."""
    layers = c.integer("num_hidden_layers")
    kinds = dense_first(c, layers)
    if "mlp_layer_types" in c:
        kinds = ["moe" if kind == "sparse" else "dense" for kind in c.items("mlp_layer_types", layers)]
    full = multi_latent(c)
    attentions = {"mla": full}
    mixers = ["mla"] * layers
    if "indexer_types" in c:
        c.skip("index_topk_freq", "index_skip_topk_offset", "index_topk_pattern")
        mixers = ["mla" if kind == "full" else "mla_shared" for kind in c.items("indexer_types", layers)]
        attentions["mla_shared"] = {**full, "index_shared": True}
    drafts = c.integer("num_nextn_predict_layers", default=0)
    blocks = list(zip(mixers, kinds, strict=True))
    return Parts(
        attentions,
        _ffns(c, kinds),
        blocks,
        mtp_layers=drafts,
        mtp_block=("mla", kinds[-1]) if drafts else None,
    )


def deepseek_moe(c: Config) -> Parts:
    """DeepSeekMoE-16B: the experts of DeepSeek with plain multi-head attention."""
    layers = c.integer("num_hidden_layers")
    kinds = dense_first(c, layers)
    return Parts({"full": grouped_query(c)}, _ffns(c, kinds), [("full", kind) for kind in kinds])
