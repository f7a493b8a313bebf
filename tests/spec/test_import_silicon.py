"""Import of every config that ships with aiconfigurator-core: totals, storage types, refusals by name."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from moesim.errors import SpecError
from moesim.files import parse_yaml
from moesim.spec.base import validate
from moesim.spec.huggingface import import_model
from moesim.spec.model import ModelSpec
from moesim.spec.parameters import cache_bytes, parameter_count, weight_bytes

pytestmark = pytest.mark.silicon


@cache
def folder() -> Path:
    package = pytest.importorskip("aiconfigurator_core", reason="needs the extra `silicon`")
    return Path(package.__file__).parent / "model_configs"


@cache
def imported(stem: str) -> ModelSpec:
    return import_model(folder() / f"{stem}_config.json")[0]


def stems() -> list[str]:
    try:
        names = sorted(path.name for path in folder().glob("*_config.json"))
    except pytest.skip.Exception:
        return []
    return [name.removesuffix("_config.json") for name in names if not name.endswith("_hf_quant_config.json")]


def test_nearly_all_files_import_and_the_rest_are_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    files, refused = 0, []
    rows = [
        f"{'model':46s} {'total B':>9s} {'active':>9s} {'MTP B':>7s} {'KV B/token':>11s} {'weights GB':>11s}"
    ]
    for stem in stems():
        companion = (folder() / f"{stem}_hf_quant_config.json").is_file()
        try:
            model = imported(stem)
        except SpecError as error:
            refused.append((stem, str(error)))
            continue
        files += 1 + companion
        count, kv = parameter_count(model), cache_bytes(model)
        sizes = (count.total / 1e9, count.active / 1e9, count.mtp / 1e9)
        rows.append(
            f"{model.name:46s} {sizes[0]:9.3f} {sizes[1]:9.3f} {sizes[2]:7.2f} {kv.per_token:11.0f}"
            f" {weight_bytes(model) / 1e9:11.1f}"
        )
    with capsys.disabled():
        print("\n" + "\n".join(rows))  # noqa: T201 - the table is the point
    total = len(list(folder().glob("*config.json")))
    assert files >= 105, f"{files} of {total}"
    assert files + sum(1 + (folder() / f"{s}_hf_quant_config.json").is_file() for s, _ in refused) == total
    for stem, message in refused:
        assert "DeepSeek-V4" in stem
        assert "'DeepseekV4ForCausalLM': this architecture is not supported" in message
        assert message.count("\n") == 0


# Billions in total and active as the authors state them, and how far rounding and omissions let them be off.
# "name": the size is the one in the model's own name.
PUBLISHED = {
    "Qwen--Qwen3-0.6B": (0.6, None, 0.01),  # model card
    "Qwen--Qwen3-1.7B": (1.7, None, 0.02),
    "Qwen--Qwen3-8B": (8.2, None, 0.005),
    "Qwen--Qwen3-32B": (32.8, None, 0.005),
    "Qwen--Qwen3-30B-A3B": (30.5, 3.3, 0.005),
    "Qwen--Qwen3-235B-A22B": (235, 22, 0.005),
    "Qwen--Qwen3-Coder-480B-A35B-Instruct": (480, 35, 0.005),
    "Qwen--Qwen3.5-397B-A17B": (397, 17, 0.005),
    "Qwen--Qwen3.5-122B-A10B": (122, 10, 0.005),  # name
    "Qwen--Qwen3.5-35B-A3B": (35, None, 0.012),  # name
    "Qwen--Qwen3.5-27B": (27, None, 0.012),  # name
    "meta-llama--Meta-Llama-3.1-8B": (8.03, None, 0.001),
    "meta-llama--Meta-Llama-3.1-70B": (70.6, None, 0.001),
    "meta-llama--Meta-Llama-3.1-405B": (405.9, None, 0.001),
    "meta-llama--Llama-4-Maverick-17B-128E-Instruct": (400, 17, 0.005),
    "meta-llama--Llama-4-Scout-17B-16E-Instruct": (109, 17, 0.015),  # the vision encoder is in the 109
    "mistralai--Mixtral-8x7B-v0.1": (46.7, 12.9, 0.001),
    "mistralai--Mixtral-8x22B-v0.1": (141, 39, 0.005),
    "deepseek-ai--DeepSeek-V3": (671, 37, 0.001),
    "deepseek-ai--DeepSeek-R1": (671, 37, 0.001),
    "deepseek-ai--DeepSeek-V3.2": (671, 37, 0.002),
    "moonshotai--Kimi-K2-Instruct": (1040, 32, 0.015),
    "moonshotai--Kimi-K2.5": (1000, 32, 0.03),
    "zai-org--GLM-5": (744, 40, 0.001),
    "MiniMaxAI--MiniMax-M2.5": (229.9, None, 0.006),
    "XiaomiMiMo--MiMo-V2-Flash": (309, 15, 0.002),
    "openai--gpt-oss-120b": (116.83, None, 0.0005),
    "openai--gpt-oss-20b": (20.91, None, 0.0005),
    "nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": (31.6, 3.6, 0.002),
    "nvidia--NVIDIA-Nemotron-3-Super-120B-A12B-FP8": (120, 12.7, 0.01),
    "nvidia--NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16": (550, 55, 0.005),  # name
    "nvidia--Nemotron-H-56B-Base-8K": (56, None, 0.01),  # name
    "nvidia--Llama-3_3-Nemotron-Super-49B-v1": (49.9, None, 0.002),
    "google--gemma-4-26B-A4B": (26, None, 0.04),  # name; the vision tower is in the 26
    "nvidia--Gemma-4-31B-IT-NVFP4": (31, None, 0.015),  # name
}


@pytest.mark.parametrize("stem", PUBLISHED)
def test_totals_are_the_published_ones(stem: str) -> None:
    total, active, tolerance = PUBLISHED[stem]
    count = parameter_count(imported(stem))
    assert count.total / 1e9 == pytest.approx(total, rel=tolerance)
    if active:
        assert count.active / 1e9 == pytest.approx(active, rel=0.05)


# experts (or everything, where there are none) / attention / activations / cache
STORED = {
    "Qwen--Qwen3-235B-A22B": "bf16 bf16 bf16 bf16",
    "Qwen--Qwen3-235B-A22B-FP8": "fp8_block fp8_block fp8 bf16",
    "Qwen--Qwen3-32B-FP8-Static-PerTensor": "fp8 fp8 fp8 fp8",
    "MiniMaxAI--MiniMax-M2.5": "fp8_block fp8_block fp8 bf16",
    "deepseek-ai--DeepSeek-V3": "fp8_block fp8_block fp8 bf16",
    "nvidia--DeepSeek-V3.1-NVFP4": "nvfp4 nvfp4 fp4 fp8",
    "nvidia--GLM-5-NVFP4": "nvfp4 bf16 fp4 fp8",
    "nvidia--GLM-5.2-NVFP4": "nvfp4 bf16 fp4 fp8",
    "nvidia--Gemma-4-26B-A4B-NVFP4": "nvfp4 bf16 fp4 fp8",
    "nvidia--Gemma-4-31B-IT-NVFP4": "nvfp4 bf16 fp4 fp8",
    "nvidia--Kimi-K2.5-NVFP4": "nvfp4 bf16 fp4 fp8",
    "nvidia--Llama-3.1-70B-Instruct-FP8": "fp8 fp8 fp8 fp8",
    "nvidia--MiniMax-M2.5-NVFP4": "nvfp4 bf16 fp4 fp8",
    "nvidia--MiniMax-M3-NVFP4": "nvfp4 fp8 fp4 bf16",
    "nvidia--NVIDIA-Nemotron-3-Super-120B-A12B-FP8": "fp8 fp8 fp8 fp8",
    "nvidia--NVIDIA-Nemotron-3.5-Lightning-30B-A3B-NVFP4": "nvfp4 fp8 bf16 fp8",
    "nvidia--Qwen3-235B-A22B-NVFP4": "nvfp4 nvfp4 fp4 fp8",
    "nvidia--Qwen3.5-397B-A17B-NVFP4": "nvfp4 bf16 fp4 fp8",
    "nvidia--Qwen3.6-27B-NVFP4": "nvfp4 fp8 bf16 fp8",
    "moonshotai--Kimi-K2.5": "int4 bf16 bf16 bf16",
    "moonshotai--Kimi-K3": "mxfp4 bf16 bf16 bf16",
    "openai--gpt-oss-120b": "mxfp4 bf16 bf16 bf16",
    "zai-org--GLM-5-FP8": "fp8_block fp8_block fp8 bf16",
}


@pytest.mark.parametrize("stem", STORED)
def test_storage_types(stem: str) -> None:
    w = imported(stem).weights
    found = f"{w.experts or w.default} {w.attention or w.default} {w.activations} {w.kv_cache}"
    assert found == STORED[stem]
    assert w.embedding == "bf16"


def test_shared_experts_of_kimi_stay_unquantised_and_partial_groups_are_told() -> None:
    kimi = imported("moonshotai--Kimi-K2.5")
    assert (kimi.weights.default, kimi.weights.int4_group) == ("bf16", 32)
    note = imported("nvidia--DeepSeek-V3.1-NVFP4").sources[0].note
    # every attention matrix but o_proj is excluded: 16384 x 7168 of 187.1 M per layer is quantised
    share = float(re.search(r"attention: ([\d.]+) % of the parameters are bf16", note).group(1))  # type: ignore[union-attr]
    quantised = 128 * 128 * 7168
    rest = 7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * 256
    assert share == pytest.approx(100 * rest / (rest + quantised), abs=0.06)


def test_layer_patterns() -> None:
    m3 = imported("MiniMaxAI--MiniMax-M3")
    assert m3.blocks()[:4] == [("full", "dense")] * 3 + [("sparse", "moe")]
    assert m3.attentions["sparse"].index_top_k == 16 * 128  # type: ignore[union-attr]
    glm = [mixer for mixer, _ in imported("zai-org--GLM-5.2").blocks()]
    assert glm.count("mla") == 21
    assert glm[:7] == ["mla", "mla", "mla", "mla_shared", "mla_shared", "mla_shared", "mla"]
    k3 = imported("moonshotai--Kimi-K3").blocks()
    assert [i + 1 for i, (mixer, _) in enumerate(k3) if mixer == "mla"] == [*range(4, 93, 4), 93]
    nano = imported("nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-BF16").blocks()
    assert [sum(block == kind for block in nano) for kind in
            (("mamba", "none"), ("none", "moe"), ("full", "none"))] == [23, 23, 6]  # fmt: skip
    maverick = imported("meta-llama--Llama-4-Maverick-17B-128E-Instruct").blocks()
    assert maverick[:4] == [("chunked", "dense"), ("chunked", "moe"), ("chunked", "dense"), ("full", "moe")]
    assert imported("nvidia--NVIDIA-Nemotron-3-Super-120B-A12B-FP8").mtp_block == ("full", "moe")
    gemma = imported("google--gemma-4-26B-A4B").attentions["full"]
    assert (gemma.head_dim, gemma.kv_heads, gemma.k_equals_v) == (512, 2, True)  # type: ignore[union-attr]


@pytest.mark.parametrize("stem", ["openai--gpt-oss-20b", "nvidia--MiniMax-M3-NVFP4", "zai-org--GLM-5.2"])
def test_the_yaml_text_reads_back_as_the_same_spec(stem: str) -> None:
    model, text = import_model(folder() / f"{stem}_config.json", "again")
    assert validate(ModelSpec, parse_yaml(text, "text")) == model
    assert model.name == "again"
