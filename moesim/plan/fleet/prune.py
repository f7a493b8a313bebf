"""Prune: drop menu entries that a whole number of replicas of another entry replaces at no disadvantage."""

from __future__ import annotations

import numpy as np

from moesim.plan.fleet.problem import FloatArray, IntArray, Menu

__all__ = ["undominated"]


def undominated(menu: Menu, stock: FloatArray) -> IntArray:
    """Return the entries that some optimal fleet may need, in menu order.

    Entry b is dropped for entry a when k replicas of a give every class as much as one of b, cost no more (on demand
    and reserved), and take no more power and devices; devices only count against each other where the types are the
    same, or the other type is unlimited. That also holds with N+1: one a is lost instead of one b, and either a gives
    no more than b, or it replaces b one to one and gives the difference back.

    Parameters
    ----------
    menu : entries
    stock : most devices by type, [types]
    """
    cost = np.minimum(menu.on_demand, menu.reserved) / np.maximum(menu.goodput.sum(axis=1), 1e-300)
    order = np.lexsort((np.arange(len(cost)), cost))
    kept: list[int] = []
    for row in order[menu.goodput[order].max(axis=1) > 0].tolist():
        if not kept or not _replaced(menu, stock, row, np.array(kept)):
            kept.append(row)
    last = [row for row in kept if not _replaced(menu, stock, row, np.array([k for k in kept if k != row]))]
    return np.array(sorted(last), dtype=np.int64)


def _replaced(menu: Menu, stock: FloatArray, row: int, by: IntArray) -> bool:
    if not len(by):
        return False
    need = menu.goodput[row]
    with np.errstate(divide="ignore", invalid="ignore"):
        copies = np.where(need > 0, np.ceil(need / menu.goodput[by] * (1 - 1e-12)), 1.0).max(axis=1)
        copies = np.maximum(copies, 1.0)
        enough = (
            (copies * menu.on_demand[by] <= menu.on_demand[row])
            & (copies * menu.reserved[by] <= menu.reserved[row])
            & (copies * menu.power[by] <= menu.power[row])
        )
    same = menu.kind[by] == menu.kind[row]
    free = np.isinf(stock[menu.kind[by]])
    return bool(
        np.any(
            enough & np.isfinite(copies) & (free | (same & (copies * menu.devices[by] <= menu.devices[row])))
        )
    )
