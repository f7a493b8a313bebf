"""Compositions in motion: prompts, a router, experts that switch between memory tiers, nodes."""

from moesim.sim.composition.laws import check_composition
from moesim.sim.composition.prompts import Prompts, draw_prompts, make_prompts
from moesim.sim.composition.run import CompositionResult, simulate_composition
from moesim.sim.composition.setup import CompositionSetup, composition_setup

__all__ = [
    "CompositionResult",
    "CompositionSetup",
    "Prompts",
    "check_composition",
    "composition_setup",
    "draw_prompts",
    "make_prompts",
    "simulate_composition",
]
