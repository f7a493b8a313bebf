"""Import of single configs: each family without a packaged example, refusals, robustness, storage types."""

from __future__ import annotations

import json
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import SpecError
from moesim.spec.huggingface import ARCHITECTURES, import_config, import_model, load_config
from moesim.spec.huggingface.parts import layer_runs
from moesim.spec.model import LayerRun, ModelSpec
from moesim.spec.parameters import parameter_count

if TYPE_CHECKING:
    from pathlib import Path

COMMON = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 1000,
    "max_position_embeddings": 512,
}
LATENT = {
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
}
DELTA = {
    "head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 8,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
SAMPLES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": COMMON | {"model_type": "llama"},
    "Qwen2ForCausalLM": COMMON | {"use_sliding_window": False, "sliding_window": 128},
    "MixtralForCausalLM": COMMON | {"num_local_experts": 8, "num_experts_per_tok": 2},
    "ArcticForCausalLM": COMMON
    | {"num_local_experts": 8, "num_experts_per_tok": 2, "parallel_attn_mlp_res": True},
    "Qwen2MoeForCausalLM": COMMON
    | {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "mlp_only_layers": [0]}
    | {"shared_expert_intermediate_size": 64},
    "DbrxForCausalLM": {
        "d_model": 64,
        "n_heads": 4,
        "n_layers": 3,
        "max_seq_len": 512,
        "vocab_size": 1000,
        "attn_config": {"kv_n_heads": 2},
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 8, "moe_top_k": 2},
    },
    "DeciLMForCausalLM": COMMON
    | {
        "num_hidden_layers": 2,
        "num_key_value_heads": None,
        "intermediate_size": None,
        "block_configs": [
            {"attention": {"n_heads_in_group": 2, "no_op": False}, "ffn": {"ffn_mult": 1.5, "no_op": False}},
            {"attention": {"no_op": True}, "ffn": {"no_op": True}},
        ],
    },
    "Llama4ForCausalLM": COMMON
    | {"num_local_experts": 8, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2}
    | {"intermediate_size_mlp": 128, "attention_chunk_size": 64},
    "DeepseekV3ForCausalLM": COMMON | LATENT | {"n_group": 2, "topk_group": 1, "topk_method": "noaux_tc"},
    "GlmMoeDsaForCausalLM": COMMON
    | LATENT
    | {"index_n_heads": 2, "index_head_dim": 8, "index_topk": 16}
    | {"indexer_types": ["full", "shared", "shared", "full"]},
    "Qwen3NextForCausalLM": COMMON | DELTA,
    "KimiLinearForCausalLM": COMMON
    | LATENT
    | {
        "linear_attn_config": {
            "full_attn_layers": [4],
            "kda_layers": [1, 2, 3],
            "num_heads": 4,
            "head_dim": 8,
            "short_conv_kernel_size": 4,
        }
    },
    "MiniMaxText01ForCausalLM": COMMON
    | {"num_local_experts": 8, "num_experts_per_tok": 2, "attn_type_list": [0, 0, 0, 1]},
    "NemotronHForCausalLM": COMMON
    | {"num_hidden_layers": 6, "hybrid_override_pattern": "ME*-ME", "head_dim": 16, "conv_kernel": 4}
    | {"mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 2, "ssm_state_size": 8, "n_routed_experts": 8}
    | {"num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "MiniMaxM2ForCausalLM": COMMON
    | {"num_local_experts": 8, "num_experts_per_tok": 2, "use_qk_norm": True, "num_mtp_modules": 1},
    "MiniMaxM3ForCausalLM": COMMON
    | {
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "dense_intermediate_size": 128,
        "moe_layer_freq": [0, 1, 1, 1],
        "sparse_attention_config": {
            "sparse_attention_freq": [0, 1, 1, 1],
            "sparse_block_size": 16,
            "sparse_index_dim": 8,
            "sparse_num_index_heads": 2,
            "sparse_topk_blocks": 4,
        },
    },
    "Gemma4ForConditionalGeneration": COMMON
    | {"head_dim": 16, "global_head_dim": 32, "num_global_key_value_heads": 1, "sliding_window": 64}
    | {"attention_k_eq_v": True, "enable_moe_block": True, "num_experts": 8, "top_k_experts": 2}
    | {"moe_intermediate_size": 32, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "MiMoV2FlashForCausalLM": COMMON
    | {"head_dim": 24, "v_head_dim": 16, "swa_num_key_value_heads": 4, "sliding_window": 64}
    | {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    | {"hybrid_layer_pattern": [0, 1, 1, 0], "moe_layer_freq": [0, 1, 1, 1]},
    "Step3p7FlashForCausalLM": COMMON
    | {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1}
    | {
        "share_expert_dim": 32,
        "sliding_window": 64,
        "first_k_dense_replace": 1,
        "num_nextn_predict_layers": 1,
    }
    | {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "GptOssForCausalLM": COMMON
    | {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 64}
    | {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "SwitchTransformersForConditionalGeneration": {
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 96,
        "num_heads": 4,
        "num_layers": 4,
        "num_decoder_layers": 4,
        "num_sparse_encoder_layers": 2,
        "num_sparse_decoder_layers": 4,
        "num_experts": 8,
        "vocab_size": 1000,
        "n_positions": 512,
    },
    "T5ForConditionalGeneration": {
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 96,
        "num_heads": 4,
        "num_layers": 4,
        "vocab_size": 1000,
        "n_positions": 512,
        "feed_forward_proj": "gated-gelu",
    },
}


def sample(architecture: str, **change: Any) -> dict[str, Any]:
    return {"architectures": [architecture], **SAMPLES[architecture], **change}


def read(config: dict[str, Any], quant: dict[str, Any] | None = None) -> ModelSpec:
    return ModelSpec.model_validate(import_config(config, "m", "config.json", quant))


def complaint(config: dict[str, Any], quant: dict[str, Any] | None = None) -> str:
    with pytest.raises(SpecError) as caught:
        import_config(config, "m", "config.json", quant)
    return str(caught.value)


# --- families ---


@pytest.mark.parametrize("architecture", SAMPLES)
def test_every_sample_imports(architecture: str) -> None:
    model = read(sample(architecture))
    assert model.architecture == architecture
    assert parameter_count(model).total > 64 * 1000


def test_llama_and_qwen_differ_in_bias_norms_and_ties() -> None:
    llama, qwen2 = read(sample("LlamaForCausalLM")), read(sample("Qwen2ForCausalLM"))
    qwen3 = read({**sample("LlamaForCausalLM"), "architectures": ["Qwen3ForCausalLM"], "head_dim": 32})
    assert (llama.attentions["full"].bias, qwen2.attentions["full"].bias) == (False, True)  # type: ignore[union-attr]
    assert qwen2.attentions["full"].window is None  # type: ignore[union-attr]
    assert qwen3.attentions["full"].qk_norm  # type: ignore[union-attr]
    assert qwen3.attentions["full"].head_dim == 32  # type: ignore[union-attr]
    assert read(sample("LlamaForCausalLM", tie_word_embeddings=True)).tied_embeddings
    slid = read(sample("LlamaForCausalLM", sliding_window=128))
    assert slid.attentions["full"].window == 128  # type: ignore[union-attr]


def test_arctic_keeps_a_dense_ffn_as_wide_as_the_model() -> None:
    ffn = read(sample("ArcticForCausalLM")).ffns["moe"]
    assert ffn.dense_residual == 64  # type: ignore[union-attr]
    assert "experts in every layer" in complaint(sample("ArcticForCausalLM", moe_layer_frequency=2))


def test_dense_layers_stand_where_the_config_says() -> None:
    qwen = [ffn for _, ffn in read(sample("Qwen2MoeForCausalLM")).blocks()]
    assert qwen == ["dense", "moe", "moe", "moe"]
    stepped = sample("Qwen2MoeForCausalLM", mlp_only_layers=[], decoder_sparse_step=2)
    assert [ffn for _, ffn in read(stepped).blocks()] == ["dense", "moe"] * 2
    deepseek = read(sample("DeepseekV3ForCausalLM", first_k_dense_replace=2))
    assert [ffn for _, ffn in deepseek.blocks()] == ["dense", "dense", "moe", "moe"]
    llama4 = read(sample("Llama4ForCausalLM"))
    assert llama4.blocks() == [
        ("chunked", "dense"),
        ("chunked", "moe"),
        ("chunked", "dense"),
        ("full", "moe"),
    ]


def test_searched_layers_have_their_own_heads_and_widths() -> None:
    model = read(sample("DeciLMForCausalLM"))
    assert model.blocks() == [("kv2", "dense256"), ("none", "dense0")]  # 2 x 1.5 x 64 / 3 = 64, up to 256
    assert parameter_count(model).dense_ffn == 3 * 64 * 256


def test_recurrent_layers_stand_where_the_config_says() -> None:
    assert [mixer for mixer, _ in read(sample("Qwen3NextForCausalLM")).blocks()] == ["linear"] * 3 + ["full"]
    assert [mixer for mixer, _ in read(sample("KimiLinearForCausalLM")).blocks()] == ["kda"] * 3 + ["mla"]
    text = read(sample("MiniMaxText01ForCausalLM"))
    assert [mixer for mixer, _ in text.blocks()] == ["lightning"] * 3 + ["full"]
    nemotron = read(sample("NemotronHForCausalLM")).blocks()
    mamba, experts = ("mamba", "none"), ("none", "moe")
    assert nemotron == [mamba, experts, ("full", "none"), ("none", "dense"), mamba, experts]


def test_switch_has_experts_in_every_nth_layer_of_both_stacks() -> None:
    model = read(sample("SwitchTransformersForConditionalGeneration"))
    assert [ffn for _, ffn in model.blocks("encoder")] == ["dense", "moe"] * 2
    assert [ffn for _, ffn in model.blocks("decoder")] == ["moe"] * 4
    assert model.cross_attention == "cross"
    assert model.tied_embeddings


def test_a_vision_wrapper_is_read_through_its_text_config() -> None:
    inner = sample("LlamaForCausalLM")
    wrapped = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "text_config": inner,
        "vision_config": {"depth": 2},
    }
    model = read({**wrapped, "tie_word_embeddings": True})
    assert (model.hidden, model.tied_embeddings) == (64, True)
    assert "not counted" in model.sources[0].note
    assert "expected a mapping" in complaint({**wrapped, "text_config": [1]})


# --- refusals ---


def test_an_unknown_architecture_is_refused_by_name_with_the_nearest() -> None:
    message = complaint({"architectures": ["Qwen9ForCausalLM"], "hidden_size": 4})
    assert message.startswith("config.json  architectures  'Qwen9ForCausalLM': expected a known architecture")
    assert "Qwen3ForCausalLM" in message
    assert "\n" not in message
    far = complaint({"architectures": ["Zzz"]})
    assert all(name in far for name in ARCHITECTURES)


@pytest.mark.parametrize("name", ["JambaForCausalLM", "DeepseekV4ForCausalLM"])
def test_an_architecture_the_spec_cannot_hold_is_refused_with_the_reason(name: str) -> None:
    message = complaint({"architectures": [name]})
    assert f"'{name}'" in message
    assert "no counterpart in the model spec" in message.replace("\n", " ")


@pytest.mark.parametrize("architectures", [None, [], "LlamaForCausalLM", [3]])
def test_architectures_must_be_a_list_of_names(architectures: Any) -> None:
    assert "name of the model class" in complaint({"architectures": architectures})


def test_a_missing_key_is_named() -> None:
    config = sample("LlamaForCausalLM")
    del config["num_attention_heads"]
    assert complaint(config) == "config.json  num_attention_heads: expected a value, the key is missing"


@pytest.mark.parametrize("key", ["moe_extra_experts", "state_size", "sparse_pattern", "kv_lora_dim"])
def test_a_key_that_matters_and_is_not_understood_is_refused(key: str) -> None:
    message = complaint(sample("LlamaForCausalLM", **{key: 7}))
    assert message == f"config.json  {key}  7: this key of LlamaForCausalLM is not understood"
    assert read(sample("LlamaForCausalLM", **{key: None}))
    assert read(sample("LlamaForCausalLM", **{key: 0}))


def test_keys_that_change_neither_weights_nor_work_are_ignored() -> None:
    plain = read(sample("LlamaForCausalLM"))
    noise = {
        "rope_theta": 1e6,
        "initializer_range": 0.02,
        "attention_dropout": 0.1,
        "bos_token_id": 1,
        "top_k": 50,
    }
    assert read(sample("LlamaForCausalLM", **noise)) == plain


def test_inconsistent_layers_are_refused() -> None:
    assert "expected 4 items, one per layer, found 2" in complaint(
        sample("GptOssForCausalLM", layer_types=["full_attention"] * 2)
    )
    assert "found 'odd'" in complaint(sample("GptOssForCausalLM", layer_types=["full_attention", "odd"] * 2))
    assert "letters M E * -" in complaint(sample("NemotronHForCausalLM", hybrid_override_pattern="MEX"))
    assert "expected 6, as many" in complaint(sample("NemotronHForCausalLM", num_hidden_layers=7))


BAD: list[Any] = [None, -1, 0, 1.5, "x", True, [], {}, [[1]], [1], ["x", None], 10**30]


@pytest.mark.parametrize("architecture", SAMPLES)
def test_wrong_values_end_in_a_spec_error_or_a_spec(architecture: str) -> None:
    """Whatever a key holds, nothing but SpecError leaves the importer."""
    config = sample(architecture)
    optional = ("no_rope_layers", "moe_layers", "moe_layer_freq", "decoder_sparse_step", "layers_block_type")
    messages = []
    for key, value in product((*config, *optional), BAD):
        try:
            read({**config, key: value})
        except SpecError as error:
            messages.append(str(error))
    for key, part in config.items():
        if isinstance(part, dict):
            for inner, value in product(part, BAD):
                try:
                    read({**config, key: {**part, inner: value}})
                except SpecError as error:
                    messages.append(str(error))
    assert len(messages) > 2 * len(config)
    assert all(message.startswith("config.json") for message in messages)


# --- storage types ---


def weights_of(quant: Any, architecture: str = "DeepseekV3ForCausalLM", **change: Any) -> Any:
    return read(sample(architecture, quantization_config=quant, **change)).weights


def test_block_and_tensor_fp8() -> None:
    block = weights_of({"quant_method": "fp8", "weight_block_size": [128, 128]})
    assert (block.default, block.experts, block.attention, block.activations) == (
        "fp8_block",
        None,
        None,
        "fp8",
    )
    assert weights_of({"quant_method": "fp8"}).default == "fp8"


def test_weight_only_four_bits() -> None:
    awq = weights_of({"quant_method": "awq", "bits": 4, "group_size": 64})
    assert (awq.default, awq.int4_group, awq.activations) == ("int4", 64, "bf16")
    assert weights_of({"quant_method": "gptq", "bits": 8}).default == "int8"
    kept = weights_of({"quant_method": "awq", "bits": 4, "modules_to_not_convert": ["self_attn"]})
    assert (kept.default, kept.attention) == ("int4", "bf16")


def test_mxfp4_holds_the_experts_only() -> None:
    kept = weights_of({"quant_method": "mxfp4"}, "GptOssForCausalLM")
    assert (kept.default, kept.experts, kept.activations) == ("bf16", "mxfp4", "bf16")


def group(
    bits: int, kind: str, size: int | None = None, targets: Any = ("Linear",), inputs: Any = None
) -> Any:
    weights = {"num_bits": bits, "type": kind, "group_size": size}
    return {"weights": weights, "input_activations": inputs, "targets": list(targets)}


def test_compressed_tensors_with_regular_expressions() -> None:
    config = {
        "quant_method": "compressed-tensors",
        "config_groups": {"g": group(4, "int", 32)},
        "ignore": [
            "lm_head",
            "re:.*self_attn.*",
            "re:.*shared_experts.*",
            r"re:.*mlp\.(gate|up|down)_proj.*",
        ],
        "kv_cache_scheme": {"num_bits": 8, "type": "float"},
    }
    kept = weights_of(config)
    assert (kept.default, kept.experts, kept.attention) == ("bf16", "int4", None)
    assert (kept.int4_group, kept.activations, kept.kv_cache) == (32, "bf16", "fp8")
    inputs = {"num_bits": 4, "type": "float"}
    fp4 = weights_of(
        {"config_groups": {"g": group(4, "float", 16, inputs=inputs)}, "quant_method": "compressed-tensors"}
    )
    assert (fp4.default, fp4.activations) == ("nvfp4", "fp4")


def test_a_gate_is_not_a_gate_proj() -> None:
    kept = weights_of(
        {"quant_method": "fp8", "modules_to_not_convert": ["gate", "lm_head", "layers.3.mlp.gate"]}
    )
    assert (kept.default, kept.experts, kept.attention) == ("fp8", None, None)


def test_the_companion_wins_over_the_config_and_wildcards_exclude() -> None:
    quant = {
        "quantization": {
            "quant_algo": "NVFP4",
            "kv_cache_quant_algo": "FP8",
            "exclude_modules": ["lm_head", "model.layers.*.self_attn*", "model.layers.0*"],
        }
    }
    config = sample("DeepseekV3ForCausalLM", quantization_config={"quant_method": "fp8"})
    kept = read(config, quant).weights
    assert (kept.experts or kept.default, kept.attention or kept.default) == ("nvfp4", "bf16")
    assert (kept.activations, kept.kv_cache, kept.embedding) == ("fp4", "fp8", "bf16")


def test_mixed_precision_lists_its_modules_and_the_majority_is_told() -> None:
    listed = {f"model.layers.{i}.mlp.experts": {"quant_algo": "NVFP4"} for i in range(1, 4)}
    listed |= {f"model.layers.{i}.self_attn.o_proj": {"quant_algo": "FP8"} for i in range(4)}
    model = read(
        sample("DeepseekV3ForCausalLM"), {"quant_algo": "MIXED_PRECISION", "quantized_layers": listed}
    )
    assert (model.weights.default, model.weights.experts, model.weights.attention) == ("bf16", "nvfp4", None)
    assert "attention:" in model.sources[0].note
    assert "% of the parameters are fp8, counted as bf16" in model.sources[0].note


@pytest.mark.parametrize(
    ("quant", "expected"),
    [
        ({"quant_method": "fp9"}, "known quantisation method"),
        ({"quant_algo": "NVFP5"}, "did you mean 'NVFP4'"),
        ({"quant_method": "awq", "bits": 3}, "expected 4 or 8"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"g": group(3, "int")}},
            "expected 4 or 8 bits",
        ),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"g": 3}},
            "config_groups.g  3: expected a mapping",
        ),
        ({"quant_algo": "FP8", "kv_cache_quant_algo": "FP7"}, "kv_cache_quant_algo  'FP7'"),
        ({"quant_algo": "MIXED_PRECISION"}, "quantized_layers"),
        ({"quant_method": "fp8", "ignore": ["re:("]}, "expected a regular expression"),
        ([4], "expected a mapping"),
    ],
)
def test_unknown_quantisation_is_refused_by_name(quant: Any, expected: str) -> None:
    assert expected in complaint(sample("DeepseekV3ForCausalLM", quantization_config=quant))


