"""Eviction: which resident expert leaves a memory tier when another one needs the room.

A rule is one plain function of what the manager knows of an expert (``Facts``, in this order); the expert with the
least value leaves, the longest unused of equals. The function is written for single numbers, so that the compiled
replay and the event-driven manager run the very same formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from moesim.errors import SpecError
from moesim.files import nearest
from moesim.spec.base import Spec

__all__ = [
    "EVICTIONS",
    "NEVER",
    "ActivationAware",
    "Belady",
    "Eviction",
    "EvictionRule",
    "Facts",
    "FrequencyDistance",
    "Lfru",
    "Lfu",
    "Lookahead",
    "Lru",
    "NeverEvict",
    "Random",
    "UsageProbability",
    "Weighted",
    "make_eviction",
]

NEVER = float(1 << 60)
"""Time of a next use that does not come."""


class Facts(NamedTuple):
    """What is known of a resident expert. Times count the requests that its cache has served so far."""

    now: float
    """Time of this decision."""
    last: float
    """Time of its last use, -1 for none."""
    uses: float
    """Uses so far."""
    heavy: float
    """Uses so far that asked for full precision."""
    upcoming: float
    """Time of its next use, ``NEVER`` for none; only rules with ``foresight`` may look."""
    probability: float
    """Chance that a request uses it: stated, or predicted for this sequence."""
    ahead: float
    """Layers until its own layer runs again, 1..layers: right after it has run, all of them."""
    layers: float
    """MoE layers."""
    orphan: float
    """1 if it is only ever used after an expert that is not resident."""
    draw: float
    """A uniform random number."""


Parameters = tuple[float, float, float, float]
Rule = Callable[[Facts, Parameters], float]
"""What is known of an expert, and the rule's own numbers -> the value of keeping the expert."""


def _lru(f: Facts, _p: Parameters) -> float:
    return f.last


def _lfu(f: Facts, _p: Parameters) -> float:
    return f.uses


def _lfru(f: Facts, _p: Parameters) -> float:
    return f.uses / (f.now - f.last + 1.0)


def _random(f: Facts, _p: Parameters) -> float:
    return f.draw


def _belady(f: Facts, _p: Parameters) -> float:
    return -f.upcoming


def _lookahead(f: Facts, p: Parameters) -> float:
    # beyond the window all are alike, and the longest unused leaves
    return -(f.upcoming if f.upcoming - f.now <= p[0] else f.now + p[0] + 1.0)


def _distance(f: Facts, _p: Parameters) -> float:
    return f.uses / f.ahead


def _activation(f: Facts, _p: Parameters) -> float:
    return (f.probability + 1e-6) * (1.0 - (f.ahead - 1.0) / f.layers)


def _weighted(f: Facts, p: Parameters) -> float:
    used = (p[0] * (f.last + 1.0) + p[1] * f.uses + p[2] * f.heavy) / (f.now + 1.0)
    return used + p[3] * (1.0 - f.ahead / f.layers)


def _usage(f: Facts, _p: Parameters) -> float:
    return f.probability - 2.0 * f.orphan  # probabilities are at most 1: every orphan goes before any other


class EvictionRule(Spec):
    """What all rules share."""

    keep: ClassVar[Rule]
    foresight: ClassVar[bool] = False
    """Looks at the future of the trace: a bound, not a policy that can be built."""
    probable: ClassVar[bool] = False
    """Needs a stated probability of every expert."""
    matched: ClassVar[bool] = False
    """Needs activations of earlier sequences to match this one with."""

    admission: Literal["always", "better", "free"] = "always"
    """``always``: a fetched expert stays and others leave; ``better``: the least valuable leaves, which may be the
    fetched one; ``free``: it stays only where there is room, nothing leaves."""

    def parameters(self) -> Parameters:
        """Return the rule's own numbers."""
        return (0.0, 0.0, 0.0, 0.0)


class Lru(EvictionRule):
    """The longest unused leaves."""

    keep: ClassVar[Rule] = staticmethod(_lru)
    policy: Literal["lru"] = "lru"


class Lfu(EvictionRule):
    """The least often used since the start of the sequence or run leaves; evicted experts keep their count."""

    keep: ClassVar[Rule] = staticmethod(_lfu)
    policy: Literal["lfu"] = "lfu"


class Lfru(EvictionRule):
    """The least count / (age + 1) leaves (arXiv 2608.07911, its LFRU baseline; vllm-project/vllm#37190)."""

    keep: ClassVar[Rule] = staticmethod(_lfru)
    policy: Literal["lfru"] = "lfru"


