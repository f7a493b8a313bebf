"""Targets: which requests were served well enough, and whether a run met its targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moesim.errors import SpecError
from moesim.results.latency import e2e_s, tpot_s, ttft_s
from moesim.units import parse_quantity

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from moesim.results.tables import Result

__all__ = ["LIMITED", "Limits", "Verdict", "good_requests", "limits_of", "verdicts"]

FloatArray = npt.NDArray[np.float64]
LIMITED = {"ttft": ttft_s, "tpot": tpot_s, "e2e": e2e_s}


@dataclass(frozen=True, slots=True)
class Limits:
    """Targets of a run in seconds; see ``spec.deployment.Targets``. Without limits the run has no targets."""

    seconds: Mapping[str, float]
    percentile: float = 95.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """One target and how the run stands to it.

    Attributes
    ----------
    metric : ``ttft``, ``tpot`` or ``e2e``
    limit_s : the limit, seconds
    percentile : the percentile that must meet it
    value_s : that percentile over the decided requests, a miss without a time counted as endless; None when
        it is endless or nothing is decided
    share : decided requests within the limit over all decided, None when nothing is decided
    decided, undecided : measured requests whose outcome is known, or cut off before it was
    met : value_s is at most limit_s; None when nothing is decided
    """

    metric: str
    limit_s: float
    percentile: float
    value_s: float | None
    share: float | None
    decided: int
    undecided: int
    met: bool | None


def limits_of(scenario: Mapping[str, Any]) -> Limits:
    """Read ``targets`` of a resolved scenario: text with a unit, or SI seconds.

    Raises
    ------
    SpecError : a limit is neither
    """
    targets = scenario.get("targets") or {}
    seconds = {}
    for metric in LIMITED:
        value = targets.get(metric)
        if value is None:
            continue
        try:
            seconds[metric] = parse_quantity(value, "s") if isinstance(value, str) else float(value)
        except (TypeError, ValueError):
            raise SpecError(f"targets.{metric}  {value!r}: expected seconds, such as '200 ms'") from None
    return Limits(seconds, float(targets.get("percentile", 95.0)))


def verdicts(result: Result) -> list[Verdict]:
    """Judge each target over the measured requests.

    A rejected request misses every limit. A request cut off by the stop rule misses a limit that it had
    already outlived (ttft, e2e); otherwise nobody knows, and it is left out. Requests for one token have no
    tpot.
    """
    limits = limits_of(result.manifest["scenario"])
    requests = _measured(result)
    return [_judge(result, requests, metric, limits) for metric in limits.seconds]


def good_requests(result: Result) -> tuple[int, int] | None:
    """Count (requests that met every limit, requests decided) among the measured; None without targets.

    A request is decided when it finished, was rejected, or had already outlived a limit when it was cut off.
    A request for one token meets a tpot limit.
    """
    limits = limits_of(result.manifest["scenario"])
    if not limits.seconds:
        return None
    requests = _measured(result)
    finished = (requests["status"] == "finished").to_numpy()
    within, missed = np.ones(len(requests), np.bool_), np.zeros(len(requests), np.bool_)
    for metric, limit in limits.seconds.items():
        values = _outcome(result, requests, metric, limit)
        within &= ~(values > limit)
        missed |= values > limit
    return int((finished & within).sum()), int((finished | missed).sum())


def _judge(result: Result, requests: pd.DataFrame, metric: str, limits: Limits) -> Verdict:
    limit = limits.seconds[metric]
    values = _outcome(result, requests, metric, limit)
    judged = requests["output_tokens"].to_numpy() > 1 if metric == "tpot" else np.ones(len(values), np.bool_)
    known = np.sort(values[judged & ~np.isnan(values)])
    undecided = int((judged & np.isnan(values)).sum())
    if not known.size:
        return Verdict(metric, limit, limits.percentile, None, None, 0, undecided, met=None)
    position = (known.size - 1) * limits.percentile / 100
    lower, upper = known[int(position)], known[int(np.ceil(position))]
    value = float(lower if upper == lower else lower + (position % 1) * (upper - lower))
    share = float((known <= limit).mean())
    shown = value if np.isfinite(value) else None
    return Verdict(
        metric, limit, limits.percentile, shown, share, int(known.size), undecided, met=value <= limit
    )


def _outcome(result: Result, requests: pd.DataFrame, metric: str, limit: float) -> FloatArray:
    """Return seconds [n]: inf for a miss whose time is not known, NaN for undecided."""
    values = LIMITED[metric](requests).copy()
    unknown = np.isnan(values)
    values[unknown & (requests["status"] == "rejected").to_numpy()] = np.inf
    if metric != "tpot":
        waited = float(result.manifest["simulated_s"]) - requests["arrival_s"].to_numpy(dtype=np.float64)
        values[unknown & (waited > limit)] = np.inf
    return values


def _measured(result: Result) -> pd.DataFrame:
    requests = result.tables.requests
    return requests.loc[requests["measured"]]