def test_wrong_quantisation_values_end_in_a_spec_error_or_a_spec() -> None:
    full = {
        "quant_method": "compressed-tensors",
        "config_groups": {"g": group(4, "int", 32)},
        "ignore": ["a"],
    }
    full |= {"kv_cache_scheme": {"num_bits": 8, "type": "float"}}
    mixed = {"quant_algo": "MIXED_PRECISION", "quantized_layers": {"a": {"quant_algo": "FP8"}}}
    configs = [{**config, key: value} for config in (full, mixed) for key, value in product(config, BAD)]
    entry = group(4, "int", 32)
    configs += [{**full, "config_groups": {"g": {**entry, key: value}}} for key, value in product(entry, BAD)]
    weights = entry["weights"]
    changed = [{**entry, "weights": {**weights, key: value}} for key, value in product(weights, BAD)]
    configs += [{**full, "config_groups": {"g": one}} for one in changed]
    configs += [
        {"quant_method": "awq", "bits": 4, key: value} for key, value in product(("bits", "group_size"), BAD)
    ]
    refused = 0
    for config in configs:
        try:
            weights_of(config)
        except SpecError:
            refused += 1
    assert refused > len(configs) // 4


def test_plain_types() -> None:
    assert read(sample("LlamaForCausalLM", torch_dtype="float16")).weights.default == "fp16"
    assert read(sample("LlamaForCausalLM", dtype="bfloat16")).weights.default == "bf16"
    full = read(sample("LlamaForCausalLM", torch_dtype="float32")).weights
    assert (full.default, full.embedding, full.activations) == ("fp32", "fp32", "fp32")
    assert "float8" in complaint(sample("LlamaForCausalLM", torch_dtype="float8"))


