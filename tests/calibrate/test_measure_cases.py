"""Cases: every op verifies itself against float64, and a wrong kernel is caught before it is timed."""

import math

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")

from moesim.calibrate.kernels import runs_on  # noqa: E402
from moesim.calibrate.measure import dense, experts, moving, run  # noqa: E402
from moesim.calibrate.measure.case import copies, largest_error, sampled  # noqa: E402
from moesim.calibrate.measure.device import bound_seconds, known_device  # noqa: E402
from moesim.calibrate.measure.record import Point  # noqa: E402
from moesim.calibrate.measure.run import measure_point  # noqa: E402
from moesim.calibrate.measure.suites import Effort, suite_points  # noqa: E402

EFFORT = Effort(3, 1e-4, 0.1)
CACHE = 2**16


def point(op, kernel="torch", dtype="fp32", variant="", **dims):
    return Point(op, kernel, "cpu", dtype, tuple(dims.items()), variant)


SMALL = [
    point("gemm", m=5, n=24, k=40),
    point("gemm", dtype="bf16", m=33, n=24, k=40),
    point("dequant_gemm", m=3, n=16, k=128, group=32),
    point("rmsnorm_residual", m=40, hidden=64),
    point("rmsnorm_residual", dtype="bf16", m=4, hidden=64),
    point("topk_routing", tokens=9, experts=8, top_k=2),
    point("topk_routing", dtype="bf16", tokens=40, experts=64, top_k=8),  # ties
    point("moe_ffn", "loop", variant="uniform", hidden=32, inner=16, experts=8, top_k=2, tokens=11),
    point("moe_ffn", "loop", "bf16", "skewed", hidden=32, inner=16, experts=8, top_k=2, tokens=30),
    point("decode_attention", "sdpa", batch=3, length=20, heads=4, kv_heads=2, head_dim=16),
    point("prefill_attention", "sdpa", batch=2, length=20, heads=4, kv_heads=2, head_dim=16),
    point("copy", size=4096),
    point("launch", variant="eager", launches=5),
]
TRITON = [
    point("dequant_gemm", "triton", m=3, n=16, k=128, group=32),
    point("rmsnorm_residual", "triton", m=6, hidden=64),
    point("topk_routing", "triton", tokens=9, experts=8, top_k=2),
    point("moe_ffn", "triton", variant="uniform", hidden=32, inner=16, experts=8, top_k=2, tokens=11),
    point("decode_attention", "triton", batch=2, length=20, heads=4, kv_heads=2, head_dim=16, page=8),
]


@pytest.mark.parametrize("asked", SMALL, ids=str)
def test_every_op_verifies_and_is_timed(asked, tmp_path):
    found = measure_point(asked, EFFORT, CACHE, tmp_path)
    assert (found.status, found.detail) == ("ok", "")
    assert 0 < found.seconds_min <= found.seconds_p10 <= found.seconds_median <= found.seconds_p90
    if asked.op == "launch":
        assert math.isnan(found.verified_max_error)
    else:
        assert found.verified_max_error <= found.tolerance


@pytest.mark.parametrize("asked", TRITON, ids=str)
def test_triton_kernels_pass_the_same_check(asked, tmp_path):
    pytest.importorskip("triton", reason="needs Triton")
    if not runs_on("cpu"):
        pytest.skip("Triton's interpreter is off: this machine has a GPU")
    found = measure_point(asked, Effort(1, 1e-6, 0.0), 1, tmp_path)
    assert (found.status, found.detail) == ("ok", "")


@pytest.mark.parametrize("asked", [p for p in SMALL if p.op == "gemm" or p.kernel == "loop"], ids=str)
def test_a_wrong_kernel_is_not_timed(asked, tmp_path, monkeypatch):
    right = torch.nn.functional.linear

    def wrong(x, w):
        out = right(x, w)
        out[-1] *= 1.1
        return out

    monkeypatch.setattr(torch.nn.functional, "linear", wrong)
    found = measure_point(asked, EFFORT, CACHE, tmp_path)
    assert found.status == "wrong_result"
    assert math.isnan(found.seconds_median)
    assert found.verified_max_error > 0.01


def test_routing_that_names_one_expert_twice_is_wrong(tmp_path, monkeypatch):
    def twice(logits, top_k):
        return torch.full((len(logits), top_k), 1 / top_k), torch.zeros(len(logits), top_k, dtype=torch.int32)

    monkeypatch.setattr(dense, "_plain_routing", twice)
    found = measure_point(point("topk_routing", tokens=4, experts=8, top_k=2), EFFORT, CACHE, tmp_path)
    assert (found.status, found.verified_max_error) == ("wrong_result", math.inf)


