"""Access: how often a recorded router asks for each expert, how often again in the next step, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moesim.errors import SpecError
from moesim.plan.tiering.problem import FloatArray, Tiering, TieringProblem

if TYPE_CHECKING:
    import numpy.typing as npt

    from moesim.routing.trace import RoutingTrace

__all__ = ["Accesses", "count_accesses", "replay_seconds", "steps_of"]


@dataclass(frozen=True, slots=True, eq=False)
class Accesses:
    """What a trace asks of the experts, flattened layer by layer.

    Attributes
    ----------
    touches : steps that use the expert over all steps, [layer * experts]
    reuse : share of them that directly follow another one, [layer * experts]; 0 where never used
    steps : how many steps were counted
    """

    touches: FloatArray
    reuse: FloatArray
    steps: int


def steps_of(trace: RoutingTrace, batch: int) -> npt.NDArray[np.bool_]:
    """Return which experts each step uses, [step, layer * experts].

    The trace's tokens are dealt to ``batch`` lanes in contiguous parts, each lane plays its part one token per
    step; what does not fill the lanes evenly is left out.

    Raises
    ------
    SpecError : fewer tokens than lanes
    """
    steps = len(trace.experts) // batch if batch > 0 else 0
    if steps == 0:
        raise SpecError(f"tiering: batch {batch}: expected 1 to the {len(trace.experts)} tokens of the trace")
    used = np.zeros((steps, trace.layers, trace.total), dtype=bool)
    at = np.arange(steps)[:, None, None]
    layer = np.arange(trace.layers)[None, :, None]
    for lane in range(batch):
        used[at, layer, trace.experts[lane * steps : (lane + 1) * steps]] = True
    return used.reshape(steps, -1)


def count_accesses(trace: RoutingTrace, batch: int) -> Accesses:
    """Count touches and reuse when ``batch`` sequences decode together.

    Raises
    ------
    SpecError : fewer tokens than lanes
    """
    used = steps_of(trace, batch)
    touched = used.sum(axis=0)
    again = (used[1:] & used[:-1]).sum(axis=0)
    return Accesses(
        touched / len(used),
        np.divide(again, touched, out=np.zeros(len(touched)), where=touched > 0),
        len(used),
    )


def replay_seconds(problem: TieringProblem, answer: Tiering, used: npt.NDArray[np.bool_]) -> FloatArray:
    """Return the seconds each step spends on experts, [step], counted load by load; the objective is their mean.

    Parameters
    ----------
    problem : prices and sizes; its touches and reuse are not read
    answer : where experts live
    used : [step, E], as ``steps_of`` returns
    """
    rows = np.arange(problem.experts)
    size, tier = problem.size[rows, answer.width], answer.tier
    bandwidth = np.array([t.bandwidth for t in problem.tiers])[tier]
    latency = np.array([t.latency for t in problem.tiers])[tier]
    staged = np.array([t.staged for t in problem.tiers])[tier]
    work = problem.tiers[problem.working]
    load = np.asarray(problem.load_s or (0.0,) * len(problem.bits))[answer.width]
    read = size / bandwidth + latency
    seconds = np.empty(len(used))
    before = np.zeros(problem.experts, dtype=bool)
    for step, now in enumerate(used):
        copied = now & staged & ~before
        inplace = now & ~staged
        seconds[step] = (
            float(np.sum(read[inplace]))
            + float(np.sum((read + load)[copied]))
            + float(np.sum((size / work.bandwidth + work.latency)[now & staged]))
        )
        before = now
    return seconds
