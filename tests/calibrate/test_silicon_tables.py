"""Kernel tables: names, loads, bounds, and what is dropped and why."""

from __future__ import annotations

import importlib.util

import numpy as np
import pandas as pd
import pytest

from moesim.calibrate.silicon import attention, collectives, experts, products
from moesim.calibrate.silicon.families import FAMILIES, ImportReport, device_spec, read_family
from moesim.calibrate.silicon.tables import DEVICES, raw_tables, version_key
from moesim.cost.fitted.features import moe_work
from moesim.cost.fitted.formats import FORMATS, kernel_of
from moesim.errors import DataMissing, SpecError
from moesim.spec.parameters import bytes_per_value

needs_tables = pytest.mark.skipif(
    importlib.util.find_spec("aiconfigurator_core") is None,
    reason="NEEDS the extra `silicon`: no kernel tables here",
)


def moe_rows(**changes: object) -> pd.DataFrame:
    base = {
        "device": "h100-sxm", "framework": "vllm", "version": "0.24.0", "dtype": "bf16", "kernel": "triton",
        "tokens": 64, "hidden": 4096, "intermediate": 1536, "top_k": 8, "experts": 128, "moe_tp": 1, "ep": 1,
        "skew": 0.0, "seconds": 1e-3,
    }  # fmt: skip
    return pd.DataFrame([base | changes])


def test_versions_sort_as_releases_do() -> None:
    given = ["1.3.0", "0.5.10", "1.3.0rc23", "0.5.6.post2", "1.3.0rc3", "0.24.0", "2.27", "2.29.2"]
    assert sorted(given, key=version_key) == [
        "0.5.6.post2", "0.5.10", "0.24.0", "1.3.0rc3", "1.3.0rc23", "1.3.0", "2.27", "2.29.2",
    ]  # fmt: skip


def test_every_device_of_the_tables_has_a_spec_with_a_bf16_peak() -> None:
    for name in DEVICES.values():
        assert device_spec(name).compute.peaks["bf16"] > 1e14


def test_formats_count_the_bytes_that_the_spec_counts() -> None:
    for form in FORMATS.values():
        assert form.value_bytes == pytest.approx(bytes_per_value(form.stored), rel=1e-3)
        assert kernel_of(form.stored, form.compute) == form.name
    assert kernel_of("nvfp4", "bf16") is None


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("sglang_fused_moe_triton", "triton"),
        ("vllm_fused_moe", "triton"),
        ("moe_torch_flow_cutlass", "cutlass"),
        ("moe_torch_flow_nongated", "nongated"),
        ("vllm_compressedtensorswna16marlinmoe_marlin_marlinexperts", "marlin"),
        ("sglang_marlin_moe_situ_as_silu", None),
        ("something_else", None),
    ],
)
def test_kernel_classes(source: str, kind: str | None) -> None:
    assert experts.kernel_class(source) == kind


class TestRankLoad:
    def test_balanced_deals_evenly(self) -> None:
        assert experts.rank_load(64, 8, 128, 1, 0.0) == (512.0, 128.0)
        assert experts.rank_load(64, 8, 128, 8, 0.0) == (64.0, 16.0)
        assert experts.rank_load(2, 2, 128, 1, 0.0) == (4.0, 4.0)

    def test_a_timed_rank_has_work(self) -> None:
        assert experts.rank_load(1, 2, 8, 4, 0.0) == (1.0, 1.0)

    @pytest.mark.parametrize("skew", [1.01, 1.2])
    def test_one_rank_sees_every_row(self, skew: float) -> None:
        rows, touched = experts.rank_load(300, 4, 64, 1, skew)
        assert rows == 1200
        assert 1 <= touched <= 64

    def test_the_timed_rank_is_the_busiest(self) -> None:
        for ep in (2, 4, 16):
            rows, touched = experts.rank_load(4096, 8, 128, ep, 1.2)
            assert rows > 4096 * 8 / ep
            assert touched <= 128 / ep

    def test_more_skew_more_imbalance(self) -> None:
        even, skewed = (experts.rank_load(8192, 8, 256, 16, a)[0] for a in (0.0, 1.2))
        assert skewed > 1.2 * even

    def test_repeats(self) -> None:
        assert experts.rank_load(77, 6, 64, 4, 1.01) == experts.rank_load(77, 6, 64, 4, 1.01)

    def test_no_expert_gets_a_token_twice(self) -> None:
        dealt = experts._dealt(np.array([50.0, 0.3, 0.2, 0.5]), 12, 10)
        assert dealt.max() <= 10
        assert dealt.sum() == 12


