"""Parameters and bytes: exact checkpoint counts, brute force over tensor shapes, properties, refusals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import SpecError
from moesim.files import catalog_names
from moesim.spec.base import load_spec
from moesim.spec.deployment import PrecisionChoice
from moesim.spec.model import ModelSpec
from moesim.spec.parameters import (
    attention_parameters,
    bytes_per_kv_value,
    bytes_per_value,
    cache_bytes,
    expert_bytes,
    ffn_parameters,
    kv_bytes_per_token,
    layer_parameters,
    parameter_count,
    state_bytes_per_sequence,
    stored_weights,
    weight_bytes,
    weight_bytes_by_group,
)

SOURCES = [{"fields": ["*"], "cite": "test"}]
GQA = {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 8}
DENSE = {"kind": "dense", "intermediate": 48}


def network(**change: Any) -> ModelSpec:
    data: dict[str, Any] = {
        "kind": "model",
        "name": "tiny",
        "architecture": "Tiny",
        "hidden": 32,
        "vocab": 100,
        "context": 64,
        "attentions": {"full": GQA},
        "ffns": {"dense": DENSE},
        "layers": [{"repeat": 2, "layers": [["full", "dense"]]}],
        "sources": SOURCES,
    }
    return ModelSpec.model_validate(data | change)


def of(name: str) -> ModelSpec:
    return load_spec(ModelSpec, name, "model")


# Sizes that the checkpoints' own indices state, to the last parameter.
EXACT = {
    "deepseek-v2-lite": 15_706_484_224,
    "deepseekmoe-16b": 16_375_728_128,
    "dbrx": 131_596_523_520,
    "gpt-oss-120b": 116_829_156_672,
    "gpt-oss-20b": 20_914_757_184,
    "llama-2-70b": 68_976_648_192,
    "llama-2-7b": 6_738_415_616,
    "llama-3-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "mixtral-8x7b": 46_702_792_704,
    "qwen1.5-moe-a2.7b": 14_315_784_192,
    "qwen3-235b-a22b": 235_093_634_560,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-32b": 32_762_123_264,
    "qwen3-8b": 8_190_735_360,
}


@pytest.mark.parametrize(("name", "total"), EXACT.items(), ids=list(EXACT))
def test_total_is_the_checkpoint_s_to_the_last_parameter(name: str, total: int) -> None:
    assert parameter_count(of(name)).total == total


def test_deepseek_v3_golden() -> None:
    count, cache = parameter_count(of("deepseek-v3")), cache_bytes(of("deepseek-v3"))
    assert count.total == 671_026_419_200
    assert count.active == pytest.approx(37.55e9, rel=1e-3)
    assert count.mtp == pytest.approx(11.6e9, rel=5e-3)  # 14 B with its copies of embedding and head
    assert count.mtp + count.embedding + count.head == pytest.approx(13.5e9, rel=1e-2)
    assert cache.per_token == 61 * 576 * 2 == 70_272
    assert cache.per_window_token == ()
    assert cache.per_sequence == 0


def test_mixtral_golden() -> None:
    count = parameter_count(of("mixtral-8x7b"))
    assert count.active == pytest.approx(12.88e9, rel=1e-3)
    assert count.routed_experts == 32 * 8 * 3 * 4096 * 14336
    assert expert_bytes(of("mixtral-8x7b"), "moe") == 336 * 2**20


@pytest.mark.parametrize(
    ("name", "size"),
    [  # checkpoint sizes from the model cards: 12.8 and 60.8 GiB (arXiv:2508.10925 table 1), 595 GB, 318 GB
        ("gpt-oss-20b", 12.8 * 2**30),
        ("gpt-oss-120b", 60.8 * 2**30),
        ("kimi-k2.5", 595e9),
        ("grok-1", 318e9),
    ],
)
def test_weight_bytes_are_the_published_checkpoint_sizes(name: str, size: float) -> None:
    assert weight_bytes(of(name)) == pytest.approx(size, rel=6e-3)


# --- brute force: list the tensors of a checkpoint by hand and multiply their shapes ---


def numel(*shapes: tuple[int, ...]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def test_grouped_query_by_tensors() -> None:
    a = GQA | {
        "v_head_dim": 6,
        "bias": True,
        "output_bias": True,
        "gate": True,
        "qk_norm": True,
        "sinks": True,
    }
    tensors = numel(
        (32, 4 * 8), (4 * 8,), (32, 2 * 8), (2 * 8,), (32, 2 * 6), (2 * 6,), (4 * 6, 32), (32,),
        (32, 4 * 6), (8,), (8,), (4,),
    )  # fmt: skip
    assert attention_parameters(network(attentions={"full": a}), "full") == tensors


def test_shared_projections_drop_tensors() -> None:
    plain = attention_parameters(network(), "full")
    equal = attention_parameters(network(attentions={"full": GQA | {"k_equals_v": True}}), "full")
    shared = attention_parameters(network(attentions={"full": GQA | {"shares_kv": True}}), "full")
    assert plain - equal == 32 * 2 * 8
    assert plain - shared == 2 * 32 * 2 * 8


MLA = {
    "kind": "mla",
    "heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
}


def test_latent_attention_by_tensors() -> None:
    queries = numel((32, 12), (12,), (12, 4 * 12))
    rest = numel((32, 16 + 4), (16,), (16, 4 * (8 + 6)), (4 * 6, 32))
    assert attention_parameters(network(attentions={"full": MLA}), "full") == queries + rest
    direct = MLA | {"q_lora_rank": 0}
    assert attention_parameters(network(attentions={"full": direct}), "full") == numel((32, 4 * 12)) + rest
    gated = MLA | {"gate": True}
    assert attention_parameters(network(attentions={"full": gated}), "full") == queries + rest + 32 * 4 * 6
    indexed = MLA | {"index_heads": 2, "index_head_dim": 10, "index_top_k": 8}
    indexer = numel((12, 2 * 10), (32, 10), (10,), (10,), (32, 2))
    assert attention_parameters(network(attentions={"full": indexed}), "full") == queries + rest + indexer
    reused = indexed | {"index_shared": True}
    assert attention_parameters(network(attentions={"full": reused}), "full") == queries + rest


LINEAR = {"kind": "linear", "heads": 6, "head_dim": 5, "key_heads": 3, "key_dim": 4, "conv_kernel": 4}
KEYS, VALUES = 3 * 4, 6 * 5
CONVOLVED = 2 * KEYS + VALUES
# qkv, convolutions, low-rank decay, write strength, A, step bias, norm, out
KDA = [(32, CONVOLVED), (CONVOLVED, 4), (32, 5), (5, KEYS), (32, 6), (6,), (KEYS,), (5,), (VALUES, 32)]


@pytest.mark.parametrize(
    ("change", "shapes"),
    [
        (
            {"flavor": "gated_delta"},  # qkvz, ba, convolution, A and dt bias, norm, out
            [(32, CONVOLVED + VALUES), (32, 2 * 6), (CONVOLVED, 4), (6,), (6,), (5,), (VALUES, 32)],
        ),
        (
            {"flavor": "mamba2"},  # z x B C dt, convolution and bias, A D dt bias, norm, out
            [(32, CONVOLVED + VALUES + 6), (CONVOLVED, 4), (CONVOLVED,), (3, 6), (VALUES,), (VALUES, 32)],
        ),
        (
            {"flavor": "lightning", "conv_kernel": 0},  # qkv, gate, norm, out
            [(32, CONVOLVED), (32, VALUES), (VALUES,), (VALUES, 32)],
        ),
        (
            {"flavor": "kda"},  # low-rank gate
            [*KDA, (32, 5), (5, VALUES)],
        ),
        (
            {"flavor": "kda", "full_rank_gate": True},
            [*KDA, (32, VALUES)],
        ),
    ],
    ids=["gated_delta", "mamba2", "lightning", "kda", "kda full-rank gate"],
)  # fmt: skip
def test_recurrent_mixers_by_tensors(change: dict[str, Any], shapes: list[tuple[int, ...]]) -> None:
    assert attention_parameters(network(attentions={"full": LINEAR | change}), "full") == numel(*shapes)


def test_experts_by_tensors() -> None:
    moe = {"kind": "moe", "experts": 5, "top_k": 2, "intermediate": 7, "bias": True, "router_bias": True}
    one = numel((32, 7), (7,), (32, 7), (7,), (7, 32), (32,))
    found = ffn_parameters(network(ffns={"dense": moe}), "dense")
    assert (found.routed_per_expert, found.routed, found.router) == (one, 5 * one, 32 * 5 + 5)
    assert (found.shared, found.dense) == (0, 0)
    shared = moe | {"bias": False, "shared_experts": 2, "shared_intermediate": 14, "shared_gate": True}
    assert ffn_parameters(network(ffns={"dense": shared}), "dense").shared == 3 * 32 * 14 + 32
    latent = moe | {"bias": False, "gated": False, "latent": 8, "dense_residual": 9}
    found = ffn_parameters(network(ffns={"dense": latent}), "dense")
    assert (found.routed_per_expert, found.shared, found.dense) == (2 * 8 * 7, 2 * 32 * 8, 3 * 32 * 9)


def test_encoder_decoder_counts_both_stacks_and_cross_attention() -> None:
    model = network(encoder=[{"repeat": 3, "layers": [["full", "dense"]]}], cross_attention="full")
    layer = layer_parameters(model, "full", "dense")
    count = parameter_count(model)
    assert count.attention == (3 + 2 + 2) * layer.attention
    assert count.dense_ffn == 5 * layer.ffn.dense
    assert count.norms == 32 * (5 * 2 + 2 + 2)
    assert cache_bytes(model).per_encoder_token == 2 * 2 * 2 * 8 * 2


def test_empty_blocks_have_no_norm() -> None:
    none = {"none": {"kind": "none"}, "full": GQA}
    model = network(attentions=none, ffns={"none": {"kind": "dense", "intermediate": 0}, "dense": DENSE})
    assert layer_parameters(model, "none", "dense").norms == 32
    assert layer_parameters(model, "full", "none").norms == 32
    assert layer_parameters(model, "none", "none").total == 0


# --- properties ---


@pytest.mark.parametrize("name", catalog_names("model"))
def test_groups_sum_to_the_total(name: str) -> None:
    model = of(name)
    count = parameter_count(model)
    groups = (
        "embedding",
        "head",
        "attention",
        "dense_ffn",
        "routed_experts",
        "shared_experts",
        "router",
        "norms",
    )
    assert sum(getattr(count, group) for group in groups) + count.extra == count.total
    layers = sum(
        layer_parameters(model, *block).total for block in model.blocks("encoder") + model.blocks("decoder")
    )
    cross = attention_parameters(model, model.cross_attention) + model.hidden if model.cross_attention else 0
    ends = count.embedding + count.head + model.hidden * (1 + bool(model.encoder))
    assert layers + cross * len(model.blocks()) + ends == count.total
    assert 0 < count.active <= count.total
    parts = weight_bytes_by_group(model)
    assert sum(getattr(parts, group) for group in (*groups, "extra")) == pytest.approx(parts.total, rel=1e-12)


moe_shapes = st.fixed_dictionaries(
    {
        "experts": st.integers(1, 24),
        "top_k": st.integers(1, 4),
        "intermediate": st.integers(1, 8).map(lambda n: 4 * n),
        "shared": st.integers(0, 64),
        "hidden": st.integers(1, 40),
        "gated": st.booleans(),
    }
)


def mixture(shape: dict[str, Any], split: int = 1) -> ModelSpec:
    experts, top_k = shape["experts"] * split, min(shape["top_k"], shape["experts"]) * split
    ffn = {
        "kind": "moe",
        "experts": experts,
        "top_k": top_k,
        "intermediate": shape["intermediate"] // split,
        "gated": shape["gated"],
        "shared_experts": 1 if shape["shared"] else 0,
        "shared_intermediate": shape["shared"],
    }
    return network(hidden=shape["hidden"], ffns={"dense": ffn})


@given(moe_shapes)
def test_finer_experts_leave_total_and_active_ffn_unchanged(shape: dict[str, Any]) -> None:
    """DeepSeekMoE's split: four times experts and choices, a quarter of the width; only the router grows."""
    coarse, fine = parameter_count(mixture(shape)), parameter_count(mixture(shape, split=4))
    assert fine.routed_experts == coarse.routed_experts
    assert fine.total - fine.router == coarse.total - coarse.router
    assert fine.active - fine.router == coarse.active - coarse.router
    assert fine.router == 4 * coarse.router


