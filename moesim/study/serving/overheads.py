"""Overheads: host time of serving engines as explicit terms, fitted on dense models only, stamped with versions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from moesim.files import catalog_root, read_yaml
from moesim.spec.base import Source, Spec, validate
from moesim.study.serving.rows import ServingRow
from moesim.units import Seconds

__all__ = ["Overhead", "OverheadRule", "OverheadTable", "load_overheads"]


@dataclass(frozen=True, slots=True)
class Overhead:
    """Seconds that the device waits for, or the client waits for, beside kernels.

    Attributes
    ----------
    step_s : per engine step: scheduler, input preparation, launch of the graph, sampling's host part
    sequence_s : per sampled sequence and step: bookkeeping, detokenisation where it is in line
    request_s : per request, seen by the client in TTFT alone: HTTP, tokenisation, queues between processes
    prefill : time of steps beyond the captured graphs over what single kernels, measured alone, add up to: launches
        one by one, and clocks that sustained products do not hold; 1 at least
    """

    step_s: float = 0.0
    sequence_s: float = 0.0
    request_s: float = 0.0
    prefill: float = 1.0


class OverheadRule(Spec):
    """The terms of one engine."""

    backend: Literal["vllm", "sglang", "trtllm"]
    client: Literal["inferencemax", "aiperf"] | None = None
    step: Seconds
    sequence: Seconds
    request: Seconds = 0.0
    prefill: Annotated[float, Field(ge=1)] = 1.0
    versions: tuple[str, ...] = ()
    """Engine versions that the terms were fitted on; others are warned about."""
    rows: int = Field(ge=0)
    """Dense runs that the terms were fitted on."""
    source: Source


class OverheadTable(Spec):
    """Terms by engine; an engine without a rule has none."""

    kind: Literal["overheads"]
    rules: tuple[OverheadRule, ...]

    estimators: str = ""
    """Stamp of the kernel times that the terms complete."""

    def rule(self, row: ServingRow) -> OverheadRule | None:
        """Return the rule for a run: its backend's, its client's own where there is one; or None."""
        found = (r for r in self.rules if r.backend == row.backend and r.client in {None, row.client})
        return next(found, None)

    def of(self, row: ServingRow) -> Overhead:
        """Return the terms for a run, none where no rule matches."""
        rule = self.rule(row)
        return Overhead() if rule is None else Overhead(rule.step, rule.sequence, rule.request, rule.prefill)

    def note(self, row: ServingRow) -> str:
        """Return a warning where the terms come from other engine versions than the run's, else nothing."""
        rule = self.rule(row)
        if rule is None or not row.version or row.version in rule.versions:
            return ""
        return (
            f"overheads of {row.backend} were fitted on {', '.join(rule.versions)}, this run is {row.version}"
        )


def load_overheads(path: Path | None = None) -> OverheadTable | None:
    """Read the fitted terms; None where none ship.

    Raises
    ------
    SpecError : the file is wrong, or a stated path is missing
    """
    where = path or catalog_root() / "validation" / "fits" / "overheads.yaml"
    if path is None and not where.is_file():
        return None
    return validate(OverheadTable, read_yaml(where, where.name))
