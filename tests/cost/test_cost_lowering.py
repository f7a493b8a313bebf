"""Lowering: flop and bytes of the ops against the model's totals, and what sharding may change."""

import numpy as np
import pytest
from cost_nouns import deepseek, llama, mixtral, model, topology, uniform

from moesim.cost.attention import attention_shapes
from moesim.cost.flops import flops_per_token
from moesim.cost.layout import Layout, stage_layers
from moesim.cost.load import RoutingLoad
from moesim.cost.lowering import group_ops, head_ops, hop_ops, lane_ops
from moesim.errors import NoResult, SpecError
from moesim.spec.deployment import Parallelism
from moesim.spec.parameters import parameter_count, weight_bytes_by_group

ONE = np.array([1])


def layout(m, nodes=1, device="h100", **cut):
    return Layout.of(m, topology(device, nodes=nodes), Parallelism(**cut))


def total(ops, field):
    return sum(op.layers * getattr(op, field)[0] for op in ops)


def everything(lay, tokens, load=None):
    at = np.array([tokens])
    return lane_ops(lay, at) + group_ops(lay, at * lay.parallelism.dp, load) + head_ops(lay, at)


HYBRID = {
    "linear": {
        "kind": "linear", "flavor": "gated_delta", "heads": 32, "head_dim": 128,
        "key_heads": 16, "key_dim": 128,
        "conv_kernel": 4,
    },
    "full": {"kind": "gqa", "heads": 16, "kv_heads": 2, "head_dim": 256, "gate": True, "qk_norm": True},
}  # fmt: skip


def hybrid():
    """Shapes as in Qwen3-Next: three recurrent layers, then one with attention, experts everywhere."""
    moe = {
        "kind": "moe", "experts": 64, "top_k": 4, "intermediate": 512, "shared_experts": 1,
        "shared_intermediate": 512, "shared_gate": True,
    }  # fmt: skip
    blocks = [["linear", "moe"], ["linear", "moe"], ["linear", "moe"], ["full", "moe"]]
    return model("hybrid", 2048, 32000, HYBRID, {"moe": moe}, [{"repeat": 3, "layers": blocks}])


@pytest.mark.parametrize("m", [llama(), mixtral(), deepseek(), hybrid()], ids=lambda m: m.name)
def test_flop_of_the_ops_are_the_models_flops(m):
    """2 flop per active weight (norms and biases are not products), for one token on one device."""
    moe = [f for f in m.ffns.values() if f.kind == "moe"]
    load = uniform(moe[0].experts, moe[0].top_k, 8) if moe else None
    ops = everything(layout(m), 1, load)
    assert total(ops, "flop") == pytest.approx(flops_per_token(m, "linear"), rel=2e-3)


@pytest.mark.parametrize("m", [llama(), mixtral(), deepseek(), hybrid()], ids=lambda m: m.name)
def test_weight_bytes_of_a_full_batch_are_the_stored_weights(m):
    """With every expert touched, one step reads every weight once, but not the embedding table."""
    moe = [f for f in m.ffns.values() if f.kind == "moe"]
    load = uniform(moe[0].experts, moe[0].top_k, 8192) if moe else None
    stored = weight_bytes_by_group(m)
    expected = stored.total - stored.embedding - stored.norms
    assert total(everything(layout(m), 8192, load), "weight_bytes") == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("cut", [{"tp": 2}, {"tp": 8}, {"tp": 4, "ep": 4}, {"tp": 4, "ep": 2}])
def test_sharding_conserves_flop_and_expert_bytes(cut):
    m, load = mixtral(), uniform(8, 2, 512)
    whole, part = everything(layout(m), 512, load), everything(layout(m, **cut), 512, load)
    tp = cut["tp"]
    router = 32 * 2 * 512 * 4096 * 8 * (1 - 1 / tp)  # every device routes all its tokens
    assert total(part, "flop") == pytest.approx(total(whole, "flop") / tp + router, rel=1e-9)
    grouped = [op for op in part if op.kind == "grouped_gemm"]
    assert total(grouped, "weight_bytes") * tp == pytest.approx(
        total([op for op in whole if op.kind == "grouped_gemm"], "weight_bytes")
    )


def test_latent_down_projections_are_not_sharded():
    ops = {op.name: op for op in lane_ops(layout(deepseek(), tp=8), ONE)}
    assert dict(ops["qkv_a_proj"].dims)["n"] == 1536 + 512 + 64
    assert dict(ops["q_b_proj"].dims)["n"] == 128 * 192 // 8
    assert dict(ops["o_proj"].dims)["k"] == 128 * 128 // 8


