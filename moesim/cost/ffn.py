"""FFN: dense and shared feed-forward networks of a lane, and the routed experts of all lanes together.

Who talks to whom in a MoE layer (tokens of all lanes T, of one lane T/dp):

- one lane (dp 1): its devices all hold its tokens, each computes the experts it has, one all-reduce adds up;
- several lanes, experts spread (ep > 1): each device sends its T/(tp dp) tokens to the ranks of their experts
  and gets the results back (dispatch and combine); lanes of several devices then gather theirs. Shared
  experts are replicated and see 1/tp of the lane's tokens, as in vLLM's and SGLang's sequence-parallel MoE
  layers;
- several lanes, ep 1: every expert is cut over all devices, so all tokens are gathered and results scattered
  back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moesim.cost.ops import Exchange, IntArray, Op, Phase, gemm, memory_op, scaled, transfer

if TYPE_CHECKING:
    from moesim.cost.layout import Layout
    from moesim.cost.load import RoutingLoad
    from moesim.cost.precision import Format
    from moesim.spec.model import DenseFfn, MoeFfn

__all__ = ["dense_ops", "expert_ops", "moe_lane_ops", "sequence_parallel"]


def sequence_parallel(layout: Layout) -> bool:
    """Tell whether the tokens of a lane are cut over its devices inside MoE layers."""
    return layout.parallelism.dp > 1 and layout.parallelism.ep > 1


def _mlp(
    layout: Layout,
    tokens: IntArray,
    width: int,
    layers: int,
    names: tuple[str, str],
    *,
    gated: bool,
    shards: int,
    share: float = 1.0,
) -> list[Op]:
    """Return up (and gate), activation and down of a network ``width`` wide; names: (prefix, suffix)."""
    d, weights, act = layout.model.hidden, layout.formats.dense, layout.formats.activation_bytes
    prefix, suffix = names
    inner, ups = -(-width // shards), 2 if gated else 1
    core = layout.formats.core
    ops = _quantise(tokens, d * share, weights, act, layers, f"{prefix}quantise{suffix}", "lane")
    ops.append(
        gemm(
            f"{prefix}{'gate_up' if gated else 'up'}_proj{suffix}", "lane", tokens, ups * inner, d, weights,
            layers, output_bytes=act, share=share,
        )
    )  # fmt: skip
    size = (ups + 1) * inner * act * share
    ops.append(memory_op(f"{prefix}activation{suffix}", "lane", tokens, size, core, layers))
    ops += _quantise(tokens, inner * share, weights, act, layers, f"{prefix}down_quantise{suffix}", "lane")
    ops.append(
        gemm(
            f"{prefix}down_proj{suffix}",
            "lane",
            tokens,
            d,
            inner,
            weights,
            layers,
            output_bytes=act,
            share=share,
        )
    )
    return ops


def _quantise(
    tokens: IntArray, width: float, weights: Format, act: float, layers: int, name: str, phase: Phase
) -> list[Op]:
    if not weights.quantises:
        return []
    return [memory_op(name, phase, tokens, width * (act + weights.input_bytes), weights.compute, layers)]


def _lane_all_reduce(layout: Layout, tokens: IntArray, name: str, layers: int, phase: Phase) -> list[Op]:
    if layout.tensor.ranks == 1:
        return []
    size = scaled(tokens, layout.model.hidden * layout.formats.activation_bytes)
    return [
        transfer(
            name, phase, tokens, Exchange("all_reduce", layout.tensor, size), layout.formats.core, layers
        )
    ]


def dense_ops(layout: Layout, tokens: IntArray, ffn: DenseFfn, layers: int, suffix: str = "") -> list[Op]:
    """Return a dense FFN of one lane, cut over its ``tp`` devices, with its all-reduce."""
    if not ffn.intermediate:
        return []
    ops = _mlp(
        layout,
        tokens,
        ffn.intermediate,
        layers,
        ("ffn_", suffix),
        gated=ffn.gated,
        shards=layout.parallelism.tp,
    )
    return ops + _lane_all_reduce(layout, tokens, f"ffn_all_reduce{suffix}", layers, "lane")


def moe_lane_ops(layout: Layout, tokens: IntArray, ffn: MoeFfn, layers: int, suffix: str = "") -> list[Op]:
    """Return what a lane does with its own tokens in a MoE layer: router, shared experts, dense residual."""
    d, tp, act = layout.model.hidden, layout.parallelism.tp, layout.formats.activation_bytes
    share = 1 / tp if sequence_parallel(layout) else 1.0
    shards = 1 if sequence_parallel(layout) else tp
    plain, core = layout.formats.plain, layout.formats.core
    router = gemm(
        f"router{suffix}", "lane", tokens, ffn.experts, d, plain, layers, output_bytes=4.0, share=share
    )
    choice = share * (4.0 * ffn.experts + 8.0 * ffn.top_k)
    ops = [router, memory_op(f"top_k{suffix}", "lane", tokens, choice, core, layers)]
    if ffn.shared_experts and ffn.shared_intermediate:
        ops += _mlp(
            layout, tokens, ffn.shared_intermediate, layers, ("shared_", suffix), gated=ffn.gated,
            shards=shards, share=share,
        )  # fmt: skip
    if ffn.shared_gate:
        ops.append(gemm(f"shared_gate{suffix}", "lane", tokens, 1, d, plain, layers, share=share))
    if ffn.dense_residual:
        ops += _mlp(
            layout, tokens, ffn.dense_residual, layers, ("residual_", suffix), gated=True,
            shards=shards, share=share,
        )  # fmt: skip
    if ffn.latent:
        weights = layout.formats.dense
        for name, n, k in (("latent_in_proj", ffn.latent, d), ("latent_out_proj", d, ffn.latent)):
            ops.append(
                gemm(f"{name}{suffix}", "lane", tokens, n, k, weights, layers, output_bytes=act, share=share)
            )
    return ops


def expert_ops(
    layout: Layout, tokens: IntArray, ffn: MoeFfn, layers: int, load: RoutingLoad, suffix: str = ""
) -> list[Op]:
    """Return the routed experts for tokens of all lanes, on the busiest device, with their exchange.

    Weight bytes follow the distinct experts that the busiest rank touches; flop and activations its rows.

    Parameters
    ----------
    tokens : [n] tokens of all lanes together
    load : curves that reach the largest of them

    Raises
    ------
    SpecError : the curves are too short
    """
    cut, weights, act = layout.parallelism, layout.formats.experts, layout.formats.activation_bytes
    width, inner, ups = (
        ffn.latent or layout.model.hidden,
        -(-ffn.intermediate // cut.moe_tp),
        2 if ffn.gated else 1,
    )
    rows = load.rows(tokens, ffn.top_k, cut.ep)
    touched = np.minimum(load.touched(tokens, ffn.experts, cut.ep), rows)
    core = layout.formats.core
    dims = (
        *(("experts", ffn.experts), ("top_k", ffn.top_k), ("ep", cut.ep), ("moe_tp", cut.moe_tp)),
        (
            "sent",
            int(cut.dp > 1 and cut.ep > 1 and not layout.gathers),
        ),  # copies come to their expert's rank alone
        *(("hidden", width), ("inner", inner), ("ups", ups)),
    )

    def grouped(name: str, n: int, k: int) -> Op:
        return Op(
            f"{name}{suffix}",
            "group",
            "grouped_gemm",
            weights.compute,
            tokens,
            flop=2.0 * rows * n * k,
            weight_bytes=touched * (n * k * weights.value_bytes),
            activation_bytes=rows * (k * weights.input_bytes + n * act),
            layers=layers,
            dims=(("n", n), ("k", k), *dims),
            stored=weights.stored,
        )

    def per_row(name: str, size: float) -> Op:
        zero = np.zeros(tokens.shape)
        return Op(
            f"{name}{suffix}", "group", "memory", core, tokens, zero, zero, rows * size, layers,
            dims=(("input_bits", round(8 * weights.input_bytes)), *dims), stored=weights.stored,
        )  # fmt: skip

    permute = per_row("moe_permute", width * (act + weights.input_bytes))
    up = grouped("moe_gate_up" if ffn.gated else "moe_up", ups * inner, width)
    activation = per_row("moe_activation", inner * (ups * act + weights.input_bytes))
    down = grouped("moe_down", width, inner)
    unpermute = per_row("moe_unpermute", width * act * (1 + 1 / ffn.top_k))
    before, after = _exchanges(layout, tokens, ffn, width, layers, load, suffix)
    return [*before, permute, up, activation, down, unpermute, *after]


def _exchanges(
    layout: Layout, tokens: IntArray, ffn: MoeFfn, width: int, layers: int, load: RoutingLoad, suffix: str
) -> tuple[list[Op], list[Op]]:
    """Return collectives (before, after) the experts."""
    cut, act, core = layout.parallelism, layout.formats.activation_bytes, layout.formats.core
    if cut.dp == 1:
        return [], _lane_all_reduce(layout, tokens, f"moe_all_reduce{suffix}", layers, "group")

    def move(name: str, exchange: Exchange) -> Op:
        dims = (("hidden", width), ("top_k", ffn.top_k), ("experts", ffn.experts))
        return transfer(f"{name}{suffix}", "group", tokens, exchange, core, layers, dims)

    lanes = scaled(tokens, layout.model.hidden * act / cut.dp)
    regather = [move("moe_tp_gather", Exchange("all_gather", layout.tensor, lanes))] if cut.tp > 1 else []
    if cut.ep == 1 or layout.gathers:
        whole = scaled(tokens, width * act)
        gather = move("moe_gather", Exchange("all_gather", layout.stage, whole))
        return [gather], [move("moe_scatter", Exchange("reduce_scatter", layout.stage, whole)), *regather]
    held = tokens / (cut.tp * cut.dp) * width

    def exchange(size: float) -> Exchange:
        return Exchange(
            "all_to_all",
            layout.stage,
            held * size,
            copies=float(ffn.top_k * cut.moe_tp),
            ranks_per_token=load.ranks_per_token * cut.moe_tp,
            nodes_per_token=load.nodes_per_token,
        )

    return [move("dispatch", exchange(_copy_bytes(layout.formats.experts)))], [
        move("combine", exchange(act)),
        *regather,
    ]


def _copy_bytes(weights: Format) -> float:
    """Return bytes per value of a dispatched copy: quantised before sending where the experts run quantised.

    FP8 in blocks carries one fp32 scale per 128 values (DeepSeek-V3, arXiv:2412.19437 section 3.3).
    """
    return weights.input_bytes + (4 / 128 if weights.stored == "fp8_block" and weights.quantises else 0.0)
