"""Replicas: the fewest copies that reach a wanted balance."""

from __future__ import annotations

import time
from collections.abc import Callable

from moesim.errors import NoResult, SpecError
from moesim.plan.balance.problem import Balance, FloatArray, IntArray
from moesim.plan.balance.solve import Effort, balance
from moesim.plan.solution import Limits, Point, Solution

__all__ = ["fewest_replicas"]


def fewest_replicas(
    problem: Balance,
    wanted: float,
    limits: Limits | None = None,
    *,
    most_slots: int | None = None,
    spread: FloatArray | None = None,
    effort: Effort | None = None,
    on_progress: Callable[[Point], None] | None = None,
) -> Solution[IntArray]:
    """Return the placement of fewest redundant copies per layer whose mean objective is at most ``wanted``.

    Slots per rank are tried upwards from the fewest that hold all experts (``problem.slots`` is not used). The
    objective is redundant copies per layer; its bound counts on from the last number of slots whose own bound is
    above ``wanted``, without a gap from the fewest on.

    Parameters
    ----------
    wanted : busiest rank over mean rank, mean over layers (or the mix of them), such as 1.05
    most_slots : most slots per rank (memory); none: all experts everywhere, which is perfect balance

    Raises
    ------
    NoResult : not reached with ``most_slots``; says by how much it is missed
    """
    began = time.perf_counter()
    limits = limits or Limits()
    fewest = -(-problem.experts // problem.ranks)
    most = problem.experts if most_slots is None else most_slots
    if not wanted >= (1.0 if problem.mix is None else float(problem.mix.sum())):
        raise SpecError(f"wanted balance {wanted:g}: expected 1 or more, the busiest rank over the mean")
    if most < fewest:
        raise NoResult(f"slots: {most} per rank hold {most * problem.ranks} of {problem.experts} experts")
    proven = True
    bound = fewest
    history: list[Point] = []
    best, best_slots = float("inf"), fewest
    for slots in range(fewest, most + 1):
        left = max(limits.seconds - (time.perf_counter() - began), 0.0)
        own = Limits(left, limits.gap, limits.seed)
        plan = balance(problem.with_slots(slots), own, spread=spread, effort=effort)
        spare = slots * problem.ranks - problem.experts
        if plan.objective <= wanted:
            least = bound * problem.ranks - problem.experts
            seconds = time.perf_counter() - began
            history.append(Point(seconds, spare, least))
            return Solution(
                plan.answer,
                float(spare),
                float(least),
                f"slots per rank upwards from {fewest}; {plan.method}",
                "optimal" if least == spare else "feasible",
                seconds,
                tuple(history),
            )
        proven = proven and plan.bound > wanted
        bound = slots + 1 if proven else bound
        if plan.objective < best:
            best, best_slots = plan.objective, slots
        history.append(
            Point(time.perf_counter() - began, float("inf"), bound * problem.ranks - problem.experts)
        )
        if on_progress is not None:
            on_progress(history[-1])
    raise NoResult(
        f"balance {wanted:g} is not reached: {best:.4g} with {best_slots} slots per rank, {best - wanted:.2g} above"
    )
