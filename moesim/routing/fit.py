"""Fit a routing model: penalised maximum likelihood per layer, then moments matched by simulation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.signal import lfilter

from moesim.errors import SpecError
from moesim.routing.model import MEMORIES, PRIOR_TOKENS, RoutingModel, forgetting
from moesim.routing.statistics import popularity

if TYPE_CHECKING:
    from moesim.routing.trace import RoutingTrace

__all__ = ["fit_likelihood"]

Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

_RIDGE = 1.0
"""Precision of the normal prior on affinity weights and biases (around zero and log popularity)."""
_MEMORY_RIDGE = 1.0
"""Precision of the normal prior on memory weights."""


def fit_likelihood(trace: RoutingTrace, iterations: int = 30, ridge: float = _RIDGE) -> RoutingModel:
    """Fit by penalised maximum likelihood, each layer by itself: a convex problem, solved by L-BFGS.

    Parameters
    ----------
    trace : the sequences to fit on; at least two tokens per sequence on average
    iterations : most L-BFGS steps per layer and draw
    ridge : precision of the normal prior on affinities and biases

    Raises
    ------
    SpecError : fewer than two tokens
    """
    if len(trace.experts) < 2:
        raise SpecError("routing fit: expected a trace of at least two tokens")
    count, experts, k = trace.layers, trace.total, trace.top_k
    # half a token per expert keeps log popularity finite for experts the trace never shows
    number = len(trace.experts)
    q = (popularity(trace) * number + 0.5) / (number + 0.5 * experts / k)
    square = (count, experts, experts)
    tables = {
        "top_from_top": np.zeros(square, np.float32),
        "top_from_rest": np.zeros(square, np.float32),
        "rest_from_top": np.zeros(square, np.float32),
        "rest_from_rest": np.zeros(square, np.float32),
        "rest_from_own": np.zeros(square, np.float32),
    }
    bias = {"top": np.zeros((count, experts), np.float32), "rest": np.zeros((count, experts), np.float32)}
    memory = {"top": np.zeros((count, MEMORIES), np.float32), "rest": np.zeros((count, MEMORIES), np.float32)}
    eye = np.eye(experts, dtype=np.float32)
    for layer in range(count):
        own = trace.experts[:, layer].astype(np.int64)
        terms = _memories(trace, layer, q[layer].astype(np.float32))
        blocks = []
        if layer:
            below = trace.experts[:, layer - 1].astype(np.int64)
            blocks = [eye[below[:, 0]], eye[below[:, 1:]].sum(axis=1)]
        prior = np.log(q[layer]).astype(np.float32)
        design = np.concatenate(blocks, axis=1) if blocks else np.zeros((number, 0), np.float32)
        found = _solve(design, terms, own[:, :1], None, prior, iterations, ridge)
        bias["top"][layer], memory["top"][layer] = found[0], found[2]
        for place, name in enumerate(("top_from_top", "top_from_rest")[: len(blocks)]):
            tables[name][layer] = found[1][place * experts : (place + 1) * experts]
        if k == 1:
            continue
        design = np.concatenate([eye[own[:, 0]], *blocks], axis=1)
        found = _solve(design, terms, own[:, 1:], own[:, 0], prior, iterations, ridge)
        bias["rest"][layer], memory["rest"][layer] = found[0], found[2]
        for place, name in enumerate(("rest_from_own", "rest_from_top", "rest_from_rest")[: 1 + len(blocks)]):
            tables[name][layer] = found[1][place * experts : (place + 1) * experts]
    return RoutingModel(
        popularity=q.astype(np.float32),
        top_bias=bias["top"],
        rest_bias=bias["rest"],
        top_memory=memory["top"],
        rest_memory=memory["rest"],
        top_k=k,
        **tables,
    )


def _memories(trace: RoutingTrace, layer: int, q: Array) -> Array:
    """Return the persistence terms of one layer, [MEMORIES, token, E], as ``sample._Memory`` builds them."""
    hit = np.zeros((len(trace.experts), trace.total), dtype=np.float32)
    chosen = trace.experts[:, layer].astype(np.int64)
    np.put_along_axis(hit, chosen, 1.0, axis=1)
    top = np.zeros_like(hit)
    np.put_along_axis(top, chosen[:, :1], 1.0, axis=1)
    out = np.zeros((MEMORIES, *hit.shape), dtype=np.float32)
    keep = forgetting()
    for start, length in zip(trace.offset, trace.length, strict=True):
        if length == 1:
            continue
        here, past = slice(start + 1, start + length), slice(start, start + length - 1)
        out[0, here], out[1, here] = hit[past], top[past]
        for index, kept in enumerate(keep):
            seen = lfilter([1.0], [1.0, -kept], hit[past], axis=0)
            tokens = lfilter([1.0], [1.0, -kept], np.ones(length - 1))[:, None]
            ratio = (seen + PRIOR_TOKENS * q) / ((tokens + PRIOR_TOKENS) * q)
            out[2 + index, here] = np.log(ratio)
    return out


def _solve(
    design: Array,
    terms: Array,
    chosen: IntArray,
    taken: IntArray | None,
    prior: Array,
    iterations: int,
    ridge: float,
) -> tuple[Array, Array, Array]:
    """Maximise the Plackett-Luce likelihood of ``chosen`` [token, draw], drawn in this order.

    Parameters
    ----------
    design : [token, D]; terms : [MEMORIES, token, E]
    taken : expert of each token that cannot be drawn again
    prior : [E] mean of the bias

    Returns
    -------
    bias [E], weights [D, E], memory [MEMORIES]
    """
    number, width = design.shape
    experts = terms.shape[2]
    rows = np.arange(number)

    def split(x: npt.NDArray[np.float64]) -> tuple[Array, Array, Array]:
        x32 = x.astype(np.float32)
        weights = x32[experts : experts + width * experts].reshape(width, experts)
        return x32[:experts], weights, x32[experts + width * experts :]

    def loss(x: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        shift, weights, memory = split(x)
        z = design @ weights + (prior + shift)
        for index in range(MEMORIES):
            z += memory[index] * terms[index]
        if taken is not None:
            z[rows, taken] = -np.inf
        z -= z.max(axis=1, keepdims=True)
        got = np.take_along_axis(z, chosen, axis=1)
        np.exp(z, out=z)
        gone = np.take_along_axis(z, chosen, axis=1)
        left = np.maximum(
            z.sum(axis=1, keepdims=True) - np.cumsum(gone, axis=1) + gone, 1e-20
        )  # [token, draw]
        value = float(np.log(left).sum(dtype=np.float64) - got.sum(dtype=np.float64))
        pull = np.cumsum(1 / left, axis=1)
        slope = z * pull[:, -1:]
        np.put_along_axis(slope, chosen, gone * pull - 1, axis=1)
        inside = np.array([np.vdot(slope, terms[index]) for index in range(MEMORIES)])
        gradient = np.concatenate([slope.sum(axis=0), (design.T @ slope).ravel(), inside]).astype(np.float64)
        strength = np.full(len(x), ridge)
        strength[-MEMORIES:] = _MEMORY_RIDGE
        return value + float((strength * x * x).sum()) / 2, gradient + strength * x

    start = np.zeros(experts + width * experts + MEMORIES)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": iterations, "maxcor": 12})
    shift, weights, memory = split(found.x)
    return prior + shift, weights, memory
