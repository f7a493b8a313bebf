"""Group: fit one group of kernels, and say how well it predicts points, shapes and devices it has not seen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from moesim.calibrate.fit.boost import Settings, boost, borders_of
from moesim.calibrate.fit.holdout import coverage, errors_of, interval_of, regime_of, shape_folds
from moesim.calibrate.fit.terms import weights_of
from moesim.cost.fitted.artifact import DeviceFit, Group
from moesim.cost.fitted.baseline import SHARE_BORDERS, base_of, shares_of
from moesim.cost.fitted.trees import bins_of

if TYPE_CHECKING:
    from moesim.calibrate.fit.data import GroupData
    from moesim.cost.fitted.trees import Forest
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
        own = Settings(trees=250, depth=6, rate=0.08, columns=0.4, ridge=10.0)
        pooled = Settings(trees=120, rate=0.12, columns=0.4, ridge=10.0)
        return Plan(pooled, own, pooled_rows=40_000, own_rows=20_000, folds=5, tried=3)
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
    tested = data.tested()
    pooled = learner.pooled(np.arange(data.rows))
    unseen_errors, unseen = learner.unseen_devices() if holdouts else ({}, None)
    regime = regime_of(data.features.bound, learner.floor_s(), _REGIMES)
    devices = {}
    for name in learner.names:
        mine = np.flatnonzero(data.device == name)
        if mine.size < _ENOUGH:
            continue
        own = learner.own(mine)
        errors, error, where = learner.held_out(mine) if holdouts else ({}, None, mine)
        if error is None:
            error = learner.error(own, mine)
        if holdouts and "shapes" in errors:
            errors["shapes"]["coverage"] = coverage(
                error, regime[where], data.shape[where], len(_REGIMES) + 1
            )
        current = mine[tested[mine]]
        devices[name] = DeviceFit(
            own.forest, learner.cycles[name], int(current.size),
            tuple(sorted(set(data.version[current].tolist()))),
            interval_of(error, regime[where], len(_REGIMES) + 1, data.shape[where]), errors, own.work,
            data.age.get(name, 0),
        )  # fmt: skip
    seen = np.flatnonzero(tested)
    if unseen is None:
        unseen = np.full(data.rows, np.nan)
        unseen[seen] = learner.error(pooled, seen)
    return Group(
        learner.all_borders, pooled.forest, learner.common,
        interval_of(unseen[seen], regime[seen], len(_REGIMES) + 1, data.shape[seen]), _REGIMES, unseen_errors, devices,
        pooled.work,
    )  # fmt: skip


class _Fit(NamedTuple):
    """A forest and the base that it corrects.

    Attributes
    ----------
    forest : of log(seconds / base)
    work : weights of the terms, or none
    cycles : the floor to use where there are no terms; None: each device's own
    """

    forest: Forest
    work: tuple[float, ...]
    cycles: float | None = None


class _Learner:
    """The group's rows, binned once, and fits of parts of them."""

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
        shares = 0 if data.features.terms is None else len(data.features.terms)
        self.all_borders = (*self.borders, *(SHARE_BORDERS for _ in range(shares)))

    def floor_s(self) -> FloatArray:
        """Return the device's floor per row, seconds."""
        return np.asarray(np.array([self.cycles[n] for n in self.names])[self._number()] / self.data.clock)

    def _number(self) -> npt.NDArray[np.int64]:
        return np.searchsorted(np.array(self.names), self.data.device)

    def _some(self, rows: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
        if rows.size <= most:
            return rows
        return np.sort(self.draw.choice(rows, most, replace=False))

    def _seen(
        self, rows: npt.NDArray[np.int64], work: tuple[float, ...], cycles: float | None
    ) -> tuple[npt.NDArray[np.uint8], FloatArray]:
        """Return (bins of all features, log(seconds / base)) of ``rows``."""
        part, clock = self.data.features.take(rows), self.data.clock[rows]
        floor = self.floor_s()[rows] * clock if cycles is None else cycles
        wanted = np.log(self.data.seconds[rows] / base_of(part, floor, clock, work))
        binned = self.binned[:, rows]
        if work:
            share = shares_of(part, work)[len(self.borders) :]
            binned = np.concatenate([binned, bins_of(share, self.all_borders[len(self.borders) :])])
        return binned, wanted

    def _fit(self, rows: npt.NDArray[np.int64], settings: Settings) -> _Fit:
        terms = self.data.features.terms
        work = () if terms is None else weights_of(terms[:, rows], self.data.seconds[rows])
        binned, wanted = self._seen(rows, work, None)
        small = min(1.0, max(0.2, rows.size / 1000))
        chosen = replace(settings, trees=max(20, int(settings.trees * small)))
        return _Fit(boost(None, wanted, list(self.all_borders), chosen, binned=binned), work)

    def error(self, fit: _Fit, rows: npt.NDArray[np.int64]) -> FloatArray:
        """Return log(measured / predicted) of ``rows``."""
        binned, wanted = self._seen(rows, fit.work, fit.cycles)
        return wanted - fit.forest.answer(binned)

    def pooled(self, rows: npt.NDArray[np.int64]) -> _Fit:
        """Return a fit of all devices among ``rows``, each with the same weight."""
        share = self.plan.pooled_rows // max(1, len(set(self.data.device[rows].tolist())))
        parts = [self._some(rows[self.data.device[rows] == name], share) for name in self.names]
        return self._fit(np.concatenate(parts), self.plan.pooled)

    def own(self, rows: npt.NDArray[np.int64]) -> _Fit:
        """Return a fit of the rows of one device."""
        return self._fit(self._some(rows, self.plan.own_rows), self.plan.own)

    def held_out(
        self, mine: npt.NDArray[np.int64]
    ) -> tuple[dict[str, dict[str, float]], FloatArray, npt.NDArray[np.int64]]:
        """Return errors on unseen points and shapes of one device, and log errors of the latter with their rows."""
        measured, tested = self.data.seconds, self.data.tested()[mine]
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
                out = mine[(fold == number) & tested]
                if out.size == 0 or (fold == number).all():
                    continue
                left.append(out)
                found.append(self.error(self.own(mine[fold != number]), out))
            rows, log_error = np.concatenate(left), np.concatenate(found)
            errors[name] = errors_of(measured[rows] / np.exp(log_error), measured[rows])
        return errors, log_error, rows

    def unseen_devices(self) -> tuple[dict[str, dict[str, float]], FloatArray | None]:
        """Return errors on each device left out in turn, and log errors of all rows; None for one device."""
        if len(self.names) < 2:
            return {}, None
        errors, log_error = {}, np.full(self.data.rows, np.nan)
        tested = self.data.tested()
        for name in self.names:
            out = np.flatnonzero((self.data.device == name) & tested)
            others = np.flatnonzero(self.data.device != name)
            common = float(np.median([c for n, c in self.cycles.items() if n != name]))
            log_error[out] = self.error(self.pooled(others)._replace(cycles=common), out)
            errors[name] = errors_of(self.data.seconds[out] / np.exp(log_error[out]), self.data.seconds[out])
        return errors, log_error
