"""Products: what measured matrix products include beside the product, taken off where a run does not pay it.

The tables time a quantised product from 16-bit input: the quantise pass is inside, so the model's own pass is free
beside a measured product. FP8 products also compute the scale of their input first; a checkpoint with static scales
does not, and the package's table ``computescale`` says what that is worth. TensorRT-LLM's NVFP4 products carry a pass
that its serving path fuses into the norm before; SGLang's table of the same kernels is without.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from moesim.calibrate.silicon.tables import DEVICES, raw_tables
from moesim.cost.attention import AttentionShape
from moesim.cost.fitted import Fitted
from moesim.cost.ops import Op
from moesim.cost.pricing import AttentionTerm, FloatArray
from moesim.cost.roofline import Origin, Place, roofline_seconds

__all__ = ["Products", "scale_seconds"]


@dataclass(frozen=True, slots=True, eq=False)
class Products:
    """The fitted kernels, with products as the run computes them.

    Attributes
    ----------
    inner : kernels of the run's engine
    static_scales : the checkpoint states the scales of its FP8 inputs
    nvfp4 : kernels to ask for NVFP4 products, where the engine's own table holds more than them
    """

    inner: Fitted
    static_scales: bool = False
    nvfp4: Fitted | None = None

    @property
    def origin(self) -> Origin:
        """As the kernels inside."""
        return self.inner.origin

    def seconds(self, op: Op, place: Place) -> FloatArray:
        """Return seconds of all layers of ``op``, [tokens]; NaN where unknown."""
        if op.kind == "memory" and "quantise" in op.name:
            return np.zeros(op.tokens.shape)  # inside the measured product
        if op.kind != "gemm":
            return self.inner.seconds(op, place)
        asked = self.nvfp4 if self.nvfp4 is not None and op.stored == "nvfp4" else self.inner
        whole = asked.seconds(op, place)
        if not self.static_scales or op.stored != "fp8" or op.dtype != "fp8":
            return whole
        k = float(dict(op.dims)["k"])
        scale = scale_seconds(self.inner.framework, place.device.name, op.tokens.astype(np.float64), k)
        return np.maximum(whole - op.layers * scale, np.minimum(whole, roofline_seconds(op, place)))

    def attention(self, shape: AttentionShape, place: Place) -> AttentionTerm | None:
        """Return the coefficients of the kernels inside."""
        return self.inner.attention(shape, place)


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
