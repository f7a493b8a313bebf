"""Scalers: how many replicas should be in service."""

from __future__ import annotations

import math
from typing import Protocol

from moesim.errors import SpecError
from moesim.files import nearest

__all__ = ["SCALERS", "QueueScaler", "Scaler", "make_scaler"]


class Scaler(Protocol):
    """Rule that sets the number of replicas at every interval."""

    def wanted(self, replicas: int, waiting: int) -> int:
        """Return how many replicas should serve, given those in service and the requests waiting on them."""


class QueueScaler:
    """Enough replicas that at most ``high`` requests wait on each; one less when under ``low`` wait."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def wanted(self, replicas: int, waiting: int) -> int:
        """Return the wanted replicas, at least one."""
        per_replica = waiting / max(replicas, 1)
        if per_replica > self.high:
            return max(replicas + 1, math.ceil(waiting / self.high))
        if per_replica < self.low:
            return max(replicas - 1, 1)
        return max(replicas, 1)


SCALERS = {"queue": QueueScaler}


def make_scaler(name: str, low: float, high: float) -> Scaler:
    """Return the scaler of that name.

    Raises
    ------
    SpecError : unknown name
    """
    if name not in SCALERS:
        raise SpecError(f"autoscaling {name!r}: unknown policy{nearest(name, SCALERS)}")
    return SCALERS[name](low, high)
