"""Lengths: input and output tokens of synthetic requests, and clipping them to what a server accepts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from moesim.errors import SpecError
from moesim.spec.traffic import Empirical, Fixed, LogNormal, TraceLengths, UniformRange
from moesim.streams import stream

if TYPE_CHECKING:
    from moesim.spec.traffic import Clip, Lengths, LogNormalTokens, Quantiles

__all__ = ["clip_lengths", "draw_lengths", "quantile", "within"]

Floats = npt.NDArray[np.float64]
Longs = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def draw_lengths(lengths: Lengths, n: int, seed: int) -> tuple[Longs, Longs]:
    """Draw (input, output) tokens, each [n], at least 1, before clipping. Fewer are a prefix of more.

    Streams ``lengths.input``, ``lengths.output`` and, for a joint histogram, ``lengths.joint`` are used.

    Raises
    ------
    SpecError : lengths that come from a trace
    """
    if isinstance(lengths, TraceLengths):
        raise SpecError("lengths of kind trace are read, not drawn")
    if isinstance(lengths, Fixed):
        return np.full(n, lengths.input, np.int64), np.full(n, lengths.output, np.int64)
    u, v = stream(seed, "lengths.input").random(n), stream(seed, "lengths.output").random(n)
    if isinstance(lengths, UniformRange):
        ratio = lengths.range_ratio
        return _uniform(u, lengths.input, ratio), _uniform(v, lengths.output, ratio)
    if isinstance(lengths, Empirical) and lengths.joint:
        u, v = _joint_ranks(np.asarray(lengths.joint), u, v, stream(seed, "lengths.joint").random(n))
    elif lengths.rank_correlation:
        # Pearson correlation of the normals that gives this Spearman correlation (Pearson 1907)
        pearson = 2 * np.sin(np.pi * lengths.rank_correlation / 6)
        v = ndtr(pearson * ndtri(u) + np.sqrt(1 - pearson**2) * ndtri(v))
    if isinstance(lengths, LogNormal):
        return _lognormal(u, lengths.input), _lognormal(v, lengths.output)
    return quantile(u, lengths.input), quantile(v, lengths.output)


def quantile(u: Floats, table: Quantiles) -> Longs:
    """Return tokens [n] at cumulative probabilities ``u`` [n], rounded to the nearest integer."""
    values = np.interp(u, table.levels, np.asarray(table.tokens, dtype=np.float64))
    return np.floor(values + 0.5).astype(np.int64)


def clip_lengths(inputs: Longs, outputs: Longs, clip: Clip) -> tuple[Longs, Longs]:
    """Bound lengths [n] as ``clip`` says, never below 1. The rule ``drop`` changes none: see ``within``."""
    if clip.rule == "drop":
        return inputs, outputs
    if clip.input is not None:
        inputs = np.minimum(inputs, clip.input)
    if clip.output is not None:
        outputs = np.minimum(outputs, clip.output)
    if clip.total is None:
        return inputs, outputs
    total = inputs + outputs
    if clip.rule == "proportional":
        over = np.maximum(total - clip.total, 0)
        cut_in, cut_out = -(-over * inputs // total), -(-over * outputs // total)
        return np.maximum(inputs - cut_in, 1), np.maximum(outputs - cut_out, 1)
    if clip.rule == "shorten_input":
        outputs = np.minimum(outputs, clip.total - 1)
        return np.minimum(inputs, clip.total - outputs), outputs
    inputs = np.minimum(inputs, clip.total - 1)
    return inputs, np.minimum(outputs, clip.total - inputs)


def within(inputs: Longs, outputs: Longs, clip: Clip) -> Bools:
    """Tell which requests [n] respect every bound of ``clip``."""
    fits = np.ones(len(inputs), np.bool_)
    for values, bound in ((inputs, clip.input), (outputs, clip.output), (inputs + outputs, clip.total)):
        if bound is not None:
            fits &= values <= bound
    return fits


def _uniform(u: Floats, nominal: int, ratio: float) -> Longs:
    low = max(int(nominal * ratio), 1)
    return np.asarray(low + np.floor(u * (nominal - low + 1)).astype(np.int64))


def _lognormal(u: Floats, tokens: LogNormalTokens) -> Longs:
    variance = np.log1p(tokens.cv**2)
    values = np.exp(np.log(tokens.mean) - variance / 2 + np.sqrt(variance) * ndtri(u))
    return np.asarray(np.clip(np.floor(values + 0.5), 1, 2**31 - 1).astype(np.int64))


def _joint_ranks(joint: Floats, u: Floats, v: Floats, w: Floats) -> tuple[Floats, Floats]:
    """Pick a cell of the copula histogram by ``w``, then a place inside it by ``u`` and ``v``; all [n]."""
    cumulative = np.cumsum(joint.ravel())
    cell = np.searchsorted(cumulative, w * cumulative[-1], side="right")
    row, column = np.divmod(np.minimum(cell, joint.size - 1), joint.shape[1])
    return (row + u) / joint.shape[0], (column + v) / joint.shape[1]
