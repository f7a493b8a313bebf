"""Traces of independent tokens."""

import numpy as np

from moesim.routing.trace import RoutingTrace


def independent(tokens, layers, k, total, seed=0):
    score = np.random.default_rng(seed).random((tokens, layers, total))
    chosen = np.argsort(-score, axis=2)[:, :, :k].astype(np.int16)
    weight = np.full(chosen.shape, 1 / k, dtype=np.float32)
    return RoutingTrace(chosen, weight, np.array([0]), np.array([tokens]), np.array([""]), total)
