"""Step pricing: the tables of one replica, each entry the sum that pricing the step op by op would give."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from moesim.cost.attention import attention_shapes
from moesim.cost.flops import flops_per_token
from moesim.cost.layout import Layout, layer_counts, stage_layers
from moesim.cost.lowering import group_ops, head_ops, hop_ops, lane_ops
from moesim.cost.pricing import FloatArray, OpInfo, StepPricing
from moesim.cost.roofline import Chain, Launch, Place
from moesim.spec.model import ModelSpec, MoeFfn
from moesim.spec.parameters import layer_parameters

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moesim.cost.load import RoutingLoad
    from moesim.cost.ops import Op
    from moesim.spec.deployment import Engine, Pool, PrecisionChoice, Speculation
    from moesim.spec.topology import Topology

__all__ = ["GRAPH_TOKENS", "launch_of", "stage_shares", "step_pricing"]

GRAPH_TOKENS = 512
"""Largest batch that vLLM captures by default (``cudagraph_capture_sizes``: at most 512)."""


def launch_of(topology: Topology, engine: Engine) -> Launch:
    """Return how the engine starts kernels on this device."""
    device = topology.device
    captured = min(2 * engine.max_num_seqs, GRAPH_TOKENS) if engine.cuda_graphs else -1
    return Launch(device.launch_latency, device.graph_launch_latency, captured)


def stage_shares(model: ModelSpec, pp: int) -> FloatArray:
    """Return the part of a step that each stage takes, [pp], by the active parameters of its layers."""
    blocks, active = list(model.blocks()), {}
    for attention, name in dict.fromkeys(blocks):  # layers of one kind are counted once
        layer, ffn = layer_parameters(model, attention, name), model.ffns[name]
        chosen = ffn.top_k * layer.ffn.routed_per_expert if isinstance(ffn, MoeFfn) else 0
        active[attention, name] = layer.total - layer.ffn.routed + chosen
    weights = [active[block] for block in blocks]
    edges = np.cumsum([0, *stage_layers(len(weights), pp)])
    parts = np.array([sum(weights[a:b]) for a, b in pairwise(edges)], dtype=np.float64)
    return np.asarray(parts / parts.sum())


def step_pricing(
    model: ModelSpec,
    topology: Topology,
    pool: Pool,
    precision: PrecisionChoice | None = None,
    routing: RoutingLoad | Mapping[str, RoutingLoad] | None = None,
    speculation: Speculation | None = None,
    chain: Chain | None = None,
) -> StepPricing:
    """Price every step that a replica of ``pool`` can run.

    Parameters
    ----------
    model, topology, pool : what runs where, how it is cut, and the engine's limits
    precision : storage and arithmetic where they differ from the checkpoint's
    routing : curves that reach ``dp * max_num_batched_tokens`` tokens; by FFN name if the model has several
        kinds of experts; None for dense models
    speculation : with draft tokens a sequence samples ``1 + draft_tokens`` rows; drafting itself is not in
        the tables
    chain : estimators, best first; by default the roofline bound alone

    Returns
    -------
    tables indexed by the count itself: lane_s [op, 0..max_num_batched_tokens], group_s [op, 0..dp * that],
    head_s [op, 0..max_num_seqs * (1 + draft_tokens)], hop_s [0..max_num_batched_tokens]

    Raises
    ------
    NoResult : does not fit the cluster, or arithmetic that the device lacks
    SpecError : degrees that do not divide the model, or a missing or short routing load
    DataMissing : an estimator chain without a bound that does not know some op
    """
    layout = Layout.of(model, topology, pool.parallelism, precision, pool.engine.expert_exchange)
    launch = launch_of(topology, pool.engine)
    place, lanes = Place(topology.device, launch), pool.parallelism.dp
    # a captured graph covers the group's tokens of all lanes
    wide = Place(topology.device, Launch(launch.eager_s, launch.graph_s, launch.graph_tokens * lanes))
    known = chain or Chain()
    top = pool.engine.max_num_batched_tokens
    rows = pool.engine.max_num_seqs * (1 + (speculation.draft_tokens if speculation else 0))
    tokens = np.arange(top + 1, dtype=np.int64)
    lane = lane_ops(layout, tokens)
    group = group_ops(layout, np.arange(lanes * top + 1, dtype=np.int64), routing)
    head = head_ops(layout, np.arange(rows + 1, dtype=np.int64))
    hop = np.zeros(top + 1)
    for op in hop_ops(layout, tokens):
        hop += known.seconds(op, place)[0]
    lane_info, lane_s = _table(lane, known, place, top + 1)
    group_info, group_s = _table(group, known, wide, lanes * top + 1)
    head_info, head_s = _table(head, known, place, rows + 1)
    return StepPricing(
        lane_ops=lane_info,
        lane_s=lane_s,
        group_ops=group_info,
        group_s=group_s,
        head_ops=head_info,
        head_s=head_s,
        attention=tuple(known.attention(shape, place) for shape in attention_shapes(layout)),
        stage_share=stage_shares(model, pool.parallelism.pp),
        hop_s=hop,
        overhead_s=pool.engine.step_overhead or 0.0,
        lanes=lanes,
        devices=pool.parallelism.devices,
        flop_per_token=flops_per_token(model, "forward"),
        bytes_per_step=float(sum(op.layers * op.weight_bytes[1] for op in [*lane, *group, *head])),
        notes=_notes(layout, known),
    )


def _table(
    ops: Sequence[Op], chain: Chain, place: Place, width: int
) -> tuple[tuple[OpInfo, ...], FloatArray]:
    table = np.zeros((len(ops), width))
    infos = []
    for row, op in enumerate(ops):
        table[row], source = chain.seconds(op, place)
        infos.append(OpInfo(op.name, op.phase, op.kind, source))
    return tuple(infos), table


def _notes(layout: Layout, chain: Chain) -> tuple[str, ...]:
    cut = layout.parallelism
    notes = [*layout.formats.notes]
    if all(estimator.origin == "bound" for estimator in chain.estimators):
        notes.append("every time is a roofline bound: what the datasheet allows, not what kernels reach")
        notes.append("activations are counted as main-memory traffic, also where a cache would hold them")
    if cut.dp > 1 and any(
        isinstance(layout.model.ffns[name], MoeFfn) for name in layer_counts(layout.model)[1]
    ):
        notes.append(
            "dispatch, experts and combine are priced at the mean tokens per lane and do not overlap"
        )
    if cut.pp > 1:
        notes.append("stages share the step in proportion to the active parameters of their layers")
    return tuple(notes)
