"""Arrivals: when requests are offered, as a process with a rate, a trace's times, or a closed loop."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from moesim.spec.base import Spec
from moesim.units import Dimension, Rate, Seconds

__all__ = [
    "Arrivals",
    "ClosedLoop",
    "Constant",
    "Diurnal",
    "Gamma",
    "OnOff",
    "Period",
    "Poisson",
    "Profile",
    "TraceArrivals",
]

Period = Annotated[float, Dimension("s", positive=True)]
"""A span of time above zero."""
AnyRate = Annotated[float, Dimension("request/s")]


class Poisson(Spec):
    """Independent users: exponential gaps."""

    kind: Literal["poisson"] = "poisson"
    rate: Rate
    """Mean request rate."""


class Gamma(Spec):
    """A renewal process with gamma gaps: burstier than Poisson above ``cv`` 1, smoother below."""

    kind: Literal["gamma"] = "gamma"
    rate: Rate
    """Mean request rate."""
    cv: PositiveFloat
    """Standard deviation of the gaps over their mean (vLLM's ``--burstiness`` is 1 / cv squared)."""


class Constant(Spec):
    """Equal gaps; the first request comes at time 0."""

    kind: Literal["constant"] = "constant"
    rate: Rate
    """Request rate."""


class OnOff(Spec):
    """Two-state Markov-modulated Poisson: exponential on and off phases, starting with an on phase."""

    kind: Literal["on_off"] = "on_off"
    rate_on: Rate
    """Request rate while on."""
    rate_off: AnyRate = 0.0
    """Request rate while off."""
    mean_on: Period
    """Mean length of an on phase."""
    mean_off: Period
    """Mean length of an off phase."""


class Diurnal(Spec):
    """A Poisson process whose rate follows the time of day: a sinusoid, or weights of equal slices of it."""

    kind: Literal["diurnal"] = "diurnal"
    rate: Rate
    """Mean request rate over one period."""
    peak_to_mean: Annotated[float, Field(ge=1, le=2)] | None = None
    """Sinusoid: highest rate over mean rate; the lowest is at the start of the period."""
    hourly: tuple[NonNegativeFloat, ...] = ()
    """Relative rate of each slice of the period (24 of them make hours of a day)."""
    period: Period = 86400.0
    start: Seconds = 0.0
    """Time of day when the run begins."""

    @model_validator(mode="after")
    def _one_shape(self) -> Diurnal:
        if (self.peak_to_mean is None) == (not self.hourly):
            raise ValueError("expected either 'peak_to_mean' or 'hourly'")
        if self.hourly and sum(self.hourly) <= 0:
            raise ValueError("expected at least one positive weight in 'hourly'")
        return self


class Profile(Spec):
    """A piecewise-constant rate, usually counted from a trace, repeated without end."""

    kind: Literal["profile"] = "profile"
    rate: Rate
    """Mean request rate over the whole profile: change it to replay the same shape faster or slower."""
    bin: Period
    """Length of one bin; bins keep their length when the rate changes."""
    weights: tuple[NonNegativeFloat, ...] = Field(min_length=1)
    """Relative rate of each bin, e.g. its requests in the trace."""
    cv: PositiveFloat = 1.0
    """CV of the gaps in operational time (scaled so that the rate is one): 1 is Poisson inside each bin."""

    @model_validator(mode="after")
    def _some_rate(self) -> Profile:
        if sum(self.weights) <= 0:
            raise ValueError("expected at least one positive weight")
        return self


class ClosedLoop(Spec):
    """A fixed number in flight: one is sent when one finishes (vLLM's ``--max-concurrency``, rate inf)."""

    kind: Literal["closed_loop"] = "closed_loop"
    concurrency: PositiveInt
    """Requests in flight."""
    requests_per_slot: PositiveInt | None = None
    """Measured requests per slot; none: the run says how many."""
    warmup_per_slot: NonNegativeInt = 0
    """Requests per slot sent before the measured ones and left out of the metrics."""


class TraceArrivals(Spec):
    """The arrival times of the trace."""

    kind: Literal["trace"] = "trace"
    scale: PositiveFloat = 1.0
    """Speed-up: times are divided by it."""


Arrivals = Annotated[
    Poisson | Gamma | Constant | OnOff | Diurnal | Profile | ClosedLoop | TraceArrivals,
    Field(discriminator="kind"),
]
"""Any arrival process; ``kind`` tells which."""
