"""Serving: end-to-end results of vLLM's and SGLang's benchmark clients, in our units and words.

vLLM (``vllm bench serve``, earlier ``benchmark_serving.py``) writes one JSON object, or one per line with
``--append-result``; SGLang (``sglang.bench_serving``) writes JSON lines. Both state times in milliseconds, and
per-request lists (``--save-detailed``, ``--output-details``) in seconds.

Both define TPOT as we do: per request ``(latency - ttft) / (output tokens - 1)``, then mean, median and percentiles
over the requests with at least two output tokens. ITL is the gap between two streamed chunks, all requests together;
where the server streams several tokens at once it is larger than TPOT. TTFT starts when the client sends: a request
that waits for a slot of ``max_concurrency`` has not been sent yet, so that wait is in no number.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd

from moesim.calibrate.profiles.events import opened_text, shorten
from moesim.calibrate.profiles.frame import ProfileImport
from moesim.errors import Problem, SpecError

__all__ = ["RUN_COLUMNS", "TPOT_DEFINITION", "looks_like_serving", "read_serving"]

TPOT_DEFINITION = "(e2e - ttft) / (output tokens - 1) of each request with at least two output tokens"
_STATISTICS = {"mean": "mean", "median": "p50", "p90": "p90", "p95": "p95", "p99": "p99"}
_METRICS = {"ttft": "ttft", "tpot": "tpot", "itl": "itl", "e2el": "e2e", "e2e_latency": "e2e"}
RUN_COLUMNS: dict[str, str] = {
    "source": "file",
    "line": "line of the run in it",
    "client": "vllm or sglang",
    "backend": "what the client talked to",
    "model_id": "model as the client was told; empty where the file does not say",
    "date": "when, as the client writes it",
    "request_rate": "offered requests per second [1/s]; infinite: all at once, NaN: replayed or ramped",
    "burstiness": "shape of the gamma gaps; 1 is Poisson",
    "max_concurrency": "most requests in flight, missing: no limit",
    "prompts": "requests sent",
    "completed": "requests that finished",
    "failed": "requests that did not",
    "duration_s": "from first to last [s]",
    "input_tokens": "prompt tokens of the completed requests",
    "output_tokens": "tokens generated",
    "requests_per_s": "completed over duration [1/s]",
    "output_tokens_per_s": "output tokens over duration [1/s]",
    "range_ratio": "shortest over nominal random length (SGLang); NaN where the file does not say",
    "nominal_input": "nominal random prompt tokens (SGLang)",
    "nominal_output": "nominal random output tokens (SGLang)",
    **{
        f"{metric}_{statistic}_s": f"{metric} {statistic} [s]"
        for metric in ("ttft", "tpot", "itl", "e2e")
        for statistic in _STATISTICS.values()
    },
}
"""Columns of a serving import and what they mean; times are as the client states them."""

_MAX_LINE = 512 * 2**20
_LISTS = ("input_lens", "output_lens", "ttfts", "itls")
_AGREE = 0.02


def looks_like_serving(text: str) -> bool:
    """Tell whether the start of a file looks like a benchmark client's result."""
    return any(
        f'"{key}"' in text for key in ("request_rate", "mean_ttft_ms", "request_throughput", "model_id")
    )


