"""Families: a user's own rows in the columns that the fits of kernels learn from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd

from moesim.calibrate.silicon import attention, products
from moesim.calibrate.silicon.bounds import TYPES, roofline
from moesim.calibrate.silicon.collectives import group_of, nccl_work
from moesim.calibrate.silicon.families import Imported, ImportReport, device_spec
from moesim.cost.fitted.features import moe_work
from moesim.files import catalog_names
from moesim.spec.hardware import DeviceSpec

__all__ = ["NEVER_FITTED", "own_families"]

NEVER_FITTED: dict[str, str] = {
    "fp32": "no fitted kernel works on fp32: such work is priced by its bound",
    "tf32": "no fitted kernel works on tf32: such work is priced by its bound",
    "fp64": "no fitted kernel works on fp64: such work is priced by its bound",
    "int8": "no fitted kernel works on int8: such work is priced by its bound",
}
"""Types that rows may have and fits do not know."""
_ALIKE = {"fp16": "bf16"}
_TILED_SKEW = {"uniform": 0.0}
"""Variant of an expert row -> exponent of its load; others count as the fits' own default, ``Fitted.skew``."""
_SKEW = 1.2
_FAMILY = {
    "gemm": "gemm",
    "moe_ffn": "moe",
    "prefill_attention": "context_attention",
    "decode_attention": "generation_attention",
    "all_reduce": "nccl",
    "all_gather": "nccl",
    "reduce_scatter": "nccl",
    "all_to_all": "nccl",
}
_KEYS = ["device", "op", "dtype", "variant"]


def own_families(
    frame: pd.DataFrame, report: Counter[str], *, framework: str, software: str
) -> Iterator[Imported]:
    """Yield the rows of each family that fits know, tidied as the shipped tables are.

    Parameters
    ----------
    frame : rows of one or more imports (``profiles.COLUMNS``)
    report : reason -> rows that no fit can use; added to
    framework : whose kernels they are
    software : what was measured, kept as the fits' version
    """
    rows = _usable(frame, report)
    for family in dict.fromkeys(_FAMILY.values()):
        part = rows[rows["op"].map(_FAMILY) == family]
        if part.empty:
            continue
        tidy = _TIDY[family](part).assign(
            device=part["device"],
            framework="nccl" if family == "nccl" else framework,
            version=software,
            seconds=part["seconds"],
            possible=True,
        )
        tidy = pd.concat(
            [_WORK[family](mine.copy(), device_spec(str(name))) for name, mine in tidy.groupby("device")],
            ignore_index=True,
        )
        own = ImportReport(family, read=len(tidy), kept=len(tidy))
        yield Imported(family, tidy, own)


def _usable(frame: pd.DataFrame, report: Counter[str]) -> pd.DataFrame:
    """Return the rows that a fit can learn from; the reason of every other is counted."""
    known = set(catalog_names("device"))
    rules: Sequence[tuple[str, Callable[[pd.DataFrame], pd.Series]]] = (
        ("some size is not stated", lambda f: ~f["sized"]),
        ("faster than the physical bound", lambda f: ~f["possible"]),
        ("its device is not in the catalog (import --device NAME)", lambda f: ~f["device"].isin(known)),
    )
    for reason, bad in rules:
        frame = _drop(frame, bad(frame), reason, report)
    for dtype, reason in NEVER_FITTED.items():
        compute = ~frame["op"].isin(["copy", "transfer"]) & (frame["op"].map(_FAMILY) != "nccl")
        frame = _drop(frame, compute & (frame["dtype"] == dtype), reason, report)
    for op in frame.loc[~frame["op"].isin(list(_FAMILY)), "op"].unique():
        frame = _drop(
            frame, frame["op"] == op, f"{op}: fits know no such family, it is priced by its bound", report
        )
    latent = frame["value_dim"].notna() & (frame["value_dim"] != frame["head_dim"])
    frame = _drop(
        frame, latent.astype(bool), "values narrower than keys: no own fit of latent attention", report
    )
    collective = frame["op"].map(_FAMILY) == "nccl"
    linked = [
        group_of(str(d), int(n)) is not None if c else True
        for d, n, c in zip(frame["device"], frame["ranks"].fillna(0), collective, strict=True)
    ]
    frame = _drop(
        frame, ~pd.Series(linked, frame.index, dtype=bool), "the device states no link for it", report
    )
    frame = frame.assign(dtype=frame["dtype"].replace(_ALIKE))
    frame = _drop(frame, frame["bound_s"].isna(), "the device states no peak for its type", report)
    # of several kernels for one point, an engine runs the quickest
    sizes = [c for c in frame.columns if str(frame[c].dtype) == "Int64" and c != "distinct"]
    frame = frame.sort_values("seconds", kind="stable")
    again = frame.duplicated([*_KEYS, *sizes])
    return _drop(frame, again, "a slower kernel or a repetition of one point", report).sort_index()


