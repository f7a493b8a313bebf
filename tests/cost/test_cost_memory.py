"""Memory: shares add up to the model, KV blocks against what engines logged, and refusals."""

import numpy as np
import pytest
from cost_nouns import deepseek, llama, mixtral, model, topology

from moesim.cost.footprint import activation_bytes, cache_share, stage_weight_bytes
from moesim.cost.layout import Layout
from moesim.cost.memory import memory_plan, usable_bytes
from moesim.errors import NoResult
from moesim.spec.deployment import Parallelism, Pool, PrecisionChoice
from moesim.spec.parameters import weight_bytes

GIB = 2**30


def pool(engine=None, **cut):
    return Pool.model_validate({"parallelism": cut, "engine": engine or {}})


def layout(m, nodes=1, device="h100", **cut):
    return Layout.of(m, topology(device, nodes=nodes), Parallelism(**cut))


def gqa(name, hidden, vocab, heads, kv, inner, layers, **more):
    return model(
        name, hidden, vocab,
        {"full": {"kind": "gqa", "heads": heads, "kv_heads": kv, "head_dim": 128}},
        {"mlp": {"kind": "dense", "intermediate": inner}},
        [{"repeat": layers, "layers": [["full", "mlp"]]}], **more,
    )  # fmt: skip


QWEN3_235B = model(
    "qwen3-235b-fp8", 4096, 151936,
    {"full": {"kind": "gqa", "heads": 64, "kv_heads": 4, "head_dim": 128, "qk_norm": True}},
    {"moe": {"kind": "moe", "experts": 128, "top_k": 8, "intermediate": 1536}},
    [{"repeat": 94, "layers": [["full", "moe"]]}], weights={"default": "fp8_block", "activations": "fp8"},
)  # fmt: skip

L7, L70 = gqa("l7", 4096, 32000, 32, 32, 11008, 32), gqa("l70", 8192, 32000, 64, 8, 28672, 80)
M7 = gqa("m7", 4096, 32002, 32, 8, 14336, 32)
Q14, Q32 = gqa("q14", 5120, 152064, 40, 8, 13824, 48), gqa("q32", 5120, 152064, 40, 8, 27648, 64)
# model, MiB the driver reports, tp, most tokens of a step, utilisation, blocks in the log, error allowed
LOGS = {
    "Llama-2-7B, A100-80, vllm#2031 (main)": (L7, 81920, 1, 4096, 0.9, 7449, 0.01),
    "Llama-2-7B, A100-80, vllm#2031 (PR)": (L7, 81920, 1, 4096, 0.9, 7351, 0.025),
    "Llama-2-70B, 4 A100-80, vllm#2031 (main)": (L70, 81920, 4, 4096, 0.9, 31615, 0.01),
    "Llama-3-8B, A6000, vllm#4454": (llama(), 49140, 1, 8192, 0.9, 13248, 0.04),
    "Mistral-7B, A6000, vllm#4454": (M7, 49140, 1, 32768, 0.9, 12735, 0.02),
    "Qwen2.5-32B, 2 L40S, vllm#15815": (Q32, 46068, 2, 10000, 0.9, 3947, 0.04),
    "Qwen2.5-14B, 2 RTX 4090, vllm#13061": (Q14, 24564, 2, 2048, 0.98, 5096, 0.11),
    "Qwen3-235B-FP8, 4 H100, SGLang, vllm#21348": (QWEN3_235B, 81559, 4, 8192, 0.93, 367404, 0.03),
}


