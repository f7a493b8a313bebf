"""Predict: seconds of a forward pass as a sum of ops, each interpolated in efficiency space."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.interpolate import RegularGridInterpolator

from moesim.calibrate.local.micro import MICRO, Dims
from moesim.calibrate.local.model import Architecture
from moesim.errors import DataMissing

__all__ = ["OpCurve", "Sized", "Work", "bound_seconds", "fit", "forward_work", "moe_work", "seconds"]

FloatArray = npt.NDArray[np.float64]
Work = Counter[tuple[str, Dims]]
"""How often each call is made."""


class Sized(Protocol):
    """What a prediction must know of an op: as in ``micro.MicroOp``."""

    @property
    def grid(self) -> tuple[tuple[int, ...], ...]:
        """Benchmarked values of each size."""

    @property
    def tiny(self) -> Dims:
        """Sizes of a call whose time is overhead alone."""

    @property
    def flop(self) -> Callable[[Dims], float]:
        """Work of one call."""

    @property
    def bytes(self) -> Callable[[Dims], float]:
        """Bytes that one call moves."""


@dataclass(frozen=True, slots=True, eq=False)
class OpCurve:
    """Efficiency of one op over its sizes.

    Attributes
    ----------
    op : sizes and work
    overhead_s : seconds of a call that has next to no work
    peak, bandwidth : FLOP/s and bytes/s of the bound; the best that any microbenchmark of this machine reached
    log_efficiency : over the log of the sizes
    """

    op: Sized
    overhead_s: float
    peak: float
    bandwidth: float
    log_efficiency: RegularGridInterpolator

    def floor(self, dims: Dims) -> float:
        """Return overhead plus roofline bound, seconds."""
        return _floor(self.op, dims, self.overhead_s, self.peak, self.bandwidth)

    def seconds(self, dims: Dims) -> float:
        """Return seconds of one call; sizes beyond the grid take the efficiency of its edge."""
        inside = [float(np.clip(d, g[0], g[-1])) for d, g in zip(dims, self.op.grid, strict=True)]
        return self.floor(dims) / float(np.exp(self.log_efficiency(np.log(inside))[0]))


def _floor(op: Sized, dims: Dims, overhead_s: float, peak: float, bandwidth: float) -> float:
    return overhead_s + max(op.flop(dims) / peak, op.bytes(dims) / bandwidth)


def fit(measured: Mapping[tuple[str, Dims], float], table: Mapping[str, Sized] = MICRO) -> dict[str, OpCurve]:
    """Fit one curve per op.

    Parameters
    ----------
    measured : seconds per call of every point of ``micro.points``; a missing corner of a grid takes the
        efficiency of the nearest point with a smaller first size
    table : the ops

    Raises
    ------
    DataMissing : an op without its tiny call or without the start of a grid line
    """
    peak = max(table[name].flop(dims) / s for (name, dims), s in measured.items())
    bandwidth = max(table[name].bytes(dims) / s for (name, dims), s in measured.items())
    curves = {}
    for name, op in table.items():
        if (name, op.tiny) not in measured:
            raise DataMissing(f"microbenchmark {name} {op.tiny}: expected the overhead of a call")
        overhead = measured[name, op.tiny]
        known = np.empty([len(axis) for axis in op.grid])
        for index in np.ndindex(known.shape):
            dims = tuple(axis[i] for axis, i in zip(op.grid, index, strict=True))
            if (name, dims) in measured:
                known[index] = np.log(_floor(op, dims, overhead, peak, bandwidth) / measured[name, dims])
            elif index[0] > 0:
                known[index] = known[(index[0] - 1, *index[1:])]
            else:
                raise DataMissing(f"microbenchmark {name} {dims}: expected a measurement")
        curve = RegularGridInterpolator([np.log(axis) for axis in op.grid], known)
        curves[name] = OpCurve(op, overhead, peak, bandwidth, curve)
    return curves


def moe_work(sizes: Architecture, rows: int, load: Sequence[int]) -> Work:
    """Return the calls of one MoE layer over ``rows`` tokens with ``load`` rows per expert."""
    h, i = sizes.hidden, sizes.inner
    work: Work = Counter()
    work["score", (rows, sizes.experts, h)] += 1
    work["select", (rows, sizes.experts, sizes.top_k)] += 1
    work["clear", (rows, h)] += 1
    for count in load:
        if count:
            work["collect", (count, h)] += 1
            work["product", (count, 2 * i, h)] += 1
            work["glu", (count, i)] += 1
            work["product", (count, h, i)] += 1
            work["combine", (count, h)] += 1
    return work


def forward_work(sizes: Architecture, batch: int, length: int, loads: Sequence[Sequence[int]]) -> Work:
    """Return the calls of a prefill of ``batch`` sequences with one load per layer."""
    rows, h = batch * length, sizes.hidden
    work: Work = Counter()
    work["collect", (rows, h)] += 1
    for load in loads:
        work["norm", (rows, h)] += 2
        work["product", (rows, 3 * h, h)] += 1
        work["attend", (batch, length, sizes.heads)] += 1
        work["product", (rows, h, h)] += 1
        work["add", (rows, h)] += 2
        work += moe_work(sizes, rows, load)
    work["norm", (batch, h)] += 1
    work["product", (batch, sizes.vocabulary, h)] += 1
    return work


def seconds(curves: Mapping[str, OpCurve], work: Work) -> float:
    """Return the predicted seconds of all calls, one after the other."""
    return sum(times * curves[name].seconds(dims) for (name, dims), times in work.items())


def bound_seconds(curves: Mapping[str, OpCurve], work: Work) -> float:
    """Return the seconds of all calls at overhead and roofline alone: what efficiencies add is the difference."""
    return sum(times * curves[name].floor(dims) for (name, dims), times in work.items())
