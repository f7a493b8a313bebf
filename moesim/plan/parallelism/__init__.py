"""Parallelism: which cut of a model over devices, and which batch limits, serve a demand with the fewest devices."""

from moesim.plan.parallelism.axes import Axes, Cut, cuts
from moesim.plan.parallelism.demand import Demand, demand_of
from moesim.plan.parallelism.export import LaunchFlags, sglang_flags, vllm_flags
from moesim.plan.parallelism.finalists import Finalist, Measured, finalists, simulated
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
