"""Fleet: the cheapest mix of device types, replicas and parallelisms that serves a demand within its targets."""

from moesim.plan.fleet.heuristic import cover
from moesim.plan.fleet.menu import entries_of
from moesim.plan.fleet.prices import owned_usd_per_hour, replica_power, replica_price
from moesim.plan.fleet.problem import Fleet, FleetProblem, Menu, MenuEntry, menu_of
from moesim.plan.fleet.prune import undominated
from moesim.plan.fleet.solve import solve_fleet

__all__ = [
    "Fleet",
    "FleetProblem",
    "Menu",
    "MenuEntry",
    "cover",
    "entries_of",
    "menu_of",
    "owned_usd_per_hour",
    "replica_power",
    "replica_price",
    "solve_fleet",
    "undominated",
]
