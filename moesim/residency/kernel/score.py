"""Score: the eviction rules of ``moesim.policies``, compiled from the very functions that stand there."""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

from typing import Any

import numba as nb

from moesim.policies import eviction
from moesim.policies.eviction import EVICTIONS, Facts

__all__ = ["ADMISSIONS", "CODES", "draw", "value"]

CODES = {name: code for code, name in enumerate(EVICTIONS)}
ADMISSIONS = {"always": 0, "better": 1, "free": 2}

_lru: Any = nb.njit(eviction.Lru.keep)
_lfu: Any = nb.njit(eviction.Lfu.keep)
_lfru: Any = nb.njit(eviction.Lfru.keep)
_random: Any = nb.njit(eviction.Random.keep)
_belady: Any = nb.njit(eviction.Belady.keep)
_lookahead: Any = nb.njit(eviction.Lookahead.keep)
_distance: Any = nb.njit(eviction.FrequencyDistance.keep)
_activation: Any = nb.njit(eviction.ActivationAware.keep)
_weighted: Any = nb.njit(eviction.Weighted.keep)
_usage: Any = nb.njit(eviction.UsageProbability.keep)


@nb.njit(cache=True)
def draw(now, key, seed):
    """Uniform number in [0, 1) that depends on all three (a mixed counter, so that no state is kept)."""
    x = nb.uint64(now) * nb.uint64(0x9E3779B97F4A7C15) + nb.uint64(key) * nb.uint64(0xD1B54A32D192ED03)
    x += nb.uint64(seed) * nb.uint64(0x8CB92BA72F3D8DD7)
    x = (x ^ (x >> nb.uint64(30))) * nb.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> nb.uint64(27))) * nb.uint64(0x94D049BB133111EB)
    x = x ^ (x >> nb.uint64(31))
    return float(x >> nb.uint64(11)) / 9007199254740992.0


@nb.njit(cache=True)
def value(code, p, now, last, count, heavy, upcoming, probability, ahead, layers, orphan, chance):
    """Value of keeping an expert under rule ``code``."""
    f = Facts(now, last, count, heavy, upcoming, probability, ahead, layers, orphan, chance)
    if code == 0 or code == 10:
        return _lru(f, p)
    if code == 1:
        return _lfu(f, p)
    if code == 2:
        return _lfru(f, p)
    if code == 3:
        return _random(f, p)
    if code == 4:
        return _belady(f, p)
    if code == 5:
        return _lookahead(f, p)
    if code == 6:
        return _distance(f, p)
    if code == 7:
        return _activation(f, p)
    if code == 8:
        return _weighted(f, p)
    return _usage(f, p)
