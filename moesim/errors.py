"""Errors a user can meet, each with its exit code and one clear line per problem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

__all__ = ["DataMissing", "LawBroken", "MoesimError", "NoResult", "Problem", "SpecError"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in one file.

    Attributes
    ----------
    where : file name, or ``--set`` / ``python`` for values that came from elsewhere
    line : 1-based line, 0 when there is none
    field : dotted path of the field, empty for a file-level problem
    value : the offending value as the user wrote it, shortened
    expected : what was expected instead
    """

    where: str
    line: int
    field: str
    value: str
    expected: str

    def __str__(self) -> str:
        place = f"{self.where}:{self.line}" if self.line else self.where
        what = f"  {self.field}" if self.field else ""
        value = f"  {self.value}" if self.value else ""
        return f"{place}{what}{value}: {self.expected}"


class MoesimError(Exception):
    """Root of every error moesim raises on purpose; ``exit_code`` is the CLI's."""

    exit_code: ClassVar[int] = 1


class SpecError(MoesimError):
    """A file, option or value is wrong. Carries every problem found, not only the first."""

    exit_code = 2

    def __init__(self, *problems: Problem | str) -> None:
        self.problems = tuple(
            p if isinstance(p, Problem) else Problem("moesim", 0, "", "", p) for p in problems
        )
        super().__init__(
            "\n".join(
                p.expected if isinstance(p, Problem) and p.where == "moesim" else str(p)
                for p in self.problems
            )
        )


class NoResult(MoesimError):
    """The question has no answer: it does not fit, is infeasible, or a target is missed with ``--strict``."""

    exit_code = 3


class DataMissing(MoesimError):
    """A measurement, trace or extra that the question needs is not there."""

    exit_code = 4


class LawBroken(MoesimError):
    """A law of physics or bookkeeping did not hold: our bug, with the seed to reproduce it."""

    exit_code = 70
