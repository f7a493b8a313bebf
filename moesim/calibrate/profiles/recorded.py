"""Recorded: the operators, launches and device activities of a trace as compact arrays, and who launched whom."""

from __future__ import annotations

import math
from array import array
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from moesim.calibrate.profiles.events import shorten
from moesim.calibrate.profiles.frame import Call
from moesim.calibrate.profiles.torch_ops import WEAK, Inputs, call_of, known
from moesim.errors import Problem, SpecError

__all__ = ["Recorded"]

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

_ACTIVITIES = {
    "kernel": "kernel",
    "gpu_memcpy": "gpu_memcpy",
    "memcpy": "gpu_memcpy",
    "gpu_memset": "gpu_memset",
    "memset": "gpu_memset",
}
_HOST = {"cpu_op", "operator"}
_LAUNCH = {"cuda_runtime", "cuda_driver", "runtime", "hip_runtime"}
_UNKNOWN = "no op of ours"
_CACHED = 50_000


class Recorded:
    """What one trace says; ``finish`` turns the growing arrays into numpy ones.

    Attributes
    ----------
    names, call : texts and calls by number; calls that cannot be sized are a reason (text)
    op_ts, op_dur, op_name, op_call, op_thread, op_id : [operators]; microseconds, numbers, ``External id``
    activity_ts, activity_dur, activity_name, activity_device, activity_bytes : [activities]
    activity_kind : [activities] ``kernel``, ``gpu_memcpy`` or ``gpu_memset``
    messages : activity -> its arguments, for collectives
    in_graph : [activities] replayed by a CUDA graph
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.names: list[str] = []
        self.call: list[Call | str] = [_UNKNOWN]
        self.messages: dict[int, dict[str, Any]] = {}
        self.activity_kind: list[str] = []
        self._name_at: dict[str, int] = {}
        self._call_at: dict[Call | str, int] = {_UNKNOWN: 0}
        self._seen: dict[str, int] = {}
        self._thread_at: dict[tuple[str, str], int] = {}
        self._processes: list[str] = []
        self._ops: list[array[Any]] = [array("d"), array("d"), *(array("q") for _ in range(5))]
        self._activities: list[array[Any]] = [array("d"), array("d"), *(array("q") for _ in range(5))]
        self._launches: list[array[Any]] = [array("q"), array("d"), array("q"), array("q"), array("q")]

    def add(self, line: int, event: dict[str, Any]) -> None:
        """Take one event of phase X, where it is of a kind that matters.

        Raises
        ------
        SpecError : ``ts``, ``dur`` or an id is missing or no number
        """
        category = str(event.get("cat", "")).lower()
        arguments = event.get("args")
        values = arguments if isinstance(arguments, dict) else {}
        if category in _HOST:
            self._add_op(line, event, values)
        elif category in _ACTIVITIES:
            self._add_activity(line, event, values, _ACTIVITIES[category])
        elif category in _LAUNCH and "correlation" in values:
            graph = int("GraphLaunch" in str(event.get("name")))
            row = (self._id(line, values, "correlation"), self._number(line, event, "ts"), self._thread(event),
                   self._external(line, values), graph)  # fmt: skip
            for column, value in zip(self._launches, row, strict=True):
                column.append(value)

    def _add_op(self, line: int, event: dict[str, Any], values: dict[str, Any]) -> None:
        name = str(event.get("name"))
        call = self._call(name, values) if known(name) else 0
        process = str(event.get("pid"))
        if process not in self._processes:
            self._processes.append(process)
        row = (self._number(line, event, "ts"), self._number(line, event, "dur"), self._name(name), call,
               self._thread(event), self._external(line, values), self._processes.index(process))  # fmt: skip
        for column, value in zip(self._ops, row, strict=True):
            column.append(value)

    def _add_activity(self, line: int, event: dict[str, Any], values: dict[str, Any], kind: str) -> None:
        device = values.get("device", event.get("pid", 0))
        size = values.get("bytes", 0)
        row = (self._number(line, event, "ts"), self._number(line, event, "dur"),
               self._name(str(event.get("name"))), device if type(device) is int else 0,
               size if type(size) is int else 0, self._external(line, values),
               self._id(line, values, "correlation"))  # fmt: skip
        if "Collective name" in values:
            self.messages[len(self.activity_kind)] = values
        self.activity_kind.append(kind)
        for column, value in zip(self._activities, row, strict=True):
            column.append(value)

    def finish(self) -> None:
        """Turn what was added into arrays.

        Raises
        ------
        SpecError : operators of several processes use the same ids
        """
        ops = [np.asarray(column) for column in self._ops]
        self.op_ts, self.op_dur, self.op_name, self.op_call, self.op_thread, self.op_id, process = ops
        acts = [np.asarray(column) for column in self._activities]
        self.activity_ts, self.activity_dur, self.activity_name, self.activity_device, self.activity_bytes = (
            acts[:5]
        )
        self._activity_id, self._activity_correlation = acts[5:]
        self._ops, self._activities = [], []
        self._one_process(process)
        order = np.argsort(np.asarray(self._launches[0]), kind="stable")
        self._launch = [np.asarray(column)[order] for column in self._launches]
        self._launches = []
        found = _lookup(self._launch[0], self._activity_correlation)
        self._activity_launch = found
        graphs = self._launch[4]
        self.in_graph = (
            (found >= 0) & (graphs[found] > 0) if len(graphs) else np.zeros(len(found), dtype=bool)
        )
        self._order, self._parent = self._nesting()

    def owners(self) -> tuple[IntArray, npt.NDArray[np.bool_]]:
        """Return, per operator, the known operator it works for, and whether another known one works inside it.

        The first is the operator itself, an outer one, or -1.
        """
        count = len(self.op_ts)
        owner = np.full(count, -1, dtype=np.int64)
        inner = np.zeros(count, dtype=bool)
        listed = np.array([known(name) for name in self.names], dtype=bool)
        weak = np.array([name in WEAK for name in self.names], dtype=bool)
        for at in self._order:
            outer = self._parent[at]
            above = owner[outer] if outer >= 0 else -1
            name = self.op_name[at]
            if not listed[name] or (weak[name] and above >= 0):
                owner[at] = above
                continue
            owner[at] = at
            if above >= 0 and not weak[self.op_name[above]]:
                inner[above] = True
        return owner, inner

    def launchers(self) -> IntArray:
        """Return, per activity, the innermost operator that launched it; -1 when it is not known.

        By ``External id``; where that says nothing, by the launch of the same ``correlation`` and the operator around
        it. Kernels of a CUDA graph have none: the graph's launch says nothing about each.
        """
        order = np.argsort(self.op_id, kind="stable")
        ids = self.op_id[order]
        direct = _lookup(ids, np.where(self._activity_id > 0, self._activity_id, -1))
        result = np.where(direct >= 0, order[direct] if len(order) else -1, -1)
        for at in np.flatnonzero((result < 0) & (self._activity_launch >= 0) & ~self.in_graph):
            launch = self._activity_launch[at]
            by_id = (
                _lookup(ids, self._launch[3][launch : launch + 1])[0] if self._launch[3][launch] > 0 else -1
            )
            result[at] = (
                order[by_id]
                if by_id >= 0
                else self._around(int(self._launch[2][launch]), float(self._launch[1][launch]))
            )
        result[self.in_graph] = -1
        return np.asarray(result, dtype=np.int64)

    def _around(self, thread: int, ts: float) -> int:
        """Return the innermost operator of ``thread`` that runs at ``ts``."""
        start, end = np.searchsorted(self.op_thread[self._order], [thread, thread + 1])
        inside = self._order[start:end]
        at = int(np.searchsorted(self.op_ts[inside], ts, side="right")) - 1
        op = int(inside[at]) if at >= 0 else -1
        while op >= 0 and self.op_ts[op] + self.op_dur[op] < ts:
            op = int(self._parent[op])
        return op

    def _nesting(self) -> tuple[IntArray, IntArray]:
        """Return operators in order of (thread, start, longest first), and each one's parent or -1."""
        order = np.lexsort((-self.op_dur, self.op_ts, self.op_thread))
        parent = np.full(len(order), -1, dtype=np.int64)
        stack: list[int] = []
        ends = self.op_ts + self.op_dur
        for at in order:
            while stack and (
                ends[stack[-1]] <= self.op_ts[at] or self.op_thread[stack[-1]] != self.op_thread[at]
            ):
                stack.pop()
            parent[at] = stack[-1] if stack else -1
            stack.append(int(at))
        return order, parent

    def _one_process(self, process: IntArray) -> None:
        if len(self._processes) < 2:
            return
        order = np.lexsort((process, self.op_id))
        same = (
            (np.diff(self.op_id[order]) == 0) & (np.diff(process[order]) != 0) & (self.op_id[order][1:] > 0)
        )
        if same.any():
            pids = ", ".join(self._processes[:4])
            what = "expected the trace of one process: ids repeat across these (import one file per rank)"
            raise SpecError(Problem(self.where, 0, "pid", pids, what))

    def _call(self, name: str, values: dict[str, Any]) -> int:
        parts = [
            values.get(k) or [] for k in ("Input Dims", "Input type", "Concrete Inputs", "Input Strides")
        ]
        if "Input Dims" not in values:
            parts[0] = values.get("Input dims") or []  # PyTorch before 2.2
        key = f"{name}{parts}"
        at = self._seen.get(key)
        if at is None:
            inputs = Inputs(*(part if isinstance(part, list) else [] for part in parts))
            call = call_of(name, inputs)
            at = self._call_at.get(call, -1)
            if at < 0:
                at = self._call_at[call] = len(self.call)
                self.call.append(call)
            if len(self._seen) >= _CACHED:
                self._seen.clear()
            self._seen[key] = at
        return at

    def _name(self, name: str) -> int:
        at = self._name_at.get(name)
        if at is None:
            at = self._name_at[name] = len(self.names)
            self.names.append(name)
        return at

    def _thread(self, event: dict[str, Any]) -> int:
        key = (str(event.get("pid")), str(event.get("tid")))
        return self._thread_at.setdefault(key, len(self._thread_at))

    def _number(self, line: int, event: dict[str, Any], field: str) -> float:
        value = event.get(field)
        if type(value) not in {int, float} or not math.isfinite(value):  # type: ignore[arg-type]
            self._bad(line, field, value, "expected microseconds, a number")
        return float(value)  # type: ignore[arg-type]

    def _external(self, line: int, values: dict[str, Any]) -> int:
        return self._id(line, values, "External id" if "External id" in values else "external id")

    def _id(self, line: int, values: dict[str, Any], field: str) -> int:
        value = values.get(field, 0)
        try:
            return int(value)
        except (TypeError, ValueError):
            self._bad(line, field, value, "expected a whole number")

    def _bad(self, line: int, field: str, value: object, expected: str) -> NoReturn:
        shown = "missing" if value is None else shorten(value)
        raise SpecError(Problem(self.where, line, field, shown, expected))


def _lookup(keys: IntArray, wanted: IntArray) -> IntArray:
    """Return the index in sorted ``keys`` of each wanted value, -1 where it is not there."""
    if not len(keys):
        return np.full(len(wanted), -1, dtype=np.int64)
    at = np.searchsorted(keys, wanted)
    near = np.minimum(at, len(keys) - 1)
    return np.where(keys[near] == wanted, near, -1)
