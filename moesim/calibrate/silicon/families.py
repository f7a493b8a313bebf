"""Families: one reader per kind of kernel, from raw columns to SI seconds, work and the physical bound."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moesim.calibrate.silicon import attention, collectives, experts, products
from moesim.calibrate.silicon.tables import DEVICES, raw_tables, version_key
from moesim.errors import SpecError
from moesim.files import nearest
from moesim.spec.base import load_spec
from moesim.spec.hardware import DeviceSpec

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FAMILIES", "Family", "ImportReport", "Imported", "device_spec", "read_family"]

_TOLERANCE = 0.98
"""Rows this far below the bound are still timer noise; faster ones cannot be."""


@dataclass(frozen=True, slots=True)
class Family:
    """How one family of tables is read.

    Attributes
    ----------
    tables : names of the parquet tables
    keys : columns that identify a measured point inside a (device, framework, dtype, kernel)
    shape : columns that make up a shape; hold-outs leave whole shapes out
    read : raw frame -> frame with ``keys``, ``dtype``, ``kernel``, ``seconds`` (all in SI)
    work : adds ``flop``, ``bytes`` and ``bound_s`` for one device's rows
    defects, outliers : rules that name rows to drop, by themselves and by their neighbours
    """

    tables: tuple[str, ...]
    keys: tuple[str, ...]
    shape: tuple[str, ...]
    read: Callable[[pd.DataFrame, str], pd.DataFrame]
    work: Callable[[pd.DataFrame, DeviceSpec], pd.DataFrame]
    defects: tuple[Callable[[pd.DataFrame], tuple[Any, str]], ...] = ()
    outliers: tuple[Callable[[pd.DataFrame], tuple[Any, str]], ...] = ()


FAMILIES: dict[str, Family] = {
    "gemm": Family(
        ("gemm",), ("m", "n", "k"), ("n", "k"), products.read_gemm, products.gemm_work, products.DEFECTS
    ),
    "moe": Family(
        ("moe",),
        ("tokens", "hidden", "intermediate", "top_k", "experts", "moe_tp", "ep", "skew"),
        ("hidden", "intermediate", "experts", "top_k"),
        experts.read_moe,
        experts.moe_work,
        experts.DEFECTS,
        experts.OUTLIERS,
    ),
    "context_attention": Family(
        ("context_attention",),
        ("sequences", "context", "heads", "kv_heads", "head_dim", "window"),
        ("heads", "kv_heads", "head_dim", "window"),
        attention.read_context,
        attention.context_work,
    ),
    "generation_attention": Family(
        ("generation_attention",),
        ("sequences", "context", "heads", "kv_heads", "head_dim", "window"),
        ("heads", "kv_heads", "head_dim", "window"),
        attention.read_generation,
        attention.generation_work,
    ),
    "context_mla": Family(
        ("context_mla",),
        ("sequences", "context", "heads"),
        ("heads",),
        attention.read_context_mla,
        attention.context_mla_work,
    ),
    "generation_mla": Family(
        ("generation_mla",),
        ("sequences", "context", "heads"),
        ("heads",),
        attention.read_generation_mla,
        attention.generation_mla_work,
    ),
    "all_reduce": Family(
        ("custom_allreduce",),
        ("ranks", "size"),
        ("ranks", "size"),
        collectives.read_all_reduce,
        collectives.all_reduce_work,
        outliers=collectives.OUTLIERS,
    ),
    "nccl": Family(
        ("nccl",),
        ("pattern", "ranks", "size"),
        ("pattern", "ranks", "size"),
        collectives.read_nccl,
        collectives.nccl_work,
        outliers=collectives.OUTLIERS,
    ),
    "expert_exchange": Family(
        ("moe_a2a", "wideep_deepep_normal", "wideep_deepep_ll"),
        ("phase", "ranks", "nodes", "hidden", "top_k", "experts", "tokens", "sms"),
        ("hidden", "top_k", "experts"),
        collectives.read_exchange,
        collectives.exchange_work,
    ),
    "quantise": Family(("scale_matrix",), ("m", "k"), ("k",), products.read_quantise, products.quantise_work),
}


@dataclass(slots=True)
class ImportReport:
    """Rows of one family, by what became of them.

    Attributes
    ----------
    family : which
    read, kept : rows in the files, rows that may be fitted
    dropped : (device, framework, reason) -> rows
    impossible : (device, framework, dtype) -> rows faster than the physical bound; kept out of fits
    """

    family: str
    read: int = 0
    kept: int = 0
    dropped: dict[tuple[str, str, str], int] = field(default_factory=dict)
    impossible: dict[tuple[str, str, str], int] = field(default_factory=dict)

    def drop(self, device: str, framework: str, reason: str, rows: int) -> None:
        """Count ``rows`` dropped rows."""
        if rows:
            key = (device, framework, reason)
            self.dropped[key] = self.dropped.get(key, 0) + int(rows)

    def drop_rows(self, rows: pd.DataFrame, reason: str) -> None:
        """Count dropped ``rows`` by device and framework."""
        for device, framework, count in _counts(rows, ["device", "framework"]):
            self.drop(device, framework, reason, count)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "family": self.family,
            "read": self.read,
            "kept": self.kept,
            "dropped": [
                {"device": d, "framework": f, "reason": r, "rows": n}
                for (d, f, r), n in sorted(self.dropped.items())
            ],
            "faster_than_bound": [
                {"device": d, "framework": f, "dtype": t, "rows": n}
                for (d, f, t), n in sorted(self.impossible.items())
            ],
        }


@dataclass(frozen=True, slots=True)
class Imported:
    """Tidy rows of one family and what was dropped on the way.

    Attributes
    ----------
    rows : columns ``device, framework, version, dtype, kernel, seconds, flop, bytes, bound_s, possible`` and
        the family's keys; ``possible`` is False where a row beats physics
    report : counts
    """

    family: str
    rows: pd.DataFrame
    report: ImportReport


@cache
def device_spec(name: str) -> DeviceSpec:
    """Return a device of our catalog."""
    return load_spec(DeviceSpec, name, "device")


def read_family(name: str, *, newest: bool = True, device: str = "", framework: str = "*") -> Imported:
    """Read every file of one family.

    Parameters
    ----------
    name : key of ``FAMILIES``
    device, framework : read only this device of the catalog, this engine; by default all
    newest : keep one engine version per (device, framework, dtype, kernel, shape): the newest without a defect

    Raises
    ------
    SpecError : no such family
    DataMissing : the extra is not installed
    """
    if name not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise SpecError(f"kernel family {name!r}: expected one of {known}{nearest(name, FAMILIES)}")
    family, report = FAMILIES[name], ImportReport(name)
    folder = next((f for f, known in DEVICES.items() if known == device), "none") if device else "*"
    frames = []
    for table in family.tables:
        for raw in raw_tables(table, folder, framework):
            report.read += len(raw.frame)
            spec = DEVICES.get(raw.folder)
            if spec is None:
                report.drop(raw.folder, raw.framework, "no device of the catalog", len(raw.frame))
                continue
            tidy = family.read(raw.frame, table)
            tidy.insert(0, "device", spec)
            tidy.insert(1, "framework", raw.framework)
            tidy.insert(2, "version", raw.version)
            report.drop(
                spec,
                raw.framework,
                "a type, kernel or launch mode that no op here uses",
                len(raw.frame) - tidy.index.nunique(),
            )
            frames.append(_without_defects(tidy, family, report))
    rows = pd.concat([f for f in frames if len(f)], ignore_index=True)
    words = [c for c in rows.columns if not pd.api.types.is_numeric_dtype(rows[c].dtype)]
    rows = rows.astype(dict.fromkeys(words, "category"))  # strings group slowly
    rows = _finite(rows, report)
    if newest:
        rows = _newest(rows, family, report)
    rows = _one_row_per_key(rows, family, report)
    rows = pd.concat(
        [
            family.work(part.copy(), device_spec(str(name)))
            for name, part in rows.groupby("device", observed=True)
        ],
        ignore_index=True,
    )
    no_bound = ~np.isfinite(rows["bound_s"].to_numpy())
    report.drop_rows(rows[no_bound], "the device states no peak or link for it")
    rows = rows[~no_bound].reset_index(drop=True)
    rows = _without_outliers(rows, family, report)
    rows["possible"] = rows["seconds"] >= _TOLERANCE * rows["bound_s"]
    impossible = rows[~rows["possible"]]
    report.impossible = {
        (device, framework, dtype): count
        for device, framework, dtype, count in _counts(impossible, ["device", "framework", "dtype"])
    }
    report.kept = int(rows["possible"].sum())
    return Imported(name, rows, report)


def _counts(rows: pd.DataFrame, columns: list[str]) -> list[tuple[Any, ...]]:
    """Return (names..., rows) for every combination that occurs."""
    if rows.empty:
        return []
    sizes = rows.groupby(columns, observed=True).size().reset_index(name="rows")
    names = (sizes[c].astype(str) for c in columns)
    return list(zip(*names, sizes["rows"].astype(int), strict=True))


def _without_defects(rows: pd.DataFrame, family: Family, report: ImportReport) -> pd.DataFrame:
    for defect in family.defects:
        mask, reason = defect(rows)
        hit = np.asarray(mask, dtype=bool)
        if hit.any():
            first = rows.iloc[0]
            report.drop(str(first["device"]), str(first["framework"]), reason, int(hit.sum()))
            rows = rows[~hit]
    return rows


def _without_outliers(rows: pd.DataFrame, family: Family, report: ImportReport) -> pd.DataFrame:
    for outlier in family.outliers:
        hit, reason = outlier(rows)
        report.drop_rows(rows[hit], reason)
        left: pd.DataFrame = rows[~hit].reset_index(drop=True)
        rows = left
    return rows


def _finite(rows: pd.DataFrame, report: ImportReport) -> pd.DataFrame:
    seconds = rows["seconds"].to_numpy(dtype=np.float64)
    bad = ~(np.isfinite(seconds) & (seconds > 0))
    report.drop_rows(rows[bad], "no positive time")
    timed: pd.DataFrame = rows[~bad]
    return timed


def _newest(rows: pd.DataFrame, family: Family, report: ImportReport) -> pd.DataFrame:
    """Keep one engine version of each shape: a development drop holds few shapes, older files the rest."""
    group = ["device", "framework", "dtype", "kernel", *family.shape]
    rank = {v: i for i, v in enumerate(sorted(rows["version"].unique(), key=version_key))}
    age = rows["version"].map(rank).astype(np.int64)
    stale = age < age.groupby([rows[c] for c in group], observed=True).transform("max")
    report.drop_rows(rows[stale], "an older engine version of the shape")
    kept: pd.DataFrame = rows[~stale]
    return kept


def _one_row_per_key(rows: pd.DataFrame, family: Family, report: ImportReport) -> pd.DataFrame:
    """Keep the fastest of repeated measurements of one point: the others had company."""
    group = ["device", "framework", "version", "dtype", "kernel", *family.keys]
    rows = rows.sort_values("seconds", kind="stable")
    repeated = rows.duplicated(group)
    report.drop_rows(rows[repeated], "a repeated measurement of one point")
    kept: pd.DataFrame = rows[~repeated].sort_index()
    return kept
