"""Greedy: EdgeMoE's bitwidths by importance, and tiers filled by popularity."""

from __future__ import annotations

import numpy as np

from moesim.errors import NoResult, SpecError
from moesim.plan.tiering.problem import FloatArray, IntArray, Tiering, TieringProblem

__all__ = ["edgemoe", "edgemoe_widths", "fastest_first", "fill_tiers"]


def edgemoe_widths(problem: TieringProblem, base: int, low: int) -> IntArray:
    """Return EdgeMoE's bitwidths: all at ``base``, then the least important ones at ``low``, [E].

    Experts are sorted by the loss that each alone costs at ``low`` bits; the most of them for which the summed loss
    stays in the budget are lowered (arXiv 2308.14352, section 3).

    Parameters
    ----------
    base, low : indices into ``problem.bits``

    Raises
    ------
    NoResult : the base already costs more than the budget
    """
    width = np.full(problem.experts, base, dtype=np.int64)
    start = float(problem.loss[:, base].sum())
    if start > problem.loss_budget:
        short = start - problem.loss_budget
        raise NoResult(
            f"loss: {problem.bits[base]} bits for all experts cost {short:.4g} more than the budget"
        )
    order = np.argsort(problem.loss[:, low], kind="stable")
    change = problem.loss[order, low] - problem.loss[order, base]
    total = start + np.cumsum(np.where(np.isfinite(change), change, np.inf))
    over = total > problem.loss_budget
    width[order[: int(np.argmax(over)) if over.any() else len(order)]] = low
    return width


def fill_tiers(problem: TieringProblem, width: IntArray) -> IntArray:
    """Return tiers for given bitwidths, [E]: most saved seconds per byte first, into the fastest tier with room.

    Raises
    ------
    NoResult : some expert fits nowhere, with the bytes that are short
    """
    rows = np.arange(problem.experts)
    seconds, size = problem.seconds()[rows, :, width], problem.size[rows, width]
    order = np.argsort(-(seconds.max(axis=1) - seconds.min(axis=1)) / size, kind="stable")
    room = [tier.capacity for tier in problem.tiers]
    tier = np.full(problem.experts, -1, dtype=np.int64)
    for expert in order.tolist():
        for index in np.argsort(seconds[expert], kind="stable").tolist():
            if size[expert] <= room[index]:
                room[index] -= float(size[expert])
                tier[expert] = index
                break
    if np.any(tier < 0):
        short = float(size[tier < 0].sum()) - max(sum(r for r in room if np.isfinite(r)), 0.0)
        raise NoResult(
            f"capacity: {int((tier < 0).sum())} experts find no room, {max(short, 0.0):.4g} B short"
        )
    return tier


def edgemoe(problem: TieringProblem, base: int | None = None, low: int = 0) -> Tiering:
    """Return EdgeMoE's decision: bitwidths by importance, then the most popular experts in the fastest tiers.

    Parameters
    ----------
    base : index of the bitwidth all start at; by default the narrowest that is within the budget for all
    low : index of the bitwidth that the least important are lowered to

    Raises
    ------
    NoResult : no uniform bitwidth is within the budget, or the experts do not fit
    """
    if base is None:
        order = np.argsort(problem.bits, kind="stable")
        whole = problem.loss.sum(axis=0)
        fits = [int(i) for i in order if whole[i] <= problem.loss_budget]
        if not fits:
            short = float(whole.min()) - problem.loss_budget
            raise NoResult(f"loss: the most careful uniform bitwidth costs {short:.4g} more than the budget")
        base = fits[0]
    if not (0 <= base < len(problem.bits) and 0 <= low < len(problem.bits)):
        raise SpecError(f"edgemoe: base {base}, low {low}: expected indices of {len(problem.bits)} bitwidths")
    width = edgemoe_widths(problem, base, low) if problem.bits[low] < problem.bits[base] else None
    if width is None:
        width = np.full(problem.experts, base, dtype=np.int64)
    return Tiering(fill_tiers(problem, width), width)


def fastest_first(problem: TieringProblem) -> Tiering:
    """Return a greedy decision: the most careful bitwidth of each expert, tiers filled by popularity.

    Raises
    ------
    NoResult : the budget or the capacity is short even so
    """
    width = _careful(problem.loss, problem.size)
    lost = float(problem.loss[np.arange(problem.experts), width].sum())
    if lost > problem.loss_budget:
        raise NoResult(f"loss: the least possible is {lost - problem.loss_budget:.4g} over the budget")
    return Tiering(fill_tiers(problem, width), width)


def _careful(loss: FloatArray, size: FloatArray) -> IntArray:
    least = loss.min(axis=1, keepdims=True)
    return np.asarray(np.argmin(np.where(loss <= least, size, np.inf), axis=1), dtype=np.int64)
