"""Program: replicas of menu entries for classes and periods, one function per constraint.

``use_ENTRY_CLASS_PERIOD`` replicas serve, ``res_ENTRY`` are paid for always, ``od_ENTRY_PERIOD`` by the period;
``z_CLASS_PERIOD_SIZE`` marks the largest replica that a class uses, which N+1 may lose.
"""

from __future__ import annotations

import math

import numpy as np
import pulp

from moesim.plan.fleet.problem import Fleet, FleetProblem

__all__ = [
    "FleetProgram",
    "device_stock",
    "enough_goodput",
    "fleet_program",
    "largest_replica",
    "least_cost",
    "paid_replicas",
    "power_cap",
]


class FleetProgram:
    """A PuLP program and its variables."""

    def __init__(self, problem: FleetProblem) -> None:
        self.problem = problem
        menu, (periods, classes) = problem.menu, problem.demand.shape
        entries = range(len(menu.names))
        self.program = pulp.LpProblem("fleet", pulp.LpMinimize)
        self.use = {
            (o, c, p): pulp.LpVariable(f"use_{o}_{c}_{p}", 0, self.most(o, c, p), pulp.LpInteger)
            for o in entries
            for c in range(classes)
            for p in range(periods)
            if menu.goodput[o, c] > 0 and problem.demand[p, c] > 0
        }
        self.reserved = {
            o: pulp.LpVariable(f"res_{o}", 0, cat=pulp.LpInteger)
            for o in entries
            if math.isfinite(menu.reserved[o])
        }
        self.on_demand = {
            (o, p): pulp.LpVariable(f"od_{o}_{p}", 0, cat=pulp.LpInteger)
            for o in entries
            for p in range(periods)
            if math.isfinite(menu.on_demand[o])
        }
        self.sizes = {
            (c, p): sorted({float(menu.goodput[o, c]) for o in entries if (o, c, p) in self.use})
            for c in range(classes)
            for p in range(periods)
            if problem.spare and problem.demand[p, c] > 0
        }
        self.largest = {
            (c, p, s): pulp.LpVariable(f"z_{c}_{p}_{s}", cat=pulp.LpBinary)
            for (c, p), sizes in self.sizes.items()
            for s in range(len(sizes))
        }

    def most(self, o: int, c: int, p: int) -> int:
        """Return more replicas than a cheapest fleet needs of one entry for one class."""
        need = float(self.problem.demand[p, c]) / float(self.problem.menu.goodput[o, c])
        return math.ceil(need * (1 - 1e-12)) + self.problem.spare

    def fleet(self, values: dict[str, float]) -> Fleet:
        """Return the fleet that variables' values stand for."""
        menu, (periods, classes) = self.problem.menu, self.problem.demand.shape
        use = np.zeros((len(menu.names), classes, periods), dtype=np.int64)
        reserved, on_demand = (
            np.zeros(len(menu.names), np.int64),
            np.zeros((len(menu.names), periods), np.int64),
        )
        for key, v in self.use.items():
            use[key] = round(values[v.name])
        for o, v in self.reserved.items():
            reserved[o] = round(values[v.name])
        for at, v in self.on_demand.items():
            on_demand[at] = round(values[v.name])
        return Fleet(use, reserved, on_demand)

    def start(self, fleet: Fleet) -> dict[str, float]:
        """Return the values of the variables that stand for a fleet."""
        values = {v.name: float(min(fleet.use[key], v.upBound)) for key, v in self.use.items()}
        values |= {v.name: float(fleet.reserved[o]) for o, v in self.reserved.items()}
        values |= {v.name: float(fleet.on_demand[at]) for at, v in self.on_demand.items()}
        goodput = self.problem.menu.goodput
        for (c, p), sizes in self.sizes.items():
            used = [
                float(goodput[o, c]) for (o, k, q) in self.use if (k, q) == (c, p) and fleet.use[o, c, p] > 0
            ]
            top = max(used, default=sizes[0])
            values |= {self.largest[c, p, s].name: float(size == top) for s, size in enumerate(sizes)}
        return values


