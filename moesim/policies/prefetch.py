"""Prefetch: which experts a layer is guessed to need, before its router has said so.

A rule guesses from what the earlier layers of a token chose, from recordings, or from the truth (bounds, and
routers that really do decide early). ``lead`` layers before a layer starts, its guesses may be fetched.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeInt, PositiveInt

from moesim.errors import SpecError
from moesim.files import nearest
from moesim.spec.base import Spec
from moesim.streams import stream

__all__ = [
    "PREFETCHERS",
    "NextLayer",
    "NoPrefetch",
    "Oracle",
    "PathPredictor",
    "PreGated",
    "Prefetch",
    "PrefetchRule",
    "TwoLayerDictionary",
    "make_prefetch",
]

Ids = npt.NDArray[np.int16]


class PrefetchRule(Spec):
    """What all rules share."""

    recorded: ClassVar[bool] = False
    """Learns from a recording of the same router."""

    lead: PositiveInt = 1
    """Layers between the moment a guess is known and the layer it is for."""

    def guess(self, experts: Ids, total: int, history: Ids | None = None) -> Ids:
        """Return guessed experts, int16 [token, layer, m], likeliest first, -1 where there is no guess.

        Parameters
        ----------
        experts : what the tokens will choose, [token, layer, k], heaviest first; a rule reads layers that have run,
            unless it stands for a router that decides early
        total : experts per layer
        history : recorded choices to learn from, [token, layer, k]

        Raises
        ------
        SpecError : the rule learns from a recording, and there is none of this shape
        """
        raise NotImplementedError


class NoPrefetch(PrefetchRule):
    """Experts are fetched when the router has asked for them."""

    policy: Literal["none"] = "none"

    def guess(self, experts: Ids, total: int, history: Ids | None = None) -> Ids:  # noqa: ARG002 - guesses nothing
        """Return no guess."""
        return np.full((*experts.shape[:2], 0), -1, dtype=np.int16)


class NextLayer(PrefetchRule):
    """The experts that most often followed this layer's, by pairwise affinity (P(f | e) summed over the chosen e)."""

    policy: Literal["next_layer"] = "next_layer"
    recorded: ClassVar[bool] = True
    lead: Literal[1] = 1
    count: PositiveInt
    """Experts guessed per token and layer."""

    def guess(self, experts: Ids, total: int, history: Ids | None = None) -> Ids:
        """Return the ``count`` likeliest followers; the first layer has none."""
        seen = _history(history, experts)
        count = min(self.count, total)
        found = np.full((*experts.shape[:2], count), -1, dtype=np.int16)
        for layer in range(1, experts.shape[1]):
            before, after = seen[:, layer - 1].astype(np.int64), seen[:, layer].astype(np.int64)
            pair = np.bincount(
                (before[:, :, None] * total + after[:, None, :]).ravel(), minlength=total * total
            ).reshape(total, total)
            uses = np.bincount(before.ravel(), minlength=total)[:, None]
            chance = np.divide(pair, uses, out=np.zeros((total, total)), where=uses > 0)
            score = chance[experts[:, layer - 1].astype(np.int64)].sum(axis=1)
            found[:, layer] = np.argsort(-score, axis=1, kind="stable")[:, :count]
        return found


class PathPredictor(PrefetchRule):
    """A predictor of the whole path that names each expert rightly with probability ``accuracy`` (ExpertFlow).

    A wrong name is any expert that the token does not choose, with equal chance. ExpertFlow (arXiv 2410.17954)
    states its accuracy, not its errors.
    """

    policy: Literal["path_predictor"] = "path_predictor"
    accuracy: Annotated[float, Field(ge=0.0, le=1.0)]
    seed: NonNegativeInt = 0
    """Of the errors."""

    def guess(self, experts: Ids, total: int, history: Ids | None = None) -> Ids:  # noqa: ARG002 - accuracy is stated
        """Return the truth with errors."""
        generator = stream(self.seed, "path predictor")
        wrong = generator.random(experts.shape) >= self.accuracy
        chosen = np.sort(experts, axis=2).astype(np.int64)
        free = total - experts.shape[2]
        if free == 0:
            return experts.copy()
        other = generator.integers(0, free, size=experts.shape)
        for place in range(experts.shape[2]):  # skip the chosen ones, lowest first
            other += other >= chosen[:, :, place, None]
        return np.where(wrong, other, experts).astype(np.int16)


