"""Composition: whole models as experts: which node and tier holds each, and which expert answers which category."""

from moesim.plan.composition.categories import CategoryMap, CategoryProblem, choose_experts
from moesim.plan.composition.heuristic import pack
from moesim.plan.composition.problem import BinTier, CompositionProblem, Packing, tiers_of_node
from moesim.plan.composition.solve import fewest_bins

__all__ = [
    "BinTier",
    "CategoryMap",
    "CategoryProblem",
    "CompositionProblem",
    "Packing",
    "choose_experts",
    "fewest_bins",
    "pack",
    "tiers_of_node",
]