@given(moe_shapes)
def test_choosing_every_expert_activates_everything(shape: dict[str, Any]) -> None:
    full = parameter_count(mixture(shape | {"top_k": shape["experts"]}))
    some = parameter_count(mixture(shape))
    assert full.active == full.total == some.total
    assert some.active <= full.active


@given(moe_shapes)
def test_all_experts_together_are_one_wide_ffn(shape: dict[str, Any]) -> None:
    sparse = ffn_parameters(mixture(shape | {"shared": 0}), "dense")
    wide = {
        "kind": "dense",
        "intermediate": shape["experts"] * shape["intermediate"],
        "gated": shape["gated"],
    }
    dense = ffn_parameters(network(hidden=shape["hidden"], ffns={"dense": wide}), "dense")
    assert sparse.routed == dense.dense


def test_tying_saves_exactly_the_head() -> None:
    free, tied = parameter_count(network()), parameter_count(network(tied_embeddings=True))
    assert free.total - tied.total == 100 * 32 == free.head
    assert tied.head == 0


def test_extra_parameters_are_in_the_total_only() -> None:
    plain, extra = parameter_count(network()), parameter_count(network(extra_parameters=77))
    assert extra.total - plain.total == 77 == extra.extra
    assert extra.active == plain.active
    assert weight_bytes(network(extra_parameters=77)) - weight_bytes(network()) == 154


