"""Families that mix recurrent layers with attention: Qwen3-Next, Kimi-Linear, MiniMax-Text-01, Nemotron-H."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moesim.spec.huggingface.grouped import grouped_query, qwen_ffns
from moesim.spec.huggingface.latent import deepseek_experts, dense_first, multi_latent
from moesim.spec.huggingface.parts import Block, Parts

if TYPE_CHECKING:
    from moesim.spec.huggingface.config import Config

__all__ = ["kimi_linear", "minimax_text", "nemotron_h", "qwen_next"]


def qwen_next(c: Config) -> Parts:
    """Qwen3-Next and Qwen3.5: gated delta nets, every n-th layer gated full attention."""
    layers = c.integer("num_hidden_layers")
    every = c.integer("full_attention_interval", default=4)
    c.skip("output_gate_type")
    if "layer_types" in c:
        types = c.items("layer_types", layers)
    else:
        types = ["linear_attention" if (i + 1) % every else "full_attention" for i in range(layers)]
    unknown = set(types) - {"linear_attention", "full_attention"}
    if unknown:
        raise c.error("layer_types", f"expected linear_attention or full_attention, found {min(unknown)}")
    attentions = {
        "linear": {
            "kind": "linear",
            "flavor": "gated_delta",
            "heads": c.integer("linear_num_value_heads"),
            "head_dim": c.integer("linear_value_head_dim"),
            "key_heads": c.integer("linear_num_key_heads"),
            "key_dim": c.integer("linear_key_head_dim"),
            "conv_kernel": c.integer("linear_conv_kernel_dim"),
        },
        "full": {**grouped_query(c, qk_norm=True), "gate": c.flag("attn_output_gate", default=True)},
    }
    ffns, kinds = qwen_ffns(c, layers)
    mixers = ["linear" if kind == "linear_attention" else "full" for kind in types]
    drafts = c.integer("mtp_num_hidden_layers", "num_nextn_predict_layers", default=0)
    blocks = list(zip(mixers, kinds, strict=True))
    return Parts(
        attentions, ffns, blocks, mtp_layers=drafts, mtp_block=("full", kinds[-1]) if drafts else None
    )


def kimi_linear(c: Config) -> Parts:
    """Kimi-Linear and Kimi-K3: Kimi delta attention, latent attention in the layers listed (from 1)."""
    layers = c.integer("num_hidden_layers")
    kinds = dense_first(c, layers)
    linear = c.part("linear_attn_config")
    full = [*linear.items("full_attn_layers")]
    heads, dim = linear.integer("num_heads"), linear.integer("head_dim")
    attentions = {
        "kda": {
            "kind": "linear",
            "flavor": "kda",
            "heads": heads,
            "head_dim": dim,
            "key_heads": heads,
            "key_dim": dim,
            "conv_kernel": linear.integer("short_conv_kernel_size"),
            "full_rank_gate": linear.flag("use_full_rank_gate"),
        },
        "mla": {**multi_latent(c), "gate": c.flag("mla_use_output_gate")},
    }
    c.skip("mla_use_nope", "latent_moe_use_norm")
    experts = {**deepseek_experts(c), "latent": c.integer("routed_expert_hidden_size", default=0)}
    ffns: dict[str, dict[str, Any]] = {"moe": experts}
    if "dense" in kinds:
        ffns["dense"] = {"kind": "dense", "intermediate": c.integer("intermediate_size")}
    c.skip("intermediate_size")
    mixers = ["mla" if i + 1 in full else "kda" for i in range(layers)]
    notes = []
    if c.integer("attn_res_block_size", default=0):
        notes.append(
            "Residuals attend over blocks of earlier layers; their weights and work are not counted."
        )
    drafts = c.integer("num_nextn_predict_layers", default=0)
    blocks = list(zip(mixers, kinds, strict=True))
    return Parts(attentions, ffns, blocks, mtp_layers=drafts, notes=notes)


def minimax_text(c: Config) -> Parts:
    """MiniMax-Text-01: lightning attention, softmax attention where ``attn_type_list`` says 1."""
    layers = c.integer("num_hidden_layers")
    full = grouped_query(c)
    heads, dim = full["heads"], full["head_dim"]
    lightning = {
        "kind": "linear",
        "flavor": "lightning",
        "heads": heads,
        "head_dim": dim,
        "key_heads": heads,
        "key_dim": dim,
    }
    experts = {
        "kind": "moe",
        "experts": c.integer("num_local_experts"),
        "top_k": c.integer("num_experts_per_tok"),
        "intermediate": c.integer("intermediate_size"),
    }
    if c.raw("shared_intermediate_size", default=0) not in (0, [0]):
        raise c.error(
            "shared_intermediate_size", "expected 0: shared experts of this family are not understood"
        )
    c.skip("postnorm", "layernorm_full_attention_alpha", "rotary_dim")
    blocks: list[Block] = [
        ("full" if kind else "lightning", "moe") for kind in c.items("attn_type_list", layers)
    ]
    return Parts({"lightning": lightning, "full": full}, {"moe": experts}, blocks)


_LETTERS = {"M": "mamba", "E": "moe", "*": "attention", "-": "mlp"}


def _words(c: Config, key: str) -> list[str]:
    return [str(word) for word in c.items(key, default=[])]


def _nemotron_types(c: Config) -> tuple[list[str], list[str]]:
    """Return the kinds of the main blocks and of the draft's blocks."""
    if "layers_block_type" in c:
        return _words(c, "layers_block_type"), _words(c, "mtp_layers_block_type")
    pattern = str(c.raw("hybrid_override_pattern"))
    drafts = str(c.raw("mtp_hybrid_override_pattern", default=""))
    wrong = sorted(set(pattern + drafts) - set(_LETTERS))
    if wrong:
        raise c.error("hybrid_override_pattern", f"expected the letters M E * -, found {wrong[0]!r}")
    return [_LETTERS[letter] for letter in pattern], [_LETTERS[letter] for letter in drafts]


