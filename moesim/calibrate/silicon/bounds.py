"""Bounds: what the tables' type names mean to the cost model, and the roofline of a frame's rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from moesim.cost.fitted.formats import FORMATS, Kernel

if TYPE_CHECKING:
    from moesim.cost.pricing import FloatArray
    from moesim.spec.hardware import DeviceSpec, Dtype

__all__ = ["NAMES", "TYPES", "roofline"]

NAMES: dict[str, str] = {
    "bfloat16": "bf16",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
    "nvfp4": "nvfp4",
    "int4_wo": "int4_wo",
    "w4a16_mxfp4": "mxfp4_wo",
    "w4a8_mxfp4_mxfp8": "mxfp4_fp8",
}
"""The tables' names of a kernel's types -> ours."""
TYPES: dict[str, Kernel] = {table: FORMATS[ours] for table, ours in NAMES.items()} | FORMATS
"""The tables' names, and ours, of a kernel's types. ``sq``, ``int8_wo`` and ``w4afp8`` serve no op of ours."""


def roofline(
    rows: pd.DataFrame, device: DeviceSpec, compute: Dtype, flop: FloatArray, size: FloatArray
) -> pd.DataFrame:
    """Return ``rows`` with ``flop``, ``bytes`` and ``bound_s``: NaN where the device states no such peak."""
    rate = device.compute.peaks.get(compute, np.nan)
    arithmetic = np.where(flop > 0, flop / rate, 0.0)
    bound = np.maximum(arithmetic, size / device.main.bandwidth)
    return rows.assign(flop=flop, bytes=size, bound_s=np.where(np.isfinite(arithmetic), bound, np.nan))
