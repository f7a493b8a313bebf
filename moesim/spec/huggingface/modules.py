"""Modules: the linear layers of a network under the names that checkpoints give them, and their sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moesim.spec.huggingface.parts import Parts

__all__ = ["Module", "model_modules"]

_MIXERS = ("self_attn", "linear_attn", "mixer", "attn")
_FEEDS = ("mlp", "block_sparse_moe", "mixer", "ffn", "feed_forward")
_SHARED = ("shared_experts", "shared_expert")


@dataclass(frozen=True, slots=True)
class Module:
    """One linear layer, or several of one kind.

    Attributes
    ----------
    names : what checkpoints may call it, prefixes such as ``model.`` removed
    group : ``attention``, ``experts`` or ``default``
    parameters : weights in it
    """

    names: tuple[str, ...]
    group: str
    parameters: int


def model_modules(data: dict[str, Any], parts: Parts) -> Iterator[Module]:
    """Yield the linear layers of the decoder (and of the encoder, whose layers carry the same names)."""
    d = int(data.get("hidden_size") or data.get("d_model") or data.get("n_embd") or 0)
    for index, (mixer, feed) in enumerate(parts.blocks):
        for leaves, size in _mixer(d, parts.attentions[mixer]):
            names = tuple(f"layers.{index}.{holder}.{leaf}" for holder in _MIXERS for leaf in leaves)
            yield Module(names, "attention", size)
        yield from _feed(d, parts.ffns[feed], index)


def _mixer(d: int, a: dict[str, Any]) -> list[tuple[tuple[str, ...], int]]:
    if a["kind"] == "gqa":
        queries, keys = a["heads"] * a["head_dim"], a["kv_heads"] * a["head_dim"]
        out = a["heads"] * (a.get("v_head_dim") or a["head_dim"])
        values = a["kv_heads"] * (a.get("v_head_dim") or a["head_dim"])
        return [
            (("q_proj", "qkv_proj"), d * queries),
            (("k_proj", "qkv_proj"), d * keys),
            (("v_proj", "qkv_proj"), d * values),
            (("o_proj",), d * out),
        ]
    if a["kind"] == "mla":
        heads, rope = a["heads"], a["qk_rope_head_dim"]
        key, latent = a["qk_nope_head_dim"] + rope, a["kv_lora_rank"]
        rank = a["q_lora_rank"]
        queries = (
            [(("q_a_proj",), d * rank), (("q_b_proj",), rank * heads * key)]
            if rank
            else [(("q_proj",), d * heads * key)]
        )
        return [
            *queries,
            (("kv_a_proj_with_mqa",), d * (latent + rope)),
            (("kv_b_proj",), latent * heads * (a["qk_nope_head_dim"] + a["v_head_dim"])),
            (("o_proj",), heads * a["v_head_dim"] * d),
        ]
    if a["kind"] == "linear":
        keys, values = a["key_heads"] * a["key_dim"], a["heads"] * a["head_dim"]
        into = ("in_proj_qkv", "in_proj_qkvz", "in_proj", "q_proj")
        return [(into, d * (2 * keys + 2 * values)), (("out_proj", "o_proj"), values * d)]
    return []


def _feed(d: int, f: dict[str, Any], index: int) -> Iterator[Module]:
    matrices = 3 if f.get("gated", True) else 2
    first = f"layers.{index}."
    if f["kind"] == "dense":
        if f["intermediate"]:
            names = tuple(f"{first}{holder}.up_proj" for holder in _FEEDS)
            yield Module(names, "default", matrices * d * f["intermediate"])
        return
    width = f.get("latent") or d
    leaves = ("up_proj", "w1", "gate_up_proj")
    # where a dense FFN stands beside the experts, ``mlp`` is that FFN
    holders = tuple(
        holder for holder in (*_FEEDS, "moe") if not (f.get("dense_residual") and holder == "mlp")
    )
    names = tuple(f"{first}{holder}.experts.0.{leaf}" for holder in holders for leaf in leaves)
    names = (*names, f"{first}experts.0.up_proj")
    yield Module(names, "experts", f["experts"] * matrices * width * f["intermediate"])
    if f.get("shared_experts"):
        names = tuple(f"{first}{holder}.{shared}.up_proj" for holder in _FEEDS for shared in _SHARED)
        yield Module(names, "default", matrices * d * f["shared_intermediate"])
    if f.get("dense_residual"):
        yield Module(
            (f"{first}mlp.up_proj", f"{first}residual_mlp.w1"), "default", 3 * d * f["dense_residual"]
        )
