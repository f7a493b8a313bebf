"""Demand: request lengths and rate, and the averages over them that a steady state needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moesim.errors import SpecError

if TYPE_CHECKING:
    from moesim.traffic.requests import Requests

__all__ = ["Demand", "demand_of"]

FloatArray = npt.NDArray[np.float64]
_SAMPLE = 1000


@dataclass(frozen=True, slots=True, eq=False)
class Demand:
    """What is asked.

    Attributes
    ----------
    input, output : tokens of a sample of requests, [n]
    rate : requests per second; 0: as many as possible
    """

    input: FloatArray
    output: FloatArray
    rate: float = 0.0

    def __post_init__(self) -> None:
        if self.input.shape != self.output.shape or not self.input.size:
            raise SpecError("demand: expected as many inputs as outputs, at least one")
        if np.any(self.input < 1) or np.any(self.output < 1) or self.rate < 0:
            raise SpecError("demand: expected lengths of at least one token and a non-negative rate")

    @property
    def longest(self) -> int:
        """Tokens of the longest request."""
        return int((self.input + self.output).max())

    @property
    def prompt(self) -> float:
        """Mean prompt tokens."""
        return float(self.input.mean())

    @property
    def decodes(self) -> float:
        """Mean decode steps of a request: the first token comes from its prefill."""
        return float(self.output.mean()) - 1.0

    def held_tokens(self) -> float:
        """Return the mean tokens that a running sequence keeps, seen at a random step of a random sequence."""
        return float((self.output * (self.input + self.output / 2)).sum() / self.output.sum())

    def keys(self, window: int) -> float:
        """Return the mean keys of a decode step, counting at most ``window`` (0: no limit; -1: recurrent, 1)."""
        if window < 0:
            return 1.0
        steps = np.maximum(self.output - 1, 0.0)
        if steps.sum() == 0:
            return 0.0
        first, last = self.input + 1, self.input + steps  # contexts run from first to last
        total = steps * (first + last) / 2
        if window > 0:
            inside = np.clip(window - self.input, 0.0, steps)
            total = inside * (2 * self.input + inside + 1) / 2 + (steps - inside) * window
        return float(total.sum() / steps.sum())

    def pairs(self, window: int) -> float:
        """Return attended (query, key) pairs per prompt token."""
        if window < 0:
            return 1.0
        inside = self.input if window == 0 else np.minimum(self.input, window)
        total = inside * (inside + 1) / 2 + (self.input - inside) * window
        return float(total.sum() / self.input.sum())

    def chunks(self, chunk: npt.ArrayLike) -> FloatArray:
        """Return the mean steps that a prompt takes when a step holds ``chunk`` of its tokens, shape of ``chunk``."""
        size = np.maximum(np.asarray(chunk, dtype=np.float64), 1.0)
        return np.asarray(np.ceil(self.input / size[..., None]).mean(axis=-1))

    def keys_read(self, chunk: float, window: int) -> float:
        """Return keys read per prompt token: each chunk reads what came before it, and itself."""
        chunk = max(chunk, 1.0)
        whole = np.floor(self.input / chunk)
        rest = self.input - whole * chunk
        if window < 0:
            return float(np.ceil(self.input / chunk).sum() / self.input.sum())
        total = chunk * whole * (whole + 1) / 2 + np.where(rest > 0, self.input, 0.0)
        if window > 0:
            total = np.minimum(total, np.ceil(self.input / chunk) * (window + chunk))
        return float(total.sum() / self.input.sum())


def demand_of(requests: Requests, rate: float = 0.0) -> Demand:
    """Return the lengths of (at most some 1000 evenly taken) sampled requests as a demand."""
    step = max(1, len(requests) // _SAMPLE)
    return Demand(
        requests.input_tokens[::step].astype(np.float64),
        requests.output_tokens[::step].astype(np.float64),
        rate,
    )
