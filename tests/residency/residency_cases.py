"""Small traces and a cache written out in plain Python."""

import numpy as np

from moesim.residency.accesses import Accesses


def make_accesses(sets, layers=1, experts=None, layer=None, fresh=None):
    """Requests from lists of experts; layers in turn."""
    at = np.arange(len(sets)) % layers if layer is None else np.asarray(layer)
    count = experts or max(max(s, default=0) for s in sets) + 1
    keys = [int(a) * count + e for a, s in zip(at, sets, strict=True) for e in s]
    start = np.cumsum([0, *(len(s) for s in sets)])
    first = np.zeros(len(sets), dtype=bool)
    first[0] = True
    return Accesses(
        keys=np.array(keys, dtype=np.int32),
        start=start,
        layer=at.astype(np.int32),
        fresh=first if fresh is None else np.asarray(fresh, dtype=bool),
        tokens=np.ones(len(keys)),
        above=np.zeros(len(keys)),
        layers=layers,
        experts=count,
    )


def uniform_stream(count, experts, seed=0):
    """One expert per request, independent and uniform."""
    return make_accesses(
        [[int(e)] for e in np.random.default_rng(seed).integers(0, experts, count)], 1, experts
    )


def fewest_fetches(sets, capacity, *, keep_new):
    """Least fetches of any eviction, by trying all (dynamic programming over what is resident)."""
    states = {frozenset(): 0}
    for wanted in map(frozenset, sets):
        following = {}
        for there, cost in states.items():
            missing = wanted - there
            union = there | wanted
            for kept in subsets(union, capacity):
                if keep_new and not missing <= kept and len(missing) <= capacity:
                    continue
                total = cost + len(missing)
                if total < following.get(kept, 1 << 30):
                    following[kept] = total
        states = following
    return min(states.values())


def subsets(items, most):
    """Largest subsets: keeping less never helps."""
    from itertools import combinations

    items = sorted(items)
    size = min(most, len(items))
    return [frozenset(c) for c in combinations(items, size)]
