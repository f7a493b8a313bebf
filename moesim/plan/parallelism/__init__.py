"""Parallelism: which cut of a model over devices, and which batch limits, serve a demand with the fewest devices."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moesim.plan.parallelism.axes import Axes, Cut, cuts
    from moesim.plan.parallelism.demand import Demand, demand_of
    from moesim.plan.parallelism.export import LaunchFlags, sglang_flags, vllm_flags
    from moesim.plan.parallelism.final import Finalist, Measured, finalists, simulated
    from moesim.plan.parallelism.options import Option, ParallelismProblem, Table, option_table, priced_cuts
    from moesim.plan.parallelism.solve import Deployed, plan_parallelism
    from moesim.plan.parallelism.split import Split, best_split

__all__ = [
    "Axes",
    "Cut",
    "Demand",
    "Deployed",
    "Finalist",
    "LaunchFlags",
    "Measured",
    "Option",
    "ParallelismProblem",
    "Split",
    "Table",
    "best_split",
    "cuts",
    "demand_of",
    "finalists",
    "option_table",
    "plan_parallelism",
    "priced_cuts",
    "sglang_flags",
    "simulated",
    "vllm_flags",
]

_HOMES = {
    "axes": (
        "Axes",
        "Cut",
        "cuts",
    ),
    "demand": (
        "Demand",
        "demand_of",
    ),
    "export": (
        "LaunchFlags",
        "sglang_flags",
        "vllm_flags",
    ),
    "final": (
        "Finalist",
        "Measured",
        "finalists",
        "simulated",
    ),
    "options": (
        "Option",
        "ParallelismProblem",
        "Table",
        "option_table",
        "priced_cuts",
    ),
    "solve": (
        "Deployed",
        "plan_parallelism",
    ),
    "split": (
        "Split",
        "best_split",
    ),
}


def __getattr__(name: str) -> Any:
    """Import on first use: an estimate of one cut needs neither programs nor the simulator (0.7 s)."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