class PreGated(PrefetchRule):
    """The router itself decides ``lead`` layers early, so that nothing is guessed.

    Pre-gated MoE (ISCA 2024): one layer early; Read-ME (arXiv 2410.19123): one router before all layers, ``lead``
    as deep as the buffer reaches. The first ``lead`` layers of a token are known only when they run.
    """

    policy: Literal["pre_gated"] = "pre_gated"

    def guess(self, experts: Ids, total: int, history: Ids | None = None) -> Ids:  # noqa: ARG002 - the truth
        """Return the truth from layer ``lead`` on."""
        found = experts.copy()
        found[:, : self.lead] = -1
        return found


class TwoLayerDictionary(PrefetchRule):
    """The experts that most often followed the heaviest ones of the two layers before (EdgeMoE, arXiv 2308.14352).

    Pairs that the recording does not hold, and the first two layers, have no guess.
    """

    policy: Literal["two_layer_dictionary"] = "two_layer_dictionary"
    recorded: ClassVar[bool] = True
    lead: Literal[1] = 1
    count: PositiveInt = 1
    """Experts guessed per token and layer (EdgeMoE: 1 to 3)."""

    def guess(self, experts: Ids, total: int, history: Ids | None = None) -> Ids:
        """Return the ``count`` likeliest followers of the pair."""
        seen = _history(history, experts)
        count = min(self.count, total)
        found = np.full((*experts.shape[:2], count), -1, dtype=np.int16)
        for layer in range(2, experts.shape[1]):
            key = _pair(seen, layer, total)
            joint = np.bincount((key[:, None] * total + seen[:, layer]).ravel(), minlength=total**3).reshape(
                total**2, total
            )
            best = np.argsort(-joint, axis=1, kind="stable")[:, :count]
            best = np.where(np.take_along_axis(joint, best, axis=1) > 0, best, -1)
            found[:, layer] = best[_pair(experts, layer, total)]
        return found


class Oracle(PrefetchRule):
    """The truth for every layer: what prefetching can reach at best."""

    policy: Literal["oracle"] = "oracle"

    def guess(self, experts: Ids, total: int, history: Ids | None = None) -> Ids:  # noqa: ARG002 - the truth
        """Return the truth."""
        return experts.copy()


Prefetch = Annotated[
    NoPrefetch | NextLayer | PathPredictor | PreGated | TwoLayerDictionary | Oracle,
    Field(discriminator="policy"),
]
"""Any prefetch rule, as a file states it."""

PREFETCHERS: dict[str, type[PrefetchRule]] = {
    "none": NoPrefetch,
    "next_layer": NextLayer,
    "path_predictor": PathPredictor,
    "pre_gated": PreGated,
    "two_layer_dictionary": TwoLayerDictionary,
    "oracle": Oracle,
}


def make_prefetch(name: str, **fields: float) -> PrefetchRule:
    """Return the rule of that name.

    Raises
    ------
    SpecError : unknown name, or fields that the rule does not take
    """
    if name not in PREFETCHERS:
        raise SpecError(f"prefetch {name!r}: unknown policy{nearest(name, PREFETCHERS)}")
    try:
        return PREFETCHERS[name].model_validate(fields)
    except ValueError as error:
        raise SpecError(f"prefetch {name!r}: {str(error).splitlines()[-2].strip()}") from None


def _history(history: Ids | None, experts: Ids) -> Ids:
    if history is None or history.ndim != 3 or history.shape[1] != experts.shape[1] or len(history) == 0:
        found = "none" if history is None else f"shape {history.shape}"
        raise SpecError(f"prefetch: expected a recording of {experts.shape[1]} layers, found {found}")
    return history


def _pair(experts: Ids, layer: int, total: int) -> npt.NDArray[np.int64]:
    """Return the heaviest experts of the two layers before ``layer`` as one number, [token]."""
    first, second = experts[:, layer - 2, 0].astype(np.int64), experts[:, layer - 1, 0]
    return np.asarray(first * total + second)
