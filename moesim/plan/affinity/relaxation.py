"""Relaxation: no grouping of the layers can keep more together than this, by a semidefinite program with triangles.

Per boundary, X says which of the 2 E experts of two layers are together: X is 1 on the diagonal, between 0 and 1,
every expert is with equally many of each layer, and X - 1/G is positive semidefinite and centred per layer. Boundaries
share the blocks inside layers. Triangles (i with j and with k, so j with k) are added where they are broken. Device
names do not occur, so their symmetry, which makes label-based programs weak, is gone.

Solved by the alternating direction method of multipliers (Boyd et al. 2011, section 7), whose multipliers give a bound
at any time: every term below is maximised exactly for the multipliers at hand, so an unfinished run is weaker, never
wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from moesim.plan.affinity.kernel import violated
from moesim.plan.affinity.onethread import one_blas_thread
from moesim.plan.affinity.problem import FloatArray

__all__ = ["Relaxed", "relax"]

_SIGNS: Final = np.array([1.0, 1.0, -1.0])
_PENALTY: Final = (0.05, 0.02)
"""First and last penalty, for counts scaled to ``boundaries * experts / groups`` in all."""
_OVER: Final = 1.7
"""Over-relaxation."""
_FIRST_TRIANGLES: Final = 40
_TRIANGLES_EVERY: Final = 20
_CHECK_EVERY: Final = 25
_TOLERANCE: Final = 0.02
_SETTLED: Final = 0.1
"""No triangle broken by more than this: worth asking whether the bound has settled."""
_MOST_NEW: Final = 20_000
_MOST_FOUND: Final = 4_000_000
_ROUNDING: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Relaxed:
    """What the relaxation says.

    Attributes
    ----------
    bound : no grouping keeps more transitions together
    across : float64 [boundary, expert, expert], how much two experts of adjacent layers are together, 0..1
    within : float64 [layer, expert, expert], the same inside layers
    iterations : done
    """

    bound: float
    across: FloatArray
    within: FloatArray
    iterations: int


class _State:
    """Variables, copies and multipliers of one run."""

    def __init__(self, counts: FloatArray, groups: int) -> None:
        boundaries, experts, _ = counts.shape
        points = 2 * experts
        self.groups, self.experts = groups, experts
        self.scale = boundaries * experts / groups / max(counts.sum(), 1e-300)
        within = np.arange((boundaries + 1) * experts**2).reshape(boundaries + 1, experts, experts)
        pair = np.minimum(within, within.transpose(0, 2, 1))
        across = within.size + np.arange(counts.size).reshape(counts.shape)
        self.pair, self.across = pair, across
        self.entry = np.empty((boundaries, points, points), dtype=np.int64)
        self.entry[:, :experts, :experts], self.entry[:, experts:, experts:] = pair[:-1], pair[1:]
        self.entry[:, :experts, experts:], self.entry[:, experts:, :experts] = (
            across,
            across.transpose(0, 2, 1),
        )
        self.flat = self.entry.ravel()
        size = within.size + counts.size
        self.copies = np.bincount(self.flat, minlength=size).astype(np.float64)
        self.worth = np.zeros(size)
        self.worth[across.ravel()] = counts.ravel() * self.scale
        self.own = pair[:, np.arange(experts), np.arange(experts)].ravel()
        self.x = np.full(size, 1 / groups)
        self.x[self.own] = 1.0
        self.multiplier = np.zeros((boundaries, points, points))
        self.triangles = np.zeros((0, 3), dtype=np.int64)
        self.press = np.zeros(0)
        self.penalty = _PENALTY[0]
        self.worst = 1.0  # by which the last triangles found were broken

    def centred(self, table: FloatArray) -> FloatArray:
        """Take the mean of every row and column of each block off."""
        shape = (len(table), 2, self.experts, 2, self.experts)
        blocks = table.reshape(shape)
        blocks = blocks - blocks.mean(axis=2, keepdims=True)
        return np.asarray((blocks - blocks.mean(axis=4, keepdims=True)).reshape(table.shape))

    def step(self) -> None:
        """Project the copies, average them into the variables, and move the multipliers."""
        seen = self.x[self.entry]
        value, vector = np.linalg.eigh(self.centred(seen - self.multiplier))
        np.maximum(value, 0.0, out=value)
        projected = (vector * value[:, None, :]) @ vector.transpose(0, 2, 1) + 1 / self.groups
        projected = _OVER * projected + (1 - _OVER) * seen
        total = np.bincount(self.flat, (projected + self.multiplier).ravel(), len(self.x))
        number = self.copies.copy()
        corner = self.x[self.triangles]
        pulled = corner - self.press[:, None] * _SIGNS
        pulled -= (np.maximum(pulled @ _SIGNS - 1, 0.0) / 3)[:, None] * _SIGNS
        pulled = _OVER * pulled + (1 - _OVER) * corner
        for side in range(3):
            at = self.triangles[:, side]
            total += np.bincount(at, pulled[:, side] + self.press * _SIGNS[side], len(total))
            number += np.bincount(at, minlength=len(total))
        self.x = np.clip((total + self.worth / self.penalty) / np.maximum(number, 1.0), 0.0, 1.0)
        self.x[self.own] = 1.0
        self.multiplier += projected - self.x[self.entry]
        self.press = self.press + (pulled - self.x[self.triangles]) @ _SIGNS / 3

    def soften(self) -> None:
        """Lower the penalty towards its last value; multipliers are scaled by it."""
        lower = max(self.penalty * 0.9, _PENALTY[1])
        self.multiplier *= self.penalty / lower
        self.press *= self.penalty / lower
        self.penalty = lower

    def separate(self) -> None:
        """Take in the triangles most broken and drop those that neither press nor nearly bind."""
        new, excess = violated(self.x[self.entry], self.entry, _TOLERANCE, _MOST_FOUND)
        self.worst = float(excess.max()) if len(excess) else 0.0
        new = new[np.argsort(-excess, kind="stable")[:_MOST_NEW]]
        both = np.concatenate([self.triangles, new])
        first = np.sort(np.unique(both, axis=0, return_index=True)[1])
        press = np.concatenate([self.press, np.zeros(len(new))])[first]
        both = both[first]
        kept = (press < -1e-7) | (self.x[both] @ _SIGNS - 1 > -_TOLERANCE)
        self.triangles, self.press = both[kept], press[kept]

    def bound(self) -> float:
        """Return the Lagrangian bound of the multipliers at hand, in units of the counts.

        ``max <M, X>`` over the cone is ``sum(M) / G`` plus the trace left, ``2 E (1 - 1/G)``, times the largest
        eigenvalue of M centred; the variables are maximised one by one, or row by row with equally many together.
        """
        push = -self.penalty * self.multiplier
        trace = 2.0 * self.experts * (1.0 - 1.0 / self.groups)
        largest = np.linalg.eigvalsh(self.centred(push))[:, -1]
        found = float(push.sum()) / self.groups + trace * float(np.maximum(largest, 0.0).sum())
        left = self.worth - np.bincount(self.flat, push.ravel(), len(self.x))
        tension = np.maximum(-self.penalty * self.press, 0.0)
        for side in range(3):
            left -= np.bincount(self.triangles[:, side], tension * _SIGNS[side], len(left))
        found += float(tension.sum()) + float(left[self.own].sum())
        share = self.experts // self.groups
        for table in left[self.across]:
            found += min(_positive(table), _best(table, share), _best(table.T, share))
        inside = left[self.pair] / 2
        inside[:, np.arange(self.experts), np.arange(self.experts)] = -np.inf
        for table in inside:
            found += min(_positive(table), _best(table, share - 1))
        return float(found / self.scale)


def _positive(table: FloatArray) -> float:
    return float(np.maximum(table, 0.0).sum())


def _best(table: FloatArray, share: int) -> float:
    """Return the sum of the ``share`` largest entries of every row."""
    if share <= 0:
        return 0.0
    return float(np.partition(table, -share, axis=1)[:, -share:].sum())


def relax(
    counts: FloatArray,
    groups: int,
    iterations: int = 300,
    precision: float = 0.002,
    goes_on: Callable[[float], bool] | None = None,
) -> Relaxed:
    """Bound how many transitions equal groups of the experts of every layer can keep together.

    Parameters
    ----------
    counts : float64 [layer - 1, expert, expert]
    groups : groups per layer, all of one size
    iterations : at most; one takes about ``boundaries * (2 E)**3 / 1e9`` seconds
    precision : stop when the bound is this close to the relaxation's own value, relative to what is not together
    goes_on : told the best bound so far now and then; False stops

    Returns
    -------
    Relaxed : with the best bound met
    """
    total = float(counts.sum())
    boundaries, experts, _ = counts.shape
    if groups == 1 or total == 0:
        whole = np.full(counts.shape, 1.0)
        return Relaxed(total, whole, np.full((boundaries + 1, experts, experts), 1.0), 0)
    state = _State(counts, groups)
    best, done = total, 0
    with one_blas_thread():
        for done in range(1, iterations + 1):
            state.step()
            if done % _CHECK_EVERY == 0 or done == iterations:
                best = min(best, state.bound())
                value = float((state.worth * state.x).sum()) / state.scale
                near = best - value <= precision * (total - best) and state.worst < _SETTLED
                if near or (goes_on and not goes_on(best)):
                    break
            if done >= _FIRST_TRIANGLES and (done - _FIRST_TRIANGLES) % _TRIANGLES_EVERY == 0:
                state.separate()
            if done % 10 == 0:
                state.soften()
    return Relaxed(min(total, best + _ROUNDING * total), state.x[state.across], state.x[state.pair], done)
