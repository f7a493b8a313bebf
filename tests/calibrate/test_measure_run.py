"""Runs: a suite on this CPU, interrupted and resumed; collectives between two processes."""

import json
import math

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")

from moesim.calibrate.measure import Point, measure, read_measurements, run, suites  # noqa: E402
from moesim.calibrate.measure.collectives import COLLECTIVES, measure_collectives  # noqa: E402
from moesim.errors import SpecError  # noqa: E402

POINTS = [Point("gemm", "torch", "cpu", "fp32", (("m", m), ("n", 16), ("k", 16))) for m in (1, 2, 3)] + [
    Point("launch", "torch", "cpu", "fp32", (("launches", 2),), "eager")
]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setitem(suites.SUITES, "quick", suites.Effort(3, 1e-4, 0.1))


def test_a_suite_writes_a_table_and_what_a_reader_must_know(tmp_path):
    told = []
    path = measure("cpu", "quick", tmp_path, lambda *news: told.append(news), threads=1, points=POINTS)
    found = read_measurements(path)
    assert [m.point for m in found] == POINTS
    assert all(m.status == "ok" and m.timing == "thread_cpu" for m in found)
    assert [news[:2] for news in told] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta["complete"]
    assert meta["points"] == {"ok": 4, "wrong_result": 0, "failed": 0}
    assert meta["torch_threads"] == 1
    for key in ("device_name", "date", "repeats", "command", "libraries", "kernel"):
        assert meta[key]


def test_the_number_of_threads_is_given_back(tmp_path):
    before = torch.get_num_threads()
    measure("cpu", "quick", tmp_path, threads=before + 1, points=POINTS[:1])
    assert torch.get_num_threads() == before
    (found,) = read_measurements(tmp_path / "measurements.parquet")
    assert found.timing == "monotonic"


def test_an_interrupted_run_goes_on_after_the_last_finished_point(tmp_path, monkeypatch):
    def stop(done, _total, _line):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure("cpu", "quick", tmp_path, stop, threads=1, points=POINTS)
    assert not json.loads((tmp_path / "meta.json").read_text())["complete"]
    assert not (tmp_path / "measurements.parquet").exists()
    asked = []
    right = run.measure_point

    def watched(point, *rest, **more):
        asked.append(point)
        return right(point, *rest, **more)

    monkeypatch.setattr(run, "measure_point", watched)
    path = measure("cpu", "quick", tmp_path, threads=1, points=POINTS)
    assert asked == POINTS[2:]
    assert [m.point for m in read_measurements(path)] == POINTS


@pytest.mark.parametrize(
    ("key", "value"), [("device_name", "another"), ("torch_threads", 7), ("repeats", 99)]
)
def test_another_machine_or_set_up_does_not_continue_a_run(tmp_path, key, value):
    measure("cpu", "quick", tmp_path, threads=1, points=POINTS[:1])
    path = tmp_path / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(SpecError, match=f"{key}.*name another folder"):
        measure("cpu", "quick", tmp_path, threads=1, points=POINTS[:1])


def test_mistakes_are_named(tmp_path):
    with pytest.raises(SpecError, match="expected auto, cpu or cuda"):
        measure("gpu", "quick", tmp_path)
    with pytest.raises(SpecError, match="expected quick or full"):
        measure("cpu", "huge", tmp_path)
    with pytest.raises(SpecError, match="expected at least 1"):
        measure("cpu", "quick", tmp_path, threads=0)
    if not torch.cuda.is_available():
        with pytest.raises(SpecError, match="sees no CUDA device"):
            measure("cuda", "quick", tmp_path)
    (tmp_path / "meta.json").write_text("{")
    with pytest.raises(SpecError, match="expected JSON"):
        measure("cpu", "quick", tmp_path, points=POINTS[:1])


def test_a_time_below_the_datasheet_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "bound_seconds", lambda *_: 1.0)
    path = measure("cpu", "quick", tmp_path, threads=1, points=POINTS)
    flags = [m.faster_than_bound for m in read_measurements(path)]
    assert flags == [True, True, True, False]  # starting a kernel has no bound
    assert json.loads((tmp_path / "meta.json").read_text())["faster_than_bound"] == 3


@pytest.mark.slow
def test_collectives_between_two_processes_are_right_and_timed():
    points = [
        Point(op, "gloo", "cpu", "fp32", (("size", size), ("ranks", 2)))
        for op in COLLECTIVES
        for size in (4, 4096)
    ]
    found = measure_collectives(points, 3)
    assert [m.point for m in found] == points
    assert [m.status for m in found] == ["ok"] * len(points), [m.detail for m in found]
    assert all(m.seconds_median > 0 and m.verified_max_error == 0 and m.repeats == 3 for m in found)


@pytest.mark.slow
def test_what_a_backend_cannot_do_is_recorded():
    point = Point("all_reduce", "gloo", "cpu", "fp32", (("size", 2**60), ("ranks", 2)))
    (found,) = measure_collectives([point], 3)
    assert found.status == "failed"
    assert math.isnan(found.seconds_median)
    assert measure_collectives([], 3) == []
