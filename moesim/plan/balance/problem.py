"""Balance: loads of experts in several scenarios, equal slots on every rank, and what a placement is worth.

A placement is an integer array [layer, ranks * slots]: the expert of each slot, rank after rank (EPLB's phy2log). All
copies of an expert take equal shares of its load, also two on one rank, as EPLB, SGLang and vLLM count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from moesim.errors import NoResult, SpecError

__all__ = ["Balance", "check_placement", "copies", "imbalance", "rank_loads", "worth"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
_MAX_SLOTS: Final = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Balance:
    """One balance problem: where the copies of every layer's experts live.

    Attributes
    ----------
    loads : float64 [scenario, layer, expert], tokens (or any unit); scenarios may differ in total
    ranks : devices that share the experts of a layer
    slots : copies that a rank holds per layer
    mix : float64 [scenario], weights of the scenarios' imbalances; none: the worst scenario counts
    """

    loads: FloatArray
    ranks: int
    slots: int
    mix: FloatArray | None = None

    def __post_init__(self) -> None:
        loads = np.ascontiguousarray(self.loads, dtype=np.float64)
        object.__setattr__(self, "loads", loads)
        if loads.ndim != 3 or 0 in loads.shape:
            raise SpecError(f"loads of shape {loads.shape}: expected [scenario, layer, expert], not empty")
        if not np.all(np.isfinite(loads)) or loads.min() < 0:
            raise SpecError("loads: expected finite numbers, none negative")
        empty = np.argwhere(loads.sum(axis=2) <= 0)
        if len(empty):
            raise SpecError(f"loads: scenario {empty[0][0]} has none in layer {empty[0][1]}")
        if self.ranks < 1 or self.slots < 1 or self.ranks * self.slots > _MAX_SLOTS:
            raise SpecError(f"{self.ranks} ranks of {self.slots} slots: expected at least one of each")
        if self.ranks * self.slots < loads.shape[2]:
            short = loads.shape[2] - self.ranks * self.slots
            raise NoResult(
                f"slots: {self.ranks} ranks x {self.slots} hold {self.ranks * self.slots} of "
                f"{loads.shape[2]} experts, {short} short"
            )
        if self.mix is not None:
            mix = np.ascontiguousarray(self.mix, dtype=np.float64)
            object.__setattr__(self, "mix", mix)
            if (
                mix.shape != (loads.shape[0],)
                or not np.all(np.isfinite(mix))
                or mix.min() < 0
                or not mix.sum()
            ):
                raise SpecError(f"mix: expected {loads.shape[0]} weights, none negative and not all 0")

    @property
    def scenarios(self) -> int:
        """Number of scenarios."""
        return int(self.loads.shape[0])

    @property
    def layers(self) -> int:
        """Number of layers."""
        return int(self.loads.shape[1])

    @property
    def experts(self) -> int:
        """Experts per layer."""
        return int(self.loads.shape[2])

    @property
    def places(self) -> int:
        """Slots per layer, all ranks together."""
        return self.ranks * self.slots

    @property
    def redundant(self) -> int:
        """Copies per layer beyond one of each expert."""
        return self.places - self.experts

    def relative(self) -> FloatArray:
        """Return loads [scenario, layer, expert] in units of a rank's mean load in that scenario and layer."""
        return np.asarray(self.loads / self.loads.sum(axis=2, keepdims=True) * self.ranks)

    def with_slots(self, slots: int) -> Balance:
        """Return the problem with another number of slots per rank."""
        return Balance(self.loads, self.ranks, slots, self.mix)


def copies(placement: npt.ArrayLike, experts: int) -> IntArray:
    """Return how many copies each expert has, [layer, expert].

    >>> copies([[0, 1, 1, 2]], 3).tolist()
    [[1, 2, 1]]
    """
    table = np.asarray(placement, dtype=np.int64)
    layers = table.shape[0]
    flat = (np.arange(layers)[:, None] * experts + table).ravel()
    return np.bincount(flat, minlength=layers * experts).reshape(layers, experts)


def rank_loads(loads: npt.ArrayLike, placement: npt.ArrayLike, ranks: int) -> FloatArray:
    """Return the load of every rank, [scenario, layer, rank], in the unit of ``loads`` [scenario, layer, expert].

    >>> rank_loads([[[4.0, 6.0, 1.0]]], [[0, 1, 1, 2]], 2).tolist()
    [[[7.0, 4.0]]]
    """
    given = np.asarray(loads, dtype=np.float64)
    table = np.asarray(placement, dtype=np.int64)
    share = given / np.maximum(copies(table, given.shape[2]), 1)
    each = np.take_along_axis(share, np.broadcast_to(table, (given.shape[0], *table.shape)), axis=2)
    return np.asarray(each.reshape(*each.shape[:2], ranks, -1).sum(axis=3))


def imbalance(loads: npt.ArrayLike, placement: npt.ArrayLike, ranks: int) -> FloatArray:
    """Return busiest rank over mean rank, [scenario, layer]; 1 is perfect balance, also where there is no load.

    >>> imbalance([[[4.0, 6.0, 1.0]]], [[0, 1, 1, 2]], 2).round(4).tolist()
    [[1.2727]]
    """
    load = rank_loads(loads, placement, ranks)
    mean = load.mean(axis=2)
    return np.asarray(np.where(mean > 0, load.max(axis=2) / np.where(mean > 0, mean, 1.0), 1.0))


def worth(problem: Balance, placement: npt.ArrayLike) -> FloatArray:
    """Return the objective of each layer, [layer]: the worst scenario's imbalance, or the mix of imbalances."""
    each = imbalance(problem.loads, placement, problem.ranks)
    return np.asarray(each.max(axis=0) if problem.mix is None else problem.mix @ each)


def check_placement(problem: Balance, placement: npt.ArrayLike) -> IntArray:
    """Return the placement as int64 [layer, slot] after checking it.

    Raises
    ------
    SpecError : wrong shape, an expert out of range, an expert without a copy
    """
    table = np.asarray(placement)
    want = (problem.layers, problem.places)
    if table.shape != want or not np.issubdtype(table.dtype, np.integer):
        raise SpecError(f"placement {table.dtype} {table.shape}: expected integers [layer, slot] {want}")
    if table.min() < 0 or table.max() >= problem.experts:
        raise SpecError(f"placement: expert {table.min()}..{table.max()}, expected 0..{problem.experts - 1}")
    none = np.argwhere(copies(table, problem.experts) == 0)
    if len(none):
        raise SpecError(f"placement: layer {none[0][0]} has no copy of expert {none[0][1]}")
    return table.astype(np.int64)
