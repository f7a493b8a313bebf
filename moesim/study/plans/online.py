"""Online: rebalancing while serving, replayed over recorded loads, with the migration's seconds charged."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moesim.errors import SpecError
from moesim.plan.balance import fetched
from moesim.routing.placed import imbalance, rank_loads
from moesim.routing.trace import RoutingTrace

__all__ = ["Migration", "OnlineRun", "Rebalancing", "loads_by_step", "replay", "step_of_token"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Chooser = Callable[[FloatArray, IntArray], IntArray]
"""(loads of the window [layer, expert], present slots [layer, slot]) -> new slots [layer, slot]."""


@dataclass(frozen=True, slots=True)
class Migration:
    """What moving an expert costs.

    Attributes
    ----------
    bytes_per_expert : on one device
    bandwidth : B/s at which a device receives
    hidden : share that runs beside the steps
    """

    bytes_per_expert: float
    bandwidth: float
    hidden: float = 0.0

    def seconds(self, moved: IntArray) -> float:
        """Return the seconds that the steps wait for a migration of ``moved`` experts, [layer, rank].

        All devices receive at once; the one that needs most sets the time.
        """
        worst = float(moved.sum(axis=0).max()) if moved.size else 0.0
        return (1 - self.hidden) * worst * self.bytes_per_expert / self.bandwidth


@dataclass(frozen=True, slots=True)
class Rebalancing:
    """One change of placement: before which step, expert weights received by all devices, and by the busiest one."""

    step: int
    moved_bytes: float
    worst_device_bytes: float
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class OnlineRun:
    """A policy replayed over recorded loads.

    Attributes
    ----------
    imbalance : busiest rank over mean rank, [step, layer]; 1 where a layer has no tokens
    changes : the rebalancings
    expert_s : seconds that the experts of a perfectly balanced step take, all layers together
    """

    imbalance: FloatArray
    changes: tuple[Rebalancing, ...]
    expert_s: float

    @property
    def mean(self) -> float:
        """Imbalance, mean over steps and layers."""
        return float(self.imbalance.mean())

    @property
    def charged(self) -> float:
        """Expert seconds of the run, migrations included, over those of perfectly balanced steps."""
        steps = len(self.imbalance)
        waited = sum(change.seconds for change in self.changes)
        return self.mean + waited / (steps * self.expert_s) if self.expert_s else self.mean

    def summary(self) -> dict[str, Any]:
        """Return the run in JSON, the course of the imbalance in at most 200 points."""
        course = self.imbalance.mean(axis=1)
        parts = np.array_split(course, min(200, len(course)))
        return {
            "imbalance": self.mean,
            "charged": self.charged,
            "worst_step": float(course.max()),
            "rebalancings": len(self.changes),
            "moved_bytes": sum(change.moved_bytes for change in self.changes),
            "worst_device_bytes": max((change.worst_device_bytes for change in self.changes), default=0.0),
            "migration_s": sum(change.seconds for change in self.changes),
            "course": [float(part.mean()) for part in parts],
        }


def step_of_token(length: npt.ArrayLike, tokens_per_step: int) -> IntArray:
    """Return the engine step of each token of a trace, when ``tokens_per_step`` sequences decode side by side.

    Sequences start in order, each as soon as a seat is free, and give one token per step.

    Parameters
    ----------
    length : tokens of each sequence, [sequence]

    >>> step_of_token([3, 1, 2], 2)
    array([0, 1, 2, 0, 1, 2])
    """
    if tokens_per_step < 1:
        raise SpecError(f"tokens_per_step {tokens_per_step}: expected at least 1")
    seats = [0] * tokens_per_step
    steps = []
    for size in np.asarray(length, dtype=np.int64).tolist():
        start = heapq.heappop(seats)
        steps.append(np.arange(start, start + size))
        heapq.heappush(seats, start + size)
    return np.concatenate(steps)


def loads_by_step(trace: RoutingTrace, tokens_per_step: int) -> FloatArray:
    """Return the tokens of each expert in each engine step, [step, layer, expert]; see ``step_of_token``."""
    step = step_of_token(trace.length, tokens_per_step)
    steps, layers, total = int(step.max()) + 1, trace.layers, trace.total
    flat = (step[:, None, None] * layers + np.arange(layers)[None, :, None]) * total + trace.experts
    return (
        np.bincount(flat.ravel(), minlength=steps * layers * total)
        .reshape(steps, layers, total)
        .astype(np.float64)
    )


def replay(
    loads: FloatArray,
    start: IntArray,
    ranks: int,
    migration: Migration,
    *,
    every: int = 0,
    window: int = 0,
    choose: Chooser | None = None,
    expert_s: float = 0.0,
) -> OnlineRun:
    """Return what a policy makes of loads that come step by step.

    Before every ``every``-th step the policy sees the loads of the last ``window`` steps and the present placement;
    nothing of the future. Without a policy the start stays.

    Parameters
    ----------
    loads : [step, layer, expert]
    start : [layer, slot]
    expert_s : see ``OnlineRun``; 0: migrations are counted and not charged
    """
    if choose is not None and (every < 1 or window < 1):
        raise SpecError(f"online: every {every}, window {window}: expected at least 1 step each")
    present, changes = np.asarray(start, dtype=np.int64), []
    unbalance = np.empty(loads.shape[:2])
    for step in range(0, len(loads), every or len(loads)):
        if step and choose is not None:
            seen = loads[max(step - window, 0) : step].sum(axis=0)
            after = np.asarray(choose(seen, present), dtype=np.int64)
            moved = fetched(present, after, ranks, loads.shape[2])
            size = migration.bytes_per_expert
            worst = float(moved.sum(axis=0).max()) * size
            changes.append(Rebalancing(step, float(moved.sum()) * size, worst, migration.seconds(moved)))
            present = after
        for at in range(step, min(step + (every or len(loads)), len(loads))):
            unbalance[at] = imbalance(rank_loads(loads[at], present, ranks))
    return OnlineRun(unbalance, tuple(changes), expert_s)
