"""Planning: the ``plan:`` section of a scenario: which decision ``moesim plan`` is to take, and within what limits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from moesim.spec.base import Spec
from moesim.spec.model import WeightDtype
from moesim.units import Bytes, Rate, Seconds, UsdPerHour, Watts

__all__ = [
    "PROBLEMS",
    "AffinityPlan",
    "BalancePlan",
    "CompositionPlan",
    "Drawn",
    "ExpertModel",
    "FleetPlan",
    "JointPlan",
    "LoadFile",
    "Menu",
    "Online",
    "ParallelismPlan",
    "Period",
    "PlanSpec",
    "Problem",
    "Search",
    "TieringPlan",
    "Width",
]

Problem = Literal["balance", "affinity", "joint", "tiering", "composition", "parallelism", "fleet"]
PROBLEMS: tuple[Problem, ...] = (
    "balance",
    "affinity",
    "joint",
    "tiering",
    "composition",
    "parallelism",
    "fleet",
)


class Search(Spec):
    """When a search may stop; what is found by then is the answer, with its proven bound."""

    time_limit: Seconds = 60.0
    gap: NonNegativeFloat = 0.0
    """Relative gap between objective and bound that is good enough; 0: only a proof, or the time limit."""


class LoadFile(Spec):
    """Recorded expert loads: one scenario of the loads to plan for."""

    path: str
    """Relative to this file: an SGLang recorder dump (.pt, .json), vLLM load JSONL, or a moesim trace (.npz)."""
    name: str = ""
    """Name of the scenario in reports; empty: the file's."""
    format: Literal["auto", "sglang", "vllm", "trace"] = "auto"
    weight: PositiveFloat = 1.0
    """Share in the mix, when the mean counts and not the worst."""


class Online(Spec):
    """Rebalancing while serving, replayed on a recorded trace: every so often, from a window of what came last."""

    every: PositiveInt = 3000
    """Engine steps between two rebalancings (vLLM's ``step_interval``)."""
    window: PositiveInt = 1000
    """Last steps whose loads are looked at (vLLM's ``window_size``)."""
    tokens_per_step: PositiveInt
    """Tokens of one engine step, all ranks together; the trace is cut into steps of that many."""
    max_moved: Bytes | None = None
    """Most expert weights that one rebalancing may move, all devices together; none: no limit."""
    hidden: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the migration that runs beside the steps (asynchronous EPLB); the rest stops them."""


class _Placing(Search):
    pool: Literal["serve", "prefill", "decode"] | None = None
    """Pool whose experts are placed; none: the one that decodes."""


class BalancePlan(_Placing):
    """Experts with replicas to ranks, equal slots each, so that the busiest rank has least to do."""

    problem: Literal["balance"]
    redundant: NonNegativeInt | None = None
    """Slots per layer beyond one for each expert, all ranks together; none: those of the pool's placement, or as few
    as make equal slots."""
    wanted: Annotated[float, Field(ge=1)] | None = None
    """Busiest rank over mean rank that is good enough: the plan is then the one of fewest redundant slots."""
    count: Literal["worst", "mix"] = "worst"
    """What several load scenarios are worth together: the worst one's imbalance, or their weighted mean."""
    loads: tuple[LoadFile, ...] = ()
    """Recorded loads, one scenario each; empty: the scenario's routing."""
    by_group: bool = False
    """Each sequence group (task, tenant) of a recorded trace is a load scenario of its own."""
    max_moved: Bytes | None = None
    """Most expert weights that may be moved, all devices together, from the pool's placement (contiguous when it has
    none); none: no limit."""
    groups: PositiveInt | None = None
    """Expert groups of EPLB's hierarchical baseline; none: the model's."""
    online: Online | None = None

    @model_validator(mode="after")
    def _several(self) -> BalancePlan:
        if self.by_group and len(self.loads) > 1:
            raise ValueError("by_group opens one trace into its groups; expected at most one file in loads")
        if self.wanted is not None and (self.redundant is not None or self.max_moved is not None):
            raise ValueError(
                "wanted looks for the fewest redundant slots; expected no redundant and no max_moved"
            )
        return self


