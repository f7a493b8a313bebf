"""RoutingLoad: what the router does to the experts' work, as curves over the tokens of one step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moesim.errors import SpecError

if TYPE_CHECKING:
    from moesim.cost.pricing import FloatArray

__all__ = ["RoutingLoad"]


@dataclass(frozen=True, slots=True, eq=False)
class RoutingLoad:
    """Expected routing of one kind of MoE layer, averaged over its layers.

    The cost of experts follows distinct experts touched, rows per expert and imbalance, never tokens alone.
    The curves are indexed by the tokens of all attention ranks together, 0..max; whoever fills them (routing
    statistics or a trace) decides on popularity, persistence and placement.

    Attributes
    ----------
    distinct : [tokens] distinct experts that so many tokens touch in one layer; 0 at 0, never falling
    straggler : [tokens] rows of the busiest expert-parallel rank over the mean, >= 1
    ranks_per_token, nodes_per_token : distinct expert-parallel ranks and nodes that one token's experts sit
        on
    rank_distinct : [tokens] distinct experts on the busiest rank, where known; otherwise its share of
        ``distinct`` times the straggler factor, at most the experts it holds
    slots_per_rank : expert copies that a rank holds, replicas included; 0: experts / ranks
    knots : rising token counts that the curves are given at, from 0, linear in between; None: at every count
    """

    distinct: FloatArray
    straggler: FloatArray
    ranks_per_token: float
    nodes_per_token: float
    rank_distinct: FloatArray | None = None
    slots_per_rank: int = 0
    knots: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        curves = [self.distinct, self.straggler] + (
            [] if self.rank_distinct is None else [self.rank_distinct]
        )
        if any(c.ndim != 1 or c.shape != self.distinct.shape or not np.all(np.isfinite(c)) for c in curves):
            raise SpecError("routing load: expected finite curves of one length, [tokens 0..max]")
        if self.knots is not None and (
            self.knots.shape != self.distinct.shape or self.knots[:1] != 0 or np.any(np.diff(self.knots) <= 0)
        ):
            raise SpecError("routing load: expected one rising token count per point of the curves, from 0")
        if self.distinct.size == 0 or self.distinct[0] != 0 or np.any(np.diff(self.distinct) < -1e-9):
            raise SpecError("routing load: expected distinct experts that start at 0 and never fall")
        if np.any(self.straggler < 1 - 1e-9):
            raise SpecError("routing load: expected straggler factors of at least 1")
        if not self.ranks_per_token >= self.nodes_per_token >= 1 - 1e-9:
            raise SpecError("routing load: expected ranks_per_token >= nodes_per_token >= 1")

    def touched(self, tokens: npt.NDArray[np.int64], experts: int, ranks: int) -> FloatArray:
        """Return distinct experts that the busiest of ``ranks`` ranks reads, the shape of ``tokens``."""
        at = self._check(tokens)
        if self.rank_distinct is not None:
            return self._at(self.rank_distinct, at)
        held = self.slots_per_rank or -(-experts // ranks)
        if ranks == 1:
            return np.asarray(np.minimum(self._at(self.distinct, at), held))
        share = self._at(self.distinct, at) / ranks
        return np.asarray(np.minimum(share * self._at(self.straggler, at), held))

    def rows(self, tokens: npt.NDArray[np.int64], top_k: int, ranks: int) -> FloatArray:
        """Return token-expert rows on the busiest of ``ranks`` ranks, the shape of ``tokens``."""
        at = self._check(tokens)
        return np.asarray(at * top_k / ranks * (self._at(self.straggler, at) if ranks > 1 else 1.0))

    def _at(self, curve: FloatArray, tokens: npt.NDArray[np.int64]) -> FloatArray:
        return np.asarray(curve[tokens] if self.knots is None else np.interp(tokens, self.knots, curve))

    def _check(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        at = np.asarray(tokens, dtype=np.int64)
        last = self.distinct.size - 1 if self.knots is None else int(self.knots[-1])
        if at.size and at.max() > last:
            raise SpecError(f"routing load: the curves end at {last} tokens, a step has {at.max()}")
        return at