def _drop(frame: pd.DataFrame, bad: pd.Series, reason: str, report: Counter[str]) -> pd.DataFrame:
    if count := int(bad.sum()):
        report[reason] += count
    kept: pd.DataFrame = frame[~bad]
    return kept


def _sizes(part: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    return part[list(names)].rename(columns=names).astype(np.int64)


def _gemm(part: pd.DataFrame) -> pd.DataFrame:
    tidy = _sizes(part, {"m": "m", "n": "n", "k": "k"})
    return tidy.assign(dtype=part["dtype"], kernel="any")


def _moe(part: pd.DataFrame) -> pd.DataFrame:
    names = {
        "tokens": "tokens",
        "hidden": "hidden",
        "inner": "intermediate",
        "experts": "experts",
        "top_k": "top_k",
    }
    tidy = _sizes(part, names)
    spread = tidy["experts"] * (1 - (1 - tidy["top_k"] / tidy["experts"]) ** tidy["tokens"])
    plain = part["variant"] == "nongated"
    return tidy.assign(
        dtype=part["dtype"],
        kernel=np.where(plain, "nongated", "default"),
        skew=part["variant"].map(_TILED_SKEW).fillna(_SKEW).astype(np.float64),
        ups=np.where(plain, 1, 2),
        inner=tidy["intermediate"],
        rows=(tidy["tokens"] * tidy["top_k"]).astype(np.float64),
        touched=part["distinct"].astype("Float64").fillna(spread).astype(np.float64),
        ep=1,
        moe_tp=1,
    )


def _heads(part: pd.DataFrame) -> pd.DataFrame:
    names = {
        "batch": "sequences",
        "length": "context",
        "heads": "heads",
        "kv_heads": "kv_heads",
        "head_dim": "head_dim",
    }
    tidy = _sizes(part, names)
    return tidy.assign(dtype=part["dtype"] + "_kv_" + part["dtype"], kernel="default", window=0)


def _collective(part: pd.DataFrame) -> pd.DataFrame:
    tidy = _sizes(part, {"ranks": "ranks", "size": "size"})
    return tidy.assign(dtype="bf16", kernel=part["op"], pattern=part["op"])


def _moe_work(rows: pd.DataFrame, device: DeviceSpec) -> pd.DataFrame:
    parts = []
    for dtype, part in rows.groupby("dtype", observed=True):
        form = TYPES[str(dtype)]
        count, touched, hidden, inner, ups = (
            part[c].to_numpy(dtype=np.float64) for c in ("rows", "touched", "hidden", "inner", "ups")
        )
        work = moe_work(count, touched, hidden, inner, ups, form.value_bytes, form.input_bytes)
        parts.append(roofline(part, device, form.compute, *work))
    return pd.concat(parts)


_TIDY: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "gemm": _gemm,
    "moe": _moe,
    "context_attention": _heads,
    "generation_attention": _heads,
    "nccl": _collective,
}
_WORK: dict[str, Callable[[pd.DataFrame, DeviceSpec], pd.DataFrame]] = {
    "gemm": products.gemm_work,
    "moe": _moe_work,
    "context_attention": attention.context_work,
    "generation_attention": attention.generation_work,
    "nccl": nccl_work,
}
