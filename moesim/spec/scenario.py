"""Scenario: one question, resolved: hardware, model, traffic, routing, deployment, targets, run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from moesim.spec.base import Finding, Source, Spec, findings
from moesim.spec.deployment import Deployment, Economics, Fault, Pool, Run, Straggler, Targets
from moesim.spec.hardware import ClusterSpec, DeviceSpec, NodeSpec
from moesim.spec.model import Attention, GroupedQuery, LinearAttention, ModelSpec, MoeFfn, NoMixer
from moesim.spec.placement import placement_findings
from moesim.spec.planning import PlanSpec
from moesim.spec.routing import RoutingSpec
from moesim.spec.traffic import Sessions, SharedPrefix, TraceBlocks, TrafficSpec

if TYPE_CHECKING:
    from moesim.spec.topology import Topology

__all__ = ["ScenarioSpec", "scenario_findings"]

_MOONCAKE_BLOCK = 512
"""Tokens that one hash of a Mooncake trace stands for."""


class ScenarioSpec(Spec):
    """Everything one run needs, with every reference replaced by what it names."""

    kind: Literal["scenario"]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")
    """Short name: letters, digits, dot, dash, underscore, plus; names the run directory."""
    title: str = ""
    """One line for the head of the report."""
    question: str = ""
    """What the scenario is there to answer."""
    description: str = ""
    """What was chosen, and why."""
    cluster: ClusterSpec
    node: NodeSpec
    """What the cluster's nodes are."""
    device: DeviceSpec
    """What the nodes' devices are."""
    model: ModelSpec
    traffic: TrafficSpec
    routing: RoutingSpec | None = None
    """Which experts the tokens choose; none: uniform choice."""
    deployment: Deployment
    targets: Targets = Targets()
    economics: Economics = Economics()
    run: Run = Run()
    plan: PlanSpec | None = None
    """What ``moesim plan`` is to decide; a run does not read it."""
    sources: tuple[Source, ...] = ()
    """Where the scenario's own choices come from, if a paper or a benchmark states them."""

    @model_validator(mode="after")
    def _parts_fit(self) -> ScenarioSpec:
        found = tuple(scenario_findings(self))
        if found:
            raise findings(*found)
        return self

    def topology(self) -> Topology:
        """Return the cluster, node and device as one object."""
        from moesim.spec.topology import Topology  # noqa: PLC0415 - keeps `import moesim` light

        return Topology(device=self.device, node=self.node, cluster=self.cluster)


def scenario_findings(scenario: ScenarioSpec) -> Iterator[Finding]:
    """Yield every way in which the parts of a scenario do not fit each other."""
    yield from _devices(scenario)
    for name, pool in scenario.deployment.pools.items():
        yield from _sharding(scenario.model, name, pool)
        yield from _engine(scenario.model, scenario.traffic, name, pool)
        yield from _placement(scenario.model, name, pool)
    yield from _routing(scenario)
    yield from _events(scenario.deployment)
    yield from _run(scenario)


def _devices(scenario: ScenarioSpec) -> Iterator[Finding]:
    total = scenario.cluster.nodes * scenario.node.devices
    if scenario.cluster.nodes > 1 and scenario.node.network is None:
        yield Finding(
            ("node", "network"),
            None,
            f"expected a network: {scenario.cluster.name} joins {scenario.cluster.nodes} nodes",
        )
    scaling = scenario.deployment.autoscaling
    wanted, parts, last = 0, [], ""
    for name, pool in scenario.deployment.pools.items():
        if pool.cluster:
            yield Finding(
                ("deployment", name, "cluster"),
                pool.cluster,
                "pools on another cluster than the scenario's are not supported yet",
            )
        replicas = pool.replicas
        if scaling is not None and name in {"serve", "decode"}:
            replicas = max(replicas, scaling.max_replicas)
        wanted += replicas * pool.parallelism.devices
        parts.append(f"{name} {replicas} x {pool.parallelism.devices}")
        last = name
    if wanted > total:
        have = f"{total} device{'s' if total != 1 else ''}"
        yield Finding(
            ("deployment", last, "replicas"),
            None,
            f"expected at most the {have} of cluster {scenario.cluster.name}, "
            f"got {' + '.join(parts)} = {wanted}",
        )


def _sharding(model: ModelSpec, name: str, pool: Pool) -> Iterator[Finding]:
    here = ("deployment", name, "parallelism")
    tp, ep, pp = pool.parallelism.tp, pool.parallelism.ep, pool.parallelism.pp
    used = {attention for attention, _ in model.blocks()}
    divided = True
    for attention in (model.attentions[key] for key in sorted(used)):
        wrong = _undivided(attention, tp)
        if wrong:
            yield Finding((*here, "tp"), tp, f"{wrong} of {model.name}")
            divided = False
            break
    layers = len(model.blocks())
    if pp > layers:
        yield Finding((*here, "pp"), pp, f"expected at most the {layers} layers of {model.name}")
    experts = [
        f
        for f in (model.ffns[key] for key in sorted({ffn for _, ffn in model.blocks()}))
        if isinstance(f, MoeFfn)
    ]
    if not experts and ep > 1:
        yield Finding((*here, "ep"), ep, f"expected 1: {model.name} has no routed experts")
    for ffn in experts:
        if ep > ffn.experts:
            yield Finding((*here, "ep"), ep, f"expected at most the {ffn.experts} experts of {model.name}")
        elif divided and ffn.intermediate % pool.parallelism.moe_tp:
            yield Finding(
                (*here, "ep"),
                ep,
                f"leaves tp {pool.parallelism.moe_tp} inside each expert, which does not "
                f"divide its width {ffn.intermediate}",
            )


