"""Composition of Experts: whole models as experts, one per prompt, and how nodes keep and serve them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from moesim.spec.base import Source, Spec, load_spec
from moesim.units import Bytes, Seconds

if TYPE_CHECKING:
    from pathlib import Path

    from moesim.spec.model import ModelSpec

__all__ = [
    "ComposedExpert",
    "CompositionRouter",
    "CompositionServing",
    "CompositionSpec",
    "MeasuredRun",
    "PriceRun",
    "PromptCategory",
]


class MeasuredRun(Spec):
    """A run's time as measured: ``fixed + per_prompt * batch``, whatever the lengths."""

    kind: Literal["measured"]
    fixed: Seconds = 0.0
    """Per batch."""
    per_prompt: Seconds
    """Per prompt of the batch."""


class PriceRun(Spec):
    """A run priced from the model on the node: prefill, then one step per token."""

    kind: Literal["priced"]
    start: Seconds = 0.0
    """Per batch, beside the passes: host, program and whatever the lengths do not show."""


Run = Annotated[MeasuredRun | PriceRun, Field(discriminator="kind")]


class ComposedExpert(Spec):
    """One expert model, or several checkpoints of one architecture."""

    name: str
    model: str = ""
    """Catalog name or path of the model; empty where ``bytes`` and a measured run say all."""
    bytes: Bytes | None = None
    """Stored weights of one copy; none: the model's."""
    segment: Bytes = 0.0
    """What one copy declares in the backing tier beside its weights: caches, program."""
    copies: PositiveInt = 1
    """Different checkpoints of this size, each an expert of its own."""
    share: NonNegativeFloat = 1.0
    """Of the prompts, all copies together, before categories; relative to the other experts' shares."""
    skew: NonNegativeFloat = 0.0
    """Zipf exponent of the prompts over the copies; 0: evenly."""
    after: str = ""
    """Only used after a prompt has been through that expert (a detector before a classifier)."""
    run: Run = PriceRun(kind="priced")
    """How long a batch takes."""

    @model_validator(mode="after")
    def _sized(self) -> ComposedExpert:
        if not self.model and self.bytes is None:
            raise ValueError("expected model, bytes or both")
        if not self.model and self.run.kind == "priced":
            raise ValueError("run: without a model expected a measured run")
        return self


class CompositionRouter(Spec):
    """The model that reads a prompt and names its category."""

    model: str
    """Catalog name or path."""
    output: PositiveInt = 1
    """Tokens it writes: 1 classifies, more name an answer."""
    run: Run = PriceRun(kind="priced")


class PromptCategory(Spec):
    """A kind of prompt and the expert that answers it."""

    name: str
    share: PositiveFloat
    """Of the prompts; all shares sum to 1."""
    expert: str
    """Name of the expert; with copies, one of them is drawn as its skew says."""


class CompositionSpec(Spec):
    """A router and the experts it chooses from."""

    kind: Literal["composition"]
    name: str
    router: CompositionRouter | None = None
    """None: every prompt states its expert."""
    experts: tuple[ComposedExpert, ...] = Field(min_length=1)
    categories: tuple[PromptCategory, ...] = ()
    """Empty: prompts go to experts by the experts' own shares."""
    general: str = ""
    """Category that takes prompts the router is unsure of (arXiv 2412.01868)."""
    unsure: float = Field(default=0.0, ge=0, lt=1)
    """Share of prompts of the other categories that go to ``general`` instead."""
    sources: tuple[Source, ...] = Field(min_length=1)
    """Every fact above is covered by one of these."""

    @model_validator(mode="after")
    def _parts_fit(self) -> CompositionSpec:
        names = [expert.name for expert in self.experts]
        if len(set(names)) < len(names):
            raise ValueError("experts: expected different names")
        for expert in self.experts:
            if expert.after and (expert.after not in names or expert.after == expert.name):
                raise ValueError(
                    f"experts: {expert.name} comes after {expert.after!r}, no other expert's name"
                )
        if sum(expert.share for expert in self.experts) <= 0:
            raise ValueError("experts: expected a positive share")
        if self.categories:
            self._check_categories(names)
        elif self.general or self.unsure:
            raise ValueError("general and unsure need categories")
        return self

    def _check_categories(self, names: list[str]) -> None:
        unknown = [c.expert for c in self.categories if c.expert not in names]
        if unknown:
            raise ValueError(f"categories: {unknown[0]!r} is no expert, known: {', '.join(names)}")
        if abs(sum(c.share for c in self.categories) - 1) > 1e-6:
            raise ValueError("categories: shares must sum to 1")
        if self.unsure and self.general not in {c.name for c in self.categories}:
            raise ValueError(f"general: {self.general!r} is not one of the categories")

    @property
    def count(self) -> int:
        """Experts, copies counted."""
        return sum(expert.copies for expert in self.experts)

    def models(self, beside: Path | None = None) -> dict[str, ModelSpec]:
        """Return the models that experts and router name.

        Raises
        ------
        SpecError : no such model
        """
        from moesim.spec.model import ModelSpec  # noqa: PLC0415 - keeps the import light

        names = {expert.model for expert in self.experts if expert.model}
        names |= {self.router.model} if self.router else set()
        return {name: load_spec(ModelSpec, name, "model", beside) for name in sorted(names)}


class CompositionServing(Spec):
    """How nodes keep and serve a composition. The whole node runs one batch at a time (tensor parallel over it)."""

    nodes: PositiveInt = 1
    """Equal nodes."""
    backing: str = "ddr"
    """Tier below main memory that holds what is not resident."""
    links: PositiveInt | None = None
    """Host links that carry a switch, where the backing tier is the host's; none: all of the node."""
    spill: bool = False
    """Experts that are resident need no place in the backing tier: the two capacities add up."""
    reserved: Bytes = 0.0
    """Main memory of a node that experts may not have, beside the router: caches, working memory."""
    resident: Literal["cold", "probable"] = "cold"
    """What main memory holds at the start: nothing, or the most probable experts."""
    eviction: Literal["lru", "lfu", "lfru", "usage_probability", "never"] = "lru"
    """Which expert makes room. ``never``: a fetched one is dropped after its batch once memory is full."""
    batching: Literal["fcfs", "grouped"] = "fcfs"
    """``fcfs``: prompts in order, one run per prompt unless neighbours share an expert; ``grouped``: all waiting
    prompts of the oldest prompt's expert, resident experts first."""
    max_batch: PositiveInt = 1
    """Most prompts of one expert in one run."""
    router_batch: PositiveInt = 8
    """Most prompts that the router reads at once."""
    ahead: NonNegativeInt = 0
    """Runs whose experts are copied while an earlier run computes; 0: copy, then run."""
    dispatch: Literal["least_busy", "resident", "home"] = "resident"
    """Which node answers a routed prompt: the one with the shortest queue, one that has the expert resident, or the
    expert's own node."""
    orchestration: Literal["software", "hardware"] = "hardware"
    """Who starts kernels."""
    bandwidth: float | None = Field(default=None, gt=0, le=1)
    """Share of the main memory's bandwidth that kernels reach; none: as the device states."""
    kernel: Seconds | None = None
    """Seconds per kernel call; none: as the device states."""
