"""Suites of this machine with PyTorch: the CPU suite runs, the GPU suite's mechanics run in Triton's interpreter."""

import json
from collections import Counter

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")

from moesim.calibrate.local import suite  # noqa: E402
from moesim.calibrate.local.model import Architecture  # noqa: E402
from moesim.calibrate.local.store import read_comparisons, write_validation  # noqa: E402
from moesim.calibrate.local.validate import Comparison, Scope, Target, Validation  # noqa: E402
from moesim.calibrate.measure.timing import spread  # noqa: E402

NARROW = Architecture(128, 48, 6, 2, vocabulary=64)


def test_a_written_run_is_read_back(tmp_path):
    timed = spread([1.9, 2.0, 2.1])
    made = [
        Comparison(Target(part, NARROW, 3, 7), timed, timed, 2.2, 3.0, 1.0)
        for part in ("forward", "moe_layer")
    ]
    found = Validation(tuple(made), {("norm", (1, 8)): spread([1e-6] * 3)}, 3)
    back = read_comparisons(write_validation(found, tmp_path))
    assert [c.target for c in back] == [c.target for c in found.comparisons]
    for ours, theirs in zip(back, found.comparisons, strict=True):
        assert ours.error == pytest.approx(theirs.error, abs=1e-4)
        assert ours.bound_s == pytest.approx(theirs.bound_s, rel=1e-4)
    assert json.loads((tmp_path / "meta.json").read_text())["suite"] == "local-cpu"


def test_the_cpu_suite_measures_and_writes(tmp_path, monkeypatch):
    from moesim.calibrate.local import micro

    starts = [
        p for p in micro.points() if p[1] == micro.MICRO[p[0]].tiny or p[1][0] == micro.MICRO[p[0]].grid[0][0]
    ]
    monkeypatch.setattr(micro, "points", lambda: iter(starts))
    small = Scope((Architecture(384, 64, 4, 1, vocabulary=64),), ((1, 5), (1, 9)), 3, 0.0)
    monkeypatch.setitem(suite.SCOPES, "ci", small)
    told = []
    answer = suite.run_cpu(cache=tmp_path, quick=2, progress=lambda share, line: told.append((share, line)))
    assert answer["rows"] == 2  # every second shape
    assert answer["rounds"] == 3
    assert told[0][0] == 0
    assert told[-1][0] == 1
    assert len(read_comparisons(tmp_path / "comparison.csv")) == 2


@pytest.fixture
def gpu():
    """The GPU suite's mechanics on a CPU, in Triton's interpreter."""
    pytest.importorskip("triton", reason="needs Triton")
    from moesim.calibrate.kernels import runs_on
    from moesim.calibrate.local import gpu

    if not runs_on("cpu") and not torch.cuda.is_available():
        pytest.skip("Triton was imported without its interpreter")
    return gpu


def bench():
    from moesim.calibrate.local.gpu_ops import Bench

    return Bench("cuda", "fp32", 1) if torch.cuda.is_available() else Bench("cpu", "fp32", 1)


def test_the_gpu_model_computes_what_the_plain_model_does(gpu):
    from moesim.calibrate.local import gpu_ops, model, ops

    network, here = model.build(NARROW, 0), bench()
    tokens = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(1))
    want = model.forward(network, tokens, ops.rotations(9, 64))
    moved = gpu._moved(network, here)
    nothing = torch.zeros_like(here.normal(0, 18, 128))
    got = gpu.forward(moved, tokens.to(here.device), gpu_ops.turned(9, here), nothing).cpu()
    assert torch.allclose(got, want, atol=2e-5)
    x = torch.randn(11, 128, generator=torch.Generator().manual_seed(2))
    layer = gpu.moe_layer(x.to(here.device), moved.layers[1], 2).cpu()
    assert torch.allclose(layer, model.moe_layer(x, network.layers[1], 2), atol=1e-5)


def test_the_gpu_predictor_counts_the_calls_of_the_gpu_model(gpu, monkeypatch):
    from moesim.calibrate.kernels import grouped_gemm, rowwise
    from moesim.calibrate.local import gpu_ops, model, ops

    seen = Counter()

    def watch(module, name, key):
        right = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a: (seen.update([key(*a)]), right(*a))[1])

    watch(ops, "product", lambda x, w: ("product", (x.shape[0], *w.shape)))
    watch(ops, "attend", lambda q, b, d, _: ("attend", (b, q.shape[0] // b, q.shape[1] // 3 // d)))
    watch(rowwise, "rmsnorm_residual", lambda x, *_: ("norm", tuple(x.shape)))
    watch(rowwise, "softmax_topk", lambda x, k: ("select", (*x.shape, k)))
    watch(grouped_gemm, "fused_moe", lambda x, up, down, *_: (
        "experts", (x.shape[0], x.shape[1], down.shape[2], up.shape[0], 2)))  # fmt: skip
    here = bench()
    network = gpu._moved(model.build(NARROW, 0), here)
    tokens = torch.zeros((3, 5), dtype=torch.long, device=here.device)
    gpu.forward(network, tokens, gpu_ops.turned(5, here), torch.zeros_like(here.normal(0, 15, 128)))
    work = Counter()
    for (name, dims), times in gpu.forward_work(NARROW, 3, 5).items():
        if name != "gather":
            work["product" if name == "score" else name, dims] += times
    assert seen == work


def test_the_gpu_suite_runs(gpu):
    from dataclasses import replace

    few = {
        name: replace(op, grid=tuple((axis[0], axis[0] + 1) for axis in op.grid))
        for name, op in gpu.OPS.items()
        if name != "experts"
    }
    few = {
        name: replace(op, grid=tuple((min(a, 8), min(a, 8) + 1) for a, _ in op.grid))
        for name, op in few.items()
    }
    few["experts"] = replace(gpu.OPS["experts"], grid=((1, 2), (16, 32), (16, 32), (2, 4), (1, 2)))
    scope = Scope((NARROW,), ((1, 3),), 2, 0.0)
    found = gpu.validate_gpu(scope, table=few, bench=bench(), timer=gpu.cpu_timer)
    assert found.rounds == 2
    assert [c.target.part for c in found.comparisons] == ["forward", "moe_layer"]
    assert all(c.measured.median > 0 and c.predicted_s >= c.bound_s * 0.01 for c in found.comparisons)
    assert set(found.benchmarks) == set(gpu.gpu_ops.points(few))


def test_no_gpu_target_is_a_benchmarked_size(gpu):
    from moesim.calibrate.local.validate import targets

    known = set(gpu.gpu_ops.points())
    for target in targets(gpu.GPU_SCOPE):
        assert not known & set(gpu.forward_work(target.sizes, target.batch, target.length))