# --- multi-token prediction ---


def test_mtp_is_one_more_block_with_a_projection() -> None:
    model = network(mtp_layers=3)
    layer = layer_parameters(model, "full", "dense")
    count = parameter_count(model)
    assert count.mtp == 3 * (layer.total + 2 * 32 * 32 + 3 * 32)
    assert count.total == parameter_count(network()).total
    other = network(mtp_layers=1, ffns={"dense": DENSE, "thin": {"kind": "dense", "intermediate": 1}},
                    mtp_block=["full", "thin"])  # fmt: skip
    assert parameter_count(other).mtp == layer_parameters(other, "full", "thin").total + 2 * 32 * 32 + 3 * 32
    with pytest.raises(ValueError, match="'nope'"):
        network(mtp_layers=1, mtp_block=["nope", "dense"])


# --- bytes ---


def test_bytes_per_value_carry_their_scales() -> None:
    assert bytes_per_value("bf16") == 2
    assert bytes_per_value("fp8_block") * 128 * 128 == 128 * 128 + 4
    assert bytes_per_value("nvfp4") * 16 == 8 + 1
    assert bytes_per_value("mxfp4") * 32 == 16 + 1
    assert bytes_per_value("int4") * 128 == 64 + 2
    assert bytes_per_value("int4", int4_group=32) * 32 == 16 + 2
    assert bytes_per_kv_value("fp4") * 16 == 8 + 1


