"""Encoder-decoder families: T5 and Switch Transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moesim.spec.huggingface.parts import Block, Parts

if TYPE_CHECKING:
    from moesim.spec.huggingface.config import Config

__all__ = ["switch", "t5"]


def _attentions(c: Config) -> dict[str, dict[str, Any]]:
    heads = c.integer("num_heads")
    plain = {"kind": "gqa", "heads": heads, "kv_heads": heads, "head_dim": c.integer("d_kv")}
    c.skip("relative_attention_num_buckets", "relative_attention_max_distance")
    return {"decoder": plain, "cross": {**plain, "causal": False}, "encoder": {**plain, "causal": False}}


def _dense(c: Config) -> dict[str, Any]:
    projection = str(c.raw("feed_forward_proj", default="relu"))
    gated = c.flag("is_gated_act", default=projection.startswith("gated"))
    return {"kind": "dense", "intermediate": c.integer("d_ff"), "gated": gated}


def t5(c: Config) -> Parts:
    """T5: dense encoder and decoder with cross-attention."""
    encoder: list[Block] = [("encoder", "dense")] * c.integer("num_layers")
    decoder: list[Block] = [("decoder", "dense")] * c.integer("num_decoder_layers", "num_layers")
    return Parts(_attentions(c), {"dense": _dense(c)}, decoder, encoder=encoder, cross_attention="cross")


def switch(c: Config) -> Parts:
    """Switch Transformers: top-1 experts in every n-th layer of both stacks."""
    dense = _dense(c)
    experts = {
        "kind": "moe",
        "experts": c.integer("num_experts"),
        "top_k": c.integer("num_selected_experts", default=1),
        "intermediate": dense["intermediate"],
        "gated": dense["gated"],
        "router_bias": c.flag("router_bias"),
    }
    c.skip("expert_capacity", "decoder_sparse_step", "encoder_sparse_step", "add_router_probs")

    def stack(name: str, layers: int, sparse: int) -> list[Block]:
        step = layers // sparse if sparse else layers
        return [(name, "moe" if sparse and i % step == 1 % step else "dense") for i in range(layers)]

    layers = c.integer("num_layers")
    encoder = stack("encoder", layers, c.integer("num_sparse_encoder_layers"))
    decoder = stack(
        "decoder", c.integer("num_decoder_layers", "num_layers"), c.integer("num_sparse_decoder_layers")
    )
    ffns = {"dense": dense, "moe": experts}
    return Parts(_attentions(c), ffns, decoder, encoder=encoder, cross_attention="cross")
