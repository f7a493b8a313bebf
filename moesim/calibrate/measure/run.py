"""Run: measure a suite on a device, point by point; an interrupted run goes on where it stopped."""

from __future__ import annotations

import datetime as dt
import json
import math
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesim.calibrate.kernels import kernel_errors
from moesim.calibrate.measure import attention, dense, experts, moving
from moesim.calibrate.measure.case import Case
from moesim.calibrate.measure.collectives import COLLECTIVES, measure_collectives
from moesim.calibrate.measure.device import (
    bound_seconds,
    choose,
    describe,
    known_device,
    torch_module,
)
from moesim.calibrate.measure.record import Measurement, Point, read_point, write_measurements, write_point
from moesim.calibrate.measure.suites import SUITES, Effort, Suite, available_ranks, suite_points
from moesim.calibrate.measure.timing import Clock, sample, sample_cuda, spread
from moesim.errors import Problem, SpecError
from moesim.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from moesim.spec.hardware import DeviceSpec

__all__ = ["Progress", "measure", "measure_point"]

Progress = Callable[[int, int, str], None]
"""Told after every point: how many are done, of how many, and what the last one gave."""

_BUILD: dict[str, Callable[[Point, int], Case]] = {
    "gemm": dense.gemm,
    "dequant_gemm": dense.dequant_gemm,
    "rmsnorm_residual": dense.rmsnorm_residual,
    "topk_routing": dense.topk_routing,
    "moe_ffn": experts.moe_ffn,
    "decode_attention": attention.decode_attention,
    "prefill_attention": attention.prefill_attention,
    "copy": moving.copy,
    "transfer": moving.transfer,
    "launch": moving.launch,
}
_NOT_MAIN_MEMORY = {"transfer", "launch", "storage_read"}
_SAME = ("device", "device_name", "libraries", "torch_threads", "driver")


def measure(
    device: str = "auto",
    suite: Suite = "quick",
    out: Path = Path("measurements"),
    progress: Progress | None = None,
    *,
    threads: int | None = None,
    points: Sequence[Point] | None = None,
) -> Path:
    """Measure a suite and write ``measurements.parquet`` and ``meta.json`` to the folder ``out``.

    Every kernel is checked against a float64 reference before it is timed; one that fails is recorded as
    ``wrong_result`` without a time. Each finished point is kept at once, so that a run that was interrupted goes
    on where it stopped; a change of device, library or threads in between is refused.

    Parameters
    ----------
    device : ``auto``, ``cpu`` or ``cuda``
    suite : ``quick`` or ``full``
    out : folder, made when missing
    progress : called after every point
    threads : PyTorch's threads on the CPU. With one thread, a point is timed by the CPU time of that thread,
        which leaves out what other programs do on the same core
    points : other points than the suite's

    Returns
    -------
    the parquet file

    Raises
    ------
    SpecError : unknown device or suite, or ``out`` holds a run of another machine or set-up
    DataMissing : PyTorch is not installed
    """
    if suite not in SUITES:
        raise SpecError(f"--suite {suite!r}: expected {' or '.join(SUITES)}")
    if threads is not None and threads < 1:
        raise SpecError(f"--threads {threads}: expected at least 1")
    chosen = choose(device)
    with _threads(threads):
        facts = describe(chosen)
        asked = list(suite_points(chosen, suite, available_ranks(chosen)) if points is None else points)
        meta = _open(out, facts, suite, SUITES[suite])
        found = _all(asked, out, SUITES[suite], facts, progress)
    path = out / "measurements.parquet"
    write_measurements(path, found)
    counts = {state: sum(m.status == state for m in found) for state in ("ok", "wrong_result", "failed")}
    meta |= {"complete": True, "points": counts, "faster_than_bound": sum(m.faster_than_bound for m in found)}
    _write_meta(out, meta)
    return path


def _all(
    asked: list[Point], out: Path, effort: Effort, facts: dict[str, Any], progress: Progress | None
) -> list[Measurement]:
    folder = out / "points"
    done = {point: kept for point in asked if (kept := read_point(folder, point)) is not None}
    cache = int(facts["last_cache_bytes"])
    spec = known_device(facts["device_name"])
    single = facts["device"] == "cpu" and facts["torch_threads"] == 1

    def keep(point: Point, measurement: Measurement) -> None:
        write_point(folder, point, measurement)
        done[point] = measurement
        if progress is not None:
            progress(len(done), len(asked), _line(point, measurement))

    waiting = [point for point in asked if point not in done]
    for point in waiting:
        if point.op not in COLLECTIVES:
            keep(point, measure_point(point, effort, cache, out, spec, single_thread=single))
    together = [point for point in waiting if point.op in COLLECTIVES]
    for point, measurement in zip(together, measure_collectives(together, effort.repeats), strict=True):
        keep(point, measurement)
    return [done[point] for point in asked]