def read_serving(path: Path) -> ProfileImport:
    """Read the runs of one file.

    Returns
    -------
    import whose ``frame`` has one row per run (``RUN_COLUMNS``) and whose ``requests`` has, for runs that keep them,
    one row per completed request: ``run`` (row of ``frame``), ``input_tokens``, ``output_tokens``, ``ttft_s``,
    ``tpot_s`` (NaN for one token), ``e2e_s``

    Raises
    ------
    SpecError : not JSON, no run, a value that is no number, lists of unequal length
    """
    where = str(path)
    rows: list[dict[str, Any]] = []
    parts: list[pd.DataFrame] = []
    dropped: Counter[str] = Counter()
    notes = {f"tpot is the client's: {TPOT_DEFINITION}", "ttft starts when the client sends the request"}
    read = 0
    for line, data in _objects(path, where):
        read += 1
        run = _Run(where, line, data)
        if not run.whole("completed", 0):
            dropped["no request completed"] += 1
            continue
        row = run.row()
        requests = run.requests(len(rows))
        if requests is not None:
            parts.append(requests)
            notes |= _checked(row, requests, line)
        rows.append(row)
    if not rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "none in the file"
        raise SpecError(
            Problem(where, 0, "", "", f"expected at least one run with completed requests; {reasons}")
        )
    frame = pd.DataFrame(rows, columns=list(RUN_COLUMNS))
    for name in ("max_concurrency", "prompts", "completed", "failed", "nominal_input", "nominal_output"):
        frame[name] = frame[name].astype("Int64")
    if failed := int(frame["failed"].fillna(0).sum()):
        notes.add(f"{failed} requests failed: they are in no latency, but they loaded the server")
    table = pd.concat(parts, ignore_index=True) if parts else None
    return ProfileImport("serving", where, frame, read, len(rows), dict(dropped), tuple(sorted(notes)), table)


def _objects(path: Path, where: str) -> list[tuple[int, dict[str, Any]]]:
    found: list[tuple[int, dict[str, Any]]] = []
    with opened_text(path, where) as file:
        text = file.read(_MAX_LINE + 1)
    if len(text) > _MAX_LINE:
        raise SpecError(Problem(where, 0, "", "", "expected at most 512 MiB of results"))
    decoder, at, line, counted = json.JSONDecoder(), 0, 1, 0
    while True:
        while at < len(text) and text[at].isspace():
            at += 1
        line, counted = line + text.count("\n", counted, at), at
        if at == len(text):
            return found
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deep"
            bad = line + (
                text.count("\n", counted, error.pos) if isinstance(error, json.JSONDecodeError) else 0
            )
            raise SpecError(
                Problem(where, bad, "", shorten(text[at : at + 40]), f"expected JSON ({reason})")
            ) from None
        for item in value if isinstance(value, list) else [value]:
            if not isinstance(item, dict):
                raise SpecError(Problem(where, line, "", shorten(item), "expected a run, a JSON object"))
            found.append((line, item))


