"""Choice: the problem with equal experts counted together and every (tier, bitwidth) as one column."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.plan.tiering.problem import FloatArray, IntArray, Tiering, TieringProblem

__all__ = ["Choices"]


@dataclass(frozen=True, slots=True, eq=False)
class Choices:
    """A multiple-choice knapsack: every class takes ``count`` choices, limits hold in sum.

    Attributes
    ----------
    count : experts of each class, [G]
    member : class of each expert, [E]
    cost : seconds of each choice, [G, C]; infinite where it is forbidden
    weight : what each choice takes of each limit, [K, G, C]
    limit : [K], finite
    names : of the limits: tier names and ``loss``
    widths : bitwidths, so that choice = tier * widths + width
    """

    count: IntArray
    member: IntArray
    cost: FloatArray
    weight: FloatArray
    limit: FloatArray
    names: tuple[str, ...]
    widths: int

    @classmethod
    def of(cls, problem: TieringProblem) -> Choices:
        """Count equal experts together and drop limits that nothing reaches."""
        rows = np.column_stack([problem.touches, problem.reuse, problem.size, problem.loss])
        _, first, member = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        member = np.asarray(member, dtype=np.int64).ravel()
        tiers, widths = len(problem.tiers), len(problem.bits)
        cost = problem.seconds()[first].reshape(len(first), -1)
        size, loss = problem.size[first], problem.loss[first]
        column_tier, column_width = np.divmod(np.arange(tiers * widths), widths)
        weight, limit, names = [], [], []
        for index, tier in enumerate(problem.tiers):
            if np.isfinite(tier.capacity):
                weight.append(np.where(column_tier == index, size[:, column_width], 0.0))
                limit.append(tier.capacity)
                names.append(tier.name)
        if np.isfinite(problem.loss_budget):
            weight.append(loss[:, column_width])
            limit.append(problem.loss_budget)
            names.append("loss")
        stacked = np.stack(weight) if weight else np.zeros((0, *cost.shape))
        most = np.asarray(limit, dtype=np.float64)
        forbidden = ~np.isfinite(loss[:, column_width]) | np.any(stacked > most[:, None, None], axis=0)
        return cls(
            np.bincount(member, minlength=len(first)).astype(np.int64),
            member,
            np.where(forbidden, np.inf, cost),
            np.where(np.isfinite(stacked), stacked, 0.0),
            most,
            tuple(names),
            widths,
        )

    def used(self, taken: IntArray) -> FloatArray:
        """Return what ``taken`` [G, C] uses of each limit, [K]."""
        return np.asarray(np.einsum("kgc,gc->k", self.weight, taken))

    def total(self, taken: IntArray) -> float:
        """Return the seconds of ``taken`` [G, C]."""
        return float(np.sum(np.where(taken > 0, self.cost, 0.0) * taken))

    def fits(self, taken: IntArray) -> bool:
        """Tell whether ``taken`` [G, C] keeps every limit."""
        return bool(np.all(self.used(taken) <= self.limit * (1 + 1e-12)))

    def answer(self, taken: IntArray) -> Tiering:
        """Return one decision per expert; experts of a class take its choices in order."""
        choice = np.empty(len(self.member), dtype=np.int64)
        order = np.argsort(self.member, kind="stable")
        columns = np.tile(np.arange(self.cost.shape[1]), len(self.count))
        choice[order] = np.repeat(columns, taken.ravel())
        tier, width = np.divmod(choice, self.widths)
        return Tiering(tier, width)

    def taken(self, answer: Tiering) -> IntArray:
        """Return how many experts of each class take each choice, [G, C]."""
        columns = self.cost.shape[1]
        flat = self.member * columns + answer.tier * self.widths + answer.width
        return np.bincount(flat, minlength=len(self.count) * columns).reshape(-1, columns).astype(np.int64)