def nemotron_h(c: Config) -> Parts:
    """Nemotron-H and Nemotron 3: each block is one of Mamba-2, attention, experts or a plain MLP."""
    kinds, draft = _nemotron_types(c)
    count = c.integer("num_hidden_layers", default=len(kinds))
    if count != len(kinds):
        raise c.error("num_hidden_layers", f"expected {len(kinds)}, as many as the block pattern has")
    wrong = sorted(set(kinds + draft) - set(_LETTERS.values()))
    if wrong:
        raise c.error("layers_block_type", f"expected mamba, attention, moe or mlp, found {wrong[0]!r}")
    c.skip("intermediate_size", "moe_intermediate_size", "expand")
    names: dict[str, Block] = {
        "mamba": ("mamba", "none"),
        "attention": ("full", "none"),
        "moe": ("none", "moe"),
        "mlp": ("none", "dense"),
    }
    blocks = [names[kind] for kind in kinds]
    used = {name for block in blocks for name in block}
    attentions = {"mamba": _mamba2(c), "full": _nemotron_attention(c), "none": {"kind": "none"}}
    ffns: dict[str, dict[str, Any]] = {"none": {"kind": "dense", "intermediate": 0}}
    if "dense" in used:
        ffns["dense"] = {
            "kind": "dense",
            "intermediate": c.integer("intermediate_size"),
            "gated": False,
            "bias": c.flag("mlp_bias"),
        }
    if "moe" in used:
        ffns["moe"] = _nemotron_experts(c)
    drafts = c.integer("num_nextn_predict_layers", default=0)
    mtp_block: Block | None = None
    if drafts and draft:
        if draft != ["attention", "moe"]:
            raise c.error("mtp_hybrid_override_pattern", "expected attention, then experts")
        mtp_block = ("full", "moe")
    return Parts(attentions, ffns, blocks, mtp_layers=drafts if draft else 0, mtp_block=mtp_block)


def _mamba2(c: Config) -> dict[str, Any]:
    return {
        "kind": "linear",
        "flavor": "mamba2",
        "heads": c.integer("mamba_num_heads"),
        "head_dim": c.integer("mamba_head_dim"),
        "key_heads": c.integer("n_groups"),
        "key_dim": c.integer("ssm_state_size"),
        "conv_kernel": c.integer("conv_kernel"),
    }


def _nemotron_attention(c: Config) -> dict[str, Any]:
    dim = c.integer("head_dim", "attention_head_dim")
    return {**grouped_query(c), "head_dim": dim}


def _nemotron_experts(c: Config) -> dict[str, Any]:
    shared = c.integer("n_shared_experts", default=0)
    width = c.integer("moe_shared_expert_intermediate_size", default=0)
    return {
        "kind": "moe",
        "experts": c.integer("n_routed_experts"),
        "top_k": c.integer("num_experts_per_tok"),
        "intermediate": c.integer("moe_intermediate_size"),
        "gated": False,
        "router_bias": True,
        "shared_experts": shared,
        "shared_intermediate": shared * width,
        "latent": c.integer("moe_latent_size", default=0),
        "groups": c.integer("n_group", default=1),
        "top_groups": c.integer("topk_group", default=1),
    }
