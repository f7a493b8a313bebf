"""Products: tables of dense matrix products and of quantise passes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from moesim.calibrate.silicon.bounds import NAMES, TYPES, roofline
from moesim.cost.ops import gemm, memory_op
from moesim.cost.precision import Format

if TYPE_CHECKING:
    from moesim.spec.hardware import DeviceSpec

__all__ = ["DEFECTS", "gemm_work", "quantise_work", "read_gemm", "read_quantise"]

_MS = 1e-3


def read_gemm(raw: pd.DataFrame, _table: str) -> pd.DataFrame:
    """Return ``m, n, k`` (rows, output width, input width), dtype, kernel, seconds (table: ms)."""
    raw = raw[raw["gemm_dtype"].isin(list(TYPES))]
    return pd.DataFrame(
        {
            "dtype": raw["gemm_dtype"].map(NAMES),
            "kernel": "any",
            "m": raw["m"].astype(np.int64),
            "n": raw["n"].astype(np.int64),
            "k": raw["k"].astype(np.int64),
            "seconds": raw["latency"].astype(np.float64) * _MS,
        }
    )


def gemm_work(rows: pd.DataFrame, device: DeviceSpec) -> pd.DataFrame:
    """Add flop, bytes and the bound of each row by the cost model's own product."""
    parts = []
    for dtype, part in rows.groupby("dtype", observed=True):
        form = TYPES[str(dtype)]
        stored = Format(form.stored, form.value_bytes, form.compute, form.input_bytes)
        m, n, k = (part[c].to_numpy() for c in ("m", "n", "k"))
        op = gemm("gemm", "lane", m, cast("Any", n), cast("Any", k), stored, 1)
        parts.append(roofline(part, device, form.compute, op.flop, op.bytes))
    return pd.concat(parts)


def read_quantise(raw: pd.DataFrame, _table: str) -> pd.DataFrame:
    """Return ``m, k`` of one pass that reads bf16 and writes fp8, static scale, seconds (table: ms)."""
    return pd.DataFrame(
        {
            "dtype": "fp8",
            "kernel": "any",
            "m": raw["m"].astype(np.int64),
            "k": raw["k"].astype(np.int64),
            "seconds": raw["latency"].astype(np.float64) * _MS,
        }
    )


def quantise_work(rows: pd.DataFrame, device: DeviceSpec) -> pd.DataFrame:
    """Add bytes and the bound: 2 bytes read and 1 written per value."""
    op = memory_op("quantise", "lane", rows["m"].to_numpy(), 3.0, "fp8", 1)
    size = op.bytes * rows["k"].to_numpy()
    return roofline(rows, device, "fp8", np.zeros(len(rows)), size)


def _host_bound(rows: pd.DataFrame) -> tuple[Any, str]:
    wrong = (
        (rows["framework"] == "vllm")
        & (rows["version"] == "0.24.0")
        & (rows["dtype"] == "fp8_block")
        & (rows["device"] != "l40s")  # another kernel, timed as its peers are
    )
    return wrong, "host-bound timing: vLLM 0.24.0 fp8_block small products cost 5 to 50 times its peers'"


DEFECTS = (_host_bound,)
"""Rows known to time something else than the kernel."""