def _undivided(attention: Attention, tp: int) -> str:
    """Return what ``tp`` would have to divide, or nothing."""
    if isinstance(attention, NoMixer):
        return ""
    if attention.heads % tp:
        return f"must divide the {attention.heads} attention heads"
    if isinstance(attention, LinearAttention) and attention.key_heads % tp:
        return f"must divide the {attention.key_heads} key heads"
    if isinstance(attention, GroupedQuery) and attention.kv_heads % tp and tp % attention.kv_heads:
        return f"must divide, or be a multiple of, the {attention.kv_heads} KV heads"
    return ""


def _engine(model: ModelSpec, traffic: TrafficSpec, name: str, pool: Pool) -> Iterator[Finding]:
    here = ("deployment", name, "engine")
    engine = pool.engine
    if engine.max_num_batched_tokens < engine.max_num_seqs:
        yield Finding(
            (*here, "max_num_batched_tokens"),
            engine.max_num_batched_tokens,
            f"expected at least max_num_seqs = {engine.max_num_seqs}: each running sequence takes one token",
        )
    if engine.max_model_len is not None and engine.max_model_len > model.context:
        yield Finding(
            (*here, "max_model_len"),
            engine.max_model_len,
            f"expected at most the context of {model.name}, {model.context} tokens",
        )
    hashed = _hash_tokens(traffic)
    if engine.prefix_caching and name != "decode" and hashed % engine.block_tokens:
        yield Finding(
            (*here, "block_tokens"),
            engine.block_tokens,
            f"must divide the {hashed} tokens of a prefix block of traffic {traffic.name}",
        )


def _placement(model: ModelSpec, name: str, pool: Pool) -> Iterator[Finding]:
    if pool.placement is not None:
        for found in placement_findings(pool.placement, model, pool.parallelism.ep):
            yield found._replace(key=("deployment", name, "placement", *found.key))


def _routing(scenario: ScenarioSpec) -> Iterator[Finding]:
    routing, model = scenario.routing, scenario.model
    if routing is None:
        return
    kinds = [model.ffns[name] for name in sorted({ffn for _, ffn in model.blocks()})]
    routed = [ffn for ffn in kinds if isinstance(ffn, MoeFfn)]
    if not routed:
        yield Finding(("routing", "from"), None, f"expected null: {model.name} has no routed experts")
    for ffn in routed:
        if routing.experts not in {None, ffn.experts} or routing.top_k not in {None, ffn.top_k}:
            yield Finding(
                ("routing", "from"),  # not the catalog entry is wrong, but choosing it
                None,
                f"{routing.name} is for top {routing.top_k} of {routing.experts} experts, {model.name} takes top "
                f"{ffn.top_k} of {ffn.experts}; choose another, or null",
            )
            return


def _hash_tokens(traffic: TrafficSpec) -> int:
    """Return the tokens of one prefix block, 0 when the traffic has none."""
    if isinstance(traffic.prefix, SharedPrefix | Sessions):
        return traffic.prefix.block_tokens
    if isinstance(traffic.prefix, TraceBlocks) and traffic.trace is not None:
        return traffic.trace.block_tokens or (_MOONCAKE_BLOCK if traffic.trace.format == "mooncake" else 0)
    return 0


def _events(deployment: Deployment) -> Iterator[Finding]:
    pools = deployment.pools
    scaling = deployment.autoscaling
    if scaling is not None and scaling.min_replicas > scaling.max_replicas:
        yield Finding(
            ("deployment", "autoscaling", "min_replicas"),
            scaling.min_replicas,
            f"expected at most max_replicas = {scaling.max_replicas}",
        )
    events_of: tuple[tuple[str, tuple[Fault | Straggler, ...]], ...] = (
        ("faults", deployment.faults),
        ("stragglers", deployment.stragglers),
    )
    for kind, events in events_of:
        for index, event in enumerate(events):
            here = ("deployment", kind, index)
            if event.pool not in pools:
                yield Finding((*here, "pool"), event.pool, f"expected one of the pools: {', '.join(pools)}")
                continue
            replicas = pools[event.pool].replicas
            if scaling is not None:
                replicas = max(replicas, scaling.max_replicas)
            if event.replica >= replicas:
                yield Finding(
                    (*here, "replica"),
                    event.replica,
                    f"expected below {replicas}, the replicas of pool {event.pool}",
                )


def _run(scenario: ScenarioSpec) -> Iterator[Finding]:
    run = scenario.run
    arrivals, lengths = scenario.traffic.arrivals, scenario.traffic.lengths
    ends = (arrivals.kind == "closed_loop" and arrivals.requests_per_slot is not None) or (
        lengths.kind == "trace" and not lengths.repeat
    )
    if run.requests is None and run.horizon is None and not ends:
        yield Finding(("run",), None, "expected requests, horizon or both: without them the run does not end")
    if run.requests is not None and run.warmup_requests + run.cooldown_requests >= run.requests:
        yield Finding(
            ("run", "warmup_requests"),
            run.warmup_requests,
            f"expected warm-up and cool-down together below requests = {run.requests}",
        )
