"""Attention: seconds of attention over arrays of batches, by the formulas that ``AttentionTerm`` documents."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from moesim.cost.pricing import AttentionTable, AttentionTerm

__all__ = ["attention_seconds"]

FloatArray = npt.NDArray[np.float64]


def attention_seconds(
    term: AttentionTerm,
    sequences: FloatArray,
    keys: FloatArray,
    tokens: FloatArray,
    pairs: FloatArray,
    read: FloatArray,
) -> FloatArray:
    """Return seconds of one kind of attention in a lane's step, all arrays of one shape.

    Parameters
    ----------
    sequences, keys : decoding sequences, and keys over all of them
    tokens, pairs, read : prefill tokens, their attended pairs, keys their chunks read

    A measured table adds what the longest sequence takes beyond the mean; here all are of mean length.
    """
    if term.table is not None:
        return _tabled(term.table, sequences, keys, tokens, pairs)
    decode = term.launch_s + np.maximum(
        keys * term.decode_flop_s, keys * term.decode_kv_s + sequences * term.decode_seq_s
    )
    prefill = term.launch_s + np.maximum(
        pairs * term.prefill_flop_s, read * term.prefill_kv_s + tokens * term.prefill_token_s
    )
    if term.decode_grid is not None:
        decode = decode * _slack(term.decode_grid, sequences, keys / np.maximum(sequences, 1e-9))
    if term.prefill_grid is not None:
        prefill = prefill * _slack(term.prefill_grid, tokens, pairs / np.maximum(tokens, 1e-9))
    return np.where(sequences > 0, decode, 0.0) + np.where(tokens > 0, prefill, 0.0)


def _slack(grid: FloatArray, count: FloatArray, keys: FloatArray) -> FloatArray:
    """Return seconds over bound, linear between powers of two in their logarithm, flat outside."""
    x = np.clip(np.log2(np.maximum(count, 1.0)), 0.0, grid.shape[0] - 1.0)
    y = np.clip(np.log2(np.maximum(keys, 1.0)), 0.0, grid.shape[1] - 1.0)
    i = np.minimum(x.astype(np.int64), grid.shape[0] - 2)
    j = np.minimum(y.astype(np.int64), grid.shape[1] - 2)
    u, v = x - i, y - j
    low = grid[i, j] * (1 - v) + grid[i, j + 1] * v
    high = grid[i + 1, j] * (1 - v) + grid[i + 1, j + 1] * v
    return np.asarray(low * (1 - u) + high * u)


def _tabled(
    table: AttentionTable, sequences: FloatArray, keys: FloatArray, tokens: FloatArray, pairs: FloatArray
) -> FloatArray:
    shape = np.broadcast_shapes(sequences.shape, tokens.shape)
    rows = (np.broadcast_to(a, shape).ravel().tolist() for a in (sequences, keys, tokens, pairs))
    return np.array([_joint(table, *row) for row in zip(*rows, strict=True)]).reshape(shape)


def _joint(table: AttentionTable, sequences: float, keys: float, tokens: float, pairs: float) -> float:
    """Return seconds of one step, as ``AttentionTable`` says: linear between nodes and beyond the last ones."""
    context = keys / max(sequences, 1.0)
    if tokens <= 0:
        return _mixed(table, 0, 0, sequences, context) if sequences > 0 else 0.0
    chunks, histories = table.chunk.tolist(), table.history.tolist()
    a, u = _between(chunks, 1, tokens)
    history = pairs / tokens - 0.5 * (tokens + 1)
    if history >= 0:
        b, v = _between(histories, 0, history)
        after = min(b + 1, len(histories) - 1)
    else:
        b, after = 0, min(1, len(histories) - 1)
        while after < len(histories) - 1 and histories[after] < tokens:
            after += 1
        v = history / max(histories[after], 1.0)
    total = 0.0
    for at, part in ((a, 1 - u), (min(a + 1, len(chunks) - 1), u)):
        low, high = _mixed(table, at, b, sequences, context), _mixed(table, at, after, sequences, context)
        total += (low * (1 - v) + high * v) * part
    return total


def _mixed(table: AttentionTable, a: int, b: int, sequences: float, context: float) -> float:
    seconds = table.seconds[a, b]
    if sequences == 0:
        return float(seconds[0, 0])
    c, u = _between(table.sequences.tolist(), 1, sequences)
    d, v = _between(table.context.tolist(), 0, context)
    c1, d1 = min(c + 1, len(table.sequences) - 1), min(d + 1, len(table.context) - 1)
    low = seconds[c, d] * (1 - v) + seconds[c, d1] * v
    high = seconds[c1, d] * (1 - v) + seconds[c1, d1] * v
    return float(low * (1 - u) + high * u)


def _between(nodes: list[float], first: int, x: float) -> tuple[int, float]:
    """Return the index below ``x`` from ``first`` on, and how far ``x`` is to the next, above 1 beyond the last."""
    if len(nodes) - first < 2 or x <= nodes[first]:
        return first, 0.0
    last = len(nodes) - 2
    at = next((i for i, (_, after) in enumerate(pairwise(nodes)) if i >= first and x < after), last)
    span = nodes[at + 1] - nodes[at]
    return at, (x - nodes[at]) / span if span else math.inf