def test_weight_bytes_follow_each_group_s_type() -> None:
    moe = {
        "kind": "moe",
        "experts": 4,
        "top_k": 1,
        "intermediate": 16,
        "shared_experts": 1,
        "shared_intermediate": 8,
    }
    types = {"default": "fp8", "experts": "nvfp4", "attention": "bf16", "embedding": "fp32"}
    model = network(ffns={"dense": moe}, weights=types)
    count, parts = parameter_count(model), weight_bytes_by_group(model)
    assert parts.routed_experts == count.routed_experts * 0.5625
    assert parts.shared_experts == count.shared_experts
    assert parts.attention == 2 * count.attention
    assert (parts.embedding, parts.head) == (4 * count.embedding, 4 * count.head)
    assert (parts.router, parts.norms) == (2 * count.router, 2 * count.norms)
    assert expert_bytes(model, "dense") == 3 * 32 * 16 * 0.5625


def test_precision_choice_replaces_the_checkpoint_s_types() -> None:
    model = of("deepseek-v3")
    bf16 = weight_bytes(model, PrecisionChoice(weights="bf16"))
    assert bf16 == 2 * parameter_count(model).total
    mixed = PrecisionChoice(weights="bf16", experts="nvfp4", kv_cache="fp8", activations="fp4")
    kept = stored_weights(model, mixed)
    assert (kept.default, kept.attention, kept.experts) == ("bf16", "bf16", "nvfp4")
    assert (kept.kv_cache, kept.activations, kept.embedding) == ("fp8", "fp4", "bf16")
    only = stored_weights(model, PrecisionChoice(experts="int4"))
    assert (only.default, only.experts) == ("fp8_block", "int4")
    assert expert_bytes(model, "moe", PrecisionChoice(experts="fp8")) == 3 * 7168 * 2048
    assert stored_weights(model) is model.weights


