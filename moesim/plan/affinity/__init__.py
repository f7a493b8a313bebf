"""Affinity: experts of adjacent layers that follow one another live together, with a certified bound on hops."""

from moesim.plan.affinity.baselines import BASELINES
from moesim.plan.affinity.problem import Affinity, Hops, Topology, check_placement, hop_cost, hops
from moesim.plan.affinity.solve import solve_affinity

__all__ = [
    "BASELINES",
    "Affinity",
    "Hops",
    "Topology",
    "check_placement",
    "hop_cost",
    "hops",
    "solve_affinity",
]