def test_kv_heads_are_replicated_when_devices_are_more():
    ops = {op.name: op for op in lane_ops(layout(llama(), nodes=2, tp=16), ONE)}
    assert dict(ops["qkv_proj"].dims)["n"] == 2 * 128 + 2 * 128  # two query heads, one of 8 kv heads


def test_one_device_has_no_collectives():
    ops = everything(layout(mixtral()), 7, uniform(8, 2, 7)) + hop_ops(layout(mixtral()), ONE)
    assert [op.name for op in ops if op.kind == "collective"] == []


@pytest.mark.parametrize(
    ("cut", "names"),
    [
        ({"tp": 4}, {"moe_all_reduce"}),
        ({"tp": 4, "ep": 4}, {"moe_all_reduce"}),
        ({"dp": 4, "ep": 4}, {"dispatch", "combine"}),
        ({"tp": 2, "dp": 2, "ep": 4}, {"dispatch", "combine", "moe_tp_gather"}),
        ({"dp": 4}, {"moe_gather", "moe_scatter"}),
        ({"tp": 2, "dp": 2}, {"moe_gather", "moe_scatter", "moe_tp_gather"}),
    ],
)
def test_who_talks_to_whom(cut, names):
    ops = group_ops(layout(mixtral(), **cut), np.array([64]), uniform(8, 2, 64, 1.6))
    assert {op.name for op in ops if op.kind == "collective"} == names


def test_experts_follow_distinct_experts_touched_not_tokens():
    """Two tokens of the same prompt that agree on their experts read no more weights than one."""
    lay, at = layout(mixtral()), np.array([1, 2, 64])
    free = group_ops(lay, at, uniform(8, 2, 64))
    count = np.arange(65.0)
    agreeing = RoutingLoad(np.where(count > 0, 2.0, 0.0), np.ones(65), 1.0, 1.0)
    bound = group_ops(lay, at, agreeing)
    up, same = (next(op for op in ops if op.name == "moe_gate_up") for ops in (free, bound))
    expert = 2 * 14336 * 4096 * 2
    assert list(same.weight_bytes / expert) == [2, 2, 2]
    assert up.weight_bytes[1] / expert == pytest.approx(8 * (1 - 0.75**2))
    assert np.all(up.flop == same.flop)
    assert np.all(up.weight_bytes <= 8 * expert)


def test_the_busiest_rank_sets_rows_and_experts():
    lay, at = layout(mixtral(), tp=4, ep=4), np.array([512])
    even, skewed = (group_ops(lay, at, uniform(8, 2, 512, straggler=s)) for s in (1.0, 2.5))
    for a, b in zip(even, skewed, strict=True):
        if a.kind == "grouped_gemm":
            assert b.flop == pytest.approx(2.5 * a.flop)
            assert b.weight_bytes == pytest.approx(a.weight_bytes)  # a rank holds only two experts
            assert a.flop * 4 == pytest.approx(2 * 512 * 2 * dict(a.dims)["n"] * dict(a.dims)["k"])


def test_one_token_cannot_touch_half_an_expert_more_than_its_rows():
    lay = layout(mixtral(), tp=4, ep=4)
    load = RoutingLoad(np.array([0.0, 2.0]), np.array([1.0, 1.75]), 1.75, 1.0)
    up = next(op for op in group_ops(lay, ONE, load) if op.name == "moe_gate_up")
    assert up.weight_bytes[0] <= 2 * 1.75 / 4 * 2 * 14336 * 4096 * 2


def test_dispatch_volume_follows_distinct_ranks():
    lay = layout(deepseek(), dp=8, ep=8)
    sizes = {}
    for ranks in (2.0, 5.3):
        ops = group_ops(lay, np.array([8192]), uniform(256, 8, 8192, ranks))
        dispatch = next(op for op in ops if op.name == "dispatch")
        sizes[ranks] = dispatch.exchange
        # fp8 with one fp32 scale per 128 values; a device holds 1/8 of the tokens
        assert dispatch.exchange.size[0] == 1024 * (7168 + 7168 / 128 * 4)
        assert next(op for op in ops if op.name == "combine").exchange.size[0] == 1024 * 7168 * 2
    assert sizes[5.3].ranks_per_token / sizes[2.0].ranks_per_token == pytest.approx(2.65)


