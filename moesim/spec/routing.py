"""Routing: which experts tokens choose: uniformly, by popularity, from a fitted model, or as recorded."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from moesim.spec.base import Source, Spec

__all__ = ["Fitted", "Popularity", "Recorded", "Router", "RoutingSpec", "Tables", "Uniform"]

Share = Annotated[float, Field(ge=0)]


class Uniform(Spec):
    """Every set of top_k experts is equally likely, and tokens are independent."""

    kind: Literal["uniform"]


class Popularity(Spec):
    """Some experts are chosen more often than others; tokens are independent."""

    kind: Literal["popularity"]
    shares: tuple[tuple[Share, ...], ...] | None = None
    """Share of choices (or counts) of each expert, one row per known layer; other layers behave as their mean."""
    zipf: NonNegativeFloat | None = None
    """Selection weight falls as ``1 / rank**zipf``. Which expert has which rank says ``order``."""
    order: tuple[tuple[NonNegativeInt, ...], ...] | None = None
    """Experts of each layer, most popular first; without it every layer gets its own order at random."""
    layers: tuple[NonNegativeInt, ...] = ()
    """MoE layers that the rows of ``shares`` or ``order`` describe; empty: all, from the first."""

    @model_validator(mode="after")
    def _one_form(self) -> Popularity:
        if (self.shares is None) == (self.zipf is None):
            raise ValueError("expected either shares or zipf")
        if self.shares is not None and self.order is not None:
            raise ValueError("order belongs to zipf; shares say which expert is popular by themselves")
        rows = self.shares if self.shares is not None else self.order
        if rows is not None and (not rows or len({len(row) for row in rows}) != 1 or not rows[0]):
            raise ValueError("expected at least one row, all of one length")
        if self.layers and (rows is None or len(rows) != len(self.layers)):
            raise ValueError(f"layers names {len(self.layers)} rows, expected as many in shares or order")
        for ranked in self.order or ():
            if sorted(ranked) != list(range(len(ranked))):
                raise ValueError(f"each row of order must name the experts 0..{len(ranked) - 1} once")
        for shares in self.shares or ():
            if sum(shares) <= 0:
                raise ValueError("each row of shares needs a positive share")
        return self


class Tables(Spec):
    """An array file beside the YAML file."""

    path: str
    """Path of the .npz file, relative to this file."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Digest of the file; a file that does not match it is refused."""


class Fitted(Spec):
    """Model of a token's experts given the layer below and the tokens before (``moesim.routing.fit``)."""

    kind: Literal["fitted"]
    tables: Tables
    layers: PositiveInt
    """MoE layers."""
    phase: Literal["prefill", "decode"]
    """Tokens the trace recorded: prompt tokens or generated ones."""
    skipped: NonNegativeInt = 0
    """Tokens left out at the head of every sequence (a template that all prompts share)."""
    sequences: PositiveInt
    """Sequences that the tables were fitted on."""
    tokens: PositiveInt
    """Tokens that the tables were fitted on."""
    summary: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """Statistic on sequences kept out of the fit: recorded, sampled."""


class Recorded(Spec):
    """A recorded trace, replayed."""

    kind: Literal["trace"]
    path: str
    """Path of the .npz trace, relative to this file."""
    skipped: NonNegativeInt = 0
    """Tokens left out at the head of every sequence."""


Router = Annotated[Uniform | Popularity | Fitted | Recorded, Field(discriminator="kind")]


class RoutingSpec(Spec):
    """Which experts the tokens of a workload choose, layer by layer."""

    kind: Literal["routing"]
    name: str
    model: str = ""
    """Network that the figures were taken from; empty: any."""
    experts: PositiveInt | None = None
    """Experts per layer; none: the model's."""
    top_k: PositiveInt | None = None
    """Experts per token and layer; none: the model's."""
    router: Router
    groups: PositiveInt = 1
    """Expert groups of node-limited routing; drawn by a uniform router, part of the figures of the others."""
    top_groups: PositiveInt = 1
    """Groups a token may use."""
    sources: tuple[Source, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _shapes_agree(self) -> RoutingSpec:
        if self.top_groups > self.groups:
            raise ValueError(f"top_groups {self.top_groups}: expected at most groups {self.groups}")
        if self.experts is not None and self.experts % self.groups:
            raise ValueError(f"groups {self.groups}: expected a divisor of experts {self.experts}")
        if self.experts is not None and self.top_k is not None and self.top_k > self.experts:
            raise ValueError(f"top_k {self.top_k} is more than the {self.experts} experts")
        router = self.router
        if isinstance(router, Popularity):
            row = (router.shares or router.order or ((),))[0]
            if row and self.experts is not None and len(row) != self.experts:
                raise ValueError(f"rows of {len(row)} experts, expected {self.experts}")
        if isinstance(router, Fitted) and (self.experts is None or self.top_k is None):
            raise ValueError("a fitted router needs experts and top_k")
        return self