class TestWork:
    def test_gemm_by_hand(self) -> None:
        raw = pd.DataFrame(
            {
                "gemm_dtype": ["bfloat16", "fp8_block", "sq"],
                "m": [16] * 3,
                "n": [4096] * 3,
                "k": [1024] * 3,
                "latency": [0.01] * 3,
            }
        )
        tidy = products.read_gemm(raw, "gemm").assign(device="h100-sxm")
        assert tidy["dtype"].tolist() == ["bf16", "fp8_block"]
        assert tidy["seconds"].tolist() == [1e-5, 1e-5]
        done = products.gemm_work(tidy, device_spec("h100-sxm")).set_index("dtype")
        size = 2 * (4096 * 1024 + 16 * 1024 + 16 * 4096)
        assert done.loc["bf16", "flop"] == 2 * 16 * 4096 * 1024
        assert done.loc["bf16", "bytes"] == size
        assert done.loc["bf16", "bound_s"] == pytest.approx(size / 3.35e12)

    def test_a_type_the_device_lacks_has_no_bound(self) -> None:
        rows = pd.DataFrame({"dtype": ["nvfp4"], "m": [16], "n": [64], "k": [64]})
        assert np.isnan(products.gemm_work(rows, device_spec("h100-sxm"))["bound_s"]).all()

    def test_large_products_are_bound_by_arithmetic(self) -> None:
        rows = pd.DataFrame({"dtype": ["bf16"], "m": [8192], "n": [8192], "k": [8192]})
        bound = products.gemm_work(rows, device_spec("h100-sxm"))["bound_s"].iloc[0]
        assert bound == pytest.approx(2 * 8192**3 / 989.4e12)

    def test_experts_by_hand(self) -> None:
        done = experts.moe_work(moe_rows(), device_spec("h100-sxm")).iloc[0]
        values = 4096 * 1536 * 3
        assert done["flop"] == 2 * 512 * values
        assert done["bytes"] == 128 * values * 2 + 512 * 4096 * 4
        assert (done["flop"], done["bytes"]) == tuple(
            float(x) for x in moe_work(512.0, 128.0, 4096.0, 1536.0, 2.0, 2.0, 2.0)
        )

    def test_a_network_without_gate_has_two_products(self) -> None:
        gated = experts.moe_work(moe_rows(), device_spec("h100-sxm"))["flop"].iloc[0]
        plain = experts.moe_work(moe_rows(kernel="nongated"), device_spec("h100-sxm"))["flop"].iloc[0]
        assert plain == pytest.approx(gated * 2 / 3)
        nemotron = moe_rows(hidden=2048, intermediate=5120, experts=512, top_k=22)
        assert experts.moe_work(nemotron, device_spec("h100-sxm"))["ups"].iloc[0] == 1

    def test_causal_pairs_by_counting(self) -> None:
        for context, window in ((7, 0), (7, 3), (3, 7), (1, 1)):
            counted = sum(min(q + 1, window or q + 1) for q in range(context))
            assert attention.pairs(np.array([context]), np.array([window]))[0] == counted

    def test_decode_attention_reads_its_keys(self) -> None:
        rows = pd.DataFrame(
            {"dtype": ["bf16_kv_fp8"], "sequences": [4], "context": [1000], "heads": [32], "kv_heads": [8],
             "head_dim": [128], "window": [0]}
        )  # fmt: skip
        done = attention.generation_work(rows, device_spec("h100-sxm")).iloc[0]
        key, own = 8 * 2 * 128, 32 * 2 * 128 * 2 + 8 * 2 * 128
        assert done["bytes"] == 4 * (1000 * key + own)
        assert done["flop"] == 4 * 1000 * 2 * 32 * 256

    def test_all_reduce_sizes_are_bytes_and_eager_is_dropped(self) -> None:
        raw = pd.DataFrame(
            {"allreduce_dtype": ["bfloat16"] * 2, "num_gpus": [8] * 2, "message_size": [1024] * 2,
             "latency": [0.005] * 2, "backend": ["vllm_graph", "vllm_eager"]}
        )  # fmt: skip
        tidy = collectives.read_all_reduce(raw, "custom_allreduce")
        assert tidy["size"].tolist() == [2048.0]
        bound = collectives.all_reduce_work(tidy.assign(device="h100-sxm"), device_spec("h100-sxm"))[
            "bound_s"
        ]
        assert bound.iloc[0] == pytest.approx(2048 * 7 / 8 / 450e9)

    def test_an_exchange_is_in_microseconds(self) -> None:
        raw = pd.DataFrame(
            {"phase": ["dispatch", "prepare"], "comm_dtype": ["bfloat16"] * 2, "comm_backend": ["deepep_ht"] * 2,
             "ep_size": [8] * 2, "node_num": [1] * 2, "hidden_size": [4096] * 2, "topk": [8] * 2,
             "num_experts": [128] * 2, "num_tokens": [16] * 2, "sms": [20] * 2, "latency": [50.0] * 2}
        )  # fmt: skip
        tidy = collectives.read_exchange(raw, "moe_a2a")
        assert tidy["seconds"].tolist() == [pytest.approx(50e-6)]
        done = collectives.exchange_work(tidy, device_spec("h100-sxm")).iloc[0]
        assert done["bytes"] == pytest.approx(16 * 4096 * 2 * 7 * (1 - (7 / 8) ** 8))


