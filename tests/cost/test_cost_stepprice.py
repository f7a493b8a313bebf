"""Step pricing: tables equal op-by-op prices, floors, laws over the tables, and the time to build them."""

import time

import numpy as np
import pytest
from cost_nouns import deepseek, llama, mixtral, topology, uniform
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.cost.attention import attention_shapes, bound_term
from moesim.cost.collectives import all_reduce
from moesim.cost.layout import Layout
from moesim.cost.lowering import group_ops, head_ops, hop_ops, lane_ops
from moesim.cost.roofline import Launch, Place, roofline_seconds
from moesim.cost.stepprice import stage_shares, step_pricing
from moesim.errors import SpecError
from moesim.spec.deployment import Pool, PrecisionChoice, Speculation


def pool(tokens=64, seqs=16, *, graphs=True, **cut):
    engine = {"max_num_batched_tokens": tokens, "max_num_seqs": seqs, "cuda_graphs": graphs}
    return Pool.model_validate({"parallelism": cut, "engine": engine})


CASES = [
    (llama(), "a100", 1, {}, None),
    (mixtral(), "a100", 1, {"tp": 4, "ep": 4}, uniform(8, 2, 64, straggler=1.3)),
    (mixtral(), "a100", 1, {"tp": 2, "dp": 2, "ep": 2, "pp": 2}, uniform(8, 2, 128, 1.6)),
    (deepseek(), "h100", 2, {"tp": 4, "dp": 4, "ep": 16}, uniform(256, 8, 256, 6.5, 1.99, 1.5)),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_tables_are_op_by_op_prices(case):
    m, device, nodes, cut, load = CASES[case]
    where, replica = topology(device, nodes=nodes), pool(**cut)
    price = step_pricing(m, where, replica, None, load)
    layout = Layout.of(m, where, replica.parallelism)
    lane, group = (
        Place(where.device, Launch(4e-6, 1e-6, 32)),
        Place(where.device, Launch(4e-6, 1e-6, 32 * price.lanes)),
    )
    for tokens in (0, 1, 2, 31, 32, 33, 64):
        at = np.array([tokens])
        alone = [float(roofline_seconds(op, lane)[0]) for op in lane_ops(layout, at)]
        assert price.lane_s[:, tokens] == pytest.approx(alone, rel=1e-12)
        both = np.array([tokens * price.lanes])
        experts = [float(roofline_seconds(op, group)[0]) for op in group_ops(layout, both, load)]
        assert price.group_s[:, both[0]] == pytest.approx(experts, rel=1e-12)
        hop = sum(float(roofline_seconds(op, lane)[0]) for op in hop_ops(layout, at))
        assert price.hop_s[tokens] == pytest.approx(hop, rel=1e-12)
    for rows in (0, 1, 16):
        head = [float(roofline_seconds(op, lane)[0]) for op in head_ops(layout, np.array([rows]))]
        assert price.head_s[:, rows] == pytest.approx(head, rel=1e-12)
    assert price.attention == tuple(bound_term(s, where.device, 1e-6) for s in attention_shapes(layout))
    assert [i.name for i in price.lane_ops] == [op.name for op in lane_ops(layout, np.array([1]))]
    assert price.lane_s.shape == (len(price.lane_ops), 65)
    assert price.group_s.shape == (len(price.group_ops), 64 * price.lanes + 1)
    assert price.head_s.shape == (len(price.head_ops), 17)
    assert price.stage_share.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("case", range(len(CASES)))
def test_laws_of_the_tables(case):
    m, device, nodes, cut, load = CASES[case]
    price = step_pricing(m, topology(device, nodes=nodes), pool(**cut), None, load)
    for table in (price.lane_s, price.group_s, price.head_s):
        assert np.all(table[:, 0] == 0)
        assert np.all(np.isfinite(table))
        assert np.all(np.diff(table, axis=1) >= -1e-18)  # more tokens never take less time
        assert np.all(table[:, 1:] > 0)
    assert np.all(np.diff(price.hop_s) >= 0)


def test_llama_decode_floor_is_weights_over_bandwidth():
    """Llama-3-8B on A100: all weights but the embedding, 15.01 GB at 2.039 TB/s, take 7.361 ms."""
    price = step_pricing(llama(), topology("a100", launch="0 s", graph="0 s"), pool())
    step = price.lane_s[:, 1].sum() + price.head_s[:, 1].sum()
    floor = 2 * (8_030_261_248 - 128256 * 4096 - 65 * 4096) / 2.039e12
    assert price.bytes_per_step / 2.039e12 == pytest.approx(floor, rel=1e-9)
    assert floor == pytest.approx(7.361e-3, rel=1e-3)
    assert floor < step < floor * 1.001
    assert price.flop_per_token == pytest.approx(2 * 7.504e9, rel=1e-3)


def test_large_prefill_is_bound_by_arithmetic():
    price = step_pricing(llama(), topology("a100", launch="0 s"), pool(tokens=8192, graphs=False))
    products = sum(s[8192] for i, s in zip(price.lane_ops, price.lane_s, strict=True) if i.kind == "gemm")
    assert products == pytest.approx(2 * 8192 * (7_504_924_672 - 128256 * 4096) / 312e12, rel=1e-3)


def test_one_device_has_no_collective_and_four_pay_two_per_layer():
    one = step_pricing(mixtral(), topology(), pool(), None, uniform(8, 2, 64))
    assert "collective" not in {i.kind for i in one.lane_ops + one.group_ops + one.head_ops}
    four = step_pricing(mixtral(), topology(graph="0 s", launch="0 s"), pool(tp=4), None, uniform(8, 2, 64))
    layout = Layout.of(mixtral(), topology(), pool(tp=4).parallelism)
    rows = dict(zip([i.name for i in four.lane_ops], four.lane_s, strict=True))
    group = dict(zip([i.name for i in four.group_ops], four.group_s, strict=True))
    expected = 32 * all_reduce(64 * 4096 * 2, layout.tensor)
    assert rows["attention_all_reduce"][64] == pytest.approx(float(expected))
    assert group["moe_all_reduce"][64] == pytest.approx(float(expected))


def test_graphs_save_launches_only_where_batches_are_captured():
    eager = step_pricing(llama(), topology(), pool(graphs=False))
    graphs = step_pricing(llama(), topology(), pool())  # 16 sequences: captured up to 32 tokens
    launches = sum(1 if i.name in {"embedding", "final_norm"} else 32 for i in eager.lane_ops)
    gain = (eager.lane_s - graphs.lane_s).sum(axis=0)
    assert gain[32] == pytest.approx(launches * 3e-6)
    assert gain[33] == pytest.approx(0, abs=1e-15)
    assert eager.attention[0].launch_s == pytest.approx(32 * 4e-6)


@settings(max_examples=25, deadline=None)
@given(st.floats(1.0, 4.0), st.floats(1.0, 4.0), st.floats(1.0, 4.0))
def test_better_hardware_is_never_slower(memory, link, network):
    def build(a, b, c):
        where = topology(
            "a100", nodes=2, bw=f"{2.039 * a} TB/s", link=f"{300 * b} GB/s", nic=f"{25 * c} GB/s"
        )
        cut = {"tp": 2, "dp": 4, "ep": 8, "pp": 2}
        return step_pricing(mixtral(), where, pool(tokens=16, **cut), None, uniform(8, 2, 64, 2, 1.5))

    base, better = build(1, 1, 1), build(memory, link, network)
    for name in ("lane_s", "group_s", "head_s", "hop_s"):
        assert np.all(getattr(better, name) <= getattr(base, name) * (1 + 1e-12))
    for a, b in zip(better.attention, base.attention, strict=True):
        assert a.decode_kv_s <= b.decode_kv_s


def test_skew_costs_time_and_agreement_saves_it():
    def step(load):
        return step_pricing(mixtral(), topology(), pool(tp=4, ep=4), None, load).group_s[:, 64].sum()

    assert step(uniform(8, 2, 64, straggler=2.0)) > step(uniform(8, 2, 64))
    fewer = uniform(8, 2, 64)
    fewer = type(fewer)(np.minimum(fewer.distinct, 4.0), fewer.straggler, 1.0, 1.0)
    assert step(fewer) < step(uniform(8, 2, 64))


def test_quantised_weights_are_read_faster():
    bf16 = step_pricing(llama(), topology("h100"), pool())
    fp8 = step_pricing(llama(), topology("h100"), pool(), PrecisionChoice(weights="fp8", activations="fp8"))
    int4 = step_pricing(llama(), topology("h100"), pool(), PrecisionChoice(weights="int4"))
    assert fp8.bytes_per_step < 0.56 * bf16.bytes_per_step  # the head stays bf16
    assert int4.bytes_per_step < fp8.bytes_per_step
    assert any("weight-only" in note for note in int4.notes)
    assert {"qkv_quantise", "o_quantise"} <= {i.name for i in fp8.lane_ops}
    kv8 = step_pricing(llama(), topology("h100"), pool(), PrecisionChoice(kv_cache="fp8"))
    assert kv8.attention[0].decode_kv_s == pytest.approx(bf16.attention[0].decode_kv_s / 2)


def test_drafts_widen_the_head():
    price = step_pricing(llama(), topology(), pool(), speculation=Speculation(draft_tokens=3, acceptance=0.8))
    assert price.head_s.shape[1] == 16 * 4 + 1


def test_notes_name_the_assumptions():
    where, cut = topology("h100", nodes=2), {"dp": 16, "ep": 16}
    price = step_pricing(deepseek(), where, pool(**cut), None, uniform(256, 8, 1024, 6.5, 2))
    assert any("roofline bound" in note for note in price.notes)
    assert any("mean tokens per lane" in note for note in price.notes)
    assert price.lanes == 16
    assert price.devices == 16


def test_stages_follow_the_work_of_their_layers():
    shares = stage_shares(deepseek(), 4)
    assert shares.sum() == pytest.approx(1)
    assert np.all(np.abs(shares - 0.25) < 0.02)
    assert stage_shares(llama(), 4) == pytest.approx([0.25] * 4)
    assert list(stage_shares(llama(), 1)) == [1.0]


def test_several_kinds_of_experts_need_their_own_load():
    load = uniform(8, 2, 64)
    by_name = step_pricing(mixtral(), topology(), pool(), None, {"moe": load})
    assert np.all(by_name.group_s == step_pricing(mixtral(), topology(), pool(), None, load).group_s)
    with pytest.raises(SpecError, match="routing load for the experts 'moe'"):
        step_pricing(mixtral(), topology(), pool(), None, {"other": load})


def test_tables_for_a_large_replica_are_built_within_a_second():
    load = uniform(256, 8, 8 * 8192, 5.3)
    where, replica = topology("h100"), pool(tokens=8192, seqs=256, dp=8, ep=8)
    best = np.inf
    for _ in range(3):
        start = time.perf_counter()
        step_pricing(deepseek(), where, replica, None, load)
        best = min(best, time.perf_counter() - start)
    assert best < 1.0
