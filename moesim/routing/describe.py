"""Tables of routing statistics: a trace as recorded, beside samples of a fitted model."""

from __future__ import annotations

import numpy as np
import pandas as pd

from moesim.errors import SpecError
from moesim.routing.model import RoutingModel
from moesim.routing.sample import sample_sequences
from moesim.routing.statistics import (
    BATCHES,
    distinct_consecutive,
    distinct_mixed,
    hottest_over_mean,
    independent_overlap,
    lru_hit_rate,
    previous_overlap,
    top1_information,
)
from moesim.routing.trace import RoutingTrace
from moesim.spec.routing import Fitted, RoutingSpec

__all__ = ["describe", "summarise"]


def summarise(trace: RoutingTrace, seed: int = 0) -> dict[str, float]:
    """Return the statistics of a trace by name, means over layers.

    ``previous_overlap``, ``independent_overlap`` (share of k), ``hottest_over_mean``, ``top1_information_bits``
    (Miller-Madow), ``lru_hit_rate_S`` with S slots of E (eighths of E), ``distinct_consecutive_B`` and
    ``distinct_mixed_B`` for B tokens of one sequence and of all. What a trace is too short for is left out.

    Parameters
    ----------
    seed : for the random batches of ``distinct_mixed``
    """
    found = {
        "previous_overlap": float(previous_overlap(trace).mean()),
        "independent_overlap": float(independent_overlap(trace).mean()),
        "hottest_over_mean": float(hottest_over_mean(trace).mean()),
    }
    if trace.layers > 1:
        found["top1_information_bits"] = float(top1_information(trace).mean())
    slots = sorted({trace.total * part // 8 for part in (1, 2, 3, 4, 6)} - {0})
    for size, rate in zip(slots, lru_hit_rate(trace, slots), strict=True):
        found[f"lru_hit_rate_{size}"] = float(rate)
    for name, curve in (
        ("distinct_consecutive", distinct_consecutive(trace)),
        ("distinct_mixed", distinct_mixed(trace, seed=seed)),
    ):
        found |= {f"{name}_{b}": float(v) for b, v in zip(BATCHES, curve, strict=True) if np.isfinite(v)}
    return found


def describe(
    source: RoutingTrace | RoutingSpec, model: RoutingModel | None = None, seed: int = 0
) -> pd.DataFrame:
    """Return a table of statistics: ``statistic``, ``recorded``, and where known ``sampled`` and ``relative_error``.

    Parameters
    ----------
    source : a trace; or a fitted spec, whose own held-out comparison is shown
    model : sample this model in sequences as long as the trace's, and compare
    seed : of the samples

    Raises
    ------
    SpecError : a spec that is not fitted, or a model of other dimensions than the trace
    """
    if isinstance(source, RoutingSpec):
        if not isinstance(source.router, Fitted):
            raise SpecError(f"routing {source.name}: {source.router.kind} routing has no fitted statistics")
        pairs = {name: tuple(pair) for name, pair in source.router.summary.items()}
        frame = pd.DataFrame(
            [(name, *pair) for name, pair in pairs.items()], columns=["statistic", "recorded", "sampled"]
        )
    else:
        recorded = summarise(source, seed)
        frame = pd.DataFrame({"statistic": list(recorded), "recorded": list(recorded.values())})
        if model is None:
            return frame
        if (model.layers, model.experts, model.top_k) != (source.layers, source.total, source.top_k):
            raise SpecError(
                f"routing model of {model.layers} layers, {model.experts} experts, top {model.top_k}: the trace "
                f"has {source.layers}, {source.total} and {source.top_k}"
            )
        sampled = summarise(sample_sequences(model, source.length, seed), seed)
        frame["sampled"] = [sampled[name] for name in recorded]
    frame["relative_error"] = frame["sampled"] / frame["recorded"] - 1
    return frame
