"""Lowering: model x layout x token counts -> the ops of a step, per device, for every token count at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesim.cost.attention import mixer_ops
from moesim.cost.ffn import dense_ops, expert_ops, moe_lane_ops
from moesim.cost.layout import Layout, layer_counts
from moesim.cost.load import RoutingLoad
from moesim.cost.ops import Exchange, IntArray, Op, gemm, memory_op, scaled, transfer
from moesim.errors import SpecError
from moesim.spec.model import DenseFfn, MoeFfn, NoMixer

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["group_ops", "head_ops", "hop_ops", "lane_ops", "load_of"]


def lane_ops(layout: Layout, tokens: IntArray) -> list[Op]:
    """Return the ops of one attention rank on its own ``tokens`` [n], without attention and experts."""
    model, wide = layout.model, layout.formats
    act, d = wide.activation_bytes, model.hidden
    mixers, ffns = layer_counts(model)
    lookup = d * (wide.ends.value_bytes + act)
    ops = [memory_op("embedding", "lane", tokens, lookup, wide.core, 1)]
    ops += _all_reduce(layout, tokens, "embedding_all_reduce", 1)
    several = sum(not isinstance(model.attentions[name], NoMixer) for name in mixers) > 1
    for name, layers in mixers.items():
        if isinstance(model.attentions[name], NoMixer):
            continue
        suffix = f".{name}" if several else ""
        ops.append(memory_op(f"attention_norm{suffix}", "lane", tokens, 4 * d * act, wide.core, layers))
        ops += mixer_ops(layout, tokens, name, layers, suffix)
        ops += _all_reduce(layout, tokens, f"attention_all_reduce{suffix}", layers)
    for name, layers in ffns.items():
        ffn = model.ffns[name]
        suffix = f".{name}" if _same_kind(layout, name) > 1 else ""
        if isinstance(ffn, DenseFfn) and not ffn.intermediate:
            continue
        norm = "moe_norm" if isinstance(ffn, MoeFfn) else "ffn_norm"
        ops.append(memory_op(f"{norm}{suffix}", "lane", tokens, 4 * d * act, wide.core, layers))
        if isinstance(ffn, MoeFfn):
            ops += moe_lane_ops(layout, tokens, ffn, layers, suffix)
        else:
            ops += dense_ops(layout, tokens, ffn, layers, suffix)
    ops.append(memory_op("final_norm", "lane", tokens, 4 * d * act, wide.core, 1))
    return ops


def group_ops(
    layout: Layout, tokens: IntArray, routing: RoutingLoad | Mapping[str, RoutingLoad] | None
) -> list[Op]:
    """Return the ops on the tokens of all lanes together, ``tokens`` [n]: routed experts and their exchange.

    Raises
    ------
    SpecError : a MoE model without a routing load, or with curves that are too short
    """
    ops: list[Op] = []
    for name, layers in layer_counts(layout.model)[1].items():
        ffn = layout.model.ffns[name]
        if isinstance(ffn, MoeFfn):
            suffix = f".{name}" if _same_kind(layout, name) > 1 else ""
            ops += expert_ops(layout, tokens, ffn, layers, load_of(layout, routing, name), suffix)
    return ops


def load_of(
    layout: Layout, routing: RoutingLoad | Mapping[str, RoutingLoad] | None, name: str
) -> RoutingLoad:
    """Return the routing load of the FFN ``name``: the only one given, or the one of that name.

    Raises
    ------
    SpecError : there is none
    """
    found = routing if isinstance(routing, RoutingLoad) or routing is None else routing.get(name)
    if found is None:
        raise SpecError(f"{layout.model.name}: expected a routing load for the experts {name!r}")
    return found


def head_ops(layout: Layout, rows: IntArray) -> list[Op]:
    """Return the ops on sampled rows of one lane, ``rows`` [n]: head, gathering of logits, sampling."""
    model, wide = layout.model, layout.formats
    columns = -(-model.vocab // layout.parallelism.tp)
    logits = wide.activation_bytes
    ops = [gemm("lm_head", "head", rows, columns, model.hidden, wide.ends, 1, output_bytes=logits)]
    if layout.tensor.ranks > 1:
        gathered = Exchange("all_gather", layout.tensor, scaled(rows, model.vocab * logits))
        ops.append(transfer("logits_gather", "head", rows, gathered, wide.core, 1))
    # read the logits, write and read fp32 probabilities
    ops.append(memory_op("sampling", "head", rows, model.vocab * (logits + 8.0), wide.core, 1, launches=2))
    return ops


def hop_ops(layout: Layout, tokens: IntArray) -> list[Op]:
    """Return what passes ``tokens`` [n] to the next pipeline stage; nothing without pipelining.

    Hidden state and residual go over, each device sends its 1/tp and the receiving lane gathers the parts.
    """
    if layout.parallelism.pp == 1:
        return []
    size = scaled(tokens, 2 * layout.model.hidden * layout.formats.activation_bytes)
    core = layout.formats.core
    sent = Exchange("p2p", layout.hop, size / layout.parallelism.tp)
    ops = [transfer("stage_send", "lane", tokens, sent, core, 1)]
    if layout.tensor.ranks > 1:
        ops.append(
            transfer("stage_gather", "lane", tokens, Exchange("all_gather", layout.tensor, size), core, 1)
        )
    return ops


def _all_reduce(layout: Layout, tokens: IntArray, name: str, layers: int) -> list[Op]:
    if layout.tensor.ranks == 1:
        return []
    size = scaled(tokens, layout.model.hidden * layout.formats.activation_bytes)
    return [
        transfer(
            name, "lane", tokens, Exchange("all_reduce", layout.tensor, size), layout.formats.core, layers
        )
    ]


def _same_kind(layout: Layout, name: str) -> int:
    kind = type(layout.model.ffns[name])
    return sum(type(layout.model.ffns[other]) is kind for other in layer_counts(layout.model)[1])
