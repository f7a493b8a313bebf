"""Latency: times of each request, and how a set of times is summed up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "PERCENTILES",
    "Spread",
    "e2e_s",
    "histogram_spread",
    "pooled_tpot_s",
    "queue_s",
    "spread",
    "tpot_s",
    "ttft_s",
]

FloatArray = npt.NDArray[np.float64]
Spread = dict[str, float | None]
PERCENTILES = (50, 90, 95, 99)


def ttft_s(requests: pd.DataFrame) -> FloatArray:
    """Time to first token: ``first_token_s - arrival_s`` in seconds, queueing included.

    Parameters
    ----------
    requests : table ``requests``, n rows

    Returns
    -------
    [n] seconds, NaN where no token was produced
    """
    return _column(requests, "first_token_s") - _column(requests, "arrival_s")


def queue_s(requests: pd.DataFrame) -> FloatArray:
    """Queue time: ``scheduled_s - arrival_s`` in seconds [n]; NaN where no step worked on the request."""
    return _column(requests, "scheduled_s") - _column(requests, "arrival_s")


def e2e_s(requests: pd.DataFrame) -> FloatArray:
    """End-to-end latency: ``finish_s - arrival_s`` in seconds [n]; NaN where the request did not finish."""
    return _column(requests, "finish_s") - _column(requests, "arrival_s")


def tpot_s(requests: pd.DataFrame) -> FloatArray:
    """Time per output token of each request: ``(e2e - ttft) / (output_tokens - 1)`` in seconds.

    The definition of vLLM's serving benchmark: one value per request, so a short request weighs as much as a
    long one.

    Returns
    -------
    [n] seconds, NaN where the request did not finish or asked for one token only
    """
    gaps = _column(requests, "output_tokens") - 1.0
    decode = _column(requests, "finish_s") - _column(requests, "first_token_s")
    per_token: FloatArray = np.divide(decode, gaps, out=np.full(len(requests), np.nan), where=gaps > 0)
    return per_token


def pooled_tpot_s(requests: pd.DataFrame) -> float | None:
    """Pooled time per output token in seconds: decode time over ``output_tokens - 1``, each summed first.

    A token weighs as much as any other, so this is the mean gap between tokens of the finished requests. None
    when no finished request has two tokens.
    """
    decode = _column(requests, "finish_s") - _column(requests, "first_token_s")
    gaps = _column(requests, "output_tokens") - 1.0
    counted = np.isfinite(decode) & (gaps > 0)
    return float(decode[counted].sum() / gaps[counted].sum()) if counted.any() else None


def spread(values: FloatArray) -> Spread:
    """Sum up values: mean and percentiles 50, 90, 95, 99, NaN left out.

    Percentiles interpolate linearly between the two nearest order statistics: percentile p of n sorted values
    stands at position ``(n - 1) p / 100`` (numpy's ``linear``, Hyndman and Fan 1996 type 7). All None without
    values.
    """
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    if not known.size:
        return dict.fromkeys(("mean", *(f"p{p}" for p in PERCENTILES)))
    at = np.percentile(known, PERCENTILES)
    return {"mean": float(known.mean()), **{f"p{p}": float(v) for p, v in zip(PERCENTILES, at, strict=True)}}


def histogram_spread(histogram: pd.DataFrame) -> Spread:
    """Sum up the gaps between tokens from table ``itl``: mean and percentiles in seconds.

    Gaps are taken as evenly spread inside their bin, so a value is off by at most the width of its bin. Bins
    of several pools are merged. All None without gaps.
    """
    filled = histogram.loc[_column(histogram, "tokens") != 0].sort_values(["low_s", "high_s"], kind="stable")
    low, high, count = (_column(filled, name) for name in ("low_s", "high_s", "tokens"))
    if not count.size or count.sum() <= 0:
        return dict.fromkeys(("mean", *(f"p{p}" for p in PERCENTILES)))
    # bins of pools may be cut differently: the mass below each edge is added up bin by bin
    edges = np.unique(np.concatenate([low, high]))
    width = high - low
    inside = np.zeros(len(edges))
    for lower, upper, wide, tokens in zip(low, high, width, count, strict=True):
        part = np.clip(edges - lower, 0.0, wide) / wide if wide > 0 else (edges >= upper).astype(np.float64)
        inside += part * tokens
    share = inside / count.sum()
    mean = float(np.dot((low + high) / 2, count) / count.sum())
    at = [_quantile(edges, share, p / 100) for p in PERCENTILES]
    return {"mean": mean, **{f"p{p}": v for p, v in zip(PERCENTILES, at, strict=True)}}


def _quantile(edges: FloatArray, share: FloatArray, wanted: float) -> float:
    """Return where the cumulative ``share`` at ``edges`` first reaches ``wanted``, linear between edges."""
    above = int(np.argmax(share >= wanted - 1e-15))
    if above == 0:
        return float(edges[0])
    step = share[above] - share[above - 1]
    part = (wanted - share[above - 1]) / step if step > 0 else 1.0
    return float(edges[above - 1] + np.clip(part, 0.0, 1.0) * (edges[above] - edges[above - 1]))


def _column(frame: pd.DataFrame, name: str) -> FloatArray:
    return frame[name].to_numpy(dtype=np.float64)
