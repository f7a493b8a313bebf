"""Parallelism: priced as the simulator prices, steady as it runs, every option in the table, exact over all of them."""

import itertools
import math
import time
from dataclasses import replace

import numpy as np
import pytest

from moesim import api
from moesim.cost.load import RoutingLoad
from moesim.cost.overheads import Overhead, with_overhead
from moesim.cost.pricing import GRID, AttentionTerm
from moesim.cost.stepprice import step_pricing
from moesim.errors import NoResult, SpecError
from moesim.plan.parallelism import (
    Axes,
    Demand,
    Measured,
    ParallelismProblem,
    best_split,
    finalists,
    option_table,
    plan_parallelism,
    priced_cuts,
    sglang_flags,
    simulated,
    vllm_flags,
)
from moesim.plan.parallelism.attention import attention_seconds
from moesim.plan.parallelism.axes import cuts
from moesim.plan.parallelism.loads import Loads
from moesim.plan.parallelism.price import price_cut
from moesim.plan.parallelism.steady import decode_curve, prefill_curve
from moesim.sim.routing_load import routing_load
from moesim.spec.deployment import Engine, Parallelism, Pool, PrecisionChoice, Targets
from moesim.spec.topology import resolve_cluster


@pytest.fixture(scope="module")
def mixtral():
    return api.load("quickstart").scenario


@pytest.fixture(scope="module")
def deepseek():
    return api.load("deepseek-v3-h200").scenario


def fixed(prompt=1000, output=200, rate=0.0):
    return Demand(np.array([float(prompt)]), np.array([float(output)]), rate)


SMALL = Axes(
    tp=(1, 2, 4), pp=(1, 2), dp=(1, 2), ep=(1, 2), max_num_seqs=(64, 256), max_num_batched_tokens=(2048,)
)


def problem(scenario, demand, devices=8, **changes):
    known = {
        "model": scenario.model, "topology": scenario.topology(), "demand": demand, "devices": devices,
        "routing": scenario.routing, "axes": SMALL, "targets": Targets.model_validate({"ttft": "1 s", "tpot": "50 ms"}),
    }  # fmt: skip
    return ParallelismProblem(**{**known, **changes})


@pytest.mark.parametrize("cut", [{"tp": 2}, {"tp": 2, "pp": 2}, {"tp": 1, "dp": 4, "ep": 4}])
@pytest.mark.parametrize("seqs", [64, 256])
def test_prices_are_the_simulators(mixtral, cut, seqs):
    """At the counts asked for, seconds are those of the simulator's tables; in between within 3 %."""
    pool = Pool(parallelism=Parallelism(**cut), engine=Engine(max_num_seqs=seqs, max_num_batched_tokens=1024))
    topology, host = mixtral.topology(), Overhead(2e-3, 1e-5, 0.0, 1.3)
    loads = routing_load(mixtral, topology, pool)[0]
    want = with_overhead(step_pricing(mixtral.model, topology, pool, None, loads), host)
    got = price_cut(mixtral.model, topology, pool.parallelism, pool.engine, loads, overhead=host)
    for (counts, seconds), table in (
        (got.lane, want.lane_s), (got.group, want.group_s), (got.head, np.pad(want.head_s, ((0, 0), (0, 1)))),
        (got.hop, want.hop_s[None]),
    ):  # fmt: skip
        whole = table.sum(axis=0)
        inside = counts < (len(whole) - 1 if table.shape[1] == seqs + 2 else len(whole))
        np.testing.assert_allclose(seconds[inside], whole[counts[inside].astype(int)], rtol=1e-12)
        every = np.arange(1, int(counts[inside].max()) + 1)
        if whole[1:].any():
            np.testing.assert_allclose(np.interp(every, counts, seconds), whole[every], rtol=0.03)
    assert got.overhead_s == want.overhead_s
    assert got.widest_stage == want.stage_share.max()
    assert got.terms == want.attention