@pytest.mark.parametrize("name", LOGS)
def test_kv_blocks_of_engine_logs(name):
    """Errors reached: +0.4, +1.7, +0.1, +2.9, +0.9, +2.8, +9.8, -1.9 %.

    At 98 % utilisation little cache is left, and that engine's sampler took 37 bytes per logit, not 20.
    These vLLM versions captured graphs outside the budget. SGLang counts single tokens.
    """
    m, mib, tp, tokens, share, blocks, allowed = LOGS[name]
    engine = {"max_num_batched_tokens": tokens, "gpu_memory_utilization": share}
    if "SGLang" in name:
        engine |= {"flavor": "sglang", "block_tokens": 1}
    where = topology("h100" if "H100" in name else "a100", capacity=f"{mib} MiB")
    plan = memory_plan(m, where, pool(engine, tp=tp), graphs_in_budget=False)
    assert plan.kv_blocks_per_lane == pytest.approx(blocks, rel=allowed)


def test_budget_closes():
    plan = memory_plan(llama(), topology("h100"), pool())
    spent = plan.weight_bytes + plan.activation_bytes + plan.graph_bytes + plan.reserve_bytes + plan.kv_bytes
    assert spent == pytest.approx(plan.budget_bytes)
    assert plan.budget_bytes == pytest.approx(0.9 * (85.0e9 - 0.5 * GIB))
    assert plan.kv_bytes_per_token == 32 * 2 * 8 * 128 * 2
    assert plan.kv_blocks_per_lane == plan.kv_bytes // (16 * plan.kv_bytes_per_token)
    assert plan.max_tokens == 16 * plan.kv_blocks_per_lane


@pytest.mark.parametrize("m", [llama(), mixtral(), deepseek()], ids=lambda m: m.name)
def test_one_device_stores_the_whole_model(m):
    assert sum(stage_weight_bytes(layout(m))) == pytest.approx(weight_bytes(m), rel=1e-3)


def test_a_tied_pair_is_stored_once_per_stage_that_needs_it():
    tied, apart = llama(tied_embeddings=True), llama()
    table = 128256 * 4096 * 2
    assert sum(stage_weight_bytes(layout(apart))) - sum(stage_weight_bytes(layout(tied))) == table
    assert stage_weight_bytes(layout(tied, pp=2)) == stage_weight_bytes(layout(apart, pp=2))


@pytest.mark.parametrize("cut", [{"tp": 8}, {"tp": 4, "ep": 4}, {"dp": 8, "ep": 8}, {"tp": 2, "pp": 4}])
def test_shares_add_up_to_the_model_and_its_replicas(cut):
    lay = layout(mixtral(), **cut)
    tp, dp = cut.get("tp", 1), cut.get("dp", 1)
    stored = sum(stage_weight_bytes(lay)) * tp * dp
    small = 32 * (4096 * 8 + 2 * 4096) * 2  # routers and norms are on every device
    experts = 32 * 8 * 3 * 4096 * 14336 * 2
    lane = weight_bytes(mixtral()) - experts - small
    assert stored == pytest.approx(experts + dp * lane + tp * dp * small, rel=1e-5)


def test_deepseek_cache_is_70272_bytes_and_not_cut_by_tp():
    for tp in (1, 8):
        (share,) = cache_share(layout(deepseek(), tp=tp))
        assert share.per_token == 70272
    assert sum(s.per_token for s in cache_share(layout(deepseek(), nodes=2, pp=16))) == 70272


def test_kv_heads_are_cut_then_replicated():
    sizes = [cache_share(layout(llama(), nodes=4, tp=tp))[0].per_token for tp in (1, 2, 8, 16, 32)]
    assert [s / 4096 for s in sizes] == [32, 16, 4, 4, 4]


