"""Small traces made by hand."""

import numpy as np

from moesim.routing.trace import RoutingTrace


def make_trace(experts, lengths, total, groups=None):
    chosen = np.asarray(experts, dtype=np.int16)
    length = np.asarray(lengths, dtype=np.int64)
    assert length.sum() == len(chosen)
    return RoutingTrace(
        chosen,
        np.full(chosen.shape, 1 / chosen.shape[2], dtype=np.float32),
        np.cumsum(length) - length,
        length,
        np.array(groups if groups is not None else [""] * len(length), dtype=np.str_),
        total,
    )


def independent_trace(tokens, layers, k, total, seed=0, weights=None, sequences=1):
    """Top-k by Gumbel noise, independent over tokens and layers."""
    generator = np.random.default_rng(seed)
    logit = np.zeros(total) if weights is None else np.log(weights)
    score = logit + generator.gumbel(size=(tokens, layers, total))
    chosen = np.argsort(-score, axis=2)[:, :, :k]
    return make_trace(chosen, [tokens // sequences] * sequences, total)
