"""Balance: copies of experts to ranks, for one load or for the worst of several scenarios, with a certified bound."""

from moesim.plan.balance.baselines import baselines, contiguous, eplb, pooled, round_robin, vector_lpt
from moesim.plan.balance.migration import MoveCost, align, fetched, move_cost, rebalance
from moesim.plan.balance.problem import Balance, check_placement, copies, imbalance, rank_loads, worth
from moesim.plan.balance.replicas import fewest_replicas
from moesim.plan.balance.solve import Effort, balance
from moesim.plan.balance.traffic import group_loads, sequence_loads, spread_of

__all__ = [
    "Balance",
    "Effort",
    "MoveCost",
    "align",
    "balance",
    "baselines",
    "check_placement",
    "contiguous",
    "copies",
    "eplb",
    "fetched",
    "fewest_replicas",
    "group_loads",
    "imbalance",
    "move_cost",
    "pooled",
    "rank_loads",
    "rebalance",
    "round_robin",
    "sequence_loads",
    "spread_of",
    "vector_lpt",
    "worth",
]