class Drawn(Spec):
    """Transitions of a random Markov chain, for comparing methods: nobody's measurement."""

    zipf: NonNegativeFloat = 0.6
    """Exponent of the first layer's popularity."""
    concentration: PositiveFloat = 0.05
    """Of the Dirichlet draw of each expert's successors; the smaller, the stronger the affinity."""
    seed: NonNegativeInt = 1


class AffinityPlan(_Placing):
    """Experts to ranks, equal counts in each layer, so that tokens change rank and node least between layers.

    ExFlow's setting: a token's state stays where its last expert was.
    """

    problem: Literal["affinity"]
    trace: str = ""
    """Recorded trace (.npz) relative to this file; empty: the scenario's routing, recorded or fitted."""
    drawn: Drawn | None = None
    """Transitions drawn at random in the place of recorded ones."""
    device_hop: NonNegativeFloat = 1.0
    """Weight of a hop to another rank of the same node."""
    node_hop: NonNegativeFloat = 2.0
    """Weight of a hop to another node."""

    @model_validator(mode="after")
    def _one_source(self) -> AffinityPlan:
        if self.drawn is not None and self.trace:
            raise ValueError("expected either trace or drawn")
        if self.node_hop < self.device_hop:
            raise ValueError(
                "a hop between nodes weighs at least as much as one inside; expected node_hop >= device_hop"
            )
        return self


class JointPlan(_Placing):
    """Balance and traffic together: hops between layers plus a price for the busiest ranks' load, and the front."""

    problem: Literal["joint"]
    trace: str = ""
    """Recorded trace (.npz) relative to this file; empty: the scenario's routing, recorded or fitted."""
    price: NonNegativeFloat = 1.0
    """Weighted hops that one token on a layer's busiest rank is worth."""
    front: bool = True
    """Look for the front between hops and balance too."""
    dispatch: Literal["return_home", "context_coherent", "node_limited", "node_deduplicated"] = "return_home"
    """How tokens reach experts, for the bytes that are told of each placement."""
    most_nodes: PositiveInt | None = None
    """Nodes that a token may use, with ``node_limited``."""
    device_hop: NonNegativeFloat = 1.0
    """Weight of a hop to another rank of the same node."""
    node_hop: NonNegativeFloat = 2.0
    """Weight of a hop to another node."""

    @model_validator(mode="after")
    def _limits_nodes(self) -> JointPlan:
        if (self.dispatch == "node_limited") != (self.most_nodes is not None):
            raise ValueError("most_nodes belongs to dispatch: node_limited, which needs it")
        if self.node_hop < self.device_hop:
            raise ValueError(
                "a hop between nodes weighs at least as much as one inside; expected node_hop >= device_hop"
            )
        return self


class Menu(Spec):
    """Degrees and limits to try; an empty list: everything that divides, without a cap."""

    tp: tuple[PositiveInt, ...] = ()
    pp: tuple[PositiveInt, ...] = ()
    dp: tuple[PositiveInt, ...] = ()
    """Attention data parallelism inside a replica."""
    ep: tuple[PositiveInt, ...] = ()
    max_num_seqs: tuple[PositiveInt, ...] = Field((32, 64, 128, 256, 512, 1024), min_length=1)
    max_num_batched_tokens: tuple[PositiveInt, ...] = Field((2048, 4096, 8192, 16384), min_length=1)


class ParallelismPlan(Search):
    """Parallelism and batch limits: fewest devices for the scenario's rate, or most requests per device."""

    problem: Literal["parallelism"]
    devices: PositiveInt | None = None
    """Most devices; none: the cluster's."""
    axes: Menu = Menu()
    disaggregate: bool = False
    """Compare separate prefill and decode pools too."""
    rate: Rate | None = None
    """Requests to serve; none: the traffic's mean rate (a closed loop has none: as many as possible)."""
    finalists: NonNegativeInt = 3
    """Best options of different cuts that are simulated."""


