"""Trace: a run as Chrome/Perfetto JSON, to scroll through in a trace viewer."""

from __future__ import annotations

import gzip
import heapq
import json
from typing import TYPE_CHECKING, Any

from moesim.files import write_atomic
from moesim.results.tables import Result, rows

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

__all__ = ["chrome_trace", "write_trace"]

_REQUESTS_PID = 1


def chrome_trace(result: Result, request_cap: int = 2000) -> dict[str, Any]:
    """Convert a run to the Trace Event Format; times in microseconds.

    Each replica is a process: its sampled steps are slices, its queue, batch and KV share are counters.
    Requests are asynchronous slices (``queued``, ``prefill``, ``decode`` inside ``request``), the first
    ``request_cap`` of them; a request cut off by the stop rule ends with the run. Steps that overlap (a
    pipeline) lie on separate tracks.
    """
    end = float(result.manifest["simulated_s"])
    requests = result.tables.requests
    events = [_named(_REQUESTS_PID, "process_name", "requests")]
    for pid, (place, samples) in enumerate(
        result.tables.timeline.groupby(["pool", "replica"], sort=True), start=2
    ):
        pool, replica = place
        events.append(_named(pid, "process_name", f"{pool} {replica}"))
        events += _steps(pid, samples)
    for row in rows(requests.loc[requests["status"] != "rejected"].head(request_cap)):
        events += _request(row, end)
    shown = min(request_cap, int((requests["status"] != "rejected").sum()))
    scenario = str(result.manifest["scenario"].get("name", "unnamed"))
    other = {
        "scenario": scenario,
        "seed": str(result.manifest.get("seed")),
        "requests_shown": str(shown),
        "requests": str(len(requests)),
        "steps": "sampled",
    }
    return {"displayTimeUnit": "ms", "otherData": other, "traceEvents": events}


def write_trace(result: Result, path: Path, request_cap: int = 2000) -> Path:
    """Write ``chrome_trace`` gzipped to ``path`` (usually ``trace.json.gz``); equal runs give equal bytes."""
    text = json.dumps(chrome_trace(result, request_cap), separators=(",", ":"), allow_nan=False)
    write_atomic(path, gzip.compress(text.encode("utf-8"), 6, mtime=0))
    return path


def _steps(pid: int, samples: pd.DataFrame) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    free: list[tuple[float, int]] = []
    ordered = samples.assign(start_s=samples["time_s"] - samples["step_s"]).sort_values(
        "start_s", kind="stable"
    )
    for row in rows(ordered):
        # a hair of slack: back-to-back steps share a track although their floats may cross
        idle = bool(free) and free[0][0] <= row.start_s + 1e-9
        track = heapq.heappop(free)[1] if idle else len(free)
        heapq.heappush(free, (row.time_s, track))
        events.append(
            {
                "ph": "X",
                "pid": pid,
                "tid": track,
                "name": "step",
                "ts": row.start_s * 1e6,
                "dur": row.step_s * 1e6,
                "args": {"tokens": int(row.step_tokens)},
            }
        )
        counters = {
            "requests": {"waiting": int(row.waiting), "running": int(row.running)},
            "kv": {"share": float(row.kv_used)},
        }
        events += [
            {"ph": "C", "pid": pid, "name": name, "ts": row.time_s * 1e6, "args": args}
            for name, args in counters.items()
        ]
    return events


def _request(row: Any, end: float) -> list[dict[str, Any]]:
    times = [row.arrival_s, row.scheduled_s, row.first_token_s, row.finish_s]
    last = next((t for t in (times[3],) if t == t), end)  # noqa: PLR0124 - NaN differs from itself
    args = {
        "input_tokens": int(row.input_tokens),
        "output_tokens": int(row.output_tokens),
        "status": str(row.status),
    }
    events = _span(row.request, "request", times[0], last, args)
    for name, start, stop in zip(("queued", "prefill", "decode"), times, times[1:], strict=False):
        if start == start:  # noqa: PLR0124 - reached this phase
            events += _span(row.request, name, start, stop if stop == stop else end, {})  # noqa: PLR0124
    return events


def _span(request: int, name: str, start: float, stop: float, args: dict[str, Any]) -> list[dict[str, Any]]:
    common = {"cat": "request", "id": int(request), "pid": _REQUESTS_PID, "name": name}
    return [{"ph": "b", "ts": start * 1e6, **common, "args": args}, {"ph": "e", "ts": stop * 1e6, **common}]


def _named(pid: int, kind: str, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": pid, "name": kind, "args": {"name": name}}