def test_windows_and_state_are_spread_over_the_sequence():
    both = {
        "full": {"kind": "gqa", "heads": 8, "kv_heads": 2, "head_dim": 64},
        "local": {"kind": "gqa", "heads": 8, "kv_heads": 2, "head_dim": 64, "window": 128},
        "linear": {
            "kind": "linear",
            "flavor": "lightning",
            "heads": 8,
            "head_dim": 64,
            "key_heads": 8,
            "key_dim": 64,
        },
    }
    m = model(
        "mixed", 512, 1000, both, {"mlp": {"kind": "dense", "intermediate": 1024}},
        [{"repeat": 2, "layers": [["full", "mlp"], ["local", "mlp"], ["linear", "mlp"]]}],
    )  # fmt: skip
    (share,) = cache_share(layout(m))
    token, state = 2 * 2 * 64 * 2, 8 * 64 * 64 * 4
    assert share.per_token == 2 * token
    assert share.per_window_token == ((128, 2 * token),)
    assert share.per_sequence == 2 * state
    plans = {n: memory_plan(m, topology(), pool(), sequence_tokens=n) for n in (64, 1024)}
    assert plans[64].kv_bytes_per_token == pytest.approx(4 * token + 2 * state / 64)
    assert plans[1024].kv_bytes_per_token == pytest.approx(2 * token + (2 * token * 128 + 2 * state) / 1024)
    assert plans[1024].max_tokens > plans[64].max_tokens
    assert any("1024 tokens" in note for note in plans[1024].notes)


def test_replicas_of_experts_take_memory():
    lay = layout(deepseek(), dp=8, ep=8)
    extra = stage_weight_bytes(lay, 33)[0] - stage_weight_bytes(lay)[0]
    assert extra == pytest.approx(58 * 3 * 7168 * 2048 * (1 + 4 / 128**2))


def test_what_does_not_fit_says_what_is_short():
    with pytest.raises(NoResult) as caught:
        memory_plan(mixtral(), topology("a100"), pool())
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("mixtral-8x7b does not fit on a100: 93.41 GB weights")
    assert "short per device" in text
    missing = float(text.rpartition(", ")[2].partition(" GB")[0])
    assert missing == pytest.approx((93.41e9 - 0.9 * usable_bytes(topology("a100"))) / 1e9, abs=3)
    assert memory_plan(mixtral(), topology("a100"), pool(tp=2)).kv_blocks_per_lane > 0


def test_settings_replace_what_is_derived():
    plan = memory_plan(llama(), topology(), pool({"kv_blocks": 1234}))
    assert plan.kv_blocks_per_lane == 1234
    plan = memory_plan(llama(), topology(), pool({"runtime_reserve": "2 GiB"}))
    assert (plan.reserve_bytes, plan.graph_bytes) == (2 * GIB, 0)


def test_flavours_differ_as_their_engines_do():
    plans = {f: memory_plan(llama(), topology(), pool({"flavor": f})) for f in ("vllm", "sglang", "trtllm")}
    total = usable_bytes(topology())
    sglang = plans["sglang"]
    assert sglang.kv_bytes == pytest.approx(0.9 * (total - sglang.reserve_bytes) - sglang.weight_bytes)
    trt = plans["trtllm"]
    used = trt.weight_bytes + trt.activation_bytes + trt.reserve_bytes + trt.graph_bytes
    assert trt.kv_bytes == pytest.approx(0.9 * (total - used))


def test_smaller_types_leave_more_cache():
    base = memory_plan(llama(), topology("h100"), pool())
    fp8 = memory_plan(llama(), topology("h100"), pool(), PrecisionChoice(weights="fp8"))
    kv8 = memory_plan(llama(), topology("h100"), pool(), PrecisionChoice(kv_cache="fp8"))
    assert fp8.kv_blocks_per_lane > base.kv_blocks_per_lane
    assert kv8.kv_blocks_per_lane == pytest.approx(2 * base.kv_blocks_per_lane, abs=1)


def test_activations_grow_with_the_step_and_shrink_with_tp():
    sizes = [activation_bytes(layout(llama()), t, 256) for t in (256, 8192, 16384)]
    assert np.all(np.diff(sizes) > 0)
    assert activation_bytes(layout(llama(), tp=8), 16384, 256) < sizes[2]
    # sampling sets the peak of small steps: Llama-3-8B has 128256 logits per row
    assert sizes[0] == pytest.approx(256 * 128256 * 20 + 2 * 256 * 4096 * 2)
