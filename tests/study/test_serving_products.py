"""Products without what their measurement holds beside them, and the page of the suite's answer."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from moesim.calibrate.silicon.tables import DEVICES, raw_tables
from moesim.cost.fitted import Products
from moesim.cost.ops import gemm, memory_op
from moesim.cost.precision import Format
from moesim.cost.roofline import Launch, Place, roofline_seconds
from moesim.spec.base import load_spec
from moesim.spec.hardware import DeviceSpec
from moesim.study.serving.page import PEER, page
from moesim.study.serving.products import StaticScales, scale_seconds
from moesim.study.serving.section import write_section

silicon = pytest.mark.silicon
FP8 = Format("fp8", 1.0, "fp8", 1.0)
BF16 = Format("bf16", 2.0, "bf16", 2.0)
NVFP4 = Format("nvfp4", 0.5625, "fp4", 0.5625)
TOKENS = np.array([0, 1, 64, 4096])


class Constant:
    """Kernels that take the same time whatever they do."""

    origin = "fitted"
    framework = "trtllm"

    def __init__(self, seconds: float) -> None:
        self.each = seconds

    def seconds(self, op, place) -> np.ndarray:
        return np.where(op.tokens > 0, op.layers * self.each, 0.0)

    def attention(self, shape, place) -> SimpleNamespace:
        return SimpleNamespace(name=shape)


def place(name: str = "b200-sxm") -> Place:
    return Place(load_spec(DeviceSpec, name, "device"), Launch(5e-6, 1e-6, 512))


def product(weights: Format, layers: int = 80):
    return gemm("qkv_proj", "lane", TOKENS, 1280, 8192, weights, layers)


def test_a_quantise_pass_is_free_beside_a_measured_product() -> None:
    known = Products(Constant(20e-6))
    assert not known.seconds(memory_op("qkv_quantise", "lane", TOKENS, 3.0 * 8192, "fp8", 80), place()).any()
    norm = memory_op("attention_norm", "lane", TOKENS, 8.0 * 8192, "bf16", 80)
    assert known.seconds(norm, place())[1] == pytest.approx(80 * 20e-6)


@silicon
def test_static_scales_take_the_measured_pass_off_fp8_products_alone() -> None:
    pytest.importorskip("aiconfigurator_core", reason="needs the extra `silicon`")
    plain, static = Products(Constant(200e-6)), StaticScales(Products(Constant(200e-6)))
    off = plain.seconds(product(FP8), place()) - static.seconds(product(FP8), place())
    assert off == pytest.approx(80 * scale_seconds("trtllm", "b200-sxm", TOKENS.astype(float), 8192.0))
    assert off[1] > 80 * 5e-6
    assert off[0] == 0
    assert static.seconds(product(BF16), place()) == pytest.approx(plain.seconds(product(BF16), place()))


@silicon
def test_what_is_left_of_a_product_is_no_faster_than_physics() -> None:
    pytest.importorskip("aiconfigurator_core", reason="needs the extra `silicon`")
    op = product(FP8)
    left = StaticScales(Products(Constant(9e-6))).seconds(op, place())
    bound = roofline_seconds(op, place())
    assert np.all(left >= np.minimum(bound, 80 * 9e-6 * (TOKENS > 0)) - 1e-15)


def test_nvfp4_products_ask_the_table_without_the_pass() -> None:
    known = Products(Constant(22e-6), nvfp4=Constant(13e-6))
    assert known.seconds(product(NVFP4), place())[2] == pytest.approx(80 * 13e-6)
    assert known.seconds(product(FP8), place())[2] == pytest.approx(80 * 22e-6)
    assert known.attention("full", place()).name == "full"


@silicon
def test_scales_are_the_tables_at_measured_sizes_and_between_them_in_between() -> None:
    pytest.importorskip("aiconfigurator_core", reason="needs the extra `silicon`")
    table = next(
        t
        for t in raw_tables("computescale")
        if t.framework == "trtllm" and DEVICES.get(t.folder) == "h200-sxm"
    )
    frame = table.frame.set_index(["m", "k"])["latency"].astype(float) * 1e-3
    for m, k in ((1, 8192), (64, 8192), (1024, 4096)):
        found = scale_seconds("trtllm", "h200-sxm", np.array([float(m)]), float(k))[0]
        assert found == pytest.approx(frame[m, k])
    widths = sorted(set(table.frame["k"]))
    below, above = widths[3], widths[4]
    ends = [scale_seconds("trtllm", "h200-sxm", np.array([64.0]), float(k))[0] for k in (below, above)]
    between = scale_seconds("trtllm", "h200-sxm", np.array([64.0]), float(np.sqrt(below * above)))[0]
    assert between == pytest.approx(np.mean(ends))
    assert not scale_seconds("trtllm", "mi300x", np.array([64.0]), 8192.0).any()


def test_the_page_shows_our_figures_beside_the_peers() -> None:
    figures = {"n": 10, "mape": 0.2, "median_ape": 0.1, "p90_ape": 0.4, "within_30": 0.9, "bias": -0.05,
               "spearman": 0.95}  # fmt: skip
    group = {
        "model": "m",
        "system": "h200_sxm",
        "backend": "vllm",
        "precision": "",
        "value": "tpot",
        **figures,
    }
    text = page(
        {
            "suite": "silicon-serving", "rows": 5221, "distinct": 2826, "covered": 2771, "estimators": "bound",
            "metrics": {"C_tpot": figures, "all_tpot": figures, "coverage": {"n": 1.0, "value": 0.98},
                        "interval_coverage_tpot": {"n": 9.0, "value": 0.889, "low": 0.5, "high": 1.3}},
            "groups": [group, {**group, "n": 4, "model": "few"}], "bands": [],
            "left_out": [{"mode": "disagg", "reason": "no shapes", "rows": 1328}],
        }
    )  # fmt: skip
    assert (
        "| C_tpot | 10 | **20.0** (21.1) | **10.0** (14.4) | **40.0** (40.3) | -5.0 | 90.0 | 0.95 |" in text
    )
    assert "| all_tpot | 10 | 20.0 | 10.0 | 40.0 | -5.0 | 90.0 | 0.95 |" in text
    assert "it covers 88.9 % of 9 runs with experts" in text
    assert "| m | h200_sxm | vllm | - | 10 | 10.0 | -5.0 |" in text
    assert "few" not in text
    assert "| 1328 | disagg | no shapes |" in text
    assert all(0 < median < mean < p90 for name, (mean, median, p90) in PEER.items() if name != "disagg_ttft")


def test_a_section_is_replaced_as_a_whole_and_the_rest_stays(tmp_path) -> None:
    path = tmp_path / "README.md"
    path.write_text("# Validation\n\nbefore\n")
    write_section(path, "serving", "moesim x", "first\n")
    path.write_text(path.read_text() + "after\n")
    write_section(path, "serving", "moesim x", "second")
    text = path.read_text()
    assert text.startswith("# Validation\n\nbefore\n\n<!-- serving: generated by moesim x -->\n\nsecond\n")
    assert text.endswith("<!-- end of serving -->\nafter\n")
    assert "first" not in text
