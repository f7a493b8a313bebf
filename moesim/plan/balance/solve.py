"""Balance and robust balance: list scheduling, annealing per layer, and a certified bound beside every answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from moesim.errors import SpecError
from moesim.plan.balance.baselines import pooled, vector_lpt
from moesim.plan.balance.bounds import layer_bound, row_bounds
from moesim.plan.balance.exact import exact_layer, is_small
from moesim.plan.balance.problem import Balance, FloatArray, IntArray, check_placement, worth
from moesim.plan.balance.search import improve, tops
from moesim.plan.solution import Limits, Point, Solution

__all__ = ["Effort", "balance"]

_BOUND_GAP: Final = 0.002


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard to search; the answer depends on these and the seed, not on the machine, while time lasts.

    Attributes
    ----------
    steps : moves tried per layer
    bound_seconds : most per layer for the bound of patterns; 0: the bounds that cost nothing
    exact : prove small layers optimal by a program
    """

    steps: int = 200_000
    bound_seconds: float = 1.0
    exact: bool = True


def balance(
    problem: Balance,
    limits: Limits | None = None,
    *,
    start: npt.ArrayLike | None = None,
    spread: FloatArray | None = None,
    effort: Effort | None = None,
    on_progress: Callable[[Point], None] | None = None,
) -> Solution[IntArray]:
    """Place the copies of every layer's experts so that the worst scenario (or the mix) is balanced best.

    The objective is the mean over layers of busiest rank over mean rank: what one step of equal layers waits for.
    Layers are solved one by one, so an interrupt or the end of the time keeps pooled EPLB or list scheduling,
    whichever is better, for the layers not reached. No layer is worse than those two, nor than ``start``, except by
    the 1 % that ``spread`` may cost.

    Parameters
    ----------
    limits : seconds, gap at which no better bound is looked for, seed; default 60 s and a proof
    start : int [layer, slot], a placement to start from as well, such as the present one
    spread : float64 [direction, layer, expert], how loads vary within a scenario (``spread_of``); steadier plans on
        unseen traffic for at most 1 % of the objective. No layer is then proven optimal
    on_progress : called after each layer with the mean objective and bound so far

    Raises
    ------
    SpecError : a start or spread that does not fit the problem
    """
    began = time.perf_counter()
    limits = limits or Limits()
    effort = effort or Effort()
    relative = problem.relative()
    mix = problem.mix
    candidates = [pooled(problem), vector_lpt(problem)]
    if start is not None:
        candidates.append(check_placement(problem, start))
    if spread is not None and spread.shape[1:] != relative.shape[1:]:
        raise SpecError(f"spread {spread.shape}: expected [direction, {problem.layers}, {problem.experts}]")
    values = np.stack([worth(problem, c) for c in candidates])
    pick = values.argmin(axis=0)
    answer = np.stack([candidates[c][layer] for layer, c in enumerate(pick)])
    objective = values.min(axis=0)
    bounds = np.empty(problem.layers)
    for layer in range(problem.layers):
        floor = row_bounds(relative[:, layer], problem.ranks, problem.slots)
        bounds[layer] = floor.max() if mix is None else mix @ floor
    bounds = np.minimum(bounds, objective)
    history = [Point(time.perf_counter() - began, float(objective.mean()), float(bounds.mean()))]
    proven = 0
    try:
        for layer in range(problem.layers):
            left = limits.seconds - (time.perf_counter() - began)
            if left <= 0:
                break
            rows = np.ascontiguousarray(relative[:, layer])
            if objective[layer] > bounds[layer] * (1 + 1e-12) or spread is not None:
                answer[layer] = improve(
                    rows,
                    answer[layer],
                    problem.ranks,
                    mix,
                    steps=effort.steps,
                    seed=limits.seed + layer,
                    spread=None if spread is None else spread[:, layer],
                )
                objective[layer] = _layer_worth(rows, answer[layer], problem)
            seconds = min(effort.bound_seconds, left / (problem.layers - layer))
            gap = max(limits.gap, _BOUND_GAP)
            bounds[layer] = max(
                bounds[layer],
                layer_bound(rows, problem.ranks, problem.slots, mix, float(objective[layer]), gap, seconds),
            )
            if effort.exact and spread is None and limits.gap == 0 and is_small(problem):
                answer[layer], objective[layer], bounds[layer] = exact_layer(
                    rows, problem.ranks, problem.slots, mix, answer[layer], bounds[layer], limits
                )
            proven += objective[layer] <= bounds[layer] * (1 + 1e-10)
            history.append(Point(time.perf_counter() - began, float(objective.mean()), float(bounds.mean())))
            if on_progress is not None:
                on_progress(history[-1])
    except KeyboardInterrupt:
        pass
    total, bound = float(worth(problem, answer).mean()), float(bounds.mean())
    bound = min(bound, total)
    seconds = time.perf_counter() - began
    done = total - bound <= 1e-9 * max(1.0, total)
    return Solution(
        answer,
        total,
        bound,
        f"EPLB or vector LPT, annealing; {proven} of {problem.layers} layers proven optimal",
        "optimal" if done else "feasible",
        seconds,
        (*history, Point(seconds, total, bound)),
    )


def _layer_worth(rows: FloatArray, slot: IntArray, problem: Balance) -> float:
    each = tops(rows, slot, problem.ranks)
    return float(each.max() if problem.mix is None else problem.mix @ each)
