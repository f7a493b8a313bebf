"""Program: experts to (bin, tier), one function per constraint; equal experts share integer variables.

``n_CLASS_BIN_TIER`` experts of a class live in that tier of that bin.
"""

from __future__ import annotations

import math

import numpy as np
import pulp

from moesim.plan.composition.problem import CompositionProblem, FloatArray, IntArray, Packing

__all__ = [
    "PackingProgram",
    "bin_load",
    "every_expert_once",
    "late_requests",
    "least_latency",
    "mean_latency",
    "ordered_bins",
    "packing_program",
    "tier_room",
]


class PackingProgram:
    """A PuLP program over ``bins`` bins, and its variables by (class, bin, tier).

    Choices that no packing may hold (too large, or late beyond the allowed share alone) have no variable.
    """

    def __init__(self, problem: CompositionProblem, bins: int) -> None:
        rows = np.column_stack([problem.size, problem.share, problem.run_s])
        _, first, member = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        self.problem, self.bins = problem, bins
        self.first: IntArray = np.asarray(first, dtype=np.int64)
        self.member: IntArray = np.asarray(member, dtype=np.int64).ravel()
        self.count: IntArray = np.bincount(self.member)
        self.latency: FloatArray = problem.latency()[self.first]
        self.late = problem.late()[self.first]
        self.busy: FloatArray = problem.busy()[self.first]
        self.size: FloatArray = problem.size[self.first]
        self.share: FloatArray = problem.share[self.first]
        self.program = pulp.LpProblem("packing", pulp.LpMinimize)
        self.n = {
            (g, b, t): pulp.LpVariable(f"n_{g}_{b}_{t}", 0, int(self.count[g]), pulp.LpInteger)
            for g in range(len(self.first))
            for b in range(bins)
            for t in range(len(problem.tiers))
            if self.size[g] <= problem.tiers[t].capacity
            and not (self.late[g, t] and self.share[g] > problem.late_share * (1 + 1e-12))
        }

    def answer(self, values: dict[str, float]) -> Packing:
        """Return the packing that variables' values stand for."""
        where = np.zeros((len(self.member), 2), dtype=np.int64)
        queue = [np.flatnonzero(self.member == g).tolist() for g in range(len(self.first))]
        for (g, b, t), variable in self.n.items():
            for _ in range(round(values[variable.name])):
                where[queue[g].pop()] = b, t
        return Packing(where[:, 0], where[:, 1])

    def start(self, answer: Packing) -> dict[str, float]:
        """Return the values of the variables that stand for a packing, its bins put in order."""
        held = np.bincount(answer.bin, weights=self.problem.size, minlength=self.bins)
        rank = np.empty(self.bins, dtype=np.int64)
        rank[np.argsort(-held, kind="stable")] = np.arange(self.bins)
        values = dict.fromkeys((v.name for v in self.n.values()), 0.0)
        for g, b, t in zip(
            self.member.tolist(), rank[answer.bin].tolist(), answer.tier.tolist(), strict=True
        ):
            values[self.n[g, b, t].name] += 1.0
        return values


def least_latency(made: PackingProgram) -> None:
    """Minimise the expected latency."""
    made.program += pulp.lpSum(
        float(made.share[g] * made.latency[g, t]) * v for (g, _, t), v in made.n.items()
    )


def every_expert_once(made: PackingProgram) -> None:
    """Let every expert live in exactly one place."""
    for g, count in enumerate(made.count.tolist()):
        places = [v for (k, _, _), v in made.n.items() if k == g]
        made.program += pulp.lpSum(places) == count, f"once_{g}"


def tier_room(made: PackingProgram) -> None:
    """Keep every bin's tiers within their capacity, counted in the smallest expert's bytes."""
    unit = float(made.size.min())
    for b in range(made.bins):
        for t, tier in enumerate(made.problem.tiers):
            held = [float(made.size[g] / unit) * v for (g, k, i), v in made.n.items() if (k, i) == (b, t)]
            if held and math.isfinite(tier.capacity):
                made.program += pulp.lpSum(held) <= tier.capacity / unit, f"room_{tier.name}_{b}"


def bin_load(made: PackingProgram) -> None:
    """Keep every bin busy for at most its share of the time."""
    if made.problem.rate:
        for b in range(made.bins):
            busy = [float(made.busy[g, t]) * v for (g, k, t), v in made.n.items() if k == b]
            made.program += pulp.lpSum(busy) <= made.problem.busy_share, f"busy_{b}"


def late_requests(made: PackingProgram) -> None:
    """Let at most the allowed share of the requests miss the target."""
    late = [float(made.share[g]) * v for (g, _, t), v in made.n.items() if made.late[g, t]]
    if late:
        made.program += pulp.lpSum(late) <= made.problem.late_share, "late"


def mean_latency(made: PackingProgram) -> None:
    """Keep the expected latency within its limit."""
    if math.isfinite(made.problem.mean_s):
        total = [float(made.share[g] * made.latency[g, t]) * v for (g, _, t), v in made.n.items()]
        made.program += pulp.lpSum(total) <= made.problem.mean_s, "mean"


def ordered_bins(made: PackingProgram) -> None:
    """Order the bins by falling bytes: equal bins are interchangeable, and one of their orders is enough."""
    unit = float(made.size.min())

    def held(b: int) -> pulp.LpAffineExpression:
        return pulp.lpSum(float(made.size[g] / unit) * v for (g, k, _), v in made.n.items() if k == b)

    for b in range(made.bins - 1):
        made.program += held(b) >= held(b + 1), f"order_{b}"


def packing_program(problem: CompositionProblem, bins: int) -> PackingProgram:
    """Return the whole program over ``bins`` bins."""
    made = PackingProgram(problem, bins)
    for part in (
        least_latency,
        every_expert_once,
        tier_room,
        bin_load,
        late_requests,
        mean_latency,
        ordered_bins,
    ):
        part(made)
    return made
