"""The fits that ship: complete, sane, within their bands, and of use on devices nobody measured."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.calibrate.validate_kernels import markdown, run
from moesim.cost.fitted import FRAMEWORKS, Fitted, Framework, chain_for, shipped
from moesim.cost.layout import Layout
from moesim.cost.load import RoutingLoad
from moesim.cost.lowering import group_ops
from moesim.cost.ops import gemm
from moesim.cost.precision import Format
from moesim.cost.roofline import Launch, Place, roofline_seconds
from moesim.files import catalog_root
from moesim.spec.base import load_spec
from moesim.spec.deployment import Parallelism
from moesim.spec.hardware import DeviceSpec
from moesim.spec.model import ModelSpec
from moesim.spec.topology import resolve_cluster
from moesim.study.serving.score import load_bands

BF16 = Format("bf16", 2.0, "bf16", 2.0)
FREE = Launch(0.0, 0.0, 100_000)
TOKENS = np.array([1, 8, 64, 512, 4096, 16384])


def place(name: str) -> Place:
    return Place(load_spec(DeviceSpec, name, "device"), FREE)


def test_every_forest_is_finite_and_every_interval_holds_one() -> None:
    artifact = shipped()
    for group in artifact.groups.values():
        for fit in group.devices.values():
            assert np.isfinite(fit.forest.scale).all()
            assert fit.floor_cycles > 0
            assert all(low < high for low, high in fit.interval)
        assert all(np.all(np.diff(b) > 0) for b in group.borders)


def test_the_artifact_is_small() -> None:
    folder = catalog_root() / "validation" / "fits"
    assert sum(path.stat().st_size for path in folder.glob("silicon.*")) < 8e6


def test_figures_are_inside_their_bands() -> None:
    bands = load_bands(catalog_root() / "validation" / "bands.yaml").suites["silicon-kernels"]
    answer = run(bands=bands)
    assert answer["bands"]
    assert [band for band in answer["bands"] if not band["ok"]] == []


def test_the_page_shows_what_the_artifact_says() -> None:
    page = (catalog_root() / "validation" / "README.md").read_text(encoding="utf-8")
    assert markdown(run()) in page


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(
    "name", ["h100-sxm", "h200-sxm", "b200-sxm", "a100-80-sxm", "h20", "h800-sxm", "h100-pcie"]
)
def test_products_are_slower_than_physics_and_faster_than_nonsense(framework: Framework, name: str) -> None:
    op = gemm("x", "lane", TOKENS, 6144, 4096, BF16, 1)
    seconds, bound = Fitted(framework).seconds(op, place(name)), roofline_seconds(op, place(name))
    assert (seconds > 0.9 * bound).all()
    assert (seconds < 4 * bound + 2e-5).all()


def test_a_measured_product_is_close_to_its_measurement() -> None:
    """H100, TensorRT-LLM 1.3.0rc20, bf16: 8192 x 8192 x 8192 takes at least 1.1e12 operations at 989 TFLOP/s."""
    op = gemm("x", "lane", np.array([8192]), 8192, 8192, BF16, 1)
    seconds = Fitted("trtllm").seconds(op, place("h100-sxm"))[0]
    assert 1.1e-3 < seconds < 2.2e-3


def test_versions_are_stamped_and_a_mismatch_is_said() -> None:
    known = Fitted("vllm")
    assert known.versions("h100-sxm")["gemm"] == ("0.24.0",)
    assert known.mismatch("h100-sxm", "0.24.0") == ""
    assert "0.24.0, not 0.9.1" in known.mismatch("h100-sxm", "0.9.1")
    assert known.mismatch("h20", "0.9.1") == ""


def test_the_chain_prefers_fits() -> None:
    op = gemm("x", "lane", TOKENS, 4096, 4096, BF16, 1)
    assert chain_for("sglang").seconds(op, place("h200-sxm"))[1] == "fitted"


def test_copies_sent_to_their_experts_rank_cost_what_that_rank_receives() -> None:
    """Many ranks: a gathered kernel sees every token, one that was sent to only its own rows."""
    model = load_spec(ModelSpec, "deepseek-v3", "model")
    where = resolve_cluster("h800-18")
    tokens = np.array([64 * 128])
    load = RoutingLoad(
        distinct=np.minimum(np.arange(8193) * 8.0, 256), straggler=np.ones(8193), ranks_per_token=8.0,
        nodes_per_token=4.0,
    )  # fmt: skip
    times = {}
    for how in ("gather", "all_to_all"):
        layout = Layout.of(model, where, Parallelism(tp=1, dp=128, ep=128), expert_exchange=how)
        (up,) = (op for op in group_ops(layout, tokens, load) if op.name.startswith("moe_gate_up"))
        assert dict(up.dims)["sent"] == (how == "all_to_all")
        times[how] = Fitted("sglang").seconds(up, Place(where.device, Launch(5e-6, 1e-6, -1)))[0]
    assert times["all_to_all"] < 0.5 * times["gather"]
