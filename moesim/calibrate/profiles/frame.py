"""Frame: samples of equal calls gathered into tidy rows, with what was kept, dropped and why."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from moesim.calibrate.measure.record import DIMS as MEASURED_DIMS
from moesim.calibrate.profiles.work import add_work
from moesim.errors import Problem, SpecError

__all__ = ["COLUMNS", "DIMS", "Call", "ProfileImport", "Samples"]

_OWN_DIMS = {
    "queries": "tokens per sequence that ask (prompt chunk); 1 in a decode step",
    "value_dim": "width of a value head, where it differs from a key's",
}
_TAKEN = (
    "m",
    "n",
    "k",
    "hidden",
    "inner",
    "experts",
    "top_k",
    "tokens",
    "distinct",
    "batch",
    "length",
    "heads",
    "kv_heads",
)
DIMS: dict[str, str] = {
    **{name: MEASURED_DIMS[name] for name in (*_TAKEN, "head_dim", "size", "ranks")},
    **_OWN_DIMS,
}
"""Columns of sizes and what they mean; the words of ``calibrate.measure``, and two more."""

COLUMNS: dict[str, str] = {
    "source": "file the row came from",
    "device": "catalog name, or the name in the file; empty when neither is known",
    "op": "what was done",
    "kernel": "kernels that did it",
    "dtype": "type of the operands",
    "variant": "what is left to say: direction, causal, nongated",
    **DIMS,
    "seconds": "median per call [s]",
    "seconds_min": "least [s]",
    "seconds_p90": "90th percentile [s]",
    "count": "calls",
    "activities": "kernels and copies of one call",
    "flop": "operations of a call; a multiply-add is two",
    "bytes": "bytes that a call must read and write, or send [B]",
    "bound_s": "least time by the device's datasheet [s]; NaN: not known",
    "sized": "every size that the op needs is known",
    "possible": "not faster than bound_s",
}
"""Columns of a kernel import and what they mean."""

_MAX_GROUPS = 1_000_000
_NAMED = 20


@dataclass(frozen=True, slots=True)
class Call:
    """What one call does.

    Attributes
    ----------
    op, dtype, variant : as in ``COLUMNS``
    dims : sizes by name, each a key of ``DIMS``, in any order
    """

    op: str
    dtype: str
    dims: tuple[tuple[str, int], ...]
    variant: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class ProfileImport:
    """One file, read.

    Attributes
    ----------
    kind : which reader
    source : the file, as the user wrote it
    frame : tidy rows: ``COLUMNS``, or ``serving.RUN_COLUMNS``
    read, kept : records in the file (device activities, ops, rows, runs); those behind ``frame``
    dropped : reason -> records; ``read == kept + sum(dropped.values())``
    notes : what a reader must know before using the rows, one sentence each
    requests : serving results with per-request detail: one row per request, else None
    software : what was measured and its version, empty where the file does not say
    """

    kind: str
    source: str
    frame: pd.DataFrame
    read: int
    kept: int
    dropped: Mapping[str, int]
    notes: tuple[str, ...] = ()
    requests: pd.DataFrame | None = None
    software: str = ""

    @property
    def fittable(self) -> pd.DataFrame:
        """Rows that a fit may use: sizes known, not faster than physics. Empty for serving results."""
        if "possible" not in self.frame:
            return self.frame.iloc[:0]
        return self.frame[self.frame["possible"] & self.frame["sized"]].reset_index(drop=True)

    @property
    def impossible(self) -> tuple[str, ...]:
        """One line per row that is faster than its physical bound, worst first."""
        if "possible" not in self.frame:
            return ()
        bad = self.frame[~self.frame["possible"]]
        order = (bad["seconds"] / bad["bound_s"]).sort_values().index
        return tuple(_named(row) for _, row in bad.loc[order].iterrows())

    @property
    def summary(self) -> str:
        """One line with the counts."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items())
        text = f"{self.source}: {self.read} records read, {self.kept} kept in {len(self.frame)} rows"
        return text + (f", dropped: {reasons}" if reasons else "")

    def as_dict(self) -> dict[str, Any]:
        """Return counts, reasons and notes as plain data for JSON; the frame is left out."""
        return {
            "kind": self.kind,
            "source": self.source,
            "software": self.software,
            "read": self.read,
            "kept": self.kept,
            "rows": len(self.frame),
            "fittable_rows": len(self.fittable),
            "dropped": dict(self.dropped),
            "faster_than_bound": list(self.impossible[:_NAMED]),
            "faster_than_bound_rows": len(self.impossible),
            "notes": list(self.notes),
        }