class TestOutliers:
    def curves(self, factor: float) -> pd.DataFrame:
        """Cuts of one shape that all reach half the bound, but one that is ``factor`` slower."""
        parts = [
            moe_rows(moe_tp=tp, ep=ep, tokens=tokens, skew=skew)
            for tp in (1, 2, 4)
            for ep in (1, 2, 4)
            for tokens in (1, 64, 4096)
            for skew in (0.0, 1.2)
        ]
        rows = experts.moe_work(pd.concat(parts, ignore_index=True), device_spec("h100-sxm"))
        whole = rows["tokens"] * 8 * (4 * 4096 + 8 * rows["inner"]) / 3.35e12
        rows["seconds"] = 2 * (2e-5 + rows["bound_s"] + whole)
        odd = (rows["moe_tp"] == 2) & (rows["ep"] == 2)
        rows.loc[odd, "seconds"] *= factor
        return rows.assign(odd=odd)

    def test_a_mistuned_cut_is_found_and_no_other(self) -> None:
        rows = self.curves(5.0)
        hit, reason = experts.mistuned(rows)
        assert (hit == rows["odd"].to_numpy()).all()
        assert "autotuner" in reason

    def test_small_differences_stay(self) -> None:
        assert not experts.mistuned(self.curves(1.5))[0].any()

    def test_balanced_slower_than_skewed_contradicts(self) -> None:
        rows = self.curves(1.0)
        slow = (rows["skew"] == 0) & (rows["ep"] == 4)
        rows.loc[slow, "seconds"] *= 4
        assert (experts.contradictions(rows)[0] == slow.to_numpy()).all()
        assert not experts.contradictions(self.curves(1.0))[0].any()

    def test_a_spike_is_one_point_above_both_neighbours(self) -> None:
        rows = pd.DataFrame({"seconds": [1e-6, 1e-6, 9e-6, 2e-6, 9e-6], "size": [1.0, 2.0, 4.0, 8.0, 16.0]})
        rows = rows.assign(device="h100-sxm", framework="nccl", kernel="all_reduce", ranks=8)
        assert collectives.spikes(rows)[0].tolist() == [False, False, True, False, False]

    def test_known_defects(self) -> None:
        slow = moe_rows(dtype="fp8", kernel="cutlass")
        assert experts._slow_hopper(slow)[0].all()
        assert not experts._slow_hopper(slow.assign(device="b200-sxm"))[0].any()
        host = pd.DataFrame(
            {
                "framework": ["vllm"] * 2,
                "version": ["0.24.0"] * 2,
                "dtype": ["fp8_block", "fp8"],
                "device": ["h100-sxm"] * 2,
            }
        )
        assert products._host_bound(host)[0].tolist() == [True, False]


def test_an_unknown_family_names_the_known_ones() -> None:
    with pytest.raises(SpecError, match=r"'gem': expected one of gemm, moe.*did you mean 'gemm'"):
        read_family("gem")


def test_a_report_counts_by_reason() -> None:
    report = ImportReport("gemm")
    report.drop("h100-sxm", "vllm", "old", 2)
    report.drop("h100-sxm", "vllm", "old", 3)
    report.drop("h100-sxm", "vllm", "none", 0)
    assert report.as_dict()["dropped"] == [
        {"device": "h100-sxm", "framework": "vllm", "reason": "old", "rows": 5}
    ]


def test_without_the_extra_the_tables_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DataMissing, match=r"moesim\[silicon\]"):
        next(raw_tables("gemm"))


@needs_tables
@pytest.mark.silicon
@pytest.mark.parametrize("name", ["all_reduce", "quantise", "generation_mla"])
def test_every_row_read_is_kept_dropped_or_impossible(name: str) -> None:
    found = read_family(name)
    report, rows = found.report, found.rows
    dropped = sum(report.dropped.values())
    assert report.read == report.kept + dropped + sum(report.impossible.values())
    assert report.kept == rows["possible"].sum()
    assert (rows.loc[rows["possible"], "seconds"] >= 0.98 * rows.loc[rows["possible"], "bound_s"]).all()
    assert not rows.duplicated(["device", "framework", "dtype", "kernel", *FAMILIES[name].keys]).any()
    assert rows["seconds"].between(1e-7, 10).all()