def least_cost(made: FleetProgram) -> None:
    """Minimise USD per hour, averaged over the periods."""
    menu, hours = made.problem.menu, made.problem.hours
    share = hours / hours.sum()
    reserved = [float(menu.reserved[o]) * v for o, v in made.reserved.items()]
    rented = [float(menu.on_demand[o] * share[p]) * v for (o, p), v in made.on_demand.items()]
    made.program += pulp.lpSum(reserved + rented)


def enough_goodput(made: FleetProgram) -> None:
    """Serve every class's demand in every period, with N+1 beside its largest replica."""
    goodput, demand = made.problem.menu.goodput, made.problem.demand
    rows: dict[tuple[int, int], list[pulp.LpAffineExpression]] = {}
    for (o, c, p), v in made.use.items():
        rows.setdefault((c, p), []).append(float(goodput[o, c] / demand[p, c]) * v)
    for (c, p), served in rows.items():
        lost = [
            size / float(demand[p, c]) * made.largest[c, p, s]
            for s, size in enumerate(made.sizes.get((c, p), []))
        ]
        made.program += pulp.lpSum(served) - pulp.lpSum(lost) >= 1.0, f"demand_{c}_{p}"


def largest_replica(made: FleetProgram) -> None:
    """Mark one size per class and period, and use no larger replica than that."""
    goodput = made.problem.menu.goodput
    for (c, p), sizes in made.sizes.items():
        marks = [made.largest[c, p, s] for s in range(len(sizes))]
        made.program += pulp.lpSum(marks) == 1, f"size_{c}_{p}"
        for (o, k, q), v in made.use.items():
            if (k, q) == (c, p):
                above = marks[sizes.index(float(goodput[o, c])) :]
                if len(above) < len(marks):
                    made.program += v <= v.upBound * pulp.lpSum(above), f"largest_{o}_{c}_{p}"


def paid_replicas(made: FleetProgram) -> None:
    """Use only replicas that are reserved or rented in the period."""
    rows: dict[tuple[int, int], list[pulp.LpVariable]] = {}
    for (o, _, p), v in made.use.items():
        rows.setdefault((o, p), []).append(v)
    for (o, p), used in rows.items():
        paid = [v for v in (made.reserved.get(o), made.on_demand.get((o, p))) if v is not None]
        made.program += pulp.lpSum(used) <= pulp.lpSum(paid), f"paid_{o}_{p}"


def power_cap(made: FleetProgram) -> None:
    """Keep the power of the replicas in use within the cap, in kW."""
    if math.isfinite(made.problem.power_cap):
        for p in range(len(made.problem.hours)):
            watts = [
                float(made.problem.menu.power[o] / 1e3) * v for (o, _, q), v in made.use.items() if q == p
            ]
            if watts:
                made.program += pulp.lpSum(watts) <= made.problem.power_cap / 1e3, f"power_{p}"


def device_stock(made: FleetProgram) -> None:
    """Have no more devices of a type, reserved and rented, than there are."""
    menu = made.problem.menu
    for kind, most in enumerate(made.problem.stock.tolist()):
        for p in range(len(made.problem.hours)):
            held = [float(menu.devices[o]) * v for o, v in made.reserved.items() if menu.kind[o] == kind]
            held += [
                float(menu.devices[o]) * v
                for (o, q), v in made.on_demand.items()
                if q == p and menu.kind[o] == kind
            ]
            if held and math.isfinite(most):
                made.program += pulp.lpSum(held) <= most, f"stock_{kind}_{p}"


def fleet_program(problem: FleetProblem) -> FleetProgram:
    """Return the whole program."""
    made = FleetProgram(problem)
    for part in (least_cost, enough_goodput, largest_replica, paid_replicas, power_cap, device_stock):
        part(made)
    return made