def measure_point(
    point: Point,
    effort: Effort,
    cache: int,
    folder: Path,
    spec: DeviceSpec | None = None,
    *,
    single_thread: bool = False,
) -> Measurement:
    """Verify and time one point (not a collective).

    Parameters
    ----------
    cache : bytes of the last cache; buffers rotate over three times as much
    folder : where files for storage reads go
    spec : the device's datasheet, for the bound
    single_thread : time by the thread's CPU time

    Returns
    -------
    a record of status ``ok``, ``wrong_result`` or ``failed``
    """
    torch = torch_module()
    # out of memory, no direct reads, a tile too large: the suite goes on and says so
    failures: tuple[type[Exception], ...] = (RuntimeError, OSError, ValueError, MemoryError, *kernel_errors())
    try:
        if point.op == "storage_read":
            case = moving.storage_read(point, cache, folder)
        else:
            case = _BUILD[point.op](point, cache)
        try:
            with torch.inference_mode():
                return _timed(point, case, effort, spec, single_thread=single_thread)
        finally:
            case.close()
    except failures as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return Measurement.untimed(point, "failed", reason[:200])


def _timed(
    point: Point, case: Case, effort: Effort, spec: DeviceSpec | None, *, single_thread: bool
) -> Measurement:
    point = Point(
        point.op, point.kernel, point.device, point.dtype, (*point.dims, *case.extra), point.variant
    )
    error = math.nan if case.check is None else case.check()
    if error > case.tolerance:
        return Measurement.untimed(
            point, "wrong_result", f"error {error:.3g} exceeds {case.tolerance:.3g}", error
        )
    if point.device == "cuda":
        samples, timing = sample_cuda(
            case.calls, effort.repeats, effort.block_s, effort.budget_s, eager=case.eager
        )
    else:
        # a waiting thread uses no CPU time, so what waits for a disk is timed by the clock on the wall
        own_time = single_thread and point.op != "storage_read"
        clock: Clock = time.thread_time if own_time else time.perf_counter
        timing = "thread_cpu" if own_time else "monotonic"
        samples = sample(case.calls, effort.repeats, effort.block_s, effort.budget_s, clock)
    found = spread(samples)
    bound = math.nan
    if point.op not in _NOT_MAIN_MEMORY:
        bound = bound_seconds(spec, point.dtype, case.flop, case.bytes)
    return Measurement(
        point,
        found.median,
        found.p10,
        found.p90,
        found.least,
        found.repeats,
        case.flop,
        case.bytes,
        error,
        case.tolerance,
        timing,
        bound,
    )


def _line(point: Point, measurement: Measurement) -> str:
    if measurement.status != "ok":
        return f"{point}: {measurement.status} ({measurement.detail})"
    flag = "  FASTER THAN THE DATASHEET ALLOWS" if measurement.faster_than_bound else ""
    wide = measurement.seconds_p90 / measurement.seconds_p10 if measurement.seconds_p10 > 0 else math.inf
    return f"{point}: {measurement.seconds_median * 1e6:.4g} us, p90/p10 {wide:.2f}{flag}"


def _open(out: Path, facts: dict[str, Any], suite: Suite, effort: Effort) -> dict[str, Any]:
    """Start or go on with the run in ``out``."""
    path = out / "meta.json"
    here = {
        **facts,
        "suite": suite,
        "repeats": effort.repeats,
        "block_s": effort.block_s,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d"),
        "complete": False,
    }
    if path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise SpecError(Problem(str(path), 0, "", "", "expected JSON; name another folder")) from None
        for key in (*_SAME, "repeats", "block_s"):
            if before.get(key) != here.get(key):
                raise SpecError(
                    Problem(
                        str(path),
                        0,
                        key,
                        repr(before.get(key)),
                        f"expected {here.get(key)!r} as now; name another folder",
                    )
                )
        here["date"] = before.get("date", here["date"])
    _write_meta(out, here)
    return here


def _write_meta(out: Path, meta: dict[str, Any]) -> None:
    write_atomic(out / "meta.json", json.dumps(meta, indent=2) + "\n")


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    torch = torch_module()
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