def _named(row: pd.Series) -> str:
    sizes = " ".join(f"{name}={row[name]}" for name in DIMS if not pd.isna(row[name]))
    what = " ".join(part for part in (row["op"], row["dtype"], row["variant"], sizes) if part)
    share = row["seconds"] / row["bound_s"]
    return f"{what} on {row['device']}: {row['seconds']:.3g} s is {share:.2f} of the bound {row['bound_s']:.3g} s"


@dataclass(slots=True)
class _Group:
    seconds: array[float] = field(default_factory=lambda: array("d"))
    count: int = 0
    activities: int = 0


@dataclass(slots=True)
class Samples:
    """Gathers calls; equal ones become one row. Memory: 8 bytes a call and about 1 kB a distinct row."""

    source: str
    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    groups: dict[tuple[Call, str, str], _Group] = field(default_factory=dict)

    def drop(self, reason: str, records: int = 1) -> None:
        """Count records that were read and left out."""
        self.read += records
        self.dropped[reason] += records

    def add(
        self, call: Call, kernel: str, device: str, seconds: float, *, records: int = 1, calls: int = 1
    ) -> None:
        """Keep one sample, made of ``records`` records of the file and standing for ``calls`` equal calls.

        Raises
        ------
        SpecError : more than a million distinct rows
        """
        key = (call, kernel, device)
        group = self.groups.get(key)
        if group is None:
            if len(self.groups) >= _MAX_GROUPS:
                raise SpecError(
                    Problem(self.source, 0, "", "", f"expected at most {_MAX_GROUPS} distinct rows")
                )
            group = self.groups[key] = _Group()
        group.seconds.append(seconds)
        group.count += calls
        group.activities = max(group.activities, records)
        self.read += records
        self.kept += records

    def finish(self, kind: str, notes: tuple[str, ...] = (), software: str = "") -> ProfileImport:
        """Return the tidy frame with work, bounds and flags.

        Raises
        ------
        SpecError : not one usable record
        """
        if not self.groups:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.most_common(4))
            what = f"expected at least one measurement of an op that the cost model knows; {reasons or 'no records'}"
            raise SpecError(Problem(self.source, 0, "", f"{self.read} records", what))
        frame = add_work(self._frame())
        if (bad := int((~frame["possible"]).sum())) > 0:
            what = "kept out of fits (a clock that is off, or operands that stayed in a cache)"
            notes = (*notes, f"{bad} rows are faster than main memory and peak rate allow: {what}")
        if unknown := int((frame["sized"] & frame["bound_s"].isna()).sum()):
            what = "their device, its peak or its link is not in the catalog"
            notes = (*notes, f"{unknown} rows could not be checked against physics: {what}")
        if rows := int((~frame["sized"]).sum()):
            notes = (*notes, f"{rows} rows state no sizes: they show where time goes, no fit can use them")
        dropped = dict(self.dropped.most_common())
        return ProfileImport(
            kind, self.source, frame, self.read, self.kept, dropped, notes, software=software
        )

    def _frame(self) -> pd.DataFrame:
        keys, groups = list(self.groups), list(self.groups.values())
        dims = [dict(call.dims) for call, _, _ in keys]
        times = [np.asarray(group.seconds) for group in groups]
        columns: dict[str, Any] = {
            "source": [self.source] * len(keys),
            "device": [device for _, _, device in keys],
            "op": [call.op for call, _, _ in keys],
            "kernel": [kernel for _, kernel, _ in keys],
            "dtype": [call.dtype for call, _, _ in keys],
            "variant": [call.variant for call, _, _ in keys],
            **{name: pd.array([d.get(name) for d in dims], dtype="Int64") for name in DIMS},
            "seconds": [float(np.median(t)) for t in times],
            "seconds_min": [float(t.min()) for t in times],
            "seconds_p90": [float(np.quantile(t, 0.9)) for t in times],
            "count": [group.count for group in groups],
            "activities": [group.activities for group in groups],
        }
        frame = pd.DataFrame(columns)
        order = ["op", "dtype", "variant", "device", *DIMS, "kernel"]
        return frame.sort_values(order, kind="stable").reset_index(drop=True)