def test_loads_are_the_simulators(deepseek):
    cut = Parallelism(tp=1, dp=8, ep=8)
    pool = Pool(parallelism=cut, engine=Engine(max_num_seqs=64, max_num_batched_tokens=256))
    want = routing_load(deepseek, deepseek.topology(), pool)[0]
    got = Loads(deepseek.model, deepseek.topology(), deepseek.routing, 2048).of(cut)
    assert got.keys() == want.keys()
    every = np.arange(1, 2049)
    for name, load in got.items():
        distinct, straggler = (np.interp(every, load.knots, c) for c in (load.distinct, load.straggler))
        np.testing.assert_allclose(distinct, want[name].distinct[every], rtol=0.01)
        np.testing.assert_allclose(straggler, want[name].straggler[every], rtol=0.03)
        plain = RoutingLoad(np.r_[0.0, distinct], np.r_[1.0, straggler], 1.0, 1.0, None, load.slots_per_rank)
        for ranks in (1, 8):
            assert load.rows(every, 8, ranks).tolist() == plain.rows(every, 8, ranks).tolist()
            assert load.touched(every, 256, ranks).tolist() == plain.touched(every, 256, ranks).tolist()
        with pytest.raises(SpecError, match="end at 2048 tokens, a step has 2049"):
            load.rows(np.array([2049]), 8, 8)
        assert (load.ranks_per_token, load.nodes_per_token) == (
            want[name].ranks_per_token,
            want[name].nodes_per_token,
        )
    with pytest.raises(SpecError, match="rising token count"):
        RoutingLoad(np.array([0.0, 1.0]), np.ones(2), 1.0, 1.0, knots=np.array([0, 0]))


def test_attention_is_what_its_terms_say():
    grid = 1 + np.random.default_rng(0).random(GRID)
    term = AttentionTerm("a", 0, 1e-5, 2e-9, 3e-9, 4e-7, 5e-10, 6e-9, -1e-9, "fitted", grid, grid + 1)
    one = (np.array([float(x)]) for x in (8, 8 * 512, 64, 64 * 128, 100))
    decode = (1e-5 + max(4096 * 2e-9, 4096 * 3e-9 + 8 * 4e-7)) * grid[3, 9]
    prefill = (1e-5 + max(8192 * 5e-10, 100 * 6e-9 - 64e-9)) * (grid[6, 7] + 1)
    assert float(attention_seconds(term, *one)[0]) == pytest.approx(decode + prefill, rel=1e-12)
    # between the nodes: sequences 2**3.5, keys 2**9.25, bilinear in the logarithms
    some = (np.array([x]) for x in (2**3.5, 2**12.75, 0.0, 0.0, 0.0))
    u, v = 0.5, 0.25
    slack = (grid[3, 9] * (1 - v) + grid[3, 10] * v) * (1 - u) + (grid[4, 9] * (1 - v) + grid[4, 10] * v) * u
    bound = 1e-5 + max(2**12.75 * 2e-9, 2**12.75 * 3e-9 + 2**3.5 * 4e-7)
    assert float(attention_seconds(term, *some)[0]) == pytest.approx(bound * slack, rel=1e-12)
    zero = np.zeros(1)
    assert float(attention_seconds(term, zero, zero, zero, zero, zero)[0]) == 0.0


def test_demand_averages_equal_sums_over_every_step():
    demand = Demand(np.array([5.0, 300.0, 70.0]), np.array([4.0, 90.0, 1.0]))
    for window in (0, 64):
        contexts = [
            min(i + t, window or 10**9)
            for i, o in ((5, 4), (300, 90), (70, 1))
            for t in range(1, o)
        ]  # fmt: skip
        assert demand.keys(window) == pytest.approx(np.mean(contexts))
        pairs = sum(min(t + 1, window or 10**9) for i in (5, 300, 70) for t in range(i))
        assert demand.pairs(window) == pytest.approx(pairs / 375)
    assert float(demand.chunks(64)) == pytest.approx((1 + 5 + 2) / 3)
    read = 5 + (64 + 128 + 192 + 256 + 300) + (64 + 70)
    assert demand.keys_read(64, 0) == pytest.approx(read / 375)
    with pytest.raises(SpecError):
        Demand(np.array([0.0]), np.array([1.0]))


def simulate_option(scenario, option, rate, prompt=1000, output=200):
    traffic = scenario.traffic.model_validate(
        {
            "kind": "traffic", "name": "fixed", "arrivals": {"kind": "poisson", "rate": f"{rate} request/s"},
            "lengths": {"kind": "fixed", "input": prompt, "output": output},
            "sources": [s.model_dump() for s in getattr(scenario.traffic, "sources", ())],
        }
    )  # fmt: skip
    deployment = scenario.deployment.model_copy(update={"serve": option.pool, "calibration": "none"})
    run = scenario.run.model_copy(update={"requests": 1500, "warmup_requests": 300, "cooldown_requests": 300})
    scenario = scenario.model_copy(update={"traffic": traffic, "deployment": deployment, "run": run})
    return api.summary(api.simulate(scenario))


