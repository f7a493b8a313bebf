"""Families with grouped-query attention in every layer: Llama, Mixtral, Qwen, OLMoE, Phi, DBRX, MiniMax."""

from __future__ import annotations

from typing import Any

from moesim.spec.huggingface.config import Config
from moesim.spec.huggingface.parts import DRAFTS_UNKNOWN, Block, Parts

__all__ = [
    "arctic",
    "dbrx",
    "deci",
    "grouped_query",
    "llama",
    "llama4",
    "minimax_m2",
    "minimax_m3",
    "mixtral",
    "qwen_moe",
]


def grouped_query(c: Config, *, qk_norm: bool = False, bias: bool = False) -> dict[str, Any]:
    """Read the usual keys of grouped-query attention; ``bias`` holds where the config is silent."""
    heads = c.integer("num_attention_heads")
    dim = c.integer("head_dim", default=0) or c.integer("hidden_size") // max(heads, 1)
    return {
        "kind": "gqa",
        "heads": heads,
        "kv_heads": c.integer("num_key_value_heads", default=heads),
        "head_dim": dim,
        "bias": c.flag("attention_bias", "qkv_bias", default=bias),
        "qk_norm": qk_norm,
    }


def _sliding(c: Config) -> int | None:
    """Return the window where every layer slides; ``use_sliding_window: false`` switches it off."""
    window = c.integer("sliding_window", default=0)
    context = c.integer("max_position_embeddings")
    return window if window and c.flag("use_sliding_window", default=True) and window < context else None


def llama(c: Config, *, qk_norm: bool = False, bias: bool = False) -> Parts:
    """Dense Llama and its kin: Mistral, Qwen2 (bias), Qwen3 (q/k norms), MiMo (bias)."""
    attention = {**grouped_query(c, qk_norm=qk_norm, bias=bias), "window": _sliding(c)}
    attention["output_bias"] = c.flag("attention_bias") and c.data.get("model_type") == "llama"
    ffn = {"kind": "dense", "intermediate": c.integer("intermediate_size"), "bias": c.flag("mlp_bias")}
    layers = c.integer("num_hidden_layers")
    drafts = c.integer("num_nextn_predict_layers", default=0)
    return Parts({"full": attention}, {"dense": ffn}, [("full", "dense")] * layers, mtp_layers=drafts)


def mixtral(c: Config, *, qk_norm: bool = False, bias: bool = False) -> Parts:
    """Experts in every layer and nothing beside them: Mixtral, Phi-3.5-MoE, OLMoE."""
    ffn = {
        "kind": "moe",
        "experts": c.integer("num_local_experts", "num_experts"),
        "top_k": c.integer("num_experts_per_tok"),
        "intermediate": c.integer("intermediate_size"),
    }
    attention = {**grouped_query(c, qk_norm=qk_norm, bias=bias), "window": _sliding(c)}
    attention["output_bias"] = c.flag("attention_bias") and c.data.get("model_type") == "phimoe"
    attention["qk_norm_whole"] = qk_norm and c.data.get("model_type") == "olmoe"
    c.skip("lm_head_bias")  # one value per word, nothing beside the head
    return Parts({"full": attention}, {"moe": ffn}, [("full", "moe")] * c.integer("num_hidden_layers"))


def arctic(c: Config) -> Parts:
    """Snowflake Arctic: a dense FFN as wide as the model beside the experts of every layer."""
    parts = mixtral(c)
    c.skip("use_residual")
    if c.flag("parallel_attn_mlp_res"):
        parts.ffns["moe"]["dense_residual"] = c.integer("hidden_size")
    if c.integer("moe_layer_frequency", default=1) != 1:
        raise c.error("moe_layer_frequency", "expected 1, experts in every layer")
    return parts


def qwen_experts(c: Config) -> dict[str, Any]:
    """Read the experts of Qwen2-MoE, Qwen3-MoE, Qwen3-Next and Qwen3.5."""
    shared = c.integer("shared_expert_intermediate_size", default=0)
    return {
        "kind": "moe",
        "experts": c.integer("num_experts"),
        "top_k": c.integer("num_experts_per_tok"),
        "intermediate": c.integer("moe_intermediate_size"),
        "shared_experts": 1 if shared else 0,
        "shared_intermediate": shared,
        "shared_gate": bool(shared),
    }


