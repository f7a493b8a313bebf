"""Solve: the deployment that serves a demand with the fewest devices; every option is priced, so the bound is exact."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from moesim.errors import NoResult
from moesim.plan.parallelism.options import Option, ParallelismProblem, Table, option_table, priced_cuts
from moesim.plan.parallelism.split import Split, best_split
from moesim.plan.solution import Point, Solution
from moesim.spec.deployment import Deployment

__all__ = ["Deployed", "plan_parallelism"]


@dataclass(frozen=True, slots=True)
class Deployed:
    """The chosen deployment.

    Attributes
    ----------
    deployment : pools with replicas
    devices : of all pools
    goodput : requests per second within targets, all replicas
    table : every option of pools that do both, the refused ones with their reason
    split : the best prefill:decode split, where asked for and possible
    """

    deployment: Deployment
    devices: int
    goodput: float
    table: Table
    split: Split | None


def plan_parallelism(
    problem: ParallelismProblem, *, disaggregate: bool = False, tell: Callable[[float], None] | None = None
) -> Solution[Deployed]:
    """Choose parallelism and batch limits by the closed form, over every option.

    The objective is what is minimised: devices where the demand has a rate, else minus requests per second and device.
    All options are priced, so the objective is its own bound; it is one of the closed form, not of the simulation.

    Parameters
    ----------
    disaggregate : compare separate prefill and decode pools too
    tell : called with the share that is done, 0..1

    Raises
    ------
    NoResult : nothing serves the demand: the nearest miss
    """
    began = time.perf_counter()
    refused: list[Option] = []
    priced = priced_cuts(problem, refused.append, tell)
    table = option_table(problem, priced, refused)
    good = table.good()
    if not problem.demand.rate:
        good = sorted(good, key=lambda o: (-o.per_device, o.devices))
    split = None
    if disaggregate:
        try:
            split = best_split(problem, priced)
        except NoResult:
            split = None
    if not good and split is None:
        raise NoResult(_nearest(problem, table))
    best = good[0] if good else None
    if split is not None and (best is None or _objective(problem, split) < _objective(problem, best)):
        deployment = Deployment(prefill=split.prefill, decode=split.decode)
        devices, goodput, value = split.devices, split.goodput, _objective(problem, split)
    else:
        assert best is not None
        deployment, devices = Deployment(serve=best.pool), best.devices
        goodput, value = best.goodput * best.pool.replicas, _objective(problem, best)
    seconds = time.perf_counter() - began
    method = f"closed form over all {len(table.options)} options"
    answer = Deployed(deployment, devices, goodput, table, split)
    return Solution(answer, value, value, method, "optimal", seconds, (Point(seconds, value, value),))


def _objective(problem: ParallelismProblem, chosen: Option | Split) -> float:
    return float(chosen.devices) if problem.demand.rate else -chosen.per_device


def _nearest(problem: ParallelismProblem, table: Table) -> str:
    """Say what is short: devices if some option meets the targets, else the target missed least, else memory."""
    short = [o for o in table.options if o.status == "short of devices"]
    if short:
        best = min(short, key=lambda o: o.devices)
        return (
            f"parallelism: short of devices: {best.devices} needed for {problem.demand.rate:.4g} request/s, "
            f"{problem.devices} there, {best.devices - problem.devices} short"
        )
    missed = [o for o in table.options if o.status == "misses a target"]
    if missed:
        best = min(missed, key=lambda o: math.inf if math.isnan(o.tpot_s) else o.tpot_s)
        return (
            f"parallelism: no option meets its targets; nearest, tp {best.pool.parallelism.tp}: {best.reason}"
        )
    for status in ("does not fit", "not allowed"):
        rows = [o for o in table.options if o.status == status]
        if rows:
            return f"parallelism: nothing fits; last tried: {rows[-1].reason}"
    return "parallelism: no option was tried"