@pytest.mark.parametrize(
    ("cut", "rate"),
    [
        ({"tp": 2}, 6.0),
        ({"tp": 2}, 20.0),
        ({"tp": 4}, 20.0),
        ({"tp": 1, "dp": 4, "ep": 4}, 24.0),
        ({"tp": 2, "pp": 2}, 20.0),
        ({"tp": 2, "pp": 4}, 20.0),
    ],
)
def test_steady_state_is_what_the_simulator_runs(mixtral, cut, rate):
    axes = Axes(**{k: (v,) for k, v in {"tp": 1, "pp": 1, "dp": 1, "ep": 1, **cut}.items()}, max_num_seqs=(256,),
                max_num_batched_tokens=(2048,))  # fmt: skip
    p = problem(mixtral, fixed(rate=rate), axes=axes)
    table = option_table(p, priced_cuts(p, lambda _: None))
    option = table.good()[0]
    seen = simulate_option(mixtral, option, rate)
    assert option.tpot_s == pytest.approx(seen["tpot_s"]["mean"], rel=0.08)
    assert option.ttft_s == pytest.approx(seen["ttft_s"]["mean"], rel=0.25)


def test_every_option_is_in_the_table_with_its_reason(deepseek):
    p = problem(
        deepseek, fixed(), devices=8, axes=Axes(max_num_seqs=(64, 256), max_num_batched_tokens=(128, 2048))
    )
    refused = []
    priced = priced_cuts(p, refused.append)
    table = option_table(p, priced, refused)
    every = list(cuts(p.model, p.topology, 8, p.axes))
    assert len(table.options) == len(every) * 4
    assert all(o.reason for o in table.options if o.status != "good")
    reasons = {o.status: o.reason for o in table.options}
    assert "does not fit on h200-sxm" in reasons["does not fit"]  # 671 GB on one device
    assert any("below max_num_seqs" in o.reason for o in table.options)
    assert sum(table.counts().values()) == len(table.options)


def test_no_axis_is_capped_at_eight(deepseek):
    wide = resolve_cluster("16x dgx-h200")
    found = [c.parallelism for c in cuts(deepseek.model, wide, 128, Axes()) if not c.reason]
    assert max(c.tp for c in found) == 128
    assert max(c.dp for c in found) == 128
    assert max(c.ep for c in found) == 128
    assert max(c.pp for c in found) == 32  # of powers of two up to 61 layers
    assert all(c.devices <= 128 for c in found)


@pytest.mark.parametrize("rate", [0.0, 30.0])
def test_choice_is_the_best_row(mixtral, rate):
    p = problem(mixtral, fixed(rate=rate))
    found = plan_parallelism(p)
    rows = [o for o in found.answer.table.options if o.status == "good"]
    want = min(o.devices for o in rows) if rate else -max(o.per_device for o in rows)
    assert found.objective == found.bound == want
    assert found.sol_status == "optimal"
    if rate:
        assert found.answer.goodput >= rate * (1 - 1e-9)
        assert found.answer.devices == found.answer.deployment.serve.replicas * (
            found.answer.deployment.serve.parallelism.devices
        )


