"""Composition: closed forms of serving whole models as experts, exact where nothing contends."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from moesim.cost.pricing import FloatArray
from moesim.errors import SpecError

__all__ = ["batch_seconds", "lru_hit_share", "nodes_needed", "resident_experts", "stored_experts"]


def batch_seconds(
    router_s: float, switch_s: npt.ArrayLike, run_s: npt.ArrayLike, *, overlapped: bool = False
) -> float:
    """Return the seconds from a batch's arrival to its last answer: the router once, then expert after expert.

    Parameters
    ----------
    router_s : of the whole batch
    switch_s, run_s : of each expert in turn, [n]; a resident expert switches in 0 s
    overlapped : the next experts are copied while one computes (one copy at a time, room for all): run i starts at
        ``max(end of run i-1, sum of switches to i)``
    """
    switch, run = np.broadcast_arrays(np.asarray(switch_s, np.float64), np.asarray(run_s, np.float64))
    if not overlapped:
        return router_s + float(switch.sum() + run.sum())
    end = 0.0
    for copied, seconds in zip(np.cumsum(switch), run.ravel(), strict=True):
        end = max(end, float(copied)) + float(seconds)
    return router_s + end


def resident_experts(main_bytes: float, expert_bytes: float, reserved_bytes: float = 0.0) -> int:
    """Return how many equal experts main memory holds beside what is reserved: the knee of latency over experts."""
    if expert_bytes <= 0:
        raise SpecError("expert_bytes: expected a positive size")
    return max(0, math.floor((main_bytes - reserved_bytes) / expert_bytes))


def stored_experts(
    main_bytes: float,
    backing_bytes: float,
    expert_bytes: float,
    reserved_bytes: float = 0.0,
    *,
    spill: bool = False,
) -> int:
    """Return how many equal experts a node can keep at all.

    Parameters
    ----------
    spill : resident experts need no place in the backing tier; otherwise that tier holds every one
    """
    below = resident_experts(backing_bytes, expert_bytes)
    return below + (resident_experts(main_bytes, expert_bytes, reserved_bytes) if spill else 0)


def nodes_needed(experts: int, per_node: int) -> int:
    """Return the nodes that hold ``experts`` when each holds ``per_node``.

    Raises
    ------
    SpecError : a node holds none
    """
    if per_node < 1:
        raise SpecError("a node that holds no expert never holds them all")
    return -(-experts // per_node)


def lru_hit_share(share: FloatArray, slots: int) -> float:
    """Return the share of prompts whose expert is resident: ``slots`` equal experts, LRU, independent prompts.

    Che's approximation (Che, Tung, Wang, IEEE JSAC 2002): expert i is resident with probability
    ``1 - exp(-share_i T)``, T such that the expectations sum to ``slots``. Exact, ``slots / n``, for equal shares.

    Parameters
    ----------
    share : of each expert, [n], sums to 1
    """
    if slots >= np.count_nonzero(share):
        return 1.0
    if slots <= 0:
        return 0.0
    low, high = 0.0, slots / float(share[share > 0].min())
    while float((-np.expm1(-share * high)).sum()) < slots:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if float((-np.expm1(-share * middle)).sum()) < slots else (low, middle)
    return float(share @ -np.expm1(-share * high))
