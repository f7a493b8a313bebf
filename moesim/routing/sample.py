"""Sample sequences from a fitted routing model, vectorised over sequences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moesim.errors import SpecError
from moesim.routing.model import PRIOR_TOKENS, RoutingModel, forgetting
from moesim.routing.statistics import BATCHES, distinct_consecutive, distinct_mixed
from moesim.routing.trace import RoutingTrace
from moesim.streams import stream

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["distinct_curve", "sample_sequences"]

Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


def sample_sequences(
    model: RoutingModel, lengths: npt.ArrayLike, seed: int = 0, name: str = "routing"
) -> RoutingTrace:
    """Draw one sequence of experts per entry of ``lengths``.

    Sequences are independent of each other; tokens of a sequence and layers of a token are not. Time grows with the
    longest sequence times the layers.

    Parameters
    ----------
    lengths : tokens of each sequence, [sequence], each >= 1
    seed, name : the random stream

    Returns
    -------
    trace : in the order of ``lengths``, experts in the order drawn (heaviest first), all weights 1/k, no groups

    Raises
    ------
    SpecError : no sequences, or an empty one
    """
    wanted = np.asarray(lengths, dtype=np.int64)
    if wanted.ndim != 1 or wanted.size == 0 or wanted.min() < 1:
        raise SpecError("lengths: expected at least one sequence of at least one token")
    order = np.argsort(-wanted, kind="stable")
    falling = wanted[order]
    offset = (np.cumsum(wanted) - wanted)[order]
    out = np.empty((int(wanted.sum()), model.layers, model.top_k), dtype=np.int16)
    generator = stream(seed, name)
    memory = _Memory(model, len(wanted))
    for token in range(int(falling[0])):
        alive = int((falling > token).sum())
        chosen = _token(model, memory.terms(alive), generator)
        out[offset[:alive] + token] = np.moveaxis(chosen, 0, 1)
        memory.add(chosen)
    return RoutingTrace(
        experts=out,
        weights=np.full(out.shape, 1 / model.top_k, dtype=np.float32),
        offset=np.cumsum(wanted) - wanted,
        length=wanted,
        group=np.full(len(wanted), "", dtype="<U1"),
        total=model.experts,
    )


class _Memory:
    """What the sequences have used so far beyond average: [half-life, layer, sequence, E] counts that fade.

    The likelihood's log-ratios divide by popularity and by tokens seen; the first is a constant per expert, the
    second the same for all experts, so that it cancels in any choice among them and is left out.
    """

    def __init__(self, model: RoutingModel, sequences: int) -> None:
        shape = (model.layers, sequences, model.experts)
        self.prior = (PRIOR_TOKENS * model.popularity)[:, None, :]
        self.keep = forgetting()
        self.excess = np.zeros((len(self.keep), *shape), dtype=np.float32)
        self.last = np.zeros(shape, dtype=np.float32)
        self.last_top = np.zeros(shape, dtype=np.float32)
        self.weights = [w.T[:, :, None, None] for w in (model.top_memory, model.rest_memory)]
        self.constant = [w[2:].sum(axis=0) * np.log(self.prior) for w in self.weights]

    def terms(self, alive: int) -> tuple[Array, Array]:
        """Return the persistence log-odds of the heaviest expert and of the others, [layer, sequence, E] each."""
        if alive < 0.8 * self.last.shape[1]:  # drop the sequences that have ended
            self.excess, self.last = self.excess[:, :, :alive].copy(), self.last[:, :alive].copy()
            self.last_top = self.last_top[:, :alive].copy()
        logs = self.excess[:, :, :alive] + self.prior
        np.log(logs, out=logs)
        out = []
        for weight, constant in zip(self.weights, self.constant, strict=True):
            total = self.last[:, :alive] * weight[0] + self.last_top[:, :alive] * weight[1] - constant
            for index in range(len(logs)):
                total += logs[index] * weight[2 + index]
            out.append(total)
        return out[0], out[1]

    def add(self, chosen: npt.NDArray[np.int16]) -> None:
        """Add one token's experts, [layer, sequence, k]; sequences beyond have ended."""
        alive = chosen.shape[1]
        at = chosen.astype(np.int64)
        self.last[:, :alive] = 0
        np.put_along_axis(self.last[:, :alive], at, 1.0, axis=2)
        self.last_top[:, :alive] = 0
        np.put_along_axis(self.last_top[:, :alive], at[:, :, :1], 1.0, axis=2)
        for excess, kept in zip(self.excess, self.keep, strict=True):
            part = excess[:, :alive]
            part *= kept
            part += self.last[:, :alive]


def _token(
    model: RoutingModel, terms: tuple[Array, Array], generator: np.random.Generator
) -> npt.NDArray[np.int16]:
    """Draw one token of every sequence, [layer, sequence, k]."""
    top_terms, rest_terms = terms
    alive, k = top_terms.shape[1], model.top_k
    clocks = generator.standard_exponential((2, *top_terms.shape), dtype=np.float32)
    noise = -np.log(np.maximum(clocks, np.float32(1e-30)))  # Gumbel
    top_terms += noise[0]
    rest_terms += noise[1]
    rows = np.arange(alive)
    chosen = np.empty((model.layers, alive, k), dtype=np.int16)
    below_rest = np.zeros((alive, model.experts), dtype=np.float32)
    below_top = np.zeros(alive, dtype=np.int64)
    for layer in range(model.layers):
        score = top_terms[layer] + model.top_bias[layer]
        if layer:
            score += model.top_from_top[layer][below_top] + below_rest @ model.top_from_rest[layer]
        top = score.argmax(axis=1)
        chosen[layer, :, 0] = top
        if k > 1:
            score = rest_terms[layer] + model.rest_bias[layer] + model.rest_from_own[layer][top]
            if layer:
                score += model.rest_from_top[layer][below_top] + below_rest @ model.rest_from_rest[layer]
            score[rows, top] = -np.inf
            rest = np.argpartition(score, -(k - 1), axis=1)[:, -(k - 1) :]
            order = np.argsort(-score[rows[:, None], rest], axis=1)
            rest = rest[rows[:, None], order]
            chosen[layer, :, 1:] = rest
            below_rest = np.zeros((alive, model.experts), dtype=np.float32)
            below_rest[rows[:, None], rest] = 1.0
        below_top = top
    return chosen


def distinct_curve(
    model: RoutingModel,
    batches: Iterable[int] = BATCHES,
    mixed: bool = False,  # noqa: FBT001, FBT002 - one clear switch
    sequences: int = 64,
    seed: int = 0,
) -> npt.NDArray[np.float64]:
    """Return distinct experts per layer in a batch of so many tokens, [batch], by sampling.

    Parameters
    ----------
    mixed : tokens of different sequences (decode); otherwise consecutive tokens of one (prefill), which touch fewer
        because neighbours choose alike
    sequences : sampled sequences, each as long as the largest batch
    """
    wanted = tuple(batches)
    trace = sample_sequences(model, np.full(sequences, max(wanted)), seed, "routing distinct")
    if mixed:
        return distinct_mixed(trace, wanted, seed=seed)
    return distinct_consecutive(trace, wanted)
