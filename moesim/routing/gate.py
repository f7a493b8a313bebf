"""Gate: over how many ranks the experts of a group-limited router spread, by drawing tokens."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

__all__ = ["GATED_RANKS", "counted_ranks", "group_limited_ranks", "limit_groups"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_GATE_TOKENS, _STEP = 1 << 16, 1 << 13
"""Simulated tokens behind a node-limited expectation: its standard error is below 0.003."""
GATED_RANKS: dict[tuple[int, int, int, int], dict[int, int]] = {
    (256, 8, 8, 4): {
        2: 128999,
        4: 204818,
        8: 260247,
        16: 374800,
        32: 448623,
        64: 490338,
        128: 512845,
        256: 524288,
    },
    (160, 6, 8, 3): {
        2: 121499,
        4: 168039,
        5: 198331,
        8: 195955,
        10: 254917,
        16: 285904,
        20: 313557,
        32: 342050,
        40: 354294,
        80: 379977,
        160: 393216,
    },
}
"""``counted_ranks`` of the gates of DeepSeek-V3 and DeepSeek-V2, by (experts, top_k, groups, top_groups) and ranks:
a second of drawing each, drawn once (a test draws them again)."""


def group_limited_ranks(experts: int, top_k: int, ranks: int, groups: int, top_groups: int) -> float:
    """Return how many ranks one token's experts lie on, see ``expected.expected_distinct_ranks``."""
    known = GATED_RANKS.get((experts, top_k, groups, top_groups), {}).get(ranks)
    if known is None:
        known = counted_ranks(experts, top_k, ranks, groups, top_groups)
    return known / _GATE_TOKENS


@cache
def counted_ranks(experts: int, top_k: int, ranks: int, groups: int, top_groups: int) -> int:
    """Return over how many ranks the simulated tokens' experts spread, added up over the tokens."""
    total = 0
    rank = _gate_choices(experts, top_k, groups, top_groups) // (experts // ranks)
    for start in range(0, _GATE_TOKENS, _STEP):
        hit = np.zeros((_STEP, ranks), dtype=bool)
        np.put_along_axis(hit, rank[start : start + _STEP], values=True, axis=1)
        total += int(hit.sum())
    return total


@cache
def _gate_choices(experts: int, top_k: int, groups: int, top_groups: int) -> IntArray:
    generator = np.random.default_rng(20412)
    return np.concatenate(
        [
            limit_groups(generator.standard_normal((_STEP, experts)), top_k, groups, top_groups)
            for _ in range(_GATE_TOKENS // _STEP)
        ]
    )


def limit_groups(scores: FloatArray, top_k: int, groups: int, top_groups: int) -> IntArray:
    """Return the top_k experts of the best groups, [..., k] in no order, from scores [..., E].

    A group's score is the sum of its two highest experts (of its only one, if it has one).
    """
    grouped = scores.reshape(*scores.shape[:-1], groups, -1)
    best = min(2, grouped.shape[-1])
    group_score = np.partition(grouped, -best, axis=-1)[..., -best:].sum(axis=-1)
    keep = np.argpartition(group_score, -top_groups, axis=-1)[..., -top_groups:]
    allowed = np.zeros(group_score.shape, dtype=bool)
    np.put_along_axis(allowed, keep, values=True, axis=-1)
    masked = np.where(allowed[..., None], grouped, -np.inf).reshape(scores.shape)
    return np.asarray(np.argpartition(masked, -top_k, axis=-1)[..., -top_k:])
