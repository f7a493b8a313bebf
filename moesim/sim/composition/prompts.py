"""Prompts: when they come, how long they are, and which category and expert each belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moesim.errors import SpecError
from moesim.streams import stream
from moesim.traffic.sample import sample

if TYPE_CHECKING:
    from pathlib import Path

    from moesim.sim.composition.setup import CompositionSetup
    from moesim.spec.traffic import TrafficSpec

__all__ = ["Prompts", "draw_prompts", "make_prompts"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Prompts:
    """n prompts in order of arrival.

    Attributes
    ----------
    arrival_s : not falling, [n]
    input_tokens, output_tokens : at least 1, [n]
    category : what the router will find, [n]
    expert : which expert that means, [n]
    """

    arrival_s: FloatArray
    input_tokens: IntArray
    output_tokens: IntArray
    category: IntArray
    expert: IntArray

    def __post_init__(self) -> None:
        n = len(self.arrival_s)
        columns = (self.input_tokens, self.output_tokens, self.category, self.expert)
        if n == 0 or any(column.shape != (n,) for column in columns):
            raise SpecError("prompts: expected at least one, and one entry of every column for each")
        if np.any(np.diff(self.arrival_s) < 0) or self.arrival_s[0] < 0:
            raise SpecError("prompts: arrival_s: expected non-negative times that do not fall")
        if min(self.input_tokens.min(), self.output_tokens.min()) < 1 or self.expert.min() < 0:
            raise SpecError("prompts: expected at least one token in and out, and experts from 0")

    def __len__(self) -> int:
        return len(self.arrival_s)


def make_prompts(
    arrival_s: npt.ArrayLike,
    expert: npt.ArrayLike,
    input_tokens: npt.ArrayLike = 1,
    output_tokens: npt.ArrayLike = 1,
) -> Prompts:
    """Return prompts with stated experts; lengths may be one number for all. The category is the expert."""
    at, who = np.asarray(arrival_s, np.float64), np.asarray(expert, np.int64)
    sent, asked = (
        np.broadcast_to(np.asarray(t, np.int64), at.shape).copy() for t in (input_tokens, output_tokens)
    )
    return Prompts(at, sent, asked, who, who)


def draw_prompts(
    setup: CompositionSetup,
    traffic: TrafficSpec,
    seed: int,
    requests: int | None = None,
    horizon_s: float | None = None,
    beside: Path | None = None,
) -> Prompts:
    """Draw the prompts of a run: arrivals and lengths as the traffic says, categories and experts by their shares.

    Parameters
    ----------
    seed, requests, horizon_s, beside : as for ``moesim.traffic.sample``

    Raises
    ------
    SpecError : closed-loop traffic, whose arrivals a composition does not decide
    """
    drawn = sample(traffic, seed, requests, horizon_s, beside)
    if drawn.concurrency:
        raise SpecError(f"traffic {traffic.name}: a composition needs arrivals in time, not a closed loop")
    n = len(drawn)
    category = stream(seed, "composition categories").choice(
        len(setup.category_share), n, p=setup.category_share
    )
    draw, expert = stream(seed, "composition experts").random(n), np.zeros(n, dtype=np.int64)
    for row in np.unique(category):
        edges = np.cumsum(setup.category_expert[row])
        at = category == row
        expert[at] = np.minimum(np.searchsorted(edges / edges[-1], draw[at], side="right"), len(edges) - 1)
    return Prompts(
        np.asarray(drawn.arrival_s, np.float64),
        drawn.input_tokens.astype(np.int64),
        drawn.output_tokens.astype(np.int64),
        category.astype(np.int64),
        expert,
    )
