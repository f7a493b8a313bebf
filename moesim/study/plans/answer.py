"""Planned: a decision with its proof, its baselines and what reports draw of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from moesim.files import dump_yaml
from moesim.plan.solution import Point, SolStatus, Solution
from moesim.spec.model import MoeFfn
from moesim.spec.placement import ExpertSlots, PlacementSpec, PlanRecord, moe_layers, slot_text
from moesim.spec.scenario import ScenarioSpec
from moesim.version import __version__

__all__ = [
    "Placed",
    "Planned",
    "Progress",
    "placement_of",
    "placement_text",
    "record_of",
    "relative_gap",
    "summary",
]

FloatArray = npt.NDArray[np.float64]
Progress = Callable[[Point], None]


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """One placement of a plan and what it is worth.

    Attributes
    ----------
    placement : as a scenario would name it
    objective : on the loads that were planned for
    load : [scenario, layer, rank] of every MoE layer, each over the mean rank's
    traffic : [rank, rank] tokens that go from one rank to the other between MoE layers, where the plan looked at it
    """

    placement: PlacementSpec
    objective: float
    load: FloatArray | None = None
    traffic: FloatArray | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Planned:
    """What ``moesim plan`` decided; objectives are minimised.

    Attributes
    ----------
    problem : which one
    measure : what the objective counts, in words
    objective, bound, method, sol_status, seconds, history : as in ``Solution``
    baselines : objective of other decisions on the same data
    pool : whose experts were placed, empty where no placement was asked
    plan : the placement decided; none for other decisions
    others : placements of baselines, by name, for verification and reports
    moved_bytes : expert weights that devices lack and must be sent, from the present placement; none: not a placement
    answer : the decision in JSON, where it is no placement or more than one
    scenarios : names of the load scenarios
    notes : assumptions, one sentence each
    """

    problem: str
    measure: str
    objective: float
    bound: float
    method: str
    sol_status: SolStatus
    seconds: float
    history: tuple[Point, ...] = ()
    baselines: Mapping[str, float] = field(default_factory=dict)
    pool: str = ""
    plan: Placed | None = None
    others: Mapping[str, Placed] = field(default_factory=dict)
    moved_bytes: float | None = None
    answer: Mapping[str, Any] = field(default_factory=dict)
    scenarios: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def gap(self) -> float:
        """Relative gap (objective - bound) / |objective|, as in ``Solution``."""
        return relative_gap(self.objective, self.bound)


def relative_gap(objective: float, bound: float) -> float:
    """Return (objective - bound) / |objective|, 0 when both are 0."""
    return Solution(None, objective, bound, "", "feasible", 0.0).gap


def placement_of(
    scenario: ScenarioSpec,
    ranks: int,
    rows: Sequence[npt.ArrayLike],
    name: str,
) -> PlacementSpec:
    """Return the placement that has ``rows`` [MoE layer, slot] as the experts of its slots."""
    ffns = {}
    for name_, layers in moe_layers(scenario.model).items():
        ffn = scenario.model.ffns[name_]
        assert isinstance(ffn, MoeFfn)
        slots = tuple(tuple(np.asarray(rows[at]).tolist()) for at in layers)
        ffns[name_] = ExpertSlots(experts=ffn.experts, slots=slots)
    return PlacementSpec(kind="placement", name=name, model=scenario.model.name, ranks=ranks, ffns=ffns)


def record_of(scenario: ScenarioSpec, planned: Planned) -> PlanRecord | None:
    """Return what a placement file says of the decision; nothing that differs between equal runs."""
    if planned.sol_status not in {"optimal", "feasible"}:
        return None
    return PlanRecord(
        problem=planned.problem,
        measure=planned.measure,
        objective=planned.objective,
        bound=planned.bound,
        gap=planned.gap,
        method=planned.method,
        sol_status="optimal" if planned.sol_status == "optimal" else "feasible",
        baselines=dict(planned.baselines),
        scenario=scenario.name,
        seed=scenario.run.seed,
        version=__version__,
    )


def placement_text(placement: PlacementSpec) -> str:
    """Return a placement as a YAML file: a line per layer with a bar between ranks, one line where all are alike."""
    data = placement.model_dump(mode="json", exclude_defaults=True)
    head = {key: data[key] for key in ("kind", "name", "model", "ranks", "plan", "sources") if key in data}
    lines = [dump_yaml(head).rstrip(), "ffns:"]
    for name, part in placement.ffns.items():
        rows = part.slots[:1] if len(set(part.slots)) == 1 else part.slots
        lines += [f"  {json.dumps(name)}:", f"    experts: {part.experts}", "    slots:"]
        lines += [f'      - "{slot_text(row, placement.ranks)}"' for row in rows]
    return "\n".join(lines) + "\n"


def summary(
    planned: Planned, placement_file: str | None = None, verified: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the decision as ``moesim plan --json`` prints it."""
    found: dict[str, Any] = {
        "problem": planned.problem,
        "measure": planned.measure,
        "objective": planned.objective,
        "bound": planned.bound,
        "gap": planned.gap,
        "method": planned.method,
        "sol_status": planned.sol_status,
        "seconds": planned.seconds,
        "baselines": dict(planned.baselines),
        "moved_bytes": planned.moved_bytes,
        "placement_file": placement_file,
        "verify": None if verified is None else dict(verified),
    }
    if planned.answer:
        found["answer"] = dict(planned.answer)
    return found | {"scenarios": list(planned.scenarios), "notes": list(planned.notes)}
