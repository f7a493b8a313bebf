"""Alike: the busiest of ranks whose experts are equally popular: one rank's load speaks for all, in closed form.

The same expectation as ``expected.straggler_factor`` for uniform popularity and an equal split, where a rank's load is
one binomial instead of a product of transforms over its experts: microseconds per token count.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import numpy.typing as npt

from moesim.errors import SpecError
from moesim.routing.expected import DISCRETE_ROWS, EXACT_ROWS

__all__ = ["straggler_alike"]

FloatArray = npt.NDArray[np.float64]


def straggler_alike(experts: int, k: int, tokens: npt.ArrayLike, ranks: int) -> FloatArray:
    """Return the expected load of the busiest rank over the mean load, every expert and every rank alike.

    Equal to ``straggler_factor`` with uniform popularity on ``ranks`` equal parts up to rounding (tests), but exact
    at every count: nothing is interpolated.

    Parameters
    ----------
    experts, k : of the layer, per token
    tokens : integers >= 0, any shape; 0 tokens give 1
    ranks : divides the experts

    Returns
    -------
    factor >= 1, the shape of ``tokens``

    Raises
    ------
    SpecError : k is not within the experts, or ranks do not divide them

    >>> float(straggler_alike(8, 2, 1, 8))  # one token: two of eight ranks have one row each
    4.0
    """
    if not 1 <= k <= experts or ranks < 1 or experts % ranks:
        raise SpecError(f"experts {experts}, k {k}, ranks {ranks}: expected k <= experts, ranks a divisor")
    count = np.asarray(tokens, dtype=np.int64)
    if count.size and count.min() < 0:
        raise SpecError(f"tokens {count.min()}: expected at least 0")
    if ranks == 1 or k == experts:
        return np.ones(count.shape)
    asked, place = np.unique(count, return_inverse=True)
    found = [_busiest(experts, k, int(t), ranks) * ranks / (k * t) if t > 0 else 1.0 for t in asked]
    return np.asarray(np.maximum(found, 1.0)[place].reshape(count.shape))


def _busiest(experts: int, k: int, tokens: int, ranks: int) -> float:
    """E max of rank loads in rows; the cases are those of ``expected``."""
    q, mean = k / experts, tokens * k / ranks
    own = experts // ranks
    if mean > DISCRETE_ROWS:
        spread = math.sqrt(tokens * own * q * (1 - q) * experts / max(experts - 1, 1))
        return mean + spread * _normal_maximum(ranks)
    rows = tokens * k
    if rows <= EXACT_ROWS:
        found = _exact(_binomial(tokens * own, q, rows + 1), tokens * experts, q, rows, ranks)
    else:
        size = int(mean + 12 * math.sqrt(mean) + 24)
        found = _local(_binomial(tokens * own, q, size), rows, ranks)
    short = math.sqrt((tokens * experts - 1) / (tokens * (experts - 1)))
    return mean + max(found - mean, 0.0) * short


def _binomial(trials: int, q: float, size: int) -> FloatArray:
    """Return the probabilities of 0 to ``size - 1`` successes."""
    done = np.arange(size - 1, dtype=np.float64)
    ratio = np.maximum(trials - done, 0.0) / (done + 1) * (q / (1 - q))
    return np.asarray((1 - q) ** trials * np.cumprod(np.r_[1.0, ratio]))


def _exact(pmf: FloatArray, trials: int, q: float, rows: int, ranks: int) -> float:
    """Return E max given the total: the ranks' truncated generating functions to the power of ``ranks``."""
    levels = np.arange(rows)
    base = np.where(np.arange(rows + 1)[None, :] <= levels[:, None], pmf, 0.0)  # [level, rows]
    length, power = 1 << (2 * rows + 1).bit_length(), ranks
    at_most = np.zeros_like(base)
    at_most[:, 0] = 1.0
    while power:
        image = np.fft.rfft(base, length)
        if power & 1:
            at_most = np.maximum(np.fft.irfft(np.fft.rfft(at_most, length) * image, length), 0.0)
            at_most = at_most[:, : rows + 1]
        power >>= 1
        if power:
            base = np.maximum(np.fft.irfft(image * image, length), 0.0)[:, : rows + 1]
    whole = _binomial(trials, q, rows + 1)[rows]
    return float((1 - np.clip(at_most[:, rows] / whole, 0.0, 1.0)).sum())


def _local(pmf: FloatArray, rows: int, ranks: int) -> float:
    """Return E max with the total held by a local normal limit of the sum of the truncated loads."""
    load = np.arange(len(pmf))
    below = np.maximum(np.cumsum(pmf), 1e-300)
    first = np.cumsum(pmf * load) / below
    second = np.cumsum(pmf * load**2) / below
    variance = np.maximum(ranks * (second - first**2), 1e-12)
    log_density = -((ranks * first - rows) ** 2) / (2 * variance) - 0.5 * np.log(variance)
    at_most = np.exp(np.minimum(ranks * np.log(below) + log_density - log_density[-1], 0.0))
    return float((1 - np.clip(np.maximum.accumulate(at_most), 0.0, 1.0)).sum())


@cache
def _normal_maximum(ranks: int) -> float:
    """Return the mean of the largest of ``ranks`` standard normal values, by the rule that ``expected`` uses."""
    z = np.linspace(-8.0, 8.0, 401)
    below = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in z.tolist()])
    return float(8.0 - np.trapezoid(below**ranks, z))