# --- caches and states ---


def test_kv_bytes_of_each_mixer() -> None:
    model = network(
        attentions={
            "full": GQA,
            "narrow": GQA | {"v_head_dim": 6},
            "reuse": GQA | {"shares_kv": True},
            "equal": GQA | {"k_equals_v": True},
            "sparse": GQA | {"index_heads": 1, "index_head_dim": 128, "index_top_k": 4},
            "mla": MLA,
            "dsa": MLA | {"index_heads": 2, "index_head_dim": 130, "index_top_k": 8},
            "dsa_shared": MLA
            | {"index_heads": 2, "index_head_dim": 130, "index_top_k": 8, "index_shared": True},
            "linear": LINEAR | {"flavor": "gated_delta"},
            "none": {"kind": "none"},
        }
    )
    expected = {
        "full": 2 * 2 * 8 * 2,
        "narrow": 2 * (8 + 6) * 2,
        "reuse": 0,
        "equal": 2 * 2 * 8 * 2,
        "sparse": 2 * 2 * 8 * 2 + 128 + 4,
        "mla": 20 * 2,
        "dsa": 20 * 2 + 130 + 8,
        "dsa_shared": 20 * 2,
        "linear": 0,
        "none": 0,
    }
    assert {name: kv_bytes_per_token(model, name) for name in expected} == expected
    assert kv_bytes_per_token(model, "full", "fp8") == 2 * 2 * 8
    assert kv_bytes_per_token(model, "dsa", "fp8") == 20 + 130 + 8
    assert state_bytes_per_sequence(model, "linear") == 6 * 5 * 4 * 4 + CONVOLVED * 3 * 2
    assert state_bytes_per_sequence(model, "linear", 2.0) == 6 * 5 * 4 * 2 + CONVOLVED * 3 * 2
    assert state_bytes_per_sequence(model, "full") == 0


def test_cache_of_a_sequence_is_the_sum_over_its_tokens_and_layers() -> None:
    window = GQA | {"window": 5}
    wide = GQA | {"window": 9, "kv_heads": 4}
    model = network(
        attentions={"full": GQA, "w5": window, "w9": wide, "state": LINEAR | {"flavor": "mamba2"}},
        layers=[
            {"repeat": 3, "layers": [["full", "dense"], ["w5", "dense"], ["w9", "dense"], ["state", "dense"]]}
        ],
    )
    cache = cache_bytes(model)
    lengths = np.array([[0, 1, 5], [6, 9, 40]])

    def brute(length: int) -> float:
        total = 0.0
        for name, _ in model.blocks():
            kept = min(length, getattr(model.attentions[name], "window", None) or length)
            total += sum(kv_bytes_per_token(model, name) for _ in range(kept))
            total += state_bytes_per_sequence(model, name)
        return total

    expected = np.vectorize(brute)(lengths)
    np.testing.assert_allclose(cache.sequence_bytes(lengths), expected, rtol=1e-12)
    assert [tokens for tokens, _ in cache.per_window_token] == [5, 9]
    assert cache.sequence_bytes(7).shape == ()


def test_published_cache_sizes() -> None:
    assert cache_bytes(of("llama-2-7b")).per_token == 512 * 1024  # 0.5 MiB per token
    assert cache_bytes(of("minimax-m2.5")).per_token == 248 * 1024
    half = cache_bytes(of("gpt-oss-20b"))
    assert half.per_token == half.per_window_token[0][1] == 12 * 2 * 8 * 64 * 2


# --- refusals ---


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(SpecError, match="no attention 'ful', did you mean 'full'"):
        attention_parameters(network(), "ful")
    with pytest.raises(SpecError, match="no ffn 'dens', did you mean 'dense'"):
        ffn_parameters(network(), "dens")
    with pytest.raises(SpecError, match="no attention 'x'"):
        kv_bytes_per_token(network(), "x")
    with pytest.raises(SpecError, match="'dense' has no routed experts"):
        expert_bytes(network(), "dense")
