"""FleetProblem: a menu of replicas with their measured goodput, a demand over periods, limits; what a fleet costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from moesim.errors import SpecError

__all__ = ["Fleet", "FleetProblem", "FloatArray", "IntArray", "Menu", "MenuEntry", "menu_of"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class MenuEntry:
    """One way to run one replica.

    Attributes
    ----------
    name : for people, e.g. ``8x h100-sxm tp4 dp2``
    device : type, the key of availability limits
    devices : of one replica
    goodput : requests per second within targets, by class of traffic, as simulated or measured with that class alone
    on_demand, reserved : USD per hour of one replica; infinite where not offered
    power : watts of one replica, facility overhead included
    """

    name: str
    device: str
    devices: int
    goodput: Mapping[str, float]
    on_demand: float = math.inf
    reserved: float = math.inf
    power: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Menu:
    """Entries as arrays.

    Attributes
    ----------
    names : [O]
    types, kind : device types, and the index of each entry's, [O]
    classes : of traffic, [C]
    devices, on_demand, reserved, power : [O], units as in ``MenuEntry``
    goodput : [O, C]
    """

    names: tuple[str, ...]
    types: tuple[str, ...]
    kind: IntArray
    classes: tuple[str, ...]
    devices: FloatArray
    goodput: FloatArray
    on_demand: FloatArray
    reserved: FloatArray
    power: FloatArray

    def take(self, rows: npt.ArrayLike) -> Menu:
        """Return some entries as a menu."""
        at = np.asarray(rows, dtype=np.int64)
        return Menu(
            tuple(self.names[i] for i in at.tolist()), self.types, self.kind[at], self.classes, self.devices[at],
            self.goodput[at], self.on_demand[at], self.reserved[at], self.power[at],
        )  # fmt: skip


def menu_of(entries: Sequence[MenuEntry], classes: Sequence[str]) -> Menu:
    """Return entries as arrays; a class that an entry does not name has no goodput there.

    Raises
    ------
    SpecError : no entry, an entry with a wrong number, an unknown class, or without any price
    """
    if not entries:
        raise SpecError("fleet: expected at least one menu entry")
    for entry in entries:
        unknown = set(entry.goodput) - set(classes)
        if unknown:
            raise SpecError(f"fleet: {entry.name}: goodput of unknown class {min(unknown)}")
        numbers = (*entry.goodput.values(), entry.power)
        if entry.devices < 1 or not all(math.isfinite(x) and x >= 0 for x in numbers):
            raise SpecError(
                f"fleet: {entry.name}: expected devices >= 1, finite non-negative goodput and power"
            )
        if not min(entry.on_demand, entry.reserved) < math.inf or min(entry.on_demand, entry.reserved) < 0:
            raise SpecError(f"fleet: {entry.name}: expected a non-negative price, on demand or reserved")
    types = tuple(dict.fromkeys(entry.device for entry in entries))
    return Menu(
        tuple(entry.name for entry in entries),
        types,
        np.array([types.index(entry.device) for entry in entries], dtype=np.int64),
        tuple(classes),
        np.array([entry.devices for entry in entries], dtype=np.float64),
        np.array([[entry.goodput.get(c, 0.0) for c in classes] for entry in entries], dtype=np.float64),
        np.array([entry.on_demand for entry in entries], dtype=np.float64),
        np.array([entry.reserved for entry in entries], dtype=np.float64),
        np.array([entry.power for entry in entries], dtype=np.float64),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Fleet:
    """A decision.

    Attributes
    ----------
    use : replicas of each entry that serve each class in each period, [O, C, P]
    reserved : replicas paid for in all periods, [O]
    on_demand : replicas paid for in single periods, [O, P]
    """

    use: IntArray
    reserved: IntArray
    on_demand: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class FleetProblem:
    """Demand of several classes over periods, and what limits a fleet.

    Attributes
    ----------
    menu : what can be had
    demand : requests per second, [P, C]
    hours : length of each period, [P]
    available : most devices by type; a type that is not named is unlimited
    power_cap : most watts in any period, of the replicas in use
    spare : 1: every class still gets its demand when any one of its replicas is lost (N+1); 0: no redundancy

    A replica serves one class at a time: goodputs measured with one class alone do not mix. Where traffic comes
    mixed, the mix is a class.
    """

    menu: Menu
    demand: FloatArray
    hours: FloatArray
    available: Mapping[str, float] = field(default_factory=dict)
    power_cap: float = math.inf
    spare: int = 0

    def __post_init__(self) -> None:
        periods, classes = len(self.hours), len(self.menu.classes)
        if self.demand.shape != (periods, classes):
            raise SpecError(
                f"fleet: demand of shape {self.demand.shape}, expected ({periods} periods, {classes} classes)"
            )
        if not (np.all(np.isfinite(self.demand)) and np.all(self.demand >= 0) and np.all(self.hours > 0)):
            raise SpecError("fleet: expected finite non-negative demand and positive hours")
        unknown = set(self.available) - set(self.menu.types)
        if unknown:
            raise SpecError(f"fleet: available: no menu entry uses {min(unknown)}")
        if self.spare not in {0, 1}:
            raise SpecError("fleet: spare: expected 0 or 1")

    @property
    def stock(self) -> FloatArray:
        """Most devices by type, [types]."""
        return np.array([self.available.get(t, math.inf) for t in self.menu.types], dtype=np.float64)

    def cost(self, fleet: Fleet) -> float:
        """Return USD per hour, averaged over the periods."""
        share = self.hours / self.hours.sum()
        wanted = fleet.reserved > 0
        reserved = float(self.menu.reserved[wanted] @ fleet.reserved[wanted])
        hourly = fleet.on_demand @ share
        rented = hourly > 0
        return reserved + float(self.menu.on_demand[rented] @ hourly[rented])

    def broken(self, fleet: Fleet) -> dict[str, float]:
        """Return by how much ``fleet`` breaks each limit that it breaks."""
        over: dict[str, float] = {}
        menu = self.menu
        for p in range(len(self.hours)):
            served = menu.goodput * fleet.use[:, :, p]
            largest = np.where(fleet.use[:, :, p] > 0, menu.goodput, 0.0).max(axis=0)
            lack = self.demand[p] - (served.sum(axis=0) - self.spare * largest)
            for c, name in enumerate(menu.classes):
                if self.demand[p, c] > 0 and lack[c] > 1e-9 * self.demand[p, c]:
                    over[f"demand of {name}"] = max(over.get(f"demand of {name}", 0.0), float(lack[c]))
            power = float(menu.power @ fleet.use[:, :, p].sum(axis=1)) - self.power_cap
            if power > 1e-9 * self.power_cap:
                over["power"] = max(over.get("power", 0.0), power)
            have = fleet.reserved + fleet.on_demand[:, p]
            if np.any(fleet.use[:, :, p].sum(axis=1) > have):
                over["replicas"] = 1.0
            held = np.bincount(menu.kind, weights=menu.devices * have, minlength=len(menu.types))
            for name, excess in zip(menu.types, (held - self.stock).tolist(), strict=True):
                if excess > 1e-9:
                    over[name] = max(over.get(name, 0.0), excess)
        return over
