"""Measured: the estimator that answers only what the installed tables hold, exactly as measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moesim.calibrate.silicon.families import read_family
from moesim.calibrate.silicon.tables import DEVICES
from moesim.cost.fitted import launched
from moesim.cost.fitted.formats import kernel_of
from moesim.errors import DataMissing

if TYPE_CHECKING:
    from moesim.cost.attention import AttentionShape
    from moesim.cost.fitted import Framework
    from moesim.cost.ops import Op
    from moesim.cost.pricing import FloatArray
    from moesim.cost.roofline import Origin, Place

__all__ = ["Measured"]

Curves = dict[tuple[str, int, int], tuple[npt.NDArray[np.int64], "FloatArray"]]


@dataclass(frozen=True, slots=True)
class Measured:
    """Dense products of one engine at sizes that were measured; everything else stays unknown (NaN).

    Other families are measured at loads and contexts that a step meets only by chance: the fits answer there.

    Attributes
    ----------
    framework : whose kernels; no other engine's stand in
    """

    framework: Framework = "vllm"
    origin: Origin = field(default="measured")

    def seconds(self, op: Op, place: Place) -> FloatArray:
        """Return seconds of all layers of ``op``, [tokens]; NaN at sizes that were not measured.

        Raises
        ------
        DataMissing : the extra ``silicon`` is not installed
        """
        unknown = np.full(op.tokens.shape, np.nan)
        name = kernel_of(op.stored, op.dtype) if op.kind == "gemm" else None
        if name is None or place.device.name not in DEVICES.values():
            return unknown
        dims = dict(op.dims)
        curve = _products(place.device.name, self.framework).get((name, dims["n"], dims["k"]))
        if curve is None:
            return unknown
        rows = op.flop / (2.0 * dims["n"] * dims["k"])
        at = np.minimum(np.searchsorted(curve[0], np.rint(rows)), curve[0].size - 1)
        work = np.where(curve[0][at] == rows, curve[1][at], np.nan)
        return launched(op, place, work)

    def attention(self, shape: AttentionShape, place: Place) -> None:  # noqa: ARG002 - unknown whatever is asked
        """Return None: contexts of a step are not those of the tables."""
        return


@lru_cache(maxsize=16)
def _products(device: str, framework: str) -> Curves:
    """Return ``(kernel, n, k) -> (m ascending, seconds)`` of one device and engine."""
    try:
        rows = read_family("gemm", device=device, framework=framework).rows
    except DataMissing:
        read_family("quantise", device=device)  # raises where the extra itself is missing
        return {}
    rows = rows[rows["possible"]].sort_values(["dtype", "n", "k", "m"])
    curves: Curves = {}
    for key, part in rows.groupby(["dtype", "n", "k"], observed=True):
        dtype, n, k = key
        curves[str(dtype), int(str(n)), int(str(k))] = (
            part["m"].to_numpy(dtype=np.int64),
            part["seconds"].to_numpy(dtype=np.float64),
        )
    return curves
