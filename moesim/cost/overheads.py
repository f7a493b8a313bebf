"""Overheads: host time of serving engines as explicit terms, fitted on runs of dense models, stamped with versions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from moesim.cost.pricing import OpInfo, StepPricing
from moesim.cost.stepprice import GRAPH_TOKENS
from moesim.files import catalog_root, read_yaml
from moesim.spec.base import Source, Spec, validate
from moesim.units import Seconds

__all__ = ["Overhead", "OverheadRule", "OverheadTable", "hidden", "load_overheads", "with_overhead"]

_MIDDLE = "hopper"
Client = Literal["inferencemax", "aiperf"]


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
    client: Client | None = None
    """How it was deployed: ``inferencemax`` asks a bare server, ``aiperf`` one behind a front end."""
    architecture: str = ""
    """Of the devices, as in the catalog: hosts and clocks under load differ by generation. Empty: any."""
    step: Seconds
    sequence: Seconds
    request: Seconds = 0.0
    prefill: Annotated[float, Field(ge=1)] = 1.0
    versions: tuple[str, ...] = ()
    """Engine versions that the terms were fitted on; others are warned about."""
    rows: int = Field(ge=0)
    """Dense runs that the terms were fitted on."""
    source: Source

    @property
    def overhead(self) -> Overhead:
        """The terms as numbers."""
        return Overhead(self.step, self.sequence, self.request, self.prefill)


class OverheadTable(Spec):
    """Terms by engine; an engine without a rule has none."""

    kind: Literal["overheads"]
    rules: tuple[OverheadRule, ...]

    estimators: str = ""
    """Stamp of the kernel times that the terms complete."""
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """``ttft`` and ``tpot``: factors (low, high) on a simulated mean latency between which it was measured on nine of
    ten dense runs. ``ttft_moe`` and ``tpot_moe``: the same with the hold-out error of expert kernels, for models with
    experts; no run of such a model made them."""

    def rule(self, backend: str, client: str = "inferencemax", architecture: str = "") -> OverheadRule | None:
        """Return the rule of an engine asked by a client on a generation of devices, or None.

        A generation without a rule gets that of the middle one, Hopper, before others.
        """
        found = [r for r in self.rules if r.backend == backend and r.client in {None, client}]
        wanted = ("", architecture, _MIDDLE)
        order = sorted(found, key=lambda r: wanted.index(r.architecture) if r.architecture in wanted else 3)
        own = next((r for r in order if r.architecture == architecture), None)
        return own or next(iter(order), None)

    def of(self, backend: str, client: str = "inferencemax", architecture: str = "") -> Overhead:
        """Return the terms of an engine, none where no rule matches."""
        rule = self.rule(backend, client, architecture)
        return Overhead() if rule is None else rule.overhead

    def note(self, backend: str, client: str, architecture: str, version: str) -> str:
        """Return a warning where the terms come from other engine versions than ``version``, else nothing."""
        rule = self.rule(backend, client, architecture)
        if rule is None or not version or version in rule.versions:
            return ""
        return f"overheads of {backend} were fitted on {', '.join(rule.versions)}, this run is {version}"


def load_overheads(path: Path | None = None) -> OverheadTable | None:
    """Read the fitted terms; None where none ship.

    Raises
    ------
    SpecError : the file is wrong, or a stated path is missing
    """
    if path is None:
        return _shipped()
    return validate(OverheadTable, read_yaml(path, path.name))


@cache
def _shipped() -> OverheadTable | None:
    where = catalog_root() / "validation" / "fits" / "overheads.yaml"
    return validate(OverheadTable, read_yaml(where, where.name)) if where.is_file() else None


def hidden(overhead: Overhead) -> Overhead:
    """Return the terms of an engine that prepares the next step while this one runs: only prefill's are seen."""
    return replace(overhead, step_s=0.0, sequence_s=0.0)


def with_overhead(pricing: StepPricing, overhead: Overhead) -> StepPricing:
    """Return the tables with the host's time per step and per sampled sequence in them, and slower prefill steps."""
    rows = np.arange(pricing.head_s.shape[1]) * overhead.sequence_s
    graph = GRAPH_TOKENS
    lane_s, group_s = pricing.lane_s.copy(), pricing.group_s.copy()
    lane_s[:, graph + 1 :] *= overhead.prefill
    group_s[:, pricing.lanes * graph + 1 :] *= overhead.prefill
    return replace(
        pricing,
        lane_s=lane_s,
        group_s=group_s,
        attention=tuple(
            replace(
                term,
                prefill_flop_s=term.prefill_flop_s * overhead.prefill,
                prefill_kv_s=term.prefill_kv_s * overhead.prefill,
                prefill_token_s=term.prefill_token_s * overhead.prefill,
            )
            for term in pricing.attention
        ),
        overhead_s=pricing.overhead_s + overhead.step_s,
        overhead_source="fitted" if overhead.step_s else pricing.overhead_source,
        head_ops=(*pricing.head_ops, OpInfo("host_per_sequence", "head", "overhead", "fitted")),
        head_s=np.vstack([pricing.head_s, rows]),
    )
