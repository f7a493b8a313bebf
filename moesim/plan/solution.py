"""Solution: a decision with its objective, a certified lower bound and how both were found."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

__all__ = ["Limits", "Point", "SolStatus", "Solution"]

T = TypeVar("T")
SolStatus = Literal["optimal", "feasible", "infeasible", "no solution"]
"""``optimal`` is said only of a proof: the bound equals the objective up to rounding, or an exact method ended."""
_ROUNDING = 1e-9


class Point(NamedTuple):
    """Progress of a search: best objective and bound known after ``seconds``."""

    seconds: float
    objective: float
    bound: float


@dataclass(frozen=True, slots=True)
class Limits:
    """When a search may stop.

    Attributes
    ----------
    seconds : wall time; what was found by then is the answer
    gap : relative gap that is good enough, 0: only a proof
    seed : of every random choice
    """

    seconds: float = 60.0
    gap: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Solution(Generic[T]):
    """One decision; objectives are minimised.

    Attributes
    ----------
    answer : the decision
    objective : its value, recomputed from the answer and not read from a solver
    bound : no decision can be below it
    method : how the answer and the bound were found, in a few words
    sol_status : what is proven
    seconds : wall time
    history : incumbents and bounds over time, the last one is the answer's
    """

    answer: T
    objective: float
    bound: float
    method: str
    sol_status: SolStatus
    seconds: float
    history: tuple[Point, ...] = ()

    def __post_init__(self) -> None:
        slack = _ROUNDING * max(1.0, abs(self.objective))
        if self.bound > self.objective + slack:
            raise ValueError(f"bound {self.bound} above the objective {self.objective}")
        if self.sol_status == "optimal" and self.objective - self.bound > slack:
            raise ValueError(f"{self.method}: no proof, objective {self.objective} over bound {self.bound}")

    @property
    def gap(self) -> float:
        """Relative gap (objective - bound) / |objective|, 0 when both are 0.

        >>> Solution(None, 10.0, 9.0, "by hand", "feasible", 0.0).gap
        0.1
        """
        if math.isinf(self.objective):
            return math.inf
        apart = max(self.objective - self.bound, 0.0)
        return apart / abs(self.objective) if self.objective else (0.0 if apart == 0 else math.inf)
