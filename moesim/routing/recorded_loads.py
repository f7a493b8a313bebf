"""Recorded loads: how many tokens each expert got, from the recorders of SGLang and vLLM and from moesim traces.

SGLang (``sglang/srt/eplb/expert_distribution.py``, recorder mode ``stat``): ``torch.save`` of a mapping with
``logical_count`` [buffered pass, layer, expert], dense layers included as zeros; ``--init-expert-location`` takes the
same key from JSON. vLLM (load statistics of vllm-project/vllm#41141, ``expert_load_stats_path``): JSON lines, those of
``record_type: eplb_load_stats`` with ``expert_load`` [layer, slot] and ``p2l_map``, the expert in each slot.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from moesim.errors import Problem, SpecError
from moesim.files.reader import read_text
from moesim.routing.torch_file import read_torch_file
from moesim.routing.trace import RoutingTrace, read_trace

__all__ = ["LoadFormat", "read_loads", "trace_loads"]

FloatArray = npt.NDArray[np.float64]
LoadFormat = Literal["auto", "sglang", "vllm", "trace"]


def read_loads(path: Path, kind: LoadFormat = "auto", experts: int | None = None) -> FloatArray:
    """Return the tokens that each expert got, [step, layer, expert]; a moesim trace is one step.

    Parameters
    ----------
    path : .pt or .json (SGLang), .jsonl (vLLM), .npz (moesim trace)
    kind : whose file it is; ``auto``: by the ending
    experts : per layer; none: as the file says, or one more than the highest that occurs

    Raises
    ------
    SpecError : no such file, another format, wrong shapes, negative or no counts
    """
    known: dict[str, LoadFormat] = {".pt": "sglang", ".json": "sglang", ".jsonl": "vllm", ".npz": "trace"}
    chosen = known.get(path.suffix) if kind == "auto" else kind
    if chosen == "sglang":
        counts = _sglang(path)
    elif chosen == "vllm":
        counts = _vllm(path, experts)
    elif chosen == "trace":
        counts = trace_loads(read_trace(path, experts))[None]
    else:
        expected = f"expected a file ending in {', '.join(known)}, or a stated format"
        raise SpecError(Problem(str(path), 0, "", "", expected))
    if counts.ndim != 3 or 0 in counts.shape:
        raise SpecError(Problem(str(path), 0, "", str(counts.shape), "expected loads [step, layer, expert]"))
    if not np.all(np.isfinite(counts)) or counts.min() < 0:
        raise SpecError(Problem(str(path), 0, "", "", "expected loads that are finite and not negative"))
    if counts.sum() <= 0:
        raise SpecError(Problem(str(path), 0, "", "", "expected some tokens, the recording is empty"))
    if experts is not None and counts.shape[2] != experts:
        what = f"expected {experts} experts per layer"
        raise SpecError(Problem(str(path), 0, "", str(counts.shape[2]), what))
    return counts


def trace_loads(trace: RoutingTrace) -> FloatArray:
    """Return how often each expert was chosen, [layer, expert]."""
    flat = trace.experts.astype(np.int64) + np.arange(trace.layers)[None, :, None] * trace.total
    counted = np.bincount(flat.ravel(), minlength=trace.layers * trace.total)
    return counted.reshape(trace.layers, trace.total).astype(np.float64)


def _sglang(path: Path) -> FloatArray:
    if path.suffix == ".json":
        try:
            data: Any = json.loads(read_text(path))
        except json.JSONDecodeError as error:
            raise SpecError(Problem(str(path), error.lineno, "", "", f"expected JSON: {error.msg}")) from None
    else:
        data = read_torch_file(path)
    if not isinstance(data, dict) or "logical_count" not in data:
        found = ", ".join(map(str, data)) if isinstance(data, dict) else type(data).__name__
        what = f"expected logical_count, as SGLang's recorder writes in mode stat, found {found}"
        raise SpecError(Problem(str(path), 0, "logical_count", "", what))
    counts = _numbers(path, 0, "logical_count", data["logical_count"])
    return counts[None] if counts.ndim == 2 else counts


def _vllm(path: Path, experts: int | None) -> FloatArray:
    steps: list[FloatArray] = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise SpecError(Problem(str(path), number, "", "", f"expected JSON: {error.msg}")) from None
        if not isinstance(record, dict) or record.get("record_type") != "eplb_load_stats":
            continue
        load = _numbers(path, number, "expert_load", record.get("expert_load"))
        held = _numbers(path, number, "p2l_map", record.get("p2l_map"))
        if load.ndim != 2 or load.shape != held.shape:
            what = f"expected the shape of p2l_map {held.shape}, [layer, slot]"
            raise SpecError(Problem(str(path), number, "expert_load", str(load.shape), what))
        slots = held.astype(np.int64)
        total = int(slots.max()) + 1 if experts is None else experts
        if slots.min() < 0 or slots.max() >= total or np.any(slots != held):
            raise SpecError(Problem(str(path), number, "p2l_map", "", f"expected experts 0..{total - 1}"))
        step = np.zeros((len(load), total))
        np.add.at(step, (np.arange(len(load))[:, None], slots), load)
        if steps and step.shape != steps[0].shape:
            what = f"expected {steps[0].shape}, layers and experts of the lines before"
            raise SpecError(Problem(str(path), number, "expert_load", str(step.shape), what))
        steps.append(step)
    if not steps:
        raise SpecError(Problem(str(path), 0, "", "", "expected lines of record_type eplb_load_stats"))
    return np.stack(steps)


def _numbers(path: Path, line: int, field: str, value: Any) -> FloatArray:
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise SpecError(
            Problem(str(path), line, field, "", "expected numbers in rows of one length")
        ) from None