class _Run:
    """One run's JSON, checked as it is read."""

    def __init__(self, where: str, line: int, data: dict[str, Any]) -> None:
        self.where, self.line, self.data = where, line, data
        if "completed" not in data or "duration" not in data:
            missing = "completed" if "completed" not in data else "duration"
            self._bad(missing, None, "expected a result of vllm bench serve or sglang.bench_serving")

    @property
    def sglang(self) -> bool:
        return "mean_e2e_latency_ms" in self.data or "total_output_tokens_retokenized" in self.data

    def number(self, name: str) -> float:
        """Return a number, NaN where the key is absent or null."""
        value = self.data.get(name)
        if value is None:
            return math.nan
        if type(value) not in {int, float}:
            self._bad(name, value, "expected a number")
        return float(value)

    def whole(self, name: str, default: int | None = None) -> int | None:
        value = self.number(name)
        if math.isnan(value):
            return default
        if not value.is_integer() or value < 0:
            self._bad(name, self.data[name], "expected a whole number, not negative")
        return int(value)

    def rate(self) -> float:
        """Return the offered rate: infinite as a number or as text; NaN for a replayed trace or a ramp."""
        value = self.data.get("request_rate", math.nan)
        if "ramp_up_strategy" in self.data or value == "trace":
            return math.nan
        if isinstance(value, str) and value.lower() in {"inf", "infinity"}:
            return math.inf
        number = self.number("request_rate")
        if number <= 0:
            self._bad("request_rate", value, "expected requests per second, above 0")
        return number

    def row(self) -> dict[str, Any]:
        data, completed = self.data, self.whole("completed", 0) or 0
        failed = self.whole("failed")
        prompts = self.whole("num_prompts")
        errors = data.get("errors")
        if failed is None and isinstance(errors, list):
            failed = sum(bool(e) for e in errors)
        if failed is None and prompts is not None:
            failed = max(prompts - completed, 0)
        info = data.get("server_info")
        server = info if isinstance(info, dict) else {}
        row: dict[str, Any] = {
            "source": self.where,
            "line": self.line,
            "client": "sglang" if self.sglang else "vllm",
            "backend": str(data.get("backend") or data.get("endpoint_type") or ""),
            "model_id": str(data.get("model_id") or server.get("model_path") or ""),
            "date": str(data.get("date") or ""),
            "request_rate": self.rate(),
            "burstiness": 1.0 if data.get("burstiness") is None else self.number("burstiness"),
            "max_concurrency": self.whole("max_concurrency"),
            "prompts": prompts if prompts is not None else completed + (failed or 0),
            "completed": completed,
            "failed": failed,
            "duration_s": self.number("duration"),
            "input_tokens": self.number("total_input_tokens"),
            "output_tokens": self.number("total_output_tokens"),
            "requests_per_s": self.number("request_throughput"),
            "output_tokens_per_s": self.number("output_throughput"),
            "range_ratio": self.number("random_range_ratio"),
            "nominal_input": self.whole("random_input_len"),
            "nominal_output": self.whole("random_output_len"),
        }
        if data.get("dataset_name") not in {"random", "random-ids"}:
            row |= {"range_ratio": math.nan, "nominal_input": None, "nominal_output": None}
        for theirs, ours in _METRICS.items():
            for statistic, short in _STATISTICS.items():
                value = self.number(f"{statistic}_{theirs}_ms")
                if not math.isnan(value):
                    row[f"{ours}_{short}_s"] = value * 1e-3
        return row

    def requests(self, run: int) -> pd.DataFrame | None:
        """Return the completed requests, None where the file keeps none."""
        lists = {name: self.data.get(name) for name in _LISTS}
        if any(value is None for value in lists.values()):
            return None
        for name, value in lists.items():
            if not isinstance(value, list) or len(value) != len(lists["ttfts"] or []):
                self._bad(name, None, "expected lists of one length: input_lens, output_lens, ttfts, itls")
        gaps = [self._gaps(index, gap) for index, gap in enumerate(lists["itls"] or [])]
        arrays = {name: self._floats(name, lists[name] or []) for name in _LISTS[:3]}
        done = arrays["output_lens"] > 0
        tokens = arrays["output_lens"][done]
        decode = np.array(gaps, dtype=np.float64)[done]
        more = np.where(tokens > 1, tokens - 1, np.nan)
        return pd.DataFrame(
            {
                "run": run,
                "input_tokens": arrays["input_lens"][done].astype(np.int64),
                "output_tokens": tokens.astype(np.int64),
                "ttft_s": arrays["ttfts"][done],
                "tpot_s": decode / more,
                "e2e_s": arrays["ttfts"][done] + decode,
            }
        )

    def _gaps(self, index: int, gap: object) -> float:
        if not isinstance(gap, list) or not all(type(x) in {int, float} for x in gap):
            self._bad(f"itls.{index}", gap, "expected a list of seconds")
        return math.fsum(gap)

    def _floats(self, name: str, values: list[Any]) -> np.ndarray:
        for index, value in enumerate(values):
            if type(value) not in {int, float} or not value >= 0:
                self._bad(f"{name}.{index}", value, "expected a number, not negative")
        return np.asarray(values, dtype=np.float64)

    def _bad(self, name: str, value: object, expected: str) -> NoReturn:
        shown = "missing" if value is None else shorten(value)
        raise SpecError(Problem(self.where, self.line, name, shown, expected))


def _checked(row: dict[str, Any], requests: pd.DataFrame, line: int) -> set[str]:
    """Return notes where the client's means are not those of its own per-request lists."""
    found = set()
    for name in ("ttft", "tpot"):
        stated, own = row.get(f"{name}_mean_s", math.nan), float(requests[f"{name}_s"].mean())
        if math.isfinite(stated) and math.isfinite(own) and abs(own - stated) > _AGREE * stated:
            ours, theirs = f"{own * 1e3:.4g} ms", f"{stated * 1e3:.4g} ms"
            found.add(
                f"run on line {line}: mean {name} of its requests is {ours}, the client states {theirs}"
            )
    return found
