"""Kineto: PyTorch profiler traces of a user's own run, device kernels joined to the operators that launched them.

Fields used, as PyTorch writes them (``torch.profiler`` with ``record_shapes=True``, ``export_chrome_trace``): events
with ``ph`` X carry ``ts`` and ``dur`` in microseconds; ``cat`` ``cpu_op`` has ``args`` ``External id``, ``Input
Dims``, ``Input type``, ``Input Strides``, ``Concrete Inputs``; ``cuda_runtime`` and ``cuda_driver`` have
``correlation``; ``kernel``, ``gpu_memcpy`` and ``gpu_memset`` have ``External id``, ``correlation``, ``device``,
``stream``, copies ``bytes``, NCCL kernels ``Collective name``, ``In msg nelems``, ``Out msg nelems``, ``Group size``,
``dtype``. ``deviceProperties`` before the events names the devices.

A call's seconds are those in which at least one of its kernels ran. Without device activity (a CPU trace) they are
the operator's own duration. Operators inside an operator count once: the innermost that is known.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from moesim.calibrate.measure.device import known_device
from moesim.calibrate.profiles.events import MAX_TEXT, EventStream, opened_text, shorten
from moesim.calibrate.profiles.frame import Call, ProfileImport, Samples
from moesim.calibrate.profiles.recorded import Recorded
from moesim.calibrate.profiles.torch_ops import WEAK, kernel_class, short_kernel, value_type

__all__ = ["read_kineto"]

_US = 1e-6
_PATTERNS = {
    "allreduce": ("all_reduce", "in"),
    "all_reduce": ("all_reduce", "in"),
    "allgather": ("all_gather", "out"),
    "all_gather": ("all_gather", "out"),
    "_allgather_base": ("all_gather", "out"),
    "all_gather_into_tensor": ("all_gather", "out"),
    "allgather_into_tensor_coalesced": ("all_gather", "out"),
    "reduce_scatter": ("reduce_scatter", "in"),
    "_reduce_scatter_base": ("reduce_scatter", "in"),
    "reduce_scatter_tensor": ("reduce_scatter", "in"),
    "reduce_scatter_tensor_coalesced": ("reduce_scatter", "in"),
    "all_to_all": ("all_to_all", "in"),
    "all_to_allv": ("all_to_all", "in"),
}
"""Collective names -> our op, and the side whose elements make up the whole buffer."""
_COPIES = (
    ("DtoD", "copy", ""),
    ("Device -> Device", "copy", ""),
    ("HtoD", "transfer", "h2d"),
    ("DtoH", "transfer", "d2h"),
)


def read_kineto(path: Path, *, device: str | None = None, limit: int = MAX_TEXT) -> ProfileImport:
    """Read one Chrome trace of the PyTorch profiler (``.json`` or ``.json.gz``).

    Memory follows the number of events, not the size of the file: about 100 bytes for each operator or kernel
    (measured: 50 MB for a trace of 181 MB with 400,000 events).

    Parameters
    ----------
    path : the trace of one process
    device : catalog name of the device, where the trace does not name it (CPU runs) or names it otherwise
    limit : most characters read, after unpacking

    Raises
    ------
    SpecError : not a trace, cut off, larger than ``limit``, several processes in one file, or no op that is known
    """
    where = str(path)
    with opened_text(path, where) as file:
        stream = EventStream(file, where, limit)
        trace = Recorded(where)
        for line, event in stream:
            if event.get("ph") == "X":
                trace.add(line, event)
    trace.finish()
    names = _devices(stream.head, device)
    samples = Samples(where)
    on_device = len(trace.activity_ts) > 0
    notes = _from_device(trace, names, samples) if on_device else _from_host(trace, device or "", samples)
    if not stream.head.get("record_shapes", 1):
        notes = (*notes, "the run was profiled without record_shapes=True: operators have no sizes")
    return samples.finish("kineto", notes)


def _devices(head: dict[str, Any], device: str | None) -> dict[int, str]:
    """Return device index -> catalog name, or the name that the trace gives."""
    found: dict[int, str] = {}
    listed = head.get("deviceProperties")
    for entry in listed if isinstance(listed, list) else []:
        if isinstance(entry, dict) and type(entry.get("id")) is int:
            name = str(entry.get("name", ""))
            spec = known_device(name)
            found[entry["id"]] = device or (spec.name if spec else name)
    return defaultdict(lambda: device or "", found)


def _from_host(trace: Recorded, device: str, samples: Samples) -> tuple[str, ...]:
    """Take operators' own durations: there is no device in the trace."""
    owner, inner = trace.owners()
    calls = trace.call
    for index in np.argsort(trace.op_ts, kind="stable"):
        at = int(index)
        name = trace.names[trace.op_name[at]]
        if owner[at] != at:
            samples.drop("inside an operator that is counted" if owner[at] >= 0 else "no op of ours")
        elif inner[at]:
            samples.drop("around an operator that is counted")
        elif isinstance(call := calls[trace.op_call[at]], str):
            samples.drop(call)
        elif trace.op_dur[at] <= 0:
            samples.drop("no positive time")
        else:
            samples.add(call, name, device, float(trace.op_dur[at]) * _US)
    return ("times are the operators' own on the host: no device activity in the trace",)


