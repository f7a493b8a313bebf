"""Dual: prices on tiers and loss by cutting planes: a certified bound, and a near-feasible decision to repair."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog

from moesim.plan.tiering.choice import Choices
from moesim.plan.tiering.problem import FloatArray, IntArray

__all__ = ["Prices", "price_limits", "rounded"]

_CUTS = 200
_CLOSE = 1e-9
_REPAIRS = 400
_NEAR = 1500
"""Classes whose second choice is nearly as good as the first: moves are sought among them."""


@dataclass(frozen=True, slots=True, eq=False)
class Prices:
    """The end of the cutting planes.

    Attributes
    ----------
    bound : no decision takes fewer seconds
    reduced : seconds plus prices of each choice over its class's best, [G, C], non-negative
    share : the relaxation's decision, [G, C], rows sum to the class counts
    """

    bound: float
    reduced: FloatArray
    share: FloatArray


def price_limits(choices: Choices) -> Prices:
    """Maximise the Lagrangian bound with Kelley's cutting planes; one tiny LP in the number of limits per cut.

    Any prices give a valid bound, so stopping early costs tightness and never truth.
    """
    positive = choices.limit > 0
    weight = choices.weight[positive] / choices.limit[positive][:, None, None]
    count, cost = choices.count.astype(np.float64), choices.cost
    finite = np.where(np.isfinite(cost), cost, np.nan)
    span = float(np.nansum((np.nanmax(finite, axis=1) - np.nanmin(finite, axis=1)) * count))
    unit = span if span > 0 else 1.0
    box = 10.0 * unit
    prices, best = np.zeros(len(weight)), -np.inf
    top = prices
    slopes, offsets, picks = [], [], []
    rows = np.arange(len(count))
    for _ in range(_CUTS):
        priced = cost + np.einsum("k,kgc->gc", prices, weight)
        pick = np.argmin(priced, axis=1)
        slope = np.einsum("kg,g->k", weight[:, rows, pick], count) - 1.0
        offset = float(np.sum(cost[rows, pick] * count))
        value = offset + float(slope @ prices)
        if value > best:
            best, top = value, prices
        slopes.append(slope)
        offsets.append(offset)
        picks.append(pick)
        if not len(weight):
            break
        master = linprog(
            np.r_[np.zeros(len(weight)), -1.0],
            A_ub=np.column_stack([-np.array(slopes) * (box / unit), np.ones(len(slopes))]),
            b_ub=np.array(offsets) / unit,
            bounds=[(0.0, 1.0)] * len(weight) + [(None, None)],
            method="highs",
        )
        if master.status != 0 or -master.fun * unit - best <= _CLOSE * max(abs(best), 1e-300):
            break
        prices = np.asarray(master.x[:-1]) * box
    mix = np.ones(1)
    if len(weight):
        mix = np.maximum(-np.asarray(master.ineqlin.marginals), 0.0) if master.status == 0 else np.zeros(1)
    mix = mix / mix.sum() if mix.sum() > 0 else np.eye(len(picks))[-1]
    share = np.zeros(cost.shape)
    for part, pick in zip(mix.tolist(), picks[: len(mix)], strict=True):
        share[rows, pick] += part * count
    priced = cost + np.einsum("k,kgc->gc", top, weight)
    return Prices(best, priced - priced.min(axis=1, keepdims=True), share)


def rounded(choices: Choices, prices: Prices) -> IntArray | None:
    """Round the relaxation's decision to whole experts and repair it, [G, C]; None where repair fails."""
    whole = np.floor(prices.share + 1e-9).astype(np.int64)
    left = choices.count - whole.sum(axis=1)
    part = np.where(np.isfinite(choices.cost), prices.share - whole, -np.inf)
    for row in np.flatnonzero(left > 0).tolist():  # systematic: like classes do not all round the same way
        points = (np.arange(left[row]) + (row * 0.6180339887498949) % 1.0) / left[row]
        edges = np.cumsum(np.maximum(part[row], 0.0))
        at = np.minimum(np.searchsorted(edges / max(edges[-1], 1e-300), points), len(edges) - 1)
        at = np.where(np.isfinite(choices.cost[row, at]), at, int(np.argmin(prices.reduced[row])))
        np.add.at(whole[row], at, 1)
    second = (
        np.partition(prices.reduced, 1, axis=1)[:, 1] if prices.reduced.shape[1] > 1 else np.zeros(len(whole))
    )
    order = np.argsort(np.where(np.isfinite(second), second, np.inf), kind="stable")
    for near in (order[:_NEAR], order):
        done = _repair(choices, whole.copy(), near)
        if done is not None:
            return _improve(choices, done, near)
    return None


def _moves(choices: Choices, taken: IntArray, near: IntArray) -> tuple[FloatArray, FloatArray]:
    """Return the change of seconds [N, C, C] and of each limit's use [K, N, C, C] of moving one expert."""
    cost = choices.cost[near]
    with np.errstate(invalid="ignore"):
        change = cost[:, None, :] - cost[:, :, None]
    change = np.where((taken[near] > 0)[:, :, None] & np.isfinite(change), change, np.inf)
    weight = choices.weight[:, near]
    return change, weight[:, :, None, :] - weight[:, :, :, None]


def _repair(choices: Choices, taken: IntArray, near: IntArray) -> IntArray | None:
    scale = np.where(choices.limit > 0, choices.limit, 1.0)
    for _ in range(_REPAIRS):
        over = choices.used(taken) - choices.limit
        if choices.fits(taken):
            return taken
        change, use = _moves(choices, taken, near)
        after = np.maximum(over[:, None, None, None] + use, 0.0) / scale[:, None, None, None]
        gain = float(np.sum(np.maximum(over, 0.0) / scale)) - after.sum(axis=0)
        ratio = np.where((gain > 1e-15) & np.isfinite(change), change / np.maximum(gain, 1e-15), np.inf)
        best = int(np.argmin(ratio))
        if not np.isfinite(ratio.ravel()[best]):
            return None
        row, source, target = np.unravel_index(best, ratio.shape)
        taken[near[row], source] -= 1
        taken[near[row], target] += 1
    return None


def _improve(choices: Choices, taken: IntArray, near: IntArray) -> IntArray:
    for _ in range(_REPAIRS):
        room = choices.limit - choices.used(taken)
        change, use = _moves(choices, taken, near)
        change[np.any(use > np.maximum(room, 0.0)[:, None, None, None], axis=0)] = np.inf
        best = int(np.argmin(change))
        if change.ravel()[best] >= 0:
            break
        row, source, target = np.unravel_index(best, change.shape)
        taken[near[row], source] -= 1
        taken[near[row], target] += 1
    return taken