# --- files ---


def test_names_companions_and_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "Org--Tiny-Model_config.json"
    path.write_text(json.dumps(sample("LlamaForCausalLM")))
    assert load_config(path).name == "tiny-model"
    assert load_config(path).weights.default == "bf16"
    (tmp_path / "Org--Tiny-Model_hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')
    assert load_config(path).weights.default == "fp8"
    folder = tmp_path / "Some-Model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(sample("LlamaForCausalLM")))
    (folder / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "NVFP4"}}')
    model, text = import_model(folder / "config.json")
    assert (model.name, model.weights.default) == ("some-model", "nvfp4")
    assert text.startswith("kind: model\nname: some-model\n")
    for content, expected in (
        ("{", "expected JSON"),
        ("[1]", "expected a JSON object"),
        ("[" * 10**5, "expected JSON"),
    ):
        path.write_text(content)
        with pytest.raises(SpecError, match=expected):
            load_config(path)
    with pytest.raises(SpecError, match="no such file"):
        load_config(tmp_path / "absent.json")


def test_layers_are_written_as_their_repeated_pattern() -> None:
    blocks = [("mla", "dense")] * 3 + [("mla", "moe")] * 58
    assert [run["repeat"] for run in layer_runs(blocks)] == [3, 58]
    hybrid = ([("linear", "moe")] * 3 + [("full", "moe")]) * 12
    assert layer_runs(hybrid) == [{"repeat": 12, "layers": [list(block) for block in hybrid[:4]]}]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy")), min_size=1, max_size=60))
def test_layer_runs_expand_to_the_same_layers(blocks: list[tuple[str, str]]) -> None:
    runs = [LayerRun.model_validate(run) for run in layer_runs(blocks)]
    assert [block for run in runs for _ in range(run.repeat) for block in run.layers] == blocks
    assert len(runs) <= len(blocks)
