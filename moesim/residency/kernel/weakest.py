"""Weakest: the resident expert that an eviction rule gives up first, found over all of a tier."""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import numba as nb
import numpy as np

from moesim.residency.kernel.score import draw, value

__all__ = ["weakest"]


@nb.njit(cache=True)
def weakest(free, only, code, p, seed, now, at, layers, last, uses, heavy, upcoming, probability):
    """Key of the least valuable expert among ``free`` (of layer ``only``, -1 for any), -1 for none."""
    experts = len(free) // layers
    best, least, oldest = -1, np.inf, np.inf
    for k in range(len(free)):
        layer = k // experts
        if not free[k] or (only >= 0 and layer != only):
            continue
        ahead = (layer - at) % layers
        if ahead == 0:
            ahead = layers
        chance = draw(now, k, seed) if code == 3 else 0.0
        v = value(
            code, p, now, last[k], uses[k], heavy[k], upcoming[k], probability[k], float(ahead), float(layers), 0.0,
            chance,
        )  # fmt: skip
        if v < least or (v == least and last[k] < oldest):
            best, least, oldest = k, v, last[k]
    return best
