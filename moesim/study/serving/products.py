"""Products: the scale pass of measured FP8 products, taken off where a checkpoint has its scales.

FP8 products are timed with a pass that computes the scale of their input; a checkpoint with static scales does not
need it, and the package's table ``computescale`` says what that is worth.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from moesim.calibrate.silicon.tables import DEVICES, raw_tables
from moesim.cost.attention import AttentionShape
from moesim.cost.fitted import Products
from moesim.cost.ops import Op
from moesim.cost.pricing import AttentionTerm, FloatArray
from moesim.cost.roofline import Origin, Place, roofline_seconds

__all__ = ["StaticScales", "scale_seconds"]


@dataclass(frozen=True, slots=True, eq=False)
class StaticScales:
    """Products of a checkpoint that states the scales of its FP8 inputs."""

    products: Products

    @property
    def origin(self) -> Origin:
        """As the kernels inside."""
        return self.products.origin

    def seconds(self, op: Op, place: Place) -> FloatArray:
        """Return seconds of all layers of ``op``, [tokens]; NaN where unknown."""
        whole = self.products.seconds(op, place)
        if op.kind != "gemm" or op.stored != "fp8" or op.dtype != "fp8":
            return whole
        k = float(dict(op.dims)["k"])
        framework = self.products.inner.framework
        scale = scale_seconds(framework, place.device.name, op.tokens.astype(np.float64), k)
        return np.maximum(whole - op.layers * scale, np.minimum(whole, roofline_seconds(op, place)))

    def attention(self, shape: AttentionShape, place: Place) -> AttentionTerm | None:
        """Return the coefficients of the kernels inside."""
        return self.products.attention(shape, place)


def scale_seconds(framework: str, device: str, tokens: FloatArray, k: float) -> FloatArray:
    """Return measured seconds of one pass that computes the scale of [tokens, k], 0 where none was measured.

    Between measured sizes linear in the logarithms of both, and at their ends beyond.
    """
    grid = _scales(framework, device)
    if grid is None:
        return np.zeros(tokens.shape)
    rows, widths, table = grid
    at = float(np.interp(np.log(k), np.log(widths), np.arange(len(widths))))
    low, part = int(at), at - int(at)
    high = min(low + 1, len(widths) - 1)
    column = (1 - part) * table[:, low] + part * table[:, high]
    return np.where(tokens > 0, np.interp(np.log(np.maximum(tokens, 1)), np.log(rows), column), 0.0)


@cache
def _scales(framework: str, device: str) -> tuple[FloatArray, FloatArray, FloatArray] | None:
    """Return (rows [m], widths [k], seconds [m, k]) of the newest table, None where there is none."""
    for table in reversed(list(raw_tables("computescale"))):
        if table.framework != framework or DEVICES.get(table.folder) != device:
            continue
        frame = table.frame[table.frame["quant_dtype"].astype(str) == "fp8"]
        wide = frame.pivot_table(index="m", columns="k", values="latency").interpolate(axis=0).ffill().bfill()
        if wide.size:
            return (
                wide.index.to_numpy(dtype=np.float64),
                wide.columns.to_numpy(dtype=np.float64),
                wide.to_numpy(dtype=np.float64) * 1e-3,
            )
    return None