def qwen_ffns(c: Config, layers: int) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the FFNs and which one each layer has: ``decoder_sparse_step`` and ``mlp_only_layers``."""
    step = c.integer("decoder_sparse_step", default=1)
    dense = c.items("mlp_only_layers", default=[])
    if not c.integer("num_experts", default=0):
        return {"dense": {"kind": "dense", "intermediate": c.integer("intermediate_size")}}, [
            "dense"
        ] * layers
    kinds = ["dense" if i in dense or not step or (i + 1) % step else "moe" for i in range(layers)]
    ffns = {"moe": qwen_experts(c)} if "moe" in kinds else {}
    width = c.integer("intermediate_size", default=0)  # written even where no layer uses it
    if "dense" in kinds:
        if not width:
            raise c.error("intermediate_size", "expected the width of the dense layers")
        ffns["dense"] = {"kind": "dense", "intermediate": width}
    return ffns, kinds


def qwen_moe(c: Config, *, qk_norm: bool = True, bias: bool = False) -> Parts:
    """Qwen2-MoE (bias, shared expert) and Qwen3-MoE (q/k norms)."""
    layers = c.integer("num_hidden_layers")
    ffns, kinds = qwen_ffns(c, layers)
    attention = {**grouped_query(c, qk_norm=qk_norm, bias=bias), "window": None}
    if c.flag("use_sliding_window", default=False):
        raise c.error(
            "use_sliding_window", "expected false: windows on some layers only are not understood here"
        )
    c.skip("sliding_window")
    return Parts({"full": attention}, ffns, [("full", kind) for kind in kinds])


def dbrx(c: Config) -> Parts:
    """DBRX: the sizes stand in ``attn_config`` and ``ffn_config``, the rest under GPT-2 names."""
    attn, ffn = c.part("attn_config"), c.part("ffn_config")
    heads = c.integer("n_heads")
    attention = {
        "kind": "gqa",
        "heads": heads,
        "kv_heads": attn.integer("kv_n_heads"),
        "head_dim": c.integer("d_model") // max(heads, 1),
    }
    experts = {
        "kind": "moe",
        "experts": ffn.integer("moe_num_experts"),
        "top_k": ffn.integer("moe_top_k"),
        "intermediate": ffn.integer("ffn_hidden_size"),
    }
    return Parts({"full": attention}, {"moe": experts}, [("full", "moe")] * c.integer("n_layers"))


def llama4(c: Config) -> Parts:
    """Llama 4: one shared expert, experts in every n-th layer, chunked attention in three layers of four."""
    layers, step = c.integer("num_hidden_layers"), c.integer("interleave_moe_layer_step")
    full = grouped_query(c)
    chunk = c.integer("attention_chunk_size", default=0)
    rope = c.items("no_rope_layers", layers, default=[]) or [(i + 1) % 4 != 0 for i in range(layers)]
    width = c.integer("intermediate_size")
    ffns: dict[str, dict[str, Any]] = {
        "moe": {
            "kind": "moe",
            "experts": c.integer("num_local_experts"),
            "top_k": c.integer("num_experts_per_tok"),
            "intermediate": width,
            "shared_experts": 1,
            "shared_intermediate": width,
        },
        "dense": {"kind": "dense", "intermediate": c.integer("intermediate_size_mlp")},
    }
    chosen = c.items("moe_layers", default=[]) or list(range(step - 1, layers, max(step, 1)))
    kinds = ["moe" if i in chosen else "dense" for i in range(layers)]
    if "dense" not in kinds:
        del ffns["dense"]
    local = "chunked" if chunk else "full"
    blocks: list[Block] = [(local if rope[i] else "full", kinds[i]) for i in range(layers)]
    attentions = {"chunked": {**full, "window": chunk}, "full": full} if chunk else {"full": full}
    notes = [
        "Layers with rotary positions attend within chunks; a chunk is held as a window, its upper bound."
    ]
    return Parts(attentions, ffns, blocks, notes=notes if chunk else [])


def deci(c: Config) -> Parts:
    """Llama-Nemotron from architecture search: every layer has its own KV heads and FFN width, or neither."""
    heads, hidden = c.integer("num_attention_heads"), c.integer("hidden_size")
    attentions: dict[str, dict[str, Any]] = {}
    ffns: dict[str, dict[str, Any]] = {}
    blocks: list[Block] = []
    for block in c.items("block_configs", c.integer("num_hidden_layers")):
        layer = Config(block if isinstance(block, dict) else {}, c.where, "block_configs.")
        mixer, feed = layer.part("attention"), layer.part("ffn")
        for part in (mixer, feed):
            if part.flag("replace_with_linear") or part.raw("sparsify", default=None):
                raise c.error(
                    "block_configs", "expected plain or absent blocks, found a replaced or sparse one"
                )
        if mixer.flag("no_op"):
            attentions["none"] = {"kind": "none"}
            name = "none"
        else:
            kv = heads // max(mixer.integer("n_heads_in_group"), 1)
            window = mixer.integer("window_length", default=0)
            name = f"kv{kv}" + (f"_window{window}" if window else "")
            dim = hidden // max(heads, 1)
            attentions[name] = {
                "kind": "gqa",
                "heads": heads,
                "kv_heads": kv,
                "head_dim": dim,
                "window": window or None,
            }
        width = 0
        if not feed.flag("no_op"):
            raw = int(2 * feed.number("ffn_mult") * hidden / 3)
            width = (
                -(-raw // 256) * 256
            )  # rounded up to a multiple of 256, as the checkpoint's own class does
        ffns[f"dense{width}"] = {"kind": "dense", "intermediate": width}
        blocks.append((name, f"dense{width}"))
    return Parts(attentions, ffns, blocks)


def minimax_m2(c: Config) -> Parts:
    """MiniMax-M2: experts in every layer; q/k norms over all heads."""
    experts = {
        "kind": "moe",
        "experts": c.integer("num_local_experts"),
        "top_k": c.integer("num_experts_per_tok"),
        "intermediate": c.integer("intermediate_size"),
        "router_bias": c.flag("use_routing_bias"),
    }
    shared = c.integer("shared_intermediate_size", default=0)
    if shared:
        experts |= {"shared_experts": 1, "shared_intermediate": shared}
    c.skip("rotary_dim", "attn_type_list", "mtp_transformer_layers")
    attention = grouped_query(c, qk_norm=c.flag("use_qk_norm"))
    attention["qk_norm_whole"] = attention["qk_norm"] and c.raw("qk_norm_type", default="") == "per_layer"
    drafts = c.integer("num_mtp_modules", default=0) if c.flag("use_mtp", default=True) else 0
    blocks = [("full", "moe")] * c.integer("num_hidden_layers")
    notes = [DRAFTS_UNKNOWN] if drafts else []
    return Parts({"full": attention}, {"moe": experts}, blocks, mtp_layers=drafts, notes=notes)


def minimax_m3(c: Config) -> Parts:
    """MiniMax-M3: block-sparse attention chosen by an indexer, dense first layers, one shared expert."""
    layers = c.integer("num_hidden_layers")
    full = {**grouped_query(c, qk_norm=c.flag("use_qk_norm")), "gate": c.flag("attention_output_gate")}
    sparse = c.part("sparse_attention_config")
    indexed = {
        **full,
        "index_heads": sparse.integer("sparse_num_index_heads"),
        "index_head_dim": sparse.integer("sparse_index_dim"),
        "index_top_k": sparse.integer("sparse_topk_blocks") * sparse.integer("sparse_block_size"),
    }
    frequency = sparse.items("sparse_attention_freq", layers)
    moe = c.items("moe_layer_freq", layers)
    c.skip("first_k_dense_replace", "qk_norm_type", "rotary_dim", "num_mtp_modules", "n_shared_experts")
    shared = c.integer("shared_intermediate_size", default=0)
    ffns = {
        "dense": {"kind": "dense", "intermediate": c.integer("dense_intermediate_size")},
        "moe": {
            "kind": "moe",
            "experts": c.integer("num_local_experts"),
            "top_k": c.integer("num_experts_per_tok"),
            "intermediate": c.integer("moe_intermediate_size", "intermediate_size"),
            "shared_experts": 1 if shared else 0,
            "shared_intermediate": shared,
            "router_bias": c.flag("use_routing_bias"),
        },
    }
    blocks: list[Block] = [
        ("sparse" if frequency[i] else "full", "moe" if moe[i] else "dense") for i in range(layers)
    ]
    drafts = c.integer("num_nextn_predict_layers", "num_mtp_modules", default=0)
    notes = [DRAFTS_UNKNOWN] if drafts else []
    return Parts({"full": full, "sparse": indexed}, ffns, blocks, mtp_layers=drafts, notes=notes)
