"""Figures: the numbers of each figure as plain data, apart from their drawing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moesim.results.latency import e2e_s, tpot_s, ttft_s
from moesim.results.targets import limits_of

if TYPE_CHECKING:
    import pandas as pd

    from moesim.results import Result

__all__ = ["cdf", "expert_load", "latency_cdfs", "presence", "samples", "time_by"]

FloatArray = npt.NDArray[np.float64]
SOURCES = ("measured", "fitted", "bound")
_MOST_CELLS = 60_000


def cdf(values: FloatArray, points: int = 1000) -> dict[str, list[float]]:
    """Return the empirical distribution: ``value`` ascending and ``share`` of values at or below it.

    Parameters
    ----------
    values : [n], NaN left out
    points : most points kept; the smallest and the largest value always are

    Returns
    -------
    dict of two lists of equal length, empty without values
    """
    known = np.sort(values[~np.isnan(values)])
    if not known.size:
        return {"value": [], "share": []}
    kept = np.unique(np.linspace(0, known.size - 1, min(points, known.size)).round().astype(np.int64))
    return {"value": known[kept].tolist(), "share": ((kept + 1) / known.size).tolist()}


def latency_cdfs(result: Result, points: int = 1000) -> list[dict[str, Any]]:
    """Return the distributions of TTFT, TPOT and e2e: ``metric``, ``value`` (seconds), ``share`` of requests.

    Measured requests only, ``requests`` of them. ``limit_s`` and ``percentile`` are the target or None.
    """
    requests = result.tables.requests
    measured = requests.loc[requests["measured"]]
    limits = limits_of(result.manifest["scenario"])
    found = []
    for metric, values in {
        "ttft": ttft_s(measured),
        "tpot": tpot_s(measured),
        "e2e": e2e_s(measured),
    }.items():
        limit = limits.seconds.get(metric)
        found.append(
            {
                "metric": metric,
                **cdf(values, points),
                "requests": int((~np.isnan(values)).sum()),
                "limit_s": limit,
                "percentile": None if limit is None else limits.percentile,
            }
        )
    return found


def presence(result: Result, points: int = 400) -> dict[str, list[float]]:
    """Count exactly how many requests wait, prefill and decode at ``points`` evenly spaced times.

    Waiting: arrived, no step yet. Prefill: from the first step to the first token. Decode: from there to the
    finish, KV transfer and preemption included. Rejected requests are never present.
    """
    requests = result.tables.requests
    end = float(result.manifest["simulated_s"])
    time = np.linspace(0.0, end, points)
    kept = requests.loc[requests["status"] != "rejected"]
    marks = [_times(kept, n) for n in ("arrival_s", "scheduled_s", "first_token_s", "finish_s")]
    reached = [np.searchsorted(np.sort(m[~np.isnan(m)]), time, side="right") for m in marks]
    names = ("waiting", "prefill", "decode")
    between = {n: (reached[i] - reached[i + 1]).astype(np.float64).tolist() for i, n in enumerate(names)}
    return {"time_s": time.tolist(), **between}


def samples(result: Result, bins: int = 200) -> list[dict[str, Any]]:
    """Return per pool the sampled steps averaged over intervals of time.

    Returns
    -------
    per pool: ``pool``, ``time_s`` (middle of the interval), and the means over its samples of ``waiting`` and
    ``running`` (requests per replica) and ``kv_used`` (0..1); None where no step was sampled
    """
    timeline, end = result.tables.timeline, float(result.manifest["simulated_s"])
    if end <= 0:
        return []
    edges = np.linspace(0.0, end, bins + 1)
    found = []
    for pool, rows in timeline.groupby("pool", sort=False):
        place = np.clip(np.searchsorted(edges, _times(rows, "time_s"), side="right") - 1, 0, bins - 1)
        count = np.bincount(place, minlength=bins)
        means = {
            name: [
                None if n == 0 else float(s / n)
                for s, n in zip(np.bincount(place, _times(rows, name), bins), count, strict=True)
            ]
            for name in ("waiting", "running", "kv_used")
        }
        found.append({"pool": str(pool), "time_s": ((edges[1:] + edges[:-1]) / 2).tolist(), **means})
    return found


def time_by(result: Result, column: str, most: int = 15) -> list[dict[str, Any]]:
    """Return engine seconds by ``kind`` or ``op``, split by source, largest first.

    Parameters
    ----------
    column : ``kind`` or ``op``; ops of several pools carry the pool's name
    most : rows kept; the rest is one row ``(n others)``

    Returns
    -------
    per row: ``name``, seconds per source (``measured``, ``fitted``, ``bound``), ``seconds``, ``share`` of all
    """
    ops = result.tables.ops
    names = ops[column].astype(str)
    if column == "op" and len(set(ops["pool"])) > 1:
        names = ops["pool"].astype(str) + ": " + names
    table = ops.assign(name=names).pivot_table("seconds", "name", "source", "sum", fill_value=0.0, sort=False)
    table = table.reindex(columns=list(SOURCES), fill_value=0.0)
    table = table.loc[table.sum(axis=1).sort_values(ascending=False, kind="stable").index]
    total = float(table.to_numpy().sum())
    rows = [(str(name), values) for name, values in zip(table.index, table.to_numpy(), strict=True)]
    if len(rows) > most:
        rest = np.sum([values for _, values in rows[most - 1 :]], axis=0)
        rows = [*rows[: most - 1], (f"({len(rows) - most + 1} others)", rest)]
    return [
        {
            "name": name,
            **dict(zip(SOURCES, values.tolist(), strict=True)),
            "seconds": float(values.sum()),
            "share": float(values.sum() / total) if total > 0 else 0.0,
        }
        for name, values in rows
    ]


def expert_load(result: Result) -> dict[str, Any] | None:
    """Return the load of each expert of each layer over an even share (1 is even); None where unrecorded.

    Copies of an expert on several ranks are added up. ``group`` experts share a column where there are too
    many to draw; ``rank_peak`` is the busiest rank's load over an even one, per layer: what the other ranks
    wait for.

    Returns
    -------
    dict with ``layers`` [l], ``experts`` [e] (first expert of each column), ``relative`` [l][e], ``group``,
    ``rank_peak`` [l], ``ranks``
    """
    experts = result.tables.experts
    if experts.empty:
        return None
    table = experts.pivot_table("load", "layer", "expert", "sum", fill_value=0.0)
    width = table.shape[1]
    relative = table.to_numpy() * width
    group = max(1, -(-relative.size // _MOST_CELLS))
    starts = np.arange(0, width, group)
    sizes = np.diff(np.append(starts, width))
    relative = np.add.reduceat(relative, starts, axis=1) / sizes
    by_rank = experts.pivot_table("load", "layer", "rank", "sum", fill_value=0.0).to_numpy()
    return {
        "layers": [int(v) for v in table.index],
        "experts": [int(v) for v in table.columns.to_numpy()[starts]],
        "relative": relative.tolist(),
        "group": group,
        "rank_peak": (by_rank.max(axis=1) * by_rank.shape[1]).tolist(),
        "ranks": int(by_rank.shape[1]),
    }


def _times(frame: pd.DataFrame, name: str) -> FloatArray:
    return frame[name].to_numpy(dtype=np.float64)
