"""Layout: one replica's model cut over its devices: who holds what, and over which links they talk."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from moesim.cost.collectives import Group
from moesim.cost.precision import Formats, resolve_formats
from moesim.errors import NoResult, SpecError
from moesim.spec.model import GroupedQuery, LinearAttention, ModelSpec, MoeFfn, NoMixer
from moesim.spec.topology import (
    Topology,
    group_shape,
    inter_bandwidth,
    inter_latency,
    intra_bandwidth,
    intra_latency,
)

if TYPE_CHECKING:
    from moesim.spec.deployment import Parallelism, PrecisionChoice

__all__ = ["Layout", "group_on", "kv_heads_per_device", "layer_counts", "stage_layers"]


@dataclass(frozen=True, slots=True)
class Layout:
    """A model on the devices of one replica.

    Attributes
    ----------
    tensor : the ``tp`` devices of one attention rank
    stage : the ``tp * dp`` devices of one pipeline stage: experts are spread over them
    hop : a device and its counterpart in the next stage
    gathers : every rank gathers the tokens of all attention ranks before the experts, see ``Engine.expert_exchange``
    """

    model: ModelSpec
    parallelism: Parallelism
    formats: Formats
    tensor: Group
    stage: Group
    hop: Group
    gathers: bool = False

    @classmethod
    def of(
        cls,
        model: ModelSpec,
        topology: Topology,
        parallelism: Parallelism,
        precision: PrecisionChoice | None = None,
        expert_exchange: Literal["auto", "gather", "all_to_all"] = "all_to_all",
    ) -> Layout:
        """Cut ``model`` as ``parallelism`` says, replicas placed on neighbouring devices.

        Parameters
        ----------
        expert_exchange : as in ``Engine``

        Raises
        ------
        NoResult : more devices than the cluster has, an encoder-decoder model, more stages than layers
        SpecError : heads or experts that the degrees do not divide
        """
        if parallelism.devices > topology.devices:
            need = parallelism.devices
            raise NoResult(f"a replica needs {need} devices, {topology.name} has {topology.devices}")
        if model.encoder or model.cross_attention:
            raise NoResult(f"{model.name}: steps of encoder-decoder models are not priced, only decoders")
        if parallelism.pp > len(model.blocks()):
            raise NoResult(f"pp {parallelism.pp}: {model.name} has only {len(model.blocks())} layers")
        _check_divides(model, parallelism)
        spans = parallelism.devices > topology.devices_per_node
        stage = group_on(topology, parallelism.tp * parallelism.dp)
        return cls(
            model,
            parallelism,
            resolve_formats(model, topology.device, precision),
            tensor=group_on(topology, parallelism.tp),
            stage=stage,
            hop=group_on(topology, 2, nodes=2 if spans else 1) if parallelism.pp > 1 else Group(1),
            gathers=expert_exchange == "gather" or (expert_exchange == "auto" and stage.nodes == 1),
        )


def group_on(topology: Topology, ranks: int, nodes: int | None = None) -> Group:
    """Return the group of ``ranks`` neighbouring devices, on the fewest nodes unless ``nodes`` is given.

    Raises
    ------
    NoResult : the cluster has fewer devices, or several nodes without a network
    """
    shape = group_shape(topology, ranks)
    used = shape.nodes if nodes is None else nodes
    return Group(
        ranks=ranks,
        nodes=used,
        intra_bandwidth=intra_bandwidth(topology, shape.per_node if used == shape.nodes else 1),
        inter_bandwidth=inter_bandwidth(topology, used),
        intra_latency=intra_latency(topology),
        inter_latency=inter_latency(topology, used),
        topology=topology.node.link.topology,
    )


def layer_counts(model: ModelSpec) -> tuple[dict[str, int], dict[str, int]]:
    """Return decoder layers by attention name and by FFN name."""
    blocks = model.blocks()
    return dict(Counter(a for a, _ in blocks)), dict(Counter(f for _, f in blocks))


def stage_layers(layers: int, pp: int) -> list[int]:
    """Return layers per stage: equal, and one more for stages before the last while some are left (vLLM).

    >>> stage_layers(61, 4)
    [15, 15, 16, 15]
    """
    counts = [layers // pp] * pp
    for extra in range(layers % pp):
        counts[-2 - extra if pp > 1 else 0] += 1
    return counts


def kv_heads_per_device(attention: GroupedQuery, tp: int) -> int:
    """Return KV heads that one device stores: with more devices than heads, heads are replicated."""
    return max(1, attention.kv_heads // tp)


def _check_divides(model: ModelSpec, parallelism: Parallelism) -> None:
    tp, ep = parallelism.tp, parallelism.ep
    for name, attention in model.attentions.items():
        heads = {} if isinstance(attention, NoMixer) else {"heads": attention.heads}
        if isinstance(attention, LinearAttention):
            heads["key_heads"] = attention.key_heads
        for what, count in heads.items():
            if count % tp:
                raise SpecError(f"tp {tp} does not divide the {count} {what} of {model.name}'s {name}")
        if isinstance(attention, GroupedQuery) and attention.kv_heads % tp and tp % attention.kv_heads:
            kv = attention.kv_heads
            raise SpecError(f"tp {tp} neither divides nor is a multiple of the {kv} kv_heads of {name}")
    for name, ffn in model.ffns.items():
        if isinstance(ffn, MoeFfn) and ep > ffn.experts:
            raise SpecError(f"ep {ep} is more than the {ffn.experts} experts of {model.name}'s {name}")