def _from_device(trace: Recorded, names: dict[int, str], samples: Samples) -> tuple[str, ...]:
    owner, inner = trace.owners()
    launcher = trace.launchers()
    grouped: dict[int, list[int]] = defaultdict(list)
    for index in np.argsort(trace.activity_ts, kind="stable"):
        at = int(index)
        op = int(launcher[at])
        top = int(owner[op]) if op >= 0 else -1
        if trace.activity_dur[at] <= 0:
            samples.drop("no positive time")
        elif _speaks_for_itself(trace, at, top):
            _add_alone(trace, at, names[int(trace.activity_device[at])], samples)
        elif top >= 0 and not inner[top]:
            grouped[top].append(at)
        elif top >= 0:
            samples.drop("beside an operator that is counted")
        else:
            samples.drop(_unknown(trace, at, op))
    _add_ops(trace, grouped, names, samples)
    notes = []
    if (total := float(trace.activity_dur.sum()) * _US) > 0:
        kept = sum(sum(group.seconds) for group in samples.groups.values())
        notes.append(f"the rows explain {kept / total:.0%} of {total:.4g} s of device activity")
    if trace.messages:
        notes.append("collectives wait for the slowest rank: their seconds_min is nearest to the transfer")
    if trace.in_graph.any():
        notes.append("kernels replayed by CUDA graphs carry no shapes: profile an eager run to size them")
    return tuple(notes)


def _speaks_for_itself(trace: Recorded, at: int, top: int) -> bool:
    """Tell whether an activity's own record says what it did: collectives, memset, copies of no larger operator."""
    kind = trace.activity_kind[at]
    inside = top >= 0 and trace.names[trace.op_name[top]] not in WEAK
    return at in trace.messages or kind == "gpu_memset" or (kind == "gpu_memcpy" and not inside)


def _add_alone(trace: Recorded, at: int, device: str, samples: Samples) -> None:
    name, seconds = trace.names[trace.activity_name[at]], float(trace.activity_dur[at]) * _US
    if at in trace.messages:
        call = _collective(trace.messages[at])
        if isinstance(call, str):
            samples.drop(call)
        else:
            samples.add(call, short_kernel(name), device, seconds)
    elif trace.activity_kind[at] == "gpu_memset":
        samples.drop("memset")
    else:
        _add_copy(name, int(trace.activity_bytes[at]), device, seconds, samples)


def _unknown(trace: Recorded, at: int, op: int) -> str:
    if trace.in_graph[at]:
        return "inside a CUDA graph: no shapes"
    kind = kernel_class(trace.names[trace.activity_name[at]])
    return f"no op of ours: {kind}" if op >= 0 else f"no launching operator: {kind}"


def _add_ops(trace: Recorded, grouped: dict[int, list[int]], names: dict[int, str], samples: Samples) -> None:
    for op, activities in grouped.items():
        call = trace.call[trace.op_call[op]]
        if isinstance(call, str):
            samples.drop(call, len(activities))
            continue
        kernels = dict.fromkeys(short_kernel(trace.names[trace.activity_name[at]]) for at in activities)
        if call.dtype == "fp32" and any("tf32" in name or "s1688" in name for name in kernels):
            call = Call(call.op, "tf32", call.dims, call.variant)
        place = names[int(trace.activity_device[activities[0]])]
        starts = trace.activity_ts[activities]
        seconds = _union(starts, starts + trace.activity_dur[activities]) * _US
        samples.add(call, " + ".join(kernels), place, seconds, records=len(activities))


def _union(starts: np.ndarray, ends: np.ndarray) -> float:
    """Return the length of the union of intervals, sorted by start: the time in which at least one ran."""
    reached = np.maximum.accumulate(ends)
    before = np.concatenate([[-np.inf], reached[:-1]])
    return float(np.maximum(ends - np.maximum(starts, before), 0.0).sum())


def _add_copy(name: str, size: int, device: str, seconds: float, samples: Samples) -> None:
    for part, op, direction in _COPIES:
        if part in name:
            if size <= 0:
                samples.drop("a copy of unknown size")
                return
            memory = "pinned" if "Pinned" in name else "pageable" if "Pageable" in name else ""
            variant = f"{direction}-{memory}".strip("-") if direction else ""
            samples.add(Call(op, "bytes", (("size", size),), variant), "memcpy", device, seconds)
            return
    samples.drop("a copy of another kind")


def _collective(message: dict[str, Any]) -> Call | str:
    found = _PATTERNS.get(str(message.get("Collective name")))
    if found is None:
        return f"collective {shorten(str(message.get('Collective name')), 30)}: no op of ours"
    kind = value_type(message.get("dtype"))
    elements = message.get("In msg nelems" if found[1] == "in" else "Out msg nelems")
    ranks = message.get("Group size")
    if kind is None or type(elements) is not int or type(ranks) is not int or elements <= 0 or ranks < 2:
        return "a collective of unknown size"
    return Call(found[0], "bytes", (("ranks", ranks), ("size", elements * kind[1])))
