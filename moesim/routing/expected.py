"""Expectations the cost model needs: distinct experts touched, distinct ranks per token, the busiest rank.

Tokens are independent here; a fitted model's persistence and affinity enter through ``distinct_curve``.
Throughout, ``q`` is the probability that a token uses an expert: it sums to ``k`` over a layer's experts.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from moesim.errors import SpecError
from moesim.routing.gate import group_limited_ranks

__all__ = [
    "expected_distinct",
    "expected_distinct_ranks",
    "inclusion",
    "plackett_luce_inclusion",
    "rank_shares",
    "straggler_factor",
    "zipf_weights",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

EXACT_ROWS = 32
"""Rows (tokens x k) up to which the busiest rank is computed with the total held fixed exactly."""
DISCRETE_ROWS = 64
"""Mean rows of the fullest rank up to which loads are counted in whole rows."""


def zipf_weights(experts: int, exponent: float) -> FloatArray:
    """Return selection weights ``1 / rank**exponent``, [experts], most popular first, summing to 1.

    >>> zipf_weights(4, 0.0)
    array([0.25, 0.25, 0.25, 0.25])
    """
    if experts < 1 or not math.isfinite(exponent) or exponent < 0:
        raise SpecError(
            f"zipf {experts} experts, exponent {exponent}: expected at least one and a non-negative exponent"
        )
    weights = np.arange(1, experts + 1, dtype=np.float64) ** -exponent
    return np.asarray(weights / weights.sum())


def inclusion(popularity: npt.ArrayLike, k: int) -> FloatArray:
    """Return q from shares of choices: ``k * share``, the exact inverse of counting a trace.

    Parameters
    ----------
    popularity : [E] or [layer, E], non-negative, any scale (counts, shares, or q itself)
    k : experts per token

    Raises
    ------
    SpecError : negative or non-finite entries, fewer than k experts with weight, or a share that would need
        an expert more than once per token (``k * share > 1``)
    """
    weights = np.asarray(popularity, dtype=np.float64)
    if weights.ndim not in {1, 2} or weights.size == 0:
        raise SpecError(f"popularity of shape {weights.shape}: expected [experts] or [layers, experts]")
    if not np.all(np.isfinite(weights)) or np.any(weights < 0):
        raise SpecError("popularity: expected finite non-negative numbers")
    if k < 1 or np.any((weights > 0).sum(axis=-1) < k):
        raise SpecError(
            f"popularity: expected at least k = {k} >= 1 experts with a positive share in each layer"
        )
    q = k * weights / weights.sum(axis=-1, keepdims=True)
    if np.any(q > 1 + 1e-6):
        worst = float(q.max())
        raise SpecError(
            f"popularity: one expert takes {worst / k:.3g} of all choices, 1/k = {1 / k:.3g} is the most; "
            "for selection weights use plackett_luce_inclusion"
        )
    return np.asarray(np.minimum(q, 1.0))


def plackett_luce_inclusion(weights: npt.ArrayLike, k: int) -> FloatArray:
    """Return q when a token draws k experts in turn, each in proportion to its weight among those left.

    Equal to adding Gumbel noise to log-weights and keeping the k largest. Experts are exponential clocks of
    rate ``w``; expert e is in if fewer than k others rang before it: the integral over its ringing time of a
    Poisson-binomial tail, by tanh-sinh quadrature in ``u = exp(-w_e t)`` (error below 1e-9).

    Parameters
    ----------
    weights : [E] or [layer, E], non-negative, any scale
    k : experts per token

    >>> plackett_luce_inclusion([1.0, 1.0, 1.0, 1.0], 2).round(9)
    array([0.5, 0.5, 0.5, 0.5])
    """
    table = np.asarray(weights, dtype=np.float64)
    if table.ndim == 2:
        return np.stack([plackett_luce_inclusion(row, k) for row in table])
    if table.ndim != 1 or not np.all(np.isfinite(table)) or np.any(table < 0):
        raise SpecError("weights: expected finite non-negative numbers, [experts] or [layers, experts]")
    if k < 1 or (table > 0).sum() < k:
        raise SpecError(f"weights: expected at least k = {k} >= 1 experts with a positive weight")
    alive = np.flatnonzero(table > 0)
    rate = table[alive] / table[alive].sum()
    # u = exp(-w_e t) runs over (0, 1) with algebraic ends: the double exponential rule takes both in its stride
    s = np.linspace(-3.6, 3.6, 145)
    bend = np.pi * np.sinh(s)
    log_u = -np.logaddexp(0.0, -bend)
    weight = np.exp(log_u - np.logaddexp(0.0, bend)) * np.pi * np.cosh(s) * (s[1] - s[0])
    time = -log_u[None, :] / rate[:, None]  # [e, node]
    rung = np.zeros((k, *time.shape))
    rung[0] = 1.0
    for other in range(len(rate)):
        p = -np.expm1(-rate[other] * time)
        p[other] = 0.0
        rung[1:] = rung[1:] * (1 - p) + rung[:-1] * p
        rung[0] *= 1 - p
    q = np.zeros(len(table))
    q[alive] = rung.sum(axis=0) @ weight
    return np.asarray(np.minimum(q * (k / q.sum()), 1.0))


def expected_distinct(q: npt.ArrayLike, k: int, tokens: npt.ArrayLike) -> FloatArray:
    """Return the expected number of distinct experts that ``tokens`` independent tokens touch in one layer.

    ``sum_e 1 - (1 - q_e)**T`` with q the per-token probability of using e. This is exact for top-k without
    replacement, because only one token's choices depend on each other; for uniform routing it is
    ``E (1 - (1 - k/E)**T)``.

    Parameters
    ----------
    q : [E], or [layer, E] for the mean over layers; any scale, it is made to sum to k (see ``inclusion``)
    k : experts per token
    tokens : integers >= 0, any shape

    Returns
    -------
    experts, the shape of ``tokens``

    >>> float(expected_distinct([1.0] * 64, 6, 16).round(1))
    50.8
    """
    table = np.atleast_2d(inclusion(q, k))
    count = _tokens(tokens)
    asked, place = np.unique(count, return_inverse=True)
    values, times = np.unique(table, return_counts=True)
    total = np.full(len(asked), times[values > 0].sum(), dtype=np.float64)
    for value, repeats in zip(values[values > 0], times[values > 0], strict=True):
        open_ = slice(0, int(np.searchsorted(asked, 40 / value)) + 1)  # later, (1 - q)**T is below 1e-17
        total[open_] -= repeats * (1 - value) ** asked[open_]
    return np.asarray((total / len(table))[place].reshape(count.shape))


def expected_distinct_ranks(
    experts: int, top_k: int, ranks: int, groups: int = 1, top_groups: int = 1
) -> float:
    """Return how many ranks one token's experts lie on, under uniform routing and an equal contiguous split.

    Without a group limit it is ``M (1 - C(E - E/M, k) / C(E, k))``. With one, the gate scores each group by
    the sum of its two best experts, keeps ``top_groups`` groups and takes the top k inside (DeepSeek-V3,
    arXiv 2412.19437 §2.1.2); that order statistic has no closed form, so 65,536 tokens with standard normal
    scores and a fixed seed are averaged (standard error below 0.003). Give nodes as ``ranks`` for distinct nodes.

    Raises
    ------
    SpecError : ranks or groups do not divide the experts, or the groups cannot hold top_k experts
    """
    if min(experts, top_k, ranks, groups, top_groups) < 1 or top_k > experts:
        raise SpecError(
            f"experts {experts}, top_k {top_k}, ranks {ranks}: expected positive numbers, top_k <= experts"
        )
    if experts % ranks or experts % groups:
        raise SpecError(f"experts {experts}: expected a multiple of ranks {ranks} and of groups {groups}")
    if top_groups > groups or top_k > top_groups * (experts // groups):
        raise SpecError(
            f"top_groups {top_groups} of {groups}: expected groups that hold top_k = {top_k} experts"
        )
    if top_groups == groups:
        misses = math.comb(experts - experts // ranks, top_k) / math.comb(experts, top_k)
        return ranks * (1 - misses)
    return group_limited_ranks(experts, top_k, ranks, groups, top_groups)


def rank_shares(experts: int, placement: int | npt.ArrayLike) -> FloatArray:
    """Return which part of each expert's rows each rank computes, [E, rank]; every row sums to 1.

    Parameters
    ----------
    placement : number of ranks (equal contiguous split); or the rank of each expert, int [E]; or the shares
        themselves, float [E, rank], for replicated experts
    """
    given = np.asarray(placement)
    if given.ndim == 0:
        ranks = int(given)
        if ranks < 1 or experts % ranks:
            raise SpecError(f"ranks {ranks}: expected a divisor of the {experts} experts")
        given = np.arange(experts) // (experts // ranks)
    if given.ndim == 1:
        if given.shape != (experts,) or not np.issubdtype(given.dtype, np.integer) or given.min() < 0:
            raise SpecError(
                f"placement of shape {given.shape}: expected the rank of each of {experts} experts"
            )
        return np.asarray(np.eye(int(given.max()) + 1)[given])
    shares = given.astype(np.float64)
    if (
        shares.ndim != 2
        or len(shares) != experts
        or np.any(shares < 0)
        or not np.allclose(shares.sum(axis=1), 1.0)
    ):
        raise SpecError(
            f"placement of shape {shares.shape}: expected shares [experts, ranks] whose rows sum to 1"
        )
    return shares


def straggler_factor(
    popularity: npt.ArrayLike, k: int, tokens: npt.ArrayLike, placement: int | npt.ArrayLike
) -> FloatArray:
    """Return the expected load of the busiest rank over the mean load, for T independent tokens in a layer.

    A rank's load is a sum of binomials; the loads are held to their total T k (exactly up to 32 rows, by a
    local normal limit up to 64 rows per rank). Beyond, and for replicated experts, loads are normal with
    Hajek's covariance of top-k without replacement, where a shift common to all ranks makes them independent and
    leaves the mean of the maximum alone. Within 3 % of simulation (tests). From 97 distinct counts on, counts
    above 8 are interpolated in log T on steps of 1/8 octave.

    Parameters
    ----------
    popularity : [E], or [layer, E] for the mean over layers; shares of choices, any scale
    k : experts per token
    tokens : integers >= 0, any shape; 0 tokens give 1
    placement : see ``rank_shares``

    Returns
    -------
    factor >= 1, the shape of ``tokens``

    >>> float(straggler_factor([1.0] * 8, 2, 1, 8))  # one token: two of eight ranks have one row each
    4.0
    """
    table, layers = np.unique(np.atleast_2d(inclusion(popularity, k)), axis=0, return_counts=True)
    count = _tokens(tokens)
    shares = rank_shares(table.shape[1], placement)
    ranks = shares.shape[1]
    if ranks == 1 or count.size == 0:
        return np.ones(count.shape)
    grid = _grid(count)
    rows = np.array([[_busiest(q, k, int(t), shares) for t in grid] for q in table])
    factors = np.average(rows, axis=0, weights=layers) * ranks / (k * grid)
    out = np.interp(np.log(np.maximum(count, 1)), np.log(grid), factors)
    return np.asarray(np.where(count > 0, np.maximum(out, 1.0), 1.0))


def _grid(count: IntArray) -> IntArray:
    """Return the counts asked for or, when they are many, 1 to 8 and a geometric grid over the rest."""
    asked = np.unique(count[count > 0])
    if len(asked) == 0:
        return np.array([1])
    if len(asked) <= 96:
        return asked
    top = int(asked[-1])  # 96 distinct counts: at least 96
    beyond = np.round(8 * 2 ** np.arange(0, math.log2(top / 8), 1 / 8)).astype(np.int64)
    return np.union1d(np.arange(1, 9), np.append(beyond, top))


def _busiest(q: FloatArray, k: int, tokens: int, shares: FloatArray) -> float:
    """E max of rank loads in rows."""
    mean = tokens * (q @ shares)
    whole = bool(np.all((shares == 0) | (shares == 1)))
    if not whole or mean.max() > DISCRETE_ROWS:
        return _busiest_normal(q, tokens, shares)
    if tokens * k <= EXACT_ROWS:
        found = _busiest_exact(q, tokens * k, tokens, shares)
    else:
        found = _busiest_local(q, tokens * k, tokens, shares)
    # binomials held to T k forget that each token has exactly k: their spread is short by this much
    experts = len(q)
    spread = math.sqrt((tokens * experts - 1) / (tokens * (experts - 1))) if experts > 1 else 1.0
    top = float(mean.max())
    return top + max(found - top, 0.0) * spread


def _busiest_normal(q: FloatArray, tokens: int, shares: FloatArray) -> float:
    from scipy.special import log_ndtr  # noqa: PLC0415 - 0.2 s, paid only where ranks differ

    mean = tokens * (q @ shares)
    part = q[:, None] * shares  # an expert split over ranks sends each row to one of them at random
    own = (part * (1 - part)).sum(axis=0) * len(q) / max(len(q) - 1, 1)
    spread = np.sqrt(np.maximum(tokens * own, 1e-18))
    low, high = float((mean - 8 * spread).max()), float((mean + 8 * spread).max())
    x = np.linspace(low, high, 401)
    below = np.exp(log_ndtr((x[:, None] - mean) / spread).sum(axis=1))
    return float(high - np.trapezoid(below, x))


def _load_pmf(q: FloatArray, tokens: int, shares: FloatArray, size: int) -> FloatArray:
    """Return the distribution of each rank's load without the fixed total, [rank, load 0..size-1]."""
    length = 1 << (size - 1).bit_length()
    phase = np.exp(-2j * np.pi * np.arange(length // 2 + 1) / length)
    factor = 1 + q[:, None] * (phase - 1)
    log_factor = np.log(np.where(np.abs(factor) < 1e-300, 1e-300, factor))
    return np.asarray(
        np.maximum(np.fft.irfft(np.exp(tokens * (shares.T @ log_factor)), length)[:, :size], 0.0)
    )


def _busiest_exact(q: FloatArray, rows: int, tokens: int, shares: FloatArray) -> float:
    """Condition on the total by multiplying the ranks' truncated generating functions, all levels at once."""
    pmf = _load_pmf(q, tokens, shares, 1 << (tokens * len(q)).bit_length())[:, : rows + 1]
    levels = np.arange(rows + 1)
    whole, at_most = np.zeros(rows + 1), np.zeros((rows + 1, rows + 1))  # at_most: [level, total]
    whole[0], at_most[:, 0] = 1.0, 1.0
    length = 1 << (2 * rows + 1).bit_length()
    for rank in pmf:
        cut = np.where(levels[None, :] <= levels[:, None], rank, 0.0)
        product = np.fft.irfft(np.fft.rfft(at_most, length) * np.fft.rfft(cut, length), length)
        at_most = np.maximum(product[:, : rows + 1], 0.0)
        whole = np.convolve(whole, rank)[: rows + 1]
    return float((1 - np.clip(at_most[:-1, rows] / whole[rows], 0.0, 1.0)).sum())


def _busiest_local(q: FloatArray, rows: int, tokens: int, shares: FloatArray) -> float:
    """Condition on the total by a local normal limit of the sum of the truncated loads."""
    mean = tokens * (q @ shares)
    size = int(mean.max() + 12 * math.sqrt(mean.max()) + 24)
    pmf = _load_pmf(q, tokens, shares, size)
    load = np.arange(pmf.shape[1])
    below = np.maximum(np.cumsum(pmf, axis=1), 1e-300)  # [rank, level]
    first = np.cumsum(pmf * load, axis=1) / below
    second = np.cumsum(pmf * load**2, axis=1) / below
    variance = np.maximum((second - first**2).sum(axis=0), 1e-12)
    miss = (first.sum(axis=0) - rows) ** 2 / (2 * variance)
    log_density = -miss - 0.5 * np.log(variance)
    at_most = np.exp(np.minimum(np.log(below).sum(axis=0) + log_density - log_density[-1], 0.0))
    return float((1 - np.clip(np.maximum.accumulate(at_most), 0.0, 1.0)).sum())


def _tokens(tokens: npt.ArrayLike) -> IntArray:
    given = np.asarray(tokens)
    if not np.issubdtype(given.dtype, np.integer) and not np.all(given == np.floor(given)):
        raise SpecError("tokens: expected whole numbers")
    if given.size and given.min() < 0:
        raise SpecError(f"tokens {given.min()}: expected at least 0")
    return given.astype(np.int64)
