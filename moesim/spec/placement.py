"""Placement: which expert sits in which slot of which rank, layer by layer, and where the decision came from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from moesim.spec.base import Finding, Source, Spec, findings
from moesim.spec.model import ModelSpec, MoeFfn

__all__ = ["ExpertSlots", "PlacementSpec", "PlanRecord", "moe_layers", "placement_findings", "slot_text"]


def _row(value: Any) -> Any:
    """Open ``"0 1 | 2 3"`` into ``[0, 1, 2, 3]``; every rank between bars must hold as many slots."""
    if not isinstance(value, str):
        return value
    parts = [part.split() for part in value.split("|")]
    if len({len(part) for part in parts}) != 1 or not parts[0]:
        sizes = ", ".join(str(len(part)) for part in parts)
        raise ValueError(f"expected as many slots on every rank between the bars, found {sizes}")
    words = [word for part in parts for word in part]
    wrong = next((word for word in words if not word.isdecimal()), None)
    if wrong is not None:
        raise ValueError(f"expected numbers of experts, found {wrong!r}")
    return [int(word) for word in words]


Row = Annotated[
    tuple[NonNegativeInt, ...],
    BeforeValidator(_row, json_schema_input_type=str | tuple[NonNegativeInt, ...]),
]


class ExpertSlots(Spec):
    """Slots of the MoE layers that share one FFN description."""

    experts: PositiveInt
    """Routed experts of a layer."""
    slots: tuple[Row, ...] = Field(min_length=1)
    """Expert in each physical slot, one row per layer of this FFN from the first; one row: all layers alike. Slot s
    belongs to rank ``s // (slots / ranks)``. A row is a list, or text with a bar between ranks: ``0 1 | 2 3``. An
    expert that fills several slots is replicated and its tokens are shared evenly among them."""

    @model_validator(mode="after")
    def _every_expert_once(self) -> ExpertSlots:
        width = len(self.slots[0])
        found: list[Finding] = []
        for index, row in enumerate(self.slots):
            here = ("slots", index)
            held = set(row)
            if len(row) != width:
                found.append(
                    Finding(here, None, f"expected {width} slots, as in the first row, got {len(row)}")
                )
            elif max(row) >= self.experts:
                found.append(Finding(here, max(row), f"expected experts 0..{self.experts - 1}"))
            elif len(held) < self.experts:
                gone = next(e for e in range(self.experts) if e not in held)
                found.append(Finding(here, None, f"expected every expert in a slot, expert {gone} has none"))
        if found:
            raise findings(*found)
        return self


class PlanRecord(Spec):
    """The decision behind a placement, as the planner proved it."""

    problem: str
    """Problem that was solved: balance, affinity, joint, ..."""
    measure: str
    """What the objective counts, in words."""
    objective: float
    bound: float
    """No placement of these slots can be below it."""
    gap: NonNegativeFloat
    """(objective - bound) / objective."""
    method: str
    """How the placement and the bound were found."""
    sol_status: Literal["optimal", "feasible"]
    """``optimal`` only with a proof."""
    baselines: dict[str, float] = Field(default_factory=dict)
    """Objective of other placements on the same loads."""
    scenario: str = ""
    """Scenario that asked."""
    seed: NonNegativeInt = 0
    version: str = ""
    """moesim that planned."""


class PlacementSpec(Spec):
    """Physical expert slots of one replica, for a model at one expert-parallel degree."""

    kind: Literal["placement"]
    name: str
    model: str = ""
    """Network it was made for; empty: any with these FFNs."""
    ranks: PositiveInt
    """Expert-parallel ranks; each holds slots / ranks slots of every layer."""
    ffns: dict[str, ExpertSlots] = Field(min_length=1)
    """Slots by name of the FFN in the model file."""
    plan: PlanRecord | None = None
    """How it was decided; none: by hand."""
    sources: tuple[Source, ...] = ()
    """Where a placement that was published or exported from an engine was read."""

    @model_validator(mode="before")
    @classmethod
    def _bars_are_ranks(cls, data: Any) -> Any:
        """Refuse bars that cut a row into another number of ranks: the reader would be misled."""
        ranks, ffns = (data.get("ranks"), data.get("ffns")) if isinstance(data, dict) else (None, None)
        found = [
            Finding(
                ("ffns", name, "slots", index), None, f"expected {ranks} ranks between bars, got {bars + 1}"
            )
            for name, part in (ffns.items() if isinstance(ffns, dict) else ())
            for index, row in enumerate(part.get("slots") or () if isinstance(part, dict) else ())
            if isinstance(row, str) and (bars := row.count("|")) and bars + 1 != ranks
        ]
        if found:
            raise findings(*found)
        return data

    @model_validator(mode="after")
    def _slots_divide(self) -> PlacementSpec:
        found = [
            Finding(
                ("ffns", name, "slots"),
                None,
                f"expected a multiple of ranks = {self.ranks} slots, got {width}",
            )
            for name, part in self.ffns.items()
            if (width := len(part.slots[0])) % self.ranks
        ]
        if found:
            raise findings(*found)
        return self

    def slots_per_rank(self, ffn: str) -> int:
        """Return the slots that one rank holds in a layer of ``ffn``, 0 where the placement does not know it."""
        return len(self.ffns[ffn].slots[0]) // self.ranks if ffn in self.ffns else 0


def moe_layers(model: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return, by FFN name, which of the model's MoE layers (counted without the dense ones) have that FFN."""
    layers: dict[str, list[int]] = {}
    names = [name for _, name in model.blocks() if isinstance(model.ffns[name], MoeFfn)]
    for index, name in enumerate(names):
        layers.setdefault(name, []).append(index)
    return {name: tuple(rows) for name, rows in layers.items()}


def placement_findings(placement: PlacementSpec, model: ModelSpec, ep: int) -> Iterator[Finding]:
    """Yield every way in which a placement does not fit a model spread over ``ep`` ranks; keys are its own."""
    if placement.model not in {"", model.name}:
        yield Finding(("model",), placement.model, f"expected {model.name}, the model of the scenario")
    if placement.ranks != ep:
        yield Finding(("ranks",), placement.ranks, f"expected {ep}, the pool's expert-parallel degree ep")
    layers = moe_layers(model)
    if not layers:
        yield Finding(("ffns",), None, f"{model.name} has no routed experts to place")
        return
    for name in placement.ffns:
        if name not in layers:
            known = ", ".join(layers)
            yield Finding(("ffns", name), None, f"expected a routed FFN of {model.name}: {known}")
    for name, rows in layers.items():
        part, ffn = placement.ffns.get(name), model.ffns[name]
        if part is None:
            yield Finding(("ffns",), None, f"expected slots of {name}, a routed FFN of {model.name}")
            continue
        if isinstance(ffn, MoeFfn) and part.experts != ffn.experts:
            yield Finding(
                ("ffns", name, "experts"), part.experts, f"expected {ffn.experts}, as in {model.name}"
            )
        if len(part.slots) not in {1, len(rows)}:
            what = f"expected 1 row, or {len(rows)}: one per layer of {model.name}"
            yield Finding(("ffns", name, "slots"), len(part.slots), what)


def slot_text(row: Any, ranks: int) -> str:
    """Return a row of slots as text with a bar between ranks.

    >>> slot_text([0, 1, 2, 0], 2)
    '0 1 | 2 0'
    """
    size = len(row) // ranks
    parts = (" ".join(str(int(e)) for e in row[at : at + size]) for at in range(0, len(row), size))
    return " | ".join(parts)