@pytest.mark.parametrize("rate", [0.0, 20.0])
def test_split_equals_brute_force(mixtral, rate):
    p = problem(mixtral, fixed(rate=rate))
    priced = priced_cuts(p, lambda _: None)
    found = best_split(p, priced)
    best = -math.inf if not rate else math.inf
    sides = []
    for one in priced:
        pre = prefill_curve(one.price, p.demand, 2048.0)
        dec = decode_curve(one.price, p.demand, one.most_sequences(p.demand))
        sides.append(
            (
                one.parallelism.devices,
                pre.rate[pre.ttft <= 1.0].max(initial=0.0),
                dec.rate[dec.tpot <= 0.05].max(initial=0.0),
            )
        )
    for (a, pre, _), (b, _, dec) in itertools.product(sides, sides):
        for x in range(1, 8 // a + 1):
            for y in range(1, (8 - x * a) // b + 1):
                both, used = min(x * pre, y * dec), x * a + y * b
                if not rate:
                    best = max(best, both / used)
                elif both >= rate:
                    best = min(best, used)
    assert (found.devices if rate else found.per_device) == pytest.approx(best, rel=1e-12)
    assert found.devices <= 8


def test_shortages_are_named(mixtral, deepseek):
    with pytest.raises(
        NoResult, match=r"short of devices: \d+ needed for 5000 request/s, 8 there, \d+ short"
    ):
        plan_parallelism(problem(mixtral, fixed(rate=5000.0)))
    with pytest.raises(NoResult, match=r"tpot is .* at best, .* over"):
        plan_parallelism(problem(mixtral, fixed(), targets=Targets.model_validate({"tpot": "1 ms"})))
    with pytest.raises(NoResult, match=r"does not fit on h200-sxm.*short per device"):
        plan_parallelism(problem(deepseek, fixed(), devices=2))
    p = problem(mixtral, fixed(rate=5000.0))
    priced = priced_cuts(p, lambda _: None)
    with pytest.raises(NoResult, match=r"no split of 8 devices reaches 5000 request/s: .* at most, .* short"):
        best_split(p, priced)


def test_finalists_are_simulated_by_whoever_can(mixtral):
    p = problem(mixtral, fixed(rate=30.0))
    table = plan_parallelism(p).answer.table
    chosen = finalists(table, 4)
    assert len({o.pool.parallelism for o in chosen}) == len(chosen) <= 4
    assert chosen[0].devices == min(o.devices for o in table.good())
    worst = chosen[0].pool

    def simulate(deployment):
        return Measured(30.0, 0.1, 0.04, meets=deployment.serve != worst)

    ranked = simulated(chosen, simulate)
    assert ranked[-1].option.pool == worst
    assert [f.option.devices for f in ranked[:-1]] == sorted(f.option.devices for f in ranked[:-1])


@pytest.mark.slow
def test_more_than_ten_thousand_options_within_thirty_seconds(mixtral):
    axes = Axes(
        max_num_seqs=(32, 64, 96, 128, 192, 256, 512, 1024),
        max_num_batched_tokens=(1024, 2048, 3072, 4096, 6144, 8192, 16384),
    )
    topology = resolve_cluster("4x dgx-h100")
    p = problem(mixtral, fixed(rate=100.0), devices=32, axes=axes, topology=topology)
    began = time.process_time()
    found = plan_parallelism(p, disaggregate=True)
    assert len(found.answer.table.options) >= 10_000
    assert time.process_time() - began < 30
    assert found.gap == 0


def test_launch_flags(mixtral, deepseek):
    """Texts read from the engines' documentation; SGLang's limits are of all attention ranks together."""
    engine = Engine(flavor="sglang", max_num_seqs=64, max_num_batched_tokens=2048, max_model_len=8192)
    pool = Pool(replicas=2, parallelism=Parallelism(tp=1, dp=8, ep=8), engine=engine)
    topology, fp8 = deepseek.topology(), PrecisionChoice(kv_cache="fp8")
    assert str(vllm_flags(deepseek.model, topology, pool, fp8, weights="deepseek-ai/DeepSeek-V3")) == (
        "vllm serve deepseek-ai/DeepSeek-V3 --data-parallel-size 8 --enable-expert-parallel --max-num-seqs 64 "
        "--max-num-batched-tokens 2048 --gpu-memory-utilization 0.9 --block-size 16 --max-model-len 8192 "
        "--enable-chunked-prefill --no-enable-prefix-caching --kv-cache-dtype fp8"
    )
    assert str(sglang_flags(deepseek.model, topology, pool, weights="deepseek-ai/DeepSeek-V3")) == (
        "python -m sglang.launch_server --model-path deepseek-ai/DeepSeek-V3 --tp-size 8 --dp-size 8 "
        "--enable-dp-attention --ep-size 8 --max-running-requests 512 --chunked-prefill-size 16384 "
        "--mem-fraction-static 0.9 --page-size 16 --context-length 8192 --enable-mixed-chunk --disable-radix-cache"
    )
    assert vllm_flags(deepseek.model, topology, pool).replicas == 2
    with pytest.raises(NoResult, match="ep 4 has no flag"):
        vllm_flags(deepseek.model, topology, pool.model_copy(update={"parallelism": Parallelism(dp=8, ep=4)}))
    with pytest.raises(NoResult, match="does not fit"):
        vllm_flags(deepseek.model, topology, pool.model_copy(update={"parallelism": Parallelism(tp=2)}))
    with pytest.raises(NoResult, match="does not fit"):
        sglang_flags(deepseek.model, topology, pool.model_copy(update={"parallelism": Parallelism(tp=2)}))


def test_a_prompt_longer_than_a_lane_s_cache_is_refused(mixtral):
    p = problem(
        mixtral, fixed(prompt=30_000, output=100), axes=replace(SMALL, tp=(1,), pp=(1,), dp=(1,), ep=(1,))
    )
    refused = []
    assert not priced_cuts(p, refused.append)
    assert all(o.status in {"does not fit", "not allowed"} for o in refused)


def test_every_public_name_is_there():
    import moesim.plan.parallelism as package

    for name in package.__all__:
        assert callable(getattr(package, name)), name
    with pytest.raises(AttributeError):
        _ = package.nothing