class Random(EvictionRule):
    """Any one leaves, with equal chance."""

    keep: ClassVar[Rule] = staticmethod(_random)
    policy: Literal["random"] = "random"
    seed: NonNegativeInt = 0
    """Of the draws."""


class Belady(EvictionRule):
    """The one whose next use is farthest leaves: the fewest fetches there can be with experts of equal size.

    That is with ``admission: better``, where an expert used later than all others is not kept at all; with
    ``always`` it is the fewest of what must keep every fetched expert, if requests are single experts.
    """

    keep: ClassVar[Rule] = staticmethod(_belady)
    foresight: ClassVar[bool] = True
    policy: Literal["belady"] = "belady"


class Lookahead(EvictionRule):
    """Belady that sees ``window`` requests ahead (Read-ME, arXiv 2410.19123, looks into its queue)."""

    keep: ClassVar[Rule] = staticmethod(_lookahead)
    foresight: ClassVar[bool] = True
    policy: Literal["lookahead"] = "lookahead"
    window: PositiveInt
    """Requests of the same cache that are known beforehand."""

    def parameters(self) -> Parameters:
        """Return the window."""
        return (float(self.window), 0.0, 0.0, 0.0)


class FrequencyDistance(EvictionRule):
    """The least count / layers until it can be used again leaves (EdgeMoE, arXiv 2308.14352).

    The denominator printed there is largest for the layer that runs next, against its own text; here it is the
    forward distance, 1 for the next layer.
    """

    keep: ClassVar[Rule] = staticmethod(_distance)
    policy: Literal["frequency_distance"] = "frequency_distance"


class ActivationAware(EvictionRule):
    """The least predicted reuse times nearness leaves (MoE-Infinity, arXiv 2401.14361).

    The prediction is the recorded sequence whose activations so far resemble this sequence's most.
    """

    keep: ClassVar[Rule] = staticmethod(_activation)
    matched: ClassVar[bool] = True
    policy: Literal["activation_aware"] = "activation_aware"
    entries: PositiveInt = 120
    """Recorded sequences kept for matching (about 120 in MoE-Infinity)."""


class Weighted(EvictionRule):
    """The least sum of recency, frequency, full-precision frequency and nearness leaves (HOBBIT, arXiv 2411.01433)."""

    keep: ClassVar[Rule] = staticmethod(_weighted)
    policy: Literal["weighted"] = "weighted"
    recency: NonNegativeFloat
    frequency: NonNegativeFloat
    precision: NonNegativeFloat
    nearness: NonNegativeFloat

    @model_validator(mode="after")
    def _adds_up(self) -> Weighted:
        if not math.isclose(sum(self.parameters()), 1.0, rel_tol=1e-9):
            raise ValueError("recency, frequency, precision and nearness: expected weights that add up to 1")
        return self

    def parameters(self) -> Parameters:
        """Return the four weights."""
        return (self.recency, self.frequency, self.precision, self.nearness)


class UsageProbability(EvictionRule):
    """Experts that only follow an absent one leave first, then the least probable (CoServe, ASPLOS 2025)."""

    keep: ClassVar[Rule] = staticmethod(_usage)
    probable: ClassVar[bool] = True
    policy: Literal["usage_probability"] = "usage_probability"


class NeverEvict(EvictionRule):
    """Nothing leaves: what is resident at the start, or comes while there is room, stays."""

    keep: ClassVar[Rule] = staticmethod(_lru)
    policy: Literal["never"] = "never"
    admission: Literal["free"] = "free"


Eviction = Annotated[
    Lru
    | Lfu
    | Lfru
    | Random
    | Belady
    | Lookahead
    | FrequencyDistance
    | ActivationAware
    | Weighted
    | UsageProbability
    | NeverEvict,
    Field(discriminator="policy"),
]
"""Any eviction rule, as a file states it."""

EVICTIONS: dict[str, type[EvictionRule]] = {
    "lru": Lru,
    "lfu": Lfu,
    "lfru": Lfru,
    "random": Random,
    "belady": Belady,
    "lookahead": Lookahead,
    "frequency_distance": FrequencyDistance,
    "activation_aware": ActivationAware,
    "weighted": Weighted,
    "usage_probability": UsageProbability,
    "never": NeverEvict,
}


def make_eviction(name: str, **fields: float | str) -> EvictionRule:
    """Return the rule of that name.

    Raises
    ------
    SpecError : unknown name, or fields that the rule does not take
    """
    if name not in EVICTIONS:
        raise SpecError(f"eviction {name!r}: unknown policy{nearest(name, EVICTIONS)}")
    try:
        return EVICTIONS[name].model_validate(fields)
    except ValueError as error:
        raise SpecError(f"eviction {name!r}: {str(error).splitlines()[-2].strip()}") from None