def test_shared_experts_are_replicated_where_tokens_are_cut():
    shared = {
        cut: {op.name: op for op in lane_ops(layout(deepseek(), **dict(cut)), np.array([64]))}[
            "shared_down_proj"
        ]
        for cut in ((("tp", 8),), (("tp", 4), ("dp", 2), ("ep", 8)))
    }
    cut, whole = shared.values()
    assert dict(cut.dims)["k"] == 2048 // 8
    assert dict(whole.dims)["k"] == 2048
    assert whole.flop[0] == pytest.approx(cut.flop[0] * 2)  # tp 4 against tp 8


def test_absorbed_decode_and_expanded_prefill():
    core, expand = attention_shapes(layout(deepseek()))
    assert core.decode_pair_flop == 2 * 128 * (576 + 512)
    assert core.prefill_pair_flop == 2 * 128 * (192 + 128)
    assert core.decode_key_bytes == 576 * 2
    assert core.layers == expand.layers == 61
    assert expand.prefill_key_flop == 2 * 512 * 128 * 256
    # cut over 8 devices the heads shrink, the cached latent does not
    cut, _ = attention_shapes(layout(deepseek(), tp=8))
    assert cut.decode_pair_flop == core.decode_pair_flop / 8
    assert cut.decode_key_bytes == core.decode_key_bytes


def test_sliding_windows_indexers_and_recurrence_have_their_own_terms():
    sparse = deepseek()
    mla = sparse.attentions["mla"].model_copy(
        update={"index_heads": 64, "index_head_dim": 128, "index_top_k": 2048}
    )
    sparse = sparse.model_copy(update={"attentions": {"mla": mla}})
    core, index = attention_shapes(layout(sparse))
    assert (core.window, index.window, index.kind) == (2048, 0, "index")
    assert index.decode_key_bytes == 128 + 4
    assert core.prefill_pair_flop == core.decode_pair_flop
    recurrent, full = attention_shapes(layout(hybrid(), tp=2))
    assert (recurrent.window, recurrent.layers, full.layers) == (-1, 9, 3)
    assert recurrent.decode_pair_flop == 7 * 16 * 128 * 128
    state = 32 * 128 * 128 * 4 + (2 * 16 * 128 + 32 * 128) * 3 * 2
    assert recurrent.decode_key_bytes == pytest.approx(2 * state / 2)
    local = llama().model_copy(
        update={"attentions": {"full": llama().attentions["full"].model_copy(update={"window": 1024})}}
    )
    assert attention_shapes(layout(local))[0].window == 1024


def test_layers_of_two_kinds_keep_their_names_apart():
    names = [op.name for op in lane_ops(layout(hybrid()), ONE)]
    assert "in_proj.linear" in names
    assert "qkv_proj.full" in names
    assert len(names) == len(set(names))
    assert "o_proj" in [op.name for op in lane_ops(layout(llama()), ONE)]


def test_pipeline_passes_two_tensors_and_gathers_them():
    ops = hop_ops(layout(llama(), tp=2, pp=2), np.array([100]))
    assert [op.name for op in ops] == ["stage_send", "stage_gather"]
    assert ops[0].exchange.size[0] == 100 * 2 * 4096 * 2 / 2
    assert ops[0].exchange.group.nodes == 1
    assert hop_ops(layout(llama(), nodes=2, tp=8, pp=2), ONE)[0].exchange.group.nodes == 2
    for layers in (32, 61, 7):
        for pp in (1, 2, 3, 4, 7):
            parts = stage_layers(layers, pp)
            assert sum(parts) == layers
            assert max(parts) - min(parts) <= 1