def test_a_copy_that_loses_a_value_is_wrong(tmp_path, monkeypatch):
    right = moving._difference

    def loses(destination, source):
        destination[3] += 1.0
        return right(destination, source)

    monkeypatch.setattr(moving, "_difference", loses)
    assert measure_point(point("copy", size=4096), EFFORT, CACHE, tmp_path).status == "wrong_result"


def test_an_impossible_point_is_recorded_as_failed(tmp_path):
    asked = point("gemm", m=1, n=2**40, k=2**20)
    found = measure_point(asked, EFFORT, CACHE, tmp_path)
    assert found.status == "failed"
    assert found.detail


def test_reading_storage_checks_the_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(moving, "_FILE_BYTES", 8 * 2**20)
    asked = Point("storage_read", "os", "cpu", "bytes", (("size", 2**20),), "cached")
    found = measure_point(asked, EFFORT, CACHE, tmp_path)
    assert (found.status, found.verified_max_error, found.bytes) == ("ok", 0.0, 2**20)
    assert list(tmp_path.iterdir()) == []  # the file is gone


def test_work_of_a_layer_counts_distinct_experts(tmp_path):
    asked = point("moe_ffn", "loop", variant="uniform", hidden=8, inner=4, experts=4, top_k=2, tokens=3)
    _, ids = experts.assign(asked, 1)
    found = measure_point(asked, EFFORT, CACHE, tmp_path)
    distinct = len(set(ids.reshape(-1).tolist()))
    assert distinct < ids.numel()
    assert found.point["distinct"] == distinct
    assert found.bytes == 3 * 8 * 4 * 4 * distinct + 2 * 3 * 8 * 4
    assert found.flop == 6 * 3 * 2 * 8 * 4


def test_assignments_are_distinct_and_skew_is_skewed():
    counts = {}
    for variant in ("uniform", "skewed"):
        asked = point("moe_ffn", "loop", variant=variant, experts=16, top_k=4, tokens=2000)
        weights, ids = experts.assign(asked, 0)
        assert all(len(set(row)) == 4 for row in ids.tolist())
        assert torch.allclose(weights.sum(-1), torch.ones(2000))
        counts[variant] = torch.bincount(ids.reshape(-1).long(), minlength=16)
    assert counts["uniform"].max() < 1.15 * 500  # mean 500, 9 standard deviations apart
    assert counts["skewed"].max() > 1.5 * 500


def test_bounds_use_the_datasheet_of_a_device_known_by_its_whole_name():
    spec = known_device("NVIDIA H100 80GB HBM3")
    assert spec.name == "h100-sxm"
    assert known_device("NVIDIA H100") is None
    assert bound_seconds(spec, "bf16", 989.4e12, 0.0) == pytest.approx(1.0)
    assert bound_seconds(spec, "bf16", 1.0, 3.35e12) == pytest.approx(1.0)
    assert math.isnan(bound_seconds(spec, "int3", 1.0, 1.0))
    assert math.isnan(bound_seconds(None, "bf16", 1.0, 1.0))


def test_small_pieces():
    assert sampled(3) == [0, 1, 2]
    assert (len(sampled(1000)), sampled(1000)[0], sampled(1000)[-1]) == (16, 0, 999)
    assert copies(2**20, 2**22) == 12
    assert copies(2**40, 2**22) == 1
    assert largest_error(torch.tensor([math.nan]), torch.ones(1)) == math.inf
    assert largest_error(torch.tensor([1.0, 4.5]), torch.tensor([1.0, 5.0])) == pytest.approx(0.1)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("suite", ["quick", "full"])
def test_suites_name_each_point_once(device, suite):
    found = suite_points(device, suite, 2)
    assert len({p.key for p in found}) == len(found)
    assert {p.op for p in found} >= {"gemm", "moe_ffn", "decode_attention", "copy", "launch", "all_reduce"}
    assert not any(p.kernel == "triton" for p in found if p.device == "cpu")
    assert ({"transfer"} <= {p.op for p in found}) == (device == "cuda")
    assert not any(p.op == "all_reduce" for p in suite_points(device, suite, 1))


def test_a_kernel_that_the_device_cannot_hold_is_recorded(tmp_path, monkeypatch):
    errors = pytest.importorskip("triton.runtime.errors", reason="needs Triton")

    def too_large(_point, _cache):
        raise errors.OutOfResources(200_000, 100_000, "shared memory")

    monkeypatch.setitem(run._BUILD, "gemm", too_large)
    found = measure_point(SMALL[0], EFFORT, CACHE, tmp_path)
    assert found.status == "failed"
    assert "shared memory" in found.detail
