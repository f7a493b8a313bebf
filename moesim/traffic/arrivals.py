"""Arrival times: unit-rate renewal epochs, warped by the inverse of the cumulative rate.

Every rate-modulated process here is the same two steps: draw epochs of a renewal process with mean gap 1,
then map them through the inverse of the expected number of arrivals up to time t (the time change of point
processes). With exponential gaps the result is an exact (modulated) Poisson process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moesim.errors import SpecError
from moesim.spec.arrivals import ClosedLoop, Constant, Diurnal, Gamma, OnOff, Profile, TraceArrivals
from moesim.streams import stream

if TYPE_CHECKING:
    from moesim.spec.arrivals import Arrivals

__all__ = ["arrival_times", "periodic_warp", "unit_epochs"]

Floats = npt.NDArray[np.float64]

_SINE_BINS = 16384  # the rate of one bin is within 0.04 % of the mean rate of the sinusoid's own


def unit_epochs(seed: int, n: int, cv: float = 1.0) -> Floats:
    """Return the first ``n`` epochs [n] of a renewal process with mean gap 1 and gamma gaps of ``cv``.

    ``cv`` 0 is equal gaps from 0. Fewer epochs are a prefix of more.
    """
    if cv == 0:
        return np.arange(n, dtype=np.float64)
    generator = stream(seed, "arrivals")
    if cv == 1:
        return np.cumsum(generator.standard_exponential(n))
    return np.cumsum(generator.standard_gamma(cv**-2, n)) * cv**2


def periodic_warp(epochs: Floats, rates: Floats, width: float, start: float = 0.0) -> Floats:
    """Map unit-rate epochs to times under a piecewise-constant rate that repeats.

    Parameters
    ----------
    epochs : [n] expected numbers of arrivals, rising
    rates : [m] request/s in each bin, at least one positive
    width : seconds of one bin
    start : seconds into the period at time 0

    Returns
    -------
    times [n] in seconds
    """
    mass = np.concatenate([[0.0], np.cumsum(rates * width)]).astype(np.float64)
    edges = np.arange(len(rates) + 1, dtype=np.float64) * width
    period = float(edges[-1])
    begin = start % period
    before = float(np.interp(begin, edges, mass))
    cycles, rest = np.divmod(epochs + before, mass[-1])
    times = cycles * period + _invert(rest, mass, edges) - begin
    return np.maximum.accumulate(np.maximum(times, 0.0))  # rounding at a period's end must not turn time back


def arrival_times(arrivals: Arrivals, n: int, seed: int, squeeze: float = 1.0) -> Floats:
    """Return the first ``n`` arrival times [n] in seconds of a synthetic process.

    Parameters
    ----------
    arrivals : any process but a trace's or a closed loop's
    n : how many
    seed : streams ``arrivals`` and ``arrivals.phases`` are used
    squeeze : the process runs at its rate over this (sessions of that many turns on average)

    Raises
    ------
    SpecError : arrivals that are not a process of their own
    """
    if isinstance(arrivals, TraceArrivals | ClosedLoop):
        raise SpecError(f"arrivals of kind {arrivals.kind} are not a random process")
    if isinstance(arrivals, Constant):
        return unit_epochs(seed, n, 0.0) * squeeze / arrivals.rate
    if isinstance(arrivals, OnOff):
        return _on_off(arrivals, unit_epochs(seed, n) * squeeze, seed)
    if isinstance(arrivals, Profile):
        weights = np.asarray(arrivals.weights)
        rates = weights / weights.mean() * arrivals.rate
        return periodic_warp(unit_epochs(seed, n, arrivals.cv) * squeeze, rates, arrivals.bin)
    if isinstance(arrivals, Diurnal):
        shape = _day_shape(arrivals)
        epochs = unit_epochs(seed, n) * squeeze
        return periodic_warp(epochs, shape * arrivals.rate, arrivals.period / len(shape), arrivals.start)
    cv = arrivals.cv if isinstance(arrivals, Gamma) else 1.0
    return unit_epochs(seed, n, cv) * squeeze / arrivals.rate


def _day_shape(arrivals: Diurnal) -> Floats:
    """Return rates over the mean rate [bins]; a sinusoid's bins hold its exact mean over each."""
    if arrivals.hourly:
        weights = np.asarray(arrivals.hourly)
        return np.asarray(weights / weights.mean())
    swing = (arrivals.peak_to_mean or 1.0) - 1.0
    phase = np.linspace(0.0, 2 * np.pi, _SINE_BINS + 1)
    return np.asarray(1.0 - swing * np.diff(np.sin(phase)) * _SINE_BINS / (2 * np.pi))


def _on_off(arrivals: OnOff, epochs: Floats, seed: int) -> Floats:
    """Warp ``epochs`` through as many on and off phases as they need."""
    per_cycle = arrivals.rate_on * arrivals.mean_on + arrivals.rate_off * arrivals.mean_off
    last = float(epochs[-1]) if len(epochs) else 0.0
    cycles = 16 + int(1.1 * last / per_cycle)
    while True:
        phases = stream(seed, "arrivals.phases").standard_exponential((cycles, 2))
        seconds = (phases * [arrivals.mean_on, arrivals.mean_off]).ravel()
        mass = np.cumsum(seconds * np.tile([arrivals.rate_on, arrivals.rate_off], cycles))
        if mass[-1] >= last:
            break
        cycles *= 2
    return _invert(epochs, np.concatenate([[0.0], mass]), np.concatenate([[0.0], np.cumsum(seconds)]))


def _invert(values: Floats, mass: Floats, edges: Floats) -> Floats:
    """Invert the piecewise-linear function through (``edges``, ``mass``), both [m + 1], at ``values`` [n]."""
    index = np.clip(np.searchsorted(mass, values, side="left") - 1, 0, len(mass) - 2)
    low, high = mass[index], mass[index + 1]
    # a value on a node belongs to the bin before it, which has mass, unless it is the very first node
    share = np.divide(values - low, high - low, out=np.zeros_like(values), where=high > low)
    return np.asarray(edges[index] + share * (edges[index + 1] - edges[index]))
