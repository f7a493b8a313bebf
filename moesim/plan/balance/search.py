"""Search of one layer: annealing to the least objective, then to the calmest plan near it."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from moesim.plan.balance.bounds import row_bounds
from moesim.plan.balance.kernel import anneal
from moesim.plan.balance.problem import FloatArray, IntArray

__all__ = ["improve", "search", "tops"]

_HOT: Final = 1e-3  # temperatures in squared relative load: a swap's typical excess, and far below it
_COLD: Final = 1e-6
_FALL: Final = 0.005
_RECOUNT: Final = 0.3
_NEAR: Final = 5e-4  # a plan this close to its bound is not searched further
_SPREAD_PRICE: Final = 0.01
_SPREAD_ROOM: Final = 0.005
_SPREAD_KEPT: Final = 0.01


def tops(rows: FloatArray, slot: IntArray, ranks: int) -> FloatArray:
    """Return the busiest rank's load in each row, [row], for one layer's placement ``slot`` [ranks * slots]."""
    share = rows / np.maximum(np.bincount(slot, minlength=rows.shape[1]), 1)
    return np.asarray(share[:, slot].reshape(len(rows), ranks, -1).sum(axis=2).max(axis=1))


def search(
    slot: IntArray,
    rows: FloatArray,
    hard: int,
    price: FloatArray,
    mix: FloatArray | None,
    floor: FloatArray,
    ranks: int,
    steps: int,
    seed: int,
    *,
    enough: float = 0.0,
    settle: bool = False,
    held: npt.NDArray[np.uint8] | None = None,
    toll: float = 0.0,
) -> float:
    """Anneal ``slot`` in place and return its objective; parameters as the kernel's (``kernel/anneal.py``)."""
    experts = rows.shape[1]
    recount = _RECOUNT if len(slot) > experts else 0.0
    weights = np.full(hard, -1.0) if mix is None else mix
    known = np.zeros((ranks, experts), dtype=np.uint8) if held is None else held
    best, _ = anneal(
        slot,
        rows,
        hard,
        price,
        weights,
        floor,
        ranks,
        steps,
        _HOT,
        _COLD,
        _FALL,
        recount,
        seed,
        enough,
        int(settle),
        known,
        toll,
    )
    return float(best)


def improve(
    rows: FloatArray,
    slot: IntArray,
    ranks: int,
    mix: FloatArray | None,
    *,
    steps: int,
    seed: int,
    spread: FloatArray | None = None,
) -> IntArray:
    """Return a better placement of one layer, never a worse one by more than 1 % where ``spread`` is given.

    Parameters
    ----------
    rows : float64 [scenario, expert], relative loads (a rank's mean is 1)
    slot : int64 [ranks * slots], the start
    spread : float64 [direction, expert], how relative loads vary within a scenario (see ``spread_of``); among plans
        within 1 % of the best found, one whose ranks vary little is taken, which is what unseen traffic meets
    """
    hard = len(rows)
    floor = row_bounds(rows, ranks, len(slot) // ranks)
    near = float(floor.max() if mix is None else mix @ floor) * (1 + _NEAR)
    found = slot.copy()
    one = np.ones(hard) if mix is None else mix
    best = search(found, rows, hard, one, mix, floor, ranks, steps, seed, enough=near)
    if spread is None or not len(spread):
        return found
    target = np.full(hard, best) if mix is None else tops(rows, found, ranks)
    calm = found.copy()
    price = np.concatenate([one, np.full(len(spread), _SPREAD_PRICE)])
    both = np.ascontiguousarray(np.concatenate([rows, spread]))
    room = target * (1 + _SPREAD_ROOM)
    search(calm, both, hard, price, mix, room, ranks, steps, seed + 1, settle=True)
    after = tops(rows, calm, ranks)
    value = float(after.max() if mix is None else mix @ after)
    return calm if value <= best * (1 + _SPREAD_KEPT) else found
