"""Cover: each class by one entry with a cheaper last replica, tried in several orders of merit."""

from __future__ import annotations

import math

import numpy as np

from moesim.plan.fleet.problem import Fleet, FleetProblem, FloatArray, IntArray

__all__ = ["cover", "pay"]


def cover(problem: FleetProblem) -> Fleet | None:
    """Return a fleet by rule, or None where the rule finds none within the limits.

    For each class and period: all replicas of one entry, or all but the last of one entry and the last of another,
    whichever is cheapest; tried with money, power, devices and mixtures of them as the price, cheapest fleet wins.
    """
    menu = problem.menu
    money = np.minimum(menu.on_demand, menu.reserved)
    scales = [np.maximum(values[values > 0].mean(), 1e-300) if np.any(values > 0) else 1.0 for values in
              (money, menu.power, menu.devices)]  # fmt: skip
    merits = [money]
    for other, scale in ((menu.power, scales[1]), (menu.devices, scales[2])):
        merits += [money / scales[0] * (1 - mix) + other / scale * mix for mix in (0.3, 0.7, 1.0)]
    best: Fleet | None = None
    for merit in merits:
        use = _covered(problem, merit)
        if use is not None:
            fleet = pay(problem, use)
            if not problem.broken(fleet) and (best is None or problem.cost(fleet) < problem.cost(best)):
                best = fleet
    return best


def _covered(problem: FleetProblem, merit: FloatArray) -> IntArray | None:
    goodput, (periods, classes) = problem.menu.goodput, problem.demand.shape
    use = np.zeros((len(merit), classes, periods), dtype=np.int64)
    for c in range(classes):
        able = np.flatnonzero(goodput[:, c] > 0)
        for p in range(periods):
            need = float(problem.demand[p, c])
            if need == 0:
                continue
            if not len(able):
                return None
            counts = np.ceil(need / goodput[able, c] * (1 - 1e-12))
            whole = (counts + problem.spare) * merit[able]
            base = int(able[np.argmin(whole)])
            count = int(counts[np.argmin(whole)])
            left = need - (count - 1) * float(goodput[base, c])
            enough = able[goodput[able, c] >= left * (1 - 1e-12)]
            last = int(enough[np.argmin(merit[enough])])
            # a last replica larger than the others would be the one that N+1 loses
            last = base if problem.spare and goodput[last, c] > goodput[base, c] else last
            use[base, c, p] += count - 1 + problem.spare
            use[last, c, p] += 1
    return use


def pay(problem: FleetProblem, use: IntArray) -> Fleet:
    """Reserve what is used long enough to be worth it, rent the rest by the period.

    The j-th replica of an entry is reserved when that costs less than renting it in the periods that need it.
    """
    menu, wanted = problem.menu, use.sum(axis=1)
    share = problem.hours / problem.hours.sum()
    reserved = np.zeros(len(menu.names), dtype=np.int64)
    for o in np.flatnonzero(wanted.max(axis=1) > 0).tolist():
        for j in range(1, int(wanted[o].max()) + 1):
            rented = float(menu.on_demand[o]) * float(share[wanted[o] >= j].sum())
            if math.isfinite(menu.reserved[o]) and menu.reserved[o] <= rented:
                reserved[o] = j
    return Fleet(use, reserved, np.maximum(wanted - reserved[:, None], 0))
