"""Miss: what to do about an expert that is asked for and not resident."""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from moesim.errors import SpecError
from moesim.files import nearest
from moesim.spec.base import Spec
from moesim.units import Seconds

__all__ = [
    "MISSES",
    "Act",
    "Fetch",
    "HostCompute",
    "LowerPrecision",
    "Miss",
    "MissRule",
    "Skip",
    "make_miss",
]

Acts = npt.NDArray[np.int8]


class Act(IntEnum):
    """What a use does if its expert is absent, and what precision it asks for."""

    FETCH = 0
    LOW = 1
    """A lower precision will do."""
    HOST = 2
    """The host computes it where it lives."""
    SKIP = 3
    """The token goes without it."""


class MissRule(Spec):
    """What all rules share."""

    def act(
        self,
        rank_weight: npt.NDArray[np.float64],
        tokens: npt.NDArray[np.float64],
        fetch_s: npt.NDArray[np.float64],
    ) -> Acts:
        """Return what each use does if its expert is absent, [use].

        Parameters
        ----------
        rank_weight : router weight of the experts that the token ranks above this one, as a share of the weight
            of all it chose, [use]; the least over the tokens that use it
        tokens : tokens that use the expert in this step, [use]
        fetch_s : seconds that its fetch takes on a free link, [use]
        """
        raise NotImplementedError


class Fetch(MissRule):
    """Wait for it."""

    policy: Literal["fetch"] = "fetch"

    def act(
        self,
        rank_weight: npt.NDArray[np.float64],  # noqa: ARG002 - always the same
        tokens: npt.NDArray[np.float64],
        fetch_s: npt.NDArray[np.float64],  # noqa: ARG002
    ) -> Acts:
        """Return a fetch for every use."""
        return np.full(tokens.shape, Act.FETCH, dtype=np.int8)


class HostCompute(MissRule):
    """The host computes it if that is sooner than fetching: c n <= g + transfer (Fiddler, arXiv 2402.07033)."""

    policy: Literal["host"] = "host"
    host_token_s: Seconds
    """Seconds per token and expert on the host."""
    host_start_s: Seconds = 0.0
    """Seconds per expert on the host beside those."""
    device_s: Seconds = 0.0
    """Seconds per expert on the device, whatever the tokens."""

    def act(
        self,
        rank_weight: npt.NDArray[np.float64],  # noqa: ARG002 - only seconds count
        tokens: npt.NDArray[np.float64],
        fetch_s: npt.NDArray[np.float64],
    ) -> Acts:
        """Return HOST where the host is no slower, FETCH elsewhere."""
        host = self.host_s(tokens) <= self.device_s + fetch_s
        return np.where(host, Act.HOST, Act.FETCH).astype(np.int8)

    def host_s(self, tokens: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the seconds of an expert on the host, [use]."""
        return np.asarray(self.host_start_s + self.host_token_s * tokens)


class LowerPrecision(MissRule):
    """Experts that matter less are fetched in fewer bits, those that matter least not at all (HOBBIT).

    arXiv 2411.01433: the weight of the experts ranked above decides; up to ``low_above`` full precision, up to
    ``skip_above`` low precision, beyond it nothing (0.6 and 0.9 there).
    """

    policy: Literal["lower_precision"] = "lower_precision"
    low_above: Annotated[float, Field(ge=0.0)] = 0.6
    skip_above: Annotated[float, Field(ge=0.0)] = 0.9

    @model_validator(mode="after")
    def _in_order(self) -> LowerPrecision:
        if self.skip_above < self.low_above:
            raise ValueError("skip_above: expected at least low_above")
        return self

    def act(
        self,
        rank_weight: npt.NDArray[np.float64],
        tokens: npt.NDArray[np.float64],  # noqa: ARG002 - only the router's weights count
        fetch_s: npt.NDArray[np.float64],  # noqa: ARG002
    ) -> Acts:
        """Return FETCH, LOW or SKIP by the weight above."""
        low, skip = rank_weight > self.low_above, rank_weight > self.skip_above
        return np.where(skip, Act.SKIP, np.where(low, Act.LOW, Act.FETCH)).astype(np.int8)


class Skip(MissRule):
    """The token goes without it. What that costs in accuracy is not known here."""

    policy: Literal["skip"] = "skip"
    above: Annotated[float, Field(ge=0.0)] = 0.0
    """Only experts with more than this weight ranked above them; 0: all but the heaviest."""

    def act(
        self,
        rank_weight: npt.NDArray[np.float64],
        tokens: npt.NDArray[np.float64],  # noqa: ARG002 - only the router's weights count
        fetch_s: npt.NDArray[np.float64],  # noqa: ARG002
    ) -> Acts:
        """Return SKIP where enough weight is ranked above."""
        return np.where(rank_weight > self.above, Act.SKIP, Act.FETCH).astype(np.int8)


Miss = Annotated[Fetch | HostCompute | LowerPrecision | Skip, Field(discriminator="policy")]
"""Any rule for misses, as a file states it."""

MISSES: dict[str, type[MissRule]] = {
    "fetch": Fetch,
    "host": HostCompute,
    "lower_precision": LowerPrecision,
    "skip": Skip,
}


def make_miss(name: str, **fields: float | str) -> MissRule:
    """Return the rule of that name.

    Raises
    ------
    SpecError : unknown name, or fields that the rule does not take
    """
    if name not in MISSES:
        raise SpecError(f"on miss {name!r}: unknown policy{nearest(name, MISSES)}")
    try:
        return MISSES[name].model_validate(fields)
    except ValueError as error:
        raise SpecError(f"on miss {name!r}: {str(error).splitlines()[-2].strip()}") from None
