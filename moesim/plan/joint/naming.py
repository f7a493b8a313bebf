"""Naming: clusters of every layer to devices (MoETuner's second program), exact without an integer program.

With one bandwidth between all devices, the cost of a boundary depends only on how the clusters of its layers meet, so
the layers decouple: linear assignments for the sum, a bottleneck assignment for the maximum. With bandwidths of
their own, a Viterbi pass over the orders of the clusters is exact for up to six devices.
"""

from __future__ import annotations

from itertools import permutations
from typing import Literal

import numpy as np
from scipy.optimize import linear_sum_assignment

from moesim.errors import SpecError
from moesim.plan.affinity.problem import FloatArray, IntArray

__all__ = ["cluster_flow", "name_clusters", "naming_cost"]

_MOST_DEVICES = 6
Objective = Literal["sum", "max"]


def cluster_flow(counts: FloatArray, clusters: IntArray, number: int) -> FloatArray:
    """Return tokens that go from cluster to cluster, [layer - 1, cluster, cluster] (Eq. 9, with layer l + 1 mended).

    Parameters
    ----------
    counts : float64 [layer - 1, expert, expert]; for k experts per token the k x k pairs count one each
    clusters : int [layer, expert]
    """
    found = np.zeros((len(counts), number, number))
    for table, count, low, high in zip(found, counts, clusters[:-1], clusters[1:], strict=True):
        np.add.at(table, (low[:, None], high[None, :]), count)
    return found


def naming_cost(
    flow: FloatArray, device: IntArray, slowness: FloatArray, objective: Objective = "sum"
) -> float:
    """Return the seconds (or unit) of all boundaries: sum or maximum over pairs of devices of ``flow * slowness``.

    Parameters
    ----------
    flow : [layer - 1, cluster, cluster]
    device : int [layer, cluster]
    slowness : [device, device], inverse of the bandwidth; 0 on the diagonal
    """
    found = 0.0
    for table, low, high in zip(flow, device[:-1], device[1:], strict=True):
        cost = table * slowness[low[:, None], high[None, :]]
        found += float(cost.sum() if objective == "sum" else cost.max())
    return found


def name_clusters(flow: FloatArray, slowness: FloatArray, objective: Objective = "sum") -> IntArray:
    """Return the device of every cluster, [layer, cluster], of least cost: exact.

    ``max`` is MoETuner's Eq. 8 read as its text says: per boundary the busiest pair of devices, summed over layers. Its
    Eq. 13 (equally many experts on every device over all layers) holds by itself for clusters of one size.

    Raises
    ------
    SpecError : own bandwidths for more than six devices, or a diagonal that is not free
    """
    devices = flow.shape[1]
    if slowness.shape != (devices, devices) or np.any(np.diag(slowness) != 0):
        raise SpecError(
            f"slowness {slowness.shape}: expected {(devices, devices)} with nothing to pay on the diagonal"
        )
    apart = slowness[~np.eye(devices, dtype=bool)]
    if devices == 1 or np.all(apart == apart[0]):
        return _chain(flow, objective)
    if devices > _MOST_DEVICES:
        raise SpecError(f"{devices} devices with bandwidths of their own: expected at most {_MOST_DEVICES}")
    return _viterbi(flow, slowness, objective)


def _chain(flow: FloatArray, objective: Objective) -> IntArray:
    device = [np.arange(flow.shape[1])]
    for table in flow:
        worth = table
        if objective == "max":
            worth = table + _uncoverable(table) * (table.sum() + 1.0)
        rows, columns = linear_sum_assignment(worth, maximize=True)
        named = np.empty(len(rows), dtype=np.int64)
        named[columns] = device[-1][rows]
        device.append(named)
    return np.stack(device)


def _uncoverable(table: FloatArray) -> FloatArray:
    """Return 1 for the largest entries that one assignment can cover all of: the busiest pair left is least.

    Entries above a threshold can all stay on one device when no two share a row or a column.
    """
    order = np.argsort(-table, axis=None, kind="stable")
    rows, columns = np.unravel_index(order, table.shape)
    found = np.zeros(table.shape)
    used_rows, used_columns = np.zeros(len(table), dtype=bool), np.zeros(len(table), dtype=bool)
    for i, j in zip(rows.tolist(), columns.tolist(), strict=True):
        if used_rows[i] or used_columns[j]:
            break
        used_rows[i] = used_columns[j] = True
        found[i, j] = 1.0
    return found


def _viterbi(flow: FloatArray, slowness: FloatArray, objective: Objective) -> IntArray:
    orders = np.array(list(permutations(range(len(slowness)))))  # [state, cluster] -> device
    best = np.zeros(len(orders))
    came = []
    for table in flow:
        step = np.empty((len(orders), len(orders)))
        for low, row in zip(orders, step, strict=True):
            cost = table[None] * slowness[low[:, None], orders[:, None, :]]
            row[:] = cost.sum(axis=(1, 2)) if objective == "sum" else cost.max(axis=(1, 2))
        reach = best[:, None] + step
        came.append(reach.argmin(axis=0))
        best = reach.min(axis=0)
    path = [int(best.argmin())]
    for pointers in reversed(came):
        path.append(int(pointers[path[-1]]))
    return np.asarray(orders[path[::-1]], dtype=np.int64)
