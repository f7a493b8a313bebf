"""Calibrate a fitted routing model by simulation, until its samples show the trace's own moments.

Likelihood fits each draw given the recorded past. A sample's past is its own, so small errors feed back; the few
moments that matter are therefore matched by stochastic approximation (Robbins and Monro 1951): sample, compare, step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moesim.routing.model import HALF_LIVES, RoutingModel
from moesim.routing.sample import sample_sequences
from moesim.routing.statistics import distinct_windows, lagged_overlap, popularity, top1_information

if TYPE_CHECKING:
    from moesim.routing.trace import RoutingTrace

__all__ = ["match_moments"]

FloatArray = npt.NDArray[np.float64]

LAGS = (1, 4)
"""Token distances whose overlap is matched, by the memories of the previous token's set and of half-life 8."""
WINDOWS = (32, 128)
"""Consecutive tokens whose distinct experts are matched, by the memories of half-life 32 and of the whole sequence."""
_DRIVERS = (0, *(2 + HALF_LIVES.index(half) for half in (8.0, 32.0, np.inf)))
_DAMPING = 0.6
"""Memory weights start at this share of their likelihood estimate: from the stable side of the feedback."""
_PSEUDO = 4.0
"""Choices added to both counts before their ratio is taken."""
_GAINS = (0.8, 0.5, 1.5, 1.5)
"""Step of each driver per unit of log overlap, and of log distinct experts."""
_FEWEST_WINDOWS = 50
"""Windows below which their distinct experts are too noisy to match."""


@dataclass(frozen=True, slots=True)
class _Moments:
    top: FloatArray  # [layer, E] counts
    rest: FloatArray
    persistence: FloatArray  # [lag or window, layer] log overlap, or minus log distinct; NaN where too few
    information: FloatArray  # [layer - 1]


def _moments(trace: RoutingTrace) -> _Moments:
    number = len(trace.experts)
    top = np.stack(
        [np.bincount(trace.experts[:, layer, 0], minlength=trace.total) for layer in range(trace.layers)]
    )
    return _Moments(
        top=top.astype(np.float64),
        rest=popularity(trace) * number - top,
        persistence=np.stack(
            [
                *(np.log(np.maximum(lagged_overlap(trace, lag), 1e-6)) for lag in LAGS),
                *(_crowding(trace, window) for window in WINDOWS),
            ]
        ),
        information=top1_information(trace, corrected=False),
    )


def _crowding(trace: RoutingTrace, window: int) -> FloatArray:
    enough = (trace.length // window).sum() >= _FEWEST_WINDOWS
    return -np.log(distinct_windows(trace, window)) if enough else np.full(trace.layers, np.nan)


def match_moments(model: RoutingModel, trace: RoutingTrace, rounds: int = 40, seed: int = 0) -> RoutingModel:
    """Return the model with biases, affinity strength and four memory weights per layer adjusted.

    Matched per layer: how often each expert is drawn first and later (biases), overlap at the distances ``LAGS``
    and distinct experts in the ``WINDOWS`` (memories), mutual information of adjacent layers' heaviest experts
    (one factor on the tables from below). Only ``trace`` is looked at. The last third of the iterates is averaged.

    Parameters
    ----------
    trace : the sequences the model was fitted on; as many of the same lengths are sampled per round
    rounds : samplings
    """
    goal = _moments(trace)
    known = np.flatnonzero(np.isfinite(goal.persistence).all(axis=1))
    strength = np.ones(model.layers)
    top_bias, rest_bias = model.top_bias.astype(np.float64), model.rest_bias.astype(np.float64)
    top_memory, rest_memory = _DAMPING * model.top_memory, _DAMPING * model.rest_memory
    state = [top_bias, rest_bias, top_memory.astype(np.float64), rest_memory.astype(np.float64), strength]
    kept: list[list[FloatArray]] = []
    for number in range(rounds):
        sampled = _moments(sample_sequences(_with(model, state), trace.length, seed, f"calibrate {number}"))
        step = min(1.0, 10 / (number + 1))
        state = [part.copy() for part in state]
        state[0] += step * 0.7 * np.clip(np.log((goal.top + _PSEUDO) / (sampled.top + _PSEUDO)), -1, 1)
        state[1] += step * 0.7 * np.clip(np.log((goal.rest + _PSEUDO) / (sampled.rest + _PSEUDO)), -1, 1)
        for index in known:
            error = np.clip(goal.persistence[index] - sampled.persistence[index], -0.5, 0.5)
            for memory in state[2:4]:
                memory[:, _DRIVERS[index]] += step * _GAINS[index] * error
        ratio = goal.information / np.maximum(sampled.information, 1e-6)
        state[4][1:] *= np.clip(ratio, 0.7, 1.4) ** (0.6 * step)
        if number >= rounds - max(1, rounds // 3):
            kept.append(state)
    return _with(model, [np.mean(part, axis=0) for part in zip(*kept, strict=True)])


def _with(model: RoutingModel, state: list[FloatArray]) -> RoutingModel:
    top_bias, rest_bias, top_memory, rest_memory, strength = (part.astype(np.float32) for part in state)
    factor = strength[:, None, None]
    return replace(
        model,
        top_bias=top_bias,
        rest_bias=rest_bias,
        top_memory=top_memory,
        rest_memory=rest_memory,
        top_from_top=model.top_from_top * factor,
        top_from_rest=model.top_from_rest * factor,
        rest_from_top=model.rest_from_top * factor,
        rest_from_rest=model.rest_from_rest * factor,
    )
