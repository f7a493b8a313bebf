"""Group: fit one group of kernels, and say how well it predicts points, shapes and devices it has not seen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moesim.calibrate.fit.boost import Settings, boost, borders_of
from moesim.calibrate.fit.holdout import coverage, errors_of, interval_of, regime_of, shape_folds
from moesim.cost.fitted.artifact import DeviceFit, Group
from moesim.cost.fitted.trees import Forest, bins_of

if TYPE_CHECKING:
    from moesim.calibrate.fit.data import GroupData
    from moesim.cost.pricing import FloatArray

__all__ = ["Plan", "fit_group", "plan_of"]

_REGIMES = (-2.0, 1.0, 4.0)
_ENOUGH = 60
"""Rows below which a device gets no forest of its own."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of a fit.

    Attributes
    ----------
    pooled, own : forests of all devices and of one
    pooled_rows, own_rows : most rows each learns from, drawn at random
    folds, tried : shapes are dealt into ``folds``; ``tried`` of them are left out in turn
    seed : of all draws
    """

    pooled: Settings
    own: Settings
    pooled_rows: int = 40_000
    own_rows: int = 30_000
    folds: int = 5
    tried: int = 5
    seed: int = 7


def plan_of(family: str) -> Plan:
    """Return the sizes that hold-outs chose for ``family``."""
    if family == "gemm":  # shapes abound: 484 pairs (n, k)
        own = Settings(trees=220, depth=6, rate=0.2, columns=0.7)
        return Plan(Settings(trees=100), own, pooled_rows=30_000, own_rows=20_000, folds=6, tried=1)
    if family == "moe":  # 20 shapes: small and narrow steps extrapolate better
        own = Settings(trees=200, depth=6, rate=0.08, columns=0.4, ridge=10.0)
        pooled = Settings(trees=100, rate=0.12, columns=0.4, ridge=10.0)
        return Plan(pooled, own, pooled_rows=25_000, own_rows=16_000, folds=5, tried=3)
    return Plan(
        Settings(trees=80, depth=6), Settings(trees=120, depth=6, rate=0.18), pooled_rows=20_000,
        own_rows=12_000, folds=4, tried=2,
    )  # fmt: skip


def fit_group(data: GroupData, plan: Plan | None = None, *, holdouts: bool = True) -> Group:
    """Return the fitted group with its hold-out errors and intervals.

    Parameters
    ----------
    data : rows of one group
    plan : sizes; by default those of the family
    holdouts : measure errors; without, intervals are those of the fitted rows and too narrow
    """
    plan = plan or plan_of(data.key[0])
    learner = _Learner(data, plan)
    everything = np.arange(data.rows)
    pooled = learner.pooled(everything)
    unseen_errors, unseen = learner.unseen_devices() if holdouts else ({}, None)
    regime = regime_of(data.features.bound, learner.floor_s(), _REGIMES)
    devices = {}
    for name in learner.names:
        mine = np.flatnonzero(data.device == name)
        if mine.size < _ENOUGH:
            continue
        forest = learner.own(mine)
        errors, error, where = learner.held_out(mine) if holdouts else ({}, None, mine)
        if error is None:
            error = learner.target[mine] - forest.answer(learner.binned[:, mine])
        if holdouts and "shapes" in errors:
            errors["shapes"]["coverage"] = coverage(
                error, regime[where], data.shape[where], len(_REGIMES) + 1
            )
        devices[name] = DeviceFit(
            forest, learner.cycles[name], int(mine.size), tuple(sorted(set(data.version[mine].tolist()))),
            interval_of(error, regime[where], len(_REGIMES) + 1), errors,
        )  # fmt: skip
    if unseen is None:
        unseen = learner.target - pooled.answer(learner.binned)
    return Group(
        tuple(learner.borders), pooled, learner.common, interval_of(unseen, regime, len(_REGIMES) + 1), _REGIMES,
        unseen_errors, devices,
    )  # fmt: skip


class _Learner:
    """The group's rows, binned once, and forests over parts of them."""

    def __init__(self, data: GroupData, plan: Plan) -> None:
        self.data, self.plan = data, plan
        self.draw = np.random.default_rng(plan.seed)
        self.names = sorted(set(data.device.tolist()))
        self.cycles = {
            name: float(np.quantile((data.seconds * data.clock)[data.device == name], 0.01))
            for name in self.names
        }
        self.common = float(np.median(list(self.cycles.values())))
        self.borders = borders_of(data.features.matrix[:, self._some(np.arange(data.rows), plan.pooled_rows)])
        self.binned = bins_of(data.features.matrix, self.borders)
        self.target = self._target(self.cycles)

    def floor_s(self) -> FloatArray:
        """Return the device's floor per row, seconds."""
        return np.asarray(np.array([self.cycles[n] for n in self.names])[self._number()] / self.data.clock)

    def _number(self) -> npt.NDArray[np.int64]:
        return np.searchsorted(np.array(self.names), self.data.device)

    def _target(self, cycles: dict[str, float]) -> FloatArray:
        floor = np.array([cycles[n] for n in self.names])[self._number()] / self.data.clock
        return np.asarray(np.log(self.data.seconds / (floor + self.data.features.bound)))

    def _some(self, rows: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
        if rows.size <= most:
            return rows
        return np.sort(self.draw.choice(rows, most, replace=False))

    def _grow(self, rows: npt.NDArray[np.int64], settings: Settings) -> Forest:
        small = min(1.0, max(0.2, rows.size / 1000))
        chosen = replace(settings, trees=max(20, int(settings.trees * small)))
        return boost(None, self.target[rows], self.borders, chosen, binned=self.binned[:, rows])

    def pooled(self, rows: npt.NDArray[np.int64]) -> Forest:
        """Return a forest of all devices among ``rows``, each with the same weight."""
        share = self.plan.pooled_rows // max(1, len(set(self.data.device[rows].tolist())))
        parts = [self._some(rows[self.data.device[rows] == name], share) for name in self.names]
        return self._grow(np.concatenate(parts), self.plan.pooled)

    def own(self, rows: npt.NDArray[np.int64]) -> Forest:
        """Return a forest of the rows of one device."""
        return self._grow(self._some(rows, self.plan.own_rows), self.plan.own)

    def held_out(
        self, mine: npt.NDArray[np.int64]
    ) -> tuple[dict[str, dict[str, float]], FloatArray, npt.NDArray[np.int64]]:
        """Return errors on unseen points and shapes of one device, and log errors of the latter with their rows."""
        measured = self.data.seconds
        errors = {}
        test = self.draw.random(mine.size) < 0.1
        for name, fold, tried in (
            ("points", np.where(test, 0, 1), 1),
            ("shapes", shape_folds(self.data.shape[mine], self.plan.folds, self.plan.seed), self.plan.tried),
        ):
            if np.unique(fold).size < 2:
                continue
            left, found = [], []
            for number in range(tried):
                out = mine[fold == number]
                if out.size in {0, mine.size}:
                    continue
                answer = self.own(mine[fold != number]).answer(self.binned[:, out])
                left.append(out)
                found.append(self.target[out] - answer)
            rows, log_error = np.concatenate(left), np.concatenate(found)
            errors[name] = errors_of(measured[rows] / np.exp(log_error), measured[rows])
        return errors, log_error, rows

    def unseen_devices(self) -> tuple[dict[str, dict[str, float]], FloatArray | None]:
        """Return errors on each device left out in turn, and log errors of all rows; None for one device."""
        if len(self.names) < 2:
            return {}, None
        errors, log_error = {}, np.full(self.data.rows, np.nan)
        for name in self.names:
            out = np.flatnonzero(self.data.device == name)
            others = np.flatnonzero(self.data.device != name)
            forest = self.pooled(others)
            common = float(np.median([c for n, c in self.cycles.items() if n != name]))
            base = common / self.data.clock[out] + self.data.features.bound[out]
            predicted = np.exp(forest.answer(self.binned[:, out])) * base
            log_error[out] = np.log(self.data.seconds[out] / predicted)
            errors[name] = errors_of(predicted, self.data.seconds[out])
        return errors, log_error
