"""Transitions to test on: a Markov generator as in ExFlow-like benchmarks, brute force, and a replay of tokens."""

from itertools import product

import numpy as np


def markov(layers, experts, alpha=0.05, seed=1, tokens=1000.0, zipf=0.6):
    """Return expected counts [layers - 1, E, E]: Zipf start, Dirichlet rows."""
    rng = np.random.default_rng(seed)
    now = np.arange(1, experts + 1) ** -zipf
    now /= now.sum()
    counts = []
    for _ in range(layers - 1):
        table = now[:, None] * rng.dirichlet(np.full(experts, alpha), size=experts)
        counts.append(tokens * table)
        now = table.sum(axis=0)
    return np.array(counts)


def tokens_of(counts, number, seed):
    """Sample top-1 paths [token, layer] from transition counts."""
    rng = np.random.default_rng(seed)
    boundaries, experts, _ = counts.shape
    paths = np.empty((number, boundaries + 1), dtype=np.int64)
    first = counts[0].sum(axis=1)
    paths[:, 0] = rng.choice(experts, number, p=first / first.sum())
    for b in range(boundaries):
        rows = counts[b] + 1e-12
        steps = (rows / rows.sum(axis=1, keepdims=True)).cumsum(axis=1)
        paths[:, b + 1] = (rng.random(number)[:, None] > steps[paths[:, b]]).sum(axis=1).clip(max=experts - 1)
    return paths


def layers_of(experts, devices):
    """Return every placement of one layer with equal shares."""
    share = experts // devices
    return [
        np.array(row)
        for row in product(range(devices), repeat=experts)
        if np.all(np.bincount(row, minlength=devices) == share)
    ]


def brute_force(counts, cost, devices):
    """Return the least weighted hops over all placements."""
    rows = layers_of(counts.shape[1], devices)
    best = np.inf
    for placement in product(rows, repeat=len(counts) + 1):
        paid = sum(
            float((c * cost[np.ix_(a, b)]).sum())
            for c, a, b in zip(counts, placement[:-1], placement[1:], strict=True)
        )
        best = min(best, paid)
    return best