class Period(Spec):
    """A part of the day with its demand."""

    hours: PositiveFloat
    rate: dict[str, Annotated[Rate, Field(gt=0)]] = Field(min_length=1)
    """Requests per second by class of traffic."""


class FleetPlan(Search):
    """Cheapest mix of device types, replicas and parallelisms for a demand within the scenario's targets."""

    problem: Literal["fleet"]
    clusters: tuple[str, ...] = Field(min_length=1)
    """What can be rented, one device type each: names or paths of clusters or nodes."""
    classes: dict[str, str] = Field(default_factory=dict)
    """Traffic of each class, by name or path; empty: one class, ``all``, of the scenario's traffic."""
    periods: tuple[Period, ...] = Field(min_length=1)
    devices: PositiveInt = 8
    """Most devices of one replica."""
    axes: Menu = Menu()
    reserved: dict[str, UsdPerHour] = Field(default_factory=dict)
    """Price of one reserved device, paid in all periods, by device name."""
    available: dict[str, NonNegativeInt] = Field(default_factory=dict)
    """Most devices by device name; absent: no limit."""
    power_cap: Watts | None = None
    """Of all replicas in use, host and facility included."""
    redundancy: Literal[0, 1] = 0
    """1: every class keeps its demand when any one of its replicas is lost."""


class Width(Spec):
    """A storage type that experts may have, and what it costs in accuracy."""

    dtype: WeightDtype
    loss: NonNegativeFloat = 0.0
    """Accuracy lost per expert stored so, as measured, in the unit of ``loss_budget``."""


class TieringPlan(Search):
    """Which experts live in which memory, and at how many bits, so that a step reads them in the least time."""

    problem: Literal["tiering"]
    tiers: tuple[str, ...] = Field(min_length=2)
    """Memories of the device or its host, fastest first: ``hbm``, ``ddr``, ``nvme``, ..."""
    reserved: Bytes | None = None
    """Of the fastest tier, for everything but experts; none: the model's other weights and a tenth of the tier."""
    widths: tuple[Width, ...] = Field(min_length=1)
    loss_budget: NonNegativeFloat | None = None
    """Most loss in all; none: no limit."""
    trace: str = ""
    """Recorded trace (.npz) relative to this file; empty: the scenario's routing, recorded or fitted."""
    batch: PositiveInt = 1
    """Sequences that decode together."""


class ExpertModel(Spec):
    """A whole model that answers some of the requests."""

    model: str
    """Name or path of a model."""
    share: PositiveFloat
    """Of the requests; made to sum to 1."""
    run: Seconds
    """Time that a node works for one request, as measured or simulated."""
    copies: PositiveInt = 1
    """How many models of this size there are; each gets an equal part of the share."""


class CompositionPlan(Search):
    """Whole models as experts: the fewest nodes that hold them all within a latency target."""

    problem: Literal["composition"]
    experts: tuple[ExpertModel, ...] = Field(min_length=1)
    tiers: tuple[str, ...] = Field(min_length=1)
    """Memories of a node, fastest first."""
    reserved: Bytes = 0.0
    """Of the fastest tier, for router, caches and room for copies."""
    router: Seconds = 0.0
    """Time of the router per request."""
    mean: Seconds | None = None
    """Most expected time of a request."""
    target: Seconds | None = None
    """At most ``late`` of the requests may take longer."""
    late: Annotated[float, Field(ge=0, le=1)] = 0.0
    rate: Rate | None = None
    """Requests per second of all nodes together; none: load is no matter."""
    busy: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Most busy time of a node."""


PlanSpec = Annotated[
    BalancePlan | AffinityPlan | JointPlan | ParallelismPlan | FleetPlan | TieringPlan | CompositionPlan,
    Field(discriminator="problem"),
]
