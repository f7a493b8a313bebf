"""Tiering: in which memory, and at how many bits, each expert lives, so that reading it takes the least time."""

from moesim.plan.tiering.access import Accesses, count_accesses, replay_seconds
from moesim.plan.tiering.greedy import edgemoe, fastest_first
from moesim.plan.tiering.problem import Tier, Tiering, TieringProblem, tier_of
from moesim.plan.tiering.solve import baselines, solve_tiering

__all__ = [
    "Accesses",
    "Tier",
    "Tiering",
    "TieringProblem",
    "baselines",
    "count_accesses",
    "edgemoe",
    "fastest_first",
    "replay_seconds",
    "solve_tiering",
    "tier_of",
]
