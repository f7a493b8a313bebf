"""Pack: popular experts where they run in place, the rest by size, into a given number of bins."""

from __future__ import annotations

import numpy as np

from moesim.plan.composition.problem import CompositionProblem, Packing

__all__ = ["pack"]


def pack(problem: CompositionProblem, bins: int) -> Packing | None:
    """Return a packing into ``bins`` bins, or None where this rule finds none.

    First the experts that gain most seconds per byte from the fastest tier take it, each in the least busy bin with
    room; then the others by falling size, each in the least busy bin and its fastest tier with room.
    """
    latency, busy = problem.latency(), problem.busy()
    gain = problem.share * (latency.max(axis=1) - latency[:, 0]) / problem.size
    rank = np.argsort(-gain, kind="stable")
    room = np.tile([tier.capacity for tier in problem.tiers], (bins, 1))
    load = np.zeros(bins)
    where = np.full((problem.experts, 2), -1, dtype=np.int64)

    def put(expert: int, tier: int) -> bool:
        fits = (room[:, tier] >= problem.size[expert]) & (
            load + busy[expert, tier] <= problem.busy_share * (1 + 1e-12)
        )
        if not fits.any():
            return False
        # the least busy bin; among equals the fullest that still has room
        order = np.lexsort((room[:, tier], np.where(fits, load if problem.rate else 0.0, np.inf)))
        best = next(int(b) for b in order if fits[b])
        room[best, tier] -= problem.size[expert]
        load[best] += busy[expert, tier]
        where[expert] = best, tier
        return True

    for expert in rank.tolist():
        put(expert, 0)
    left = np.flatnonzero(where[:, 0] < 0)
    for expert in left[np.argsort(-problem.size[left], kind="stable")].tolist():
        if not any(put(expert, tier) for tier in range(1, len(problem.tiers))):
            return None
    answer = Packing(where[:, 0], where[:, 1])
    return None if problem.broken(answer) else answer
