"""Curves: times of a collective over its size, where the sizes measured are dense and the shapes few."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from moesim.cost.pricing import FloatArray

__all__ = ["Curve", "CurveFit", "efficiency_coordinates"]


def efficiency_coordinates(size: FloatArray, latency: float, rate: float) -> tuple[FloatArray, FloatArray]:
    """Return (log of bytes' time over latency, latency + bytes' time): one curve for all link speeds.

    Parameters
    ----------
    size : bytes
    latency : seconds of the smallest message
    rate : B/s at which the pattern cannot be beaten
    """
    wire = np.asarray(size, dtype=np.float64) / rate
    return np.log(np.maximum(wire / latency, 1e-12)), latency + wire


@dataclass(frozen=True, slots=True)
class CurveFit:
    """One measured curve.

    Attributes
    ----------
    latency : seconds of the smallest message
    at, ratio : knots: log(bytes' time / latency), and log(time / (latency + bytes' time)), linear in between
    """

    latency: float
    at: tuple[float, ...]
    ratio: tuple[float, ...]

    def seconds(self, size: FloatArray, rate: float) -> FloatArray:
        """Return seconds for messages of ``size`` bytes; beyond the last knot its efficiency holds."""
        where, base = efficiency_coordinates(size, self.latency, rate)
        return np.asarray(np.exp(np.interp(where, self.at, self.ratio)) * base)


@dataclass(frozen=True, slots=True)
class Curve:
    """One collective of one library, per device and number of ranks.

    Attributes
    ----------
    fits : (device, ranks) -> curve
    pooled : ranks -> the median curve of all devices
    errors : by hold-out and device
    interval : (low, high) factors for a measured device, and for another
    """

    fits: dict[tuple[str, int], CurveFit]
    pooled: dict[int, CurveFit]
    versions: dict[str, tuple[str, ...]]
    errors: dict[str, dict[str, dict[str, float]]]
    interval: tuple[tuple[float, float], tuple[float, float]]

    def fit_for(self, device: str, ranks: int) -> CurveFit | None:
        """Return the curve of a device, or the common one; None for a number of ranks that was not measured."""
        return self.fits.get((device, ranks)) or self.pooled.get(ranks)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "fits": [
                {"device": d, "ranks": n, "latency": f.latency, "at": f.at, "ratio": f.ratio}
                for (d, n), f in sorted(self.fits.items())
            ],
            "pooled": [
                {"ranks": n, "latency": f.latency, "at": f.at, "ratio": f.ratio}
                for n, f in sorted(self.pooled.items())
            ],
            "versions": self.versions,
            "errors": self.errors,
            "interval": self.interval,
        }

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Curve:
        """Return the curve from ``as_dict``."""
        return cls(
            {(e["device"], e["ranks"]): _fit(e) for e in raw["fits"]},
            {e["ranks"]: _fit(e) for e in raw["pooled"]},
            {name: tuple(found) for name, found in raw["versions"].items()},
            raw["errors"],
            (tuple(raw["interval"][0]), tuple(raw["interval"][1])),
        )


def _fit(entry: dict[str, Any]) -> CurveFit:
    return CurveFit(entry["latency"], tuple(entry["at"]), tuple(entry["ratio"]))