def test_what_does_not_divide_is_refused():
    with pytest.raises(SpecError, match="tp 3 does not divide the 32 heads of llama-3-8b's full"):
        layout(llama(), tp=3)
    with pytest.raises(SpecError, match="ep 16 is more than the 8 experts"):
        layout(mixtral(), nodes=2, dp=16, ep=16)
    with pytest.raises(NoResult, match="a replica needs 16 devices, test has 8"):
        layout(llama(), tp=16)
    with pytest.raises(NoResult, match="pp 64"):
        layout(llama(), nodes=8, pp=64)
    with pytest.raises(SpecError, match="expected a routing load for the experts 'moe'"):
        group_ops(layout(mixtral()), ONE, None)
    with pytest.raises(SpecError, match="curves end at 4 tokens, a step has 5"):
        group_ops(layout(mixtral()), np.array([5]), uniform(8, 2, 4))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"distinct": np.array([1.0, 2.0])}, "start at 0"),
        ({"distinct": np.array([0.0, 2.0, 1.0]), "straggler": np.ones(3)}, "never fall"),
        ({"straggler": np.array([1.0, 0.5])}, "at least 1"),
        ({"straggler": np.ones(3)}, "one length"),
        ({"ranks_per_token": 1.0, "nodes_per_token": 2.0}, "ranks_per_token >= nodes_per_token"),
    ],
)
def test_impossible_loads_are_refused(bad, message):
    with pytest.raises(SpecError, match=message):
        RoutingLoad(
            **{
                "distinct": np.array([0.0, 2.0]),
                "straggler": np.ones(2),
                "ranks_per_token": 2.0,
                "nodes_per_token": 1.0,
                **bad,
            }
        )


def test_touched_experts_of_the_busiest_rank():
    at = np.array([0, 1, 2])
    load = RoutingLoad(np.array([0.0, 2.0, 3.5]), np.array([1.0, 2.0, 1.6]), 1.75, 1.0)
    assert list(load.touched(at, 8, 1)) == [0, 2, 3.5]
    assert load.touched(at, 8, 4) == pytest.approx([0, 1.0, 1.4])  # its share, times the straggler factor
    assert load.touched(at, 4, 4) == pytest.approx([0, 1.0, 1.0])  # it holds one
    assert load.rows(at, 2, 4) == pytest.approx([0, 1.0, 1.6])
    assert load.rows(at, 2, 1) == pytest.approx([0, 2, 4])
    known = RoutingLoad(load.distinct, load.straggler, 1.75, 1.0, np.array([0.0, 1.0, 1.25]))
    assert list(known.touched(at, 8, 4)) == [0, 1.0, 1.25]
    spare = RoutingLoad(load.distinct, load.straggler, 1.75, 1.0, slots_per_rank=2)
    assert spare.touched(at, 4, 4) == pytest.approx([0, 1.0, 1.4])


def test_a_cut_lane_sends_each_token_once():
    """With tp 4 x dp 2 a device dispatches an eighth of all tokens and gathers its lane's half afterwards."""
    ops = group_ops(layout(deepseek(), tp=4, dp=2, ep=8), np.array([800]), uniform(256, 8, 800, 5.3))
    size = {op.name: op.exchange.size[0] for op in ops if op.exchange}
    assert size["dispatch"] == pytest.approx(100 * (7168 + 7168 / 128 * 4))
    assert size["combine"] == 100 * 7168 * 2
    assert size["moe_tp_gather"] == 400 * 7168 * 2


def test_tensor_parallel_lanes_add_up_after_embedding_attention_and_ffn():
    names = [op.name for op in lane_ops(layout(llama(), tp=2), ONE) if op.kind == "collective"]
    assert names == ["embedding_all_reduce", "attention_all_reduce", "ffn_all_reduce"]


def test_active_parameters_of_the_examples():
    """Keeps the examples honest: published totals (model cards)."""
    assert parameter_count(llama()).total == pytest.approx(8.03e9, rel=1e-3)
    assert parameter_count(mixtral()).total == pytest.approx(46.70e9, rel=1e-3)
    assert parameter_count(deepseek()).total == pytest.approx(671.03e9, rel=1e-3)


def test_a_norm_over_all_heads_costs_a_reduction_of_sums_where_heads_are_cut() -> None:
    plain = mixtral()
    full = plain.attentions["full"].model_copy(update={"qk_norm": True, "qk_norm_whole": True})
    whole = plain.model_copy(update={"attentions": {"full": full}})

    def extra(tp):
        return [op for op in lane_ops(layout(whole, tp=tp), ONE) if op.name.startswith("qk_norm")]

    assert [op.name for op in extra(1)] == ["qk_norm"]
    norm, reduced = extra(4)
    assert reduced.exchange.pattern == "all_reduce"
    assert reduced.exchange.size[0] == 8  # two fp32 sums per token, whatever the width
    width = (full.heads + full.kv_heads) * full.head_dim / 4
    assert norm.bytes[0] == pytest.approx(3 * 2 * width)
    assert parameter_count(whole).total - parameter_count(plain).total == (
        len(plain.blocks()) * (full.heads + full.kv_heads) * full.head_dim
    )
