"""The fitted estimator: which group answers for which op, and what it does with the answer."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from moesim.calibrate.fit.boost import Settings
from moesim.calibrate.fit.data import GroupData
from moesim.calibrate.fit.group import Plan, fit_group
from moesim.cost.attention import AttentionShape, bound_term
from moesim.cost.collectives import Group as Ranks
from moesim.cost.fitted import Artifact, Fitted
from moesim.cost.fitted.artifact import Group
from moesim.cost.fitted.curves import Curve, CurveFit
from moesim.cost.fitted.features import (
    Features,
    attention_features,
    exchange_features,
    gemm_features,
    machine_of,
    moe_features,
)
from moesim.cost.layout import Layout
from moesim.cost.load import RoutingLoad
from moesim.cost.lowering import group_ops
from moesim.cost.ops import Exchange, Op, gemm, memory_op, transfer
from moesim.cost.precision import Format
from moesim.cost.pricing import GRID
from moesim.cost.roofline import Chain, Launch, Place, Roofline, roofline_seconds
from moesim.cost.stepprice import step_pricing
from moesim.errors import SpecError
from moesim.spec.base import load_spec
from moesim.spec.deployment import Pool
from moesim.spec.hardware import DeviceSpec
from moesim.spec.model import ModelSpec
from moesim.spec.topology import single_node_cluster

H100 = load_spec(DeviceSpec, "h100-sxm", "device")
H200 = load_spec(DeviceSpec, "h200-sxm", "device")
A100 = load_spec(DeviceSpec, "a100-80-sxm", "device")
GRAPH = Place(H100, Launch(4e-6, 1e-6, 100_000))
BF16 = Format("bf16", 2.0, "bf16", 2.0)
SMALL = Plan(Settings(trees=30, depth=5), Settings(trees=40, depth=5, rate=0.25), folds=2, tried=1)
TOKENS = np.array([0, 1, 16, 300, 5000])


def group(
    family: str, features: Features, seconds: np.ndarray, dtype: str = "bf16", kernel: str = "any"
) -> Group:
    n = seconds.size
    names = np.full(n, "h100-sxm")
    data = GroupData(
        (family, "vllm", dtype, kernel),
        features,
        seconds,
        np.full(n, 1.83e9),
        names,
        np.full(n, "1.0"),
        np.arange(n) % 40,
    )
    return fit_group(data, SMALL, holdouts=False)


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    """Kernels that take a floor and twice their bound."""
    random, size = np.random.default_rng(0), 4000
    machine = machine_of(H100, "bf16")
    assert machine is not None

    def log2(low: float, high: float) -> np.ndarray:
        return np.exp2(random.uniform(low, high, size))

    product = gemm_features(log2(0, 14), log2(6, 14), log2(6, 14), 2.0, 2.0, machine)
    tokens, held = log2(0, 14), 2.0 ** random.integers(3, 9, size)
    rows = tokens * 8
    experts = moe_features(
        tokens, rows, np.minimum(rows, held), log2(10, 13), log2(9, 12), 2 * np.ones(size), held, np.ones(size),
        8 * np.ones(size), 1.2 * np.ones(size), 2.0, 2.0, machine,
    )  # fmt: skip
    n, keys, heads = log2(0, 12), log2(0, 17), 2.0 ** random.integers(2, 7, size)
    ones = np.ones(size)
    decode = attention_features(
        n, keys, heads, heads / 4, 128 * ones, 0 * ones, n * keys * heads * 512, n * (keys * heads * 128 + heads * 512),
        machine, decode=True,
    )  # fmt: skip
    exchange = exchange_features(
        log2(0, 13),
        log2(11, 13),
        8 * ones,
        256 * ones,
        8 * ones,
        ones,
        20 * ones,
        2 * ones,
        ones,
        450e9 * ones,
    )

    def twice(features: Features) -> np.ndarray:
        return 3e-6 + 2 * features.bound

    curve = Curve(
        {("h100-sxm", 8): CurveFit(1e-5, (0.0,), (np.log(1.5),))}, {8: CurveFit(1e-5, (0.0,), (np.log(3.0),))},
        {"h100-sxm": ("1.0",)}, {}, ((0.9, 1.1), (0.5, 2.0)),
    )  # fmt: skip
    keyed = {
        ("gemm", "vllm", "bf16", "any"): group("gemm", product, twice(product)),
        ("moe", "vllm", "bf16", "triton"): group("moe", experts, twice(experts), kernel="triton"),
        ("generation_attention", "vllm", "bf16_kv_bf16", "fa3"): group(
            "generation_attention", decode, twice(decode), "bf16_kv_bf16", "fa3"
        ),
        ("expert_exchange", "vllm", "bf16", "deepep_ht"): group(
            "expert_exchange", exchange, twice(exchange), kernel="deepep_ht"
        ),
    }
    return Artifact(keyed, {("all_reduce", "vllm", "bf16", "all_reduce"): curve}, {})


@pytest.fixture(scope="module")
def fitted(artifact: Artifact) -> Fitted:
    return Fitted("vllm", artifact)


def moe_ops(tokens: np.ndarray) -> dict[str, Op]:
    model = load_spec(ModelSpec, "qwen3-30b-a3b", "model")
    layout = Layout.of(
        model, single_node_cluster("dgx-h100"), Pool.model_validate({"parallelism": {}}).parallelism
    )
    top = int(tokens.max()) + 1
    count = np.arange(top, dtype=np.float64)
    load = RoutingLoad(np.minimum(count * 8, 128), np.ones(top), 1.0, 1.0)
    return {op.name: op for op in group_ops(layout, tokens, load)}


class TestProducts:
    def test_time_is_floor_and_twice_the_bound(self, fitted: Fitted) -> None:
        op = gemm("qkv", "lane", TOKENS, 4096, 4096, BF16, 1)
        bound = roofline_seconds(op, replace(GRAPH, launch=Launch(0, 0, 0)))
        seconds = fitted.seconds(op, GRAPH)
        assert seconds[0] == 0
        assert np.allclose(seconds[1:], 3e-6 + 2 * bound[1:], rtol=0.15)

    def test_layers_multiply(self, fitted: Fitted) -> None:
        one, many = (fitted.seconds(gemm("x", "lane", TOKENS, 4096, 1024, BF16, n), GRAPH) for n in (1, 32))
        assert np.allclose(many, 32 * one)

    def test_a_share_of_the_rows_is_a_smaller_product(self, fitted: Fitted) -> None:
        half = fitted.seconds(gemm("x", "lane", np.array([4096]), 4096, 4096, BF16, 1, share=0.5), GRAPH)
        whole = fitted.seconds(gemm("x", "lane", np.array([2048]), 4096, 4096, BF16, 1), GRAPH)
        assert half == pytest.approx(whole)

    def test_launched_one_by_one_it_takes_at_least_a_launch(self, fitted: Fitted) -> None:
        op = gemm("x", "lane", np.array([1]), 64, 64, BF16, 1)
        slow = Place(H100, Launch(50e-6, 1e-6, -1))
        assert fitted.seconds(op, slow)[0] == pytest.approx(50e-6)
        assert fitted.seconds(op, GRAPH)[0] < 10e-6

    def test_types_that_were_not_measured_stay_unknown(self, fitted: Fitted) -> None:
        fp8 = Format("fp8", 1.0, "fp8", 1.0)
        assert np.isnan(fitted.seconds(gemm("x", "lane", TOKENS, 64, 64, fp8, 1), GRAPH)).all()
        wide = Format("fp8", 1.0, "bf16", 2.0)  # weight-only: no kernel was measured
        assert np.isnan(fitted.seconds(gemm("x", "lane", TOKENS, 64, 64, wide, 1), GRAPH)).all()
        assert np.isnan(fitted.seconds(memory_op("norm", "lane", TOKENS, 100.0, "bf16", 1), GRAPH)).all()

    def test_the_chain_falls_back_to_the_bound(self, fitted: Fitted) -> None:
        chain = Chain((fitted, Roofline()))
        assert chain.seconds(gemm("x", "lane", TOKENS, 64, 64, BF16, 1), GRAPH)[1] == "fitted"
        assert chain.seconds(memory_op("norm", "lane", TOKENS, 100.0, "bf16", 1), GRAPH)[1] == "bound"

    def test_an_unmeasured_device_gets_the_common_fit(self, fitted: Fitted) -> None:
        op = gemm("x", "lane", np.array([4096]), 8192, 8192, BF16, 1)
        seconds = fitted.seconds(op, replace(GRAPH, device=A100))[0]
        assert seconds == pytest.approx(2 * 2 * 4096 * 8192**2 / 312e12, rel=0.15)
        assert "other devices" in fitted.stamp(op, replace(GRAPH, device=A100))
        assert fitted.stamp(op, GRAPH) == "vllm 1.0"

    def test_another_engine_stands_in_where_one_has_no_kernel(self, artifact: Artifact) -> None:
        op = gemm("x", "lane", TOKENS, 512, 512, BF16, 1)
        other = Fitted("trtllm", artifact)
        assert (other.seconds(op, GRAPH) == Fitted("vllm", artifact).seconds(op, GRAPH)).all()
        assert other.stamp(op, GRAPH).startswith("vllm")

    def test_an_unknown_engine_is_refused(self, artifact: Artifact) -> None:
        with pytest.raises(SpecError, match="expected one of vllm, sglang, trtllm"):
            Fitted("tgi", artifact)  # type: ignore[arg-type]

    def test_the_interval_holds_the_answer(self, fitted: Fitted) -> None:
        low, high = fitted.interval(gemm("x", "lane", TOKENS, 4096, 4096, BF16, 1), GRAPH)
        assert ((low <= 1.02) & (high >= 0.98) & (low < high)).all()
        assert np.isnan(fitted.interval(memory_op("n", "lane", TOKENS, 1.0, "bf16", 1), GRAPH)[0]).all()


class TestExperts:
    def test_products_share_the_fused_kernel_two_to_one(self, fitted: Fitted) -> None:
        ops = moe_ops(TOKENS)
        up, down = (fitted.seconds(ops[name], GRAPH) for name in ("moe_gate_up", "moe_down"))
        assert np.allclose(up[1:], 2 * down[1:], rtol=1e-6)

    def test_the_whole_is_the_measured_layer(self, fitted: Fitted) -> None:
        ops = moe_ops(TOKENS)
        whole = sum(
            fitted.seconds(ops[name], GRAPH)
            for name in ("moe_permute", "moe_gate_up", "moe_activation", "moe_down", "moe_unpermute")
        )
        machine = machine_of(H100, "bf16")
        assert machine is not None
        rows = TOKENS[1:] * 8.0
        truth = moe_features(
            TOKENS[1:].astype(float), rows, np.minimum(rows, 128), 2048 * np.ones(4), 768 * np.ones(4), 2 * np.ones(4),
            128 * np.ones(4), np.ones(4), 8 * np.ones(4), 1.2 * np.ones(4), 2.0, 2.0, machine,
        )  # fmt: skip
        assert np.allclose(whole[1:] / ops["moe_down"].layers, 3e-6 + 2 * truth.bound, rtol=0.2)

    def test_passes_beside_the_products_are_inside_them(self, fitted: Fitted) -> None:
        ops = moe_ops(TOKENS)
        assert (fitted.seconds(ops["moe_permute"], GRAPH) == 0).all()

    def test_without_a_kernel_nothing_is_free(self, artifact: Artifact) -> None:
        bare = Fitted("vllm", Artifact({k: g for k, g in artifact.groups.items() if k[0] == "gemm"}, {}, {}))
        ops = moe_ops(TOKENS)
        assert np.isnan(bare.seconds(ops["moe_permute"], GRAPH)[1:]).all()
        assert np.isnan(bare.seconds(ops["moe_down"], GRAPH)[1:]).all()


class TestAttention:
    shape = AttentionShape(
        "main", "gqa", 3, 0, "bf16", 32, 8, 128,
        decode_pair_flop=2 * 32 * 256.0, prefill_pair_flop=2 * 32 * 256.0, decode_key_bytes=8 * 256 * 2.0,
        prefill_key_bytes=8 * 256 * 2.0, sequence_bytes=32 * 256 * 2.0 + 8 * 512, token_bytes=32 * 256 * 2.0 + 8 * 512,
    )  # fmt: skip

    def test_the_grid_is_time_over_bound(self, fitted: Fitted) -> None:
        term = fitted.attention(self.shape, GRAPH)
        assert term is not None
        assert term.source == "fitted"
        assert term.prefill_grid is None  # no prefill kernel was measured
        assert term.decode_grid is not None
        assert term.decode_grid.shape == GRID
        assert (term.decode_grid > 0).all()
        for i, j in ((6, 10), (0, 15), (9, 12)):
            n, keys = 2.0**i, 2.0**j
            bound = term.launch_s + max(
                n * keys * term.decode_flop_s, n * keys * term.decode_kv_s + n * term.decode_seq_s
            )
            own = 3 * (
                3e-6
                + 2 * max(n * keys * 2 * 32 * 256 / 989.4e12, n * (keys * 8 * 256 * 2 + 32 * 512) / 3.35e12)
            )
            assert term.decode_grid[i, j] * bound == pytest.approx(own, rel=0.25)

    def test_coefficients_stay_the_bound(self, fitted: Fitted) -> None:
        term, bound = fitted.attention(self.shape, GRAPH), bound_term(self.shape, H100, GRAPH.launch.decode_s)
        assert term is not None
        assert (term.decode_kv_s, term.prefill_flop_s, term.launch_s) == (
            bound.decode_kv_s, bound.prefill_flop_s, bound.launch_s,
        )  # fmt: skip

    def test_kinds_that_were_not_measured_are_unknown(self, fitted: Fitted) -> None:
        assert fitted.attention(replace(self.shape, kind="recurrent"), GRAPH) is None
        assert fitted.attention(replace(self.shape, kind="index"), GRAPH) is None
        assert fitted.attention(replace(self.shape, decode_key_bytes=8 * 256 * 0.5), GRAPH) is None


class TestMoving:
    ring = Ranks(8, 1, 450e9, 50e9, 1e-6, 3e-6)

    def op(self, pattern: str, ranks: Ranks, name: str = "x", **dims: int) -> Op:
        exchange = Exchange(pattern, ranks, TOKENS * 8192.0, copies=8.0, ranks_per_token=5.0)  # type: ignore[arg-type]
        return transfer(name, "lane", TOKENS, exchange, "bf16", 2, tuple(dims.items()))

    def test_an_all_reduce_follows_its_curve(self, fitted: Fitted) -> None:
        seconds = fitted.seconds(self.op("all_reduce", self.ring), GRAPH)
        assert np.allclose(seconds[1:], 2 * 1.5 * (1e-5 + TOKENS[1:] * 8192 * 7 / 8 / 450e9), rtol=1e-6)
        other = fitted.seconds(self.op("all_reduce", self.ring), replace(GRAPH, device=H200))
        assert np.allclose(other[1:], 2 * seconds[1:])

    def test_ranks_patterns_and_networks_that_were_not_measured_are_unknown(self, fitted: Fitted) -> None:
        for op in (
            self.op("all_reduce", Ranks(6, 1, 450e9, 50e9)),
            self.op("all_reduce", Ranks(8, 2, 450e9, 50e9)),
            self.op("all_reduce", Ranks(16, 2, 450e9, 50e9)),
            self.op("all_gather", self.ring),
            self.op("p2p", self.ring),
            self.op("all_to_all", self.ring),
        ):
            assert np.isnan(fitted.seconds(op, GRAPH)[1:]).all()

    def test_one_rank_moves_nothing(self, fitted: Fitted) -> None:
        alone = Place(H100, Launch(0.0, 0.0, 0))
        assert (fitted.seconds(self.op("all_reduce", Ranks(1)), alone) == 0).all()

    def test_an_exchange_is_the_measured_one(self, fitted: Fitted) -> None:
        op = self.op("all_to_all", self.ring, "combine", hidden=4096, top_k=8, experts=256)
        own = TOKENS[-1] * 8192.0 / 8  # its size is stated per device below
        op = replace(op, exchange=replace(op.exchange, size=TOKENS * 8192.0 / 8))
        targets = 7 * (1 - (7 / 8) ** 8)
        truth = 2 * (3e-6 + 2 * own * targets / 450e9)
        assert fitted.seconds(op, GRAPH)[-1] == pytest.approx(truth, rel=0.25)


def test_a_step_is_priced_from_fits_with_the_bound_behind(fitted: Fitted) -> None:
    model = load_spec(ModelSpec, "qwen3-30b-a3b", "model")
    pool = Pool.model_validate(
        {"parallelism": {}, "engine": {"max_num_batched_tokens": 64, "max_num_seqs": 16}}
    )
    count = np.arange(65, dtype=np.float64)
    load = RoutingLoad(np.minimum(count * 8, 128), np.ones(65), 1.0, 1.0)
    price = step_pricing(
        model, single_node_cluster("dgx-h100"), pool, None, load, None, Chain((fitted, Roofline()))
    )
    sources = {op.name: op.source for op in (*price.lane_ops, *price.group_ops)}
    assert sources["qkv_proj"] == sources["moe_gate_up"] == "fitted"
    assert sources["attention_norm"] == "bound"
    bound = step_pricing(model, single_node_cluster("dgx-h100"), pool, None, load)
    assert price.group_s[:, 64].sum() > bound.group_s[:, 64].sum()
    assert price.attention[0].decode_grid is not None


@pytest.mark.slow
def test_a_million_ops_take_about_a_second_of_computing(artifact: Artifact) -> None:
    known = artifact.groups["gemm", "vllm", "bf16", "any"]
    fit = known.devices["h100-sxm"]
    wide = replace(
        fit.forest,
        feature=np.tile(fit.forest.feature, (5, 1)),
        border=np.tile(fit.forest.border, (5, 1)),
        leaves=np.tile(fit.forest.leaves, (5, 1)),
        scale=np.tile(fit.forest.scale, 5),
    )
    assert wide.feature.shape[0] == 200
    binned = np.random.default_rng(0).integers(0, 60, (len(known.borders), 1_000_000)).astype(np.uint8)
    wide.answer(binned[:, :200_000])  # compiled once
    start = time.process_time()
    wide.answer(binned)
    assert time.process_time() - start < 0.8
