"""Footprint: what a model keeps on one device: its share of weights and cache, and working memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moesim.cost.attention import mixer_ops
from moesim.cost.ffn import dense_ops, moe_lane_ops
from moesim.cost.layout import kv_heads_per_device, stage_layers
from moesim.spec.model import DenseFfn, GroupedQuery, LinearAttention, MoeFfn, MultiLatent
from moesim.spec.parameters import kv_bytes_per_token, layer_parameters, state_bytes_per_sequence

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moesim.cost.layout import Layout

__all__ = ["CacheShare", "activation_bytes", "cache_share", "layer_bytes", "stage_weight_bytes"]

_LIVE_HIDDEN = 5.5
"""Hidden-width buffers alive at the forward pass's peak beside the FFN's. From vLLM's logs of runs where the
forward pass sets the peak: 5.1 (Qwen2.5-32B, tp 2, 10,000 tokens, vllm#15815), 5.7 (Qwen2.5-14B, tp 2, 2,048
tokens, second worker, vllm#13061), 6.5 (Mistral-7B, 32,768 tokens, inferred from the blocks, vllm#4454)."""
_SAMPLER_BYTES = 20.0
"""Bytes per logit while sampling: logits, fp32 copy, sorted values and indices, probabilities. From logs of
vLLM 0.19: 18 (Gemma-4-26B) and 22 (gpt-oss-20b), both A100, myoceane.fr 2026-04-18; vLLM 0.6 and 0.7 took 37
(Llama-3-8B, vllm#10511; Qwen2.5, vllm#13882)."""


@dataclass(frozen=True, slots=True)
class CacheShare:
    """What sequences keep on one device.

    Attributes
    ----------
    per_token : bytes per token in layers that keep every token
    per_window_token : (window, bytes per token while inside it)
    per_sequence : bytes of recurrent state
    """

    per_token: float
    per_window_token: tuple[tuple[int, float], ...]
    per_sequence: float

    def sequence_bytes(self, tokens: float) -> float:
        """Return the bytes of one sequence of ``tokens`` tokens."""
        windowed = sum(size * min(tokens, window) for window, size in self.per_window_token)
        return self.per_sequence + self.per_token * tokens + windowed


def layer_bytes(
    layout: Layout, attention: str, ffn: str, slots_per_rank: int | Mapping[str, int] = 0
) -> float:
    """Return the stored weight bytes of one layer on one device.

    The projections are those of the ops, so a device stores what it reads: attention cut over ``tp`` (latent
    down-projections whole), KV heads replicated when there are fewer than devices, experts cut over ``ep``
    and ``moe_tp``, routers and norms whole, shared experts whole where tokens are cut instead.

    Parameters
    ----------
    slots_per_rank : expert copies per expert-parallel rank, replicas included, or such counts by FFN; 0 or absent:
        experts / ep, rounded up
    """
    one, model, cut = np.array([1]), layout.model, layout.parallelism
    network = model.ffns[ffn]
    ops = mixer_ops(layout, one, attention, 1)
    if isinstance(network, DenseFfn):
        ops += dense_ops(layout, one, network, 1)
    else:
        ops += moe_lane_ops(layout, one, network, 1)
    stored = sum(float(op.weight_bytes[0]) for op in ops)
    stored += layer_parameters(model, attention, ffn).norms * layout.formats.plain.value_bytes
    if isinstance(network, MoeFfn):
        stated = slots_per_rank if isinstance(slots_per_rank, int) else slots_per_rank.get(ffn, 0)
        slots = stated or -(-network.experts // cut.ep)
        matrices = 3 if network.gated else 2
        width, inner = network.latent or model.hidden, -(-network.intermediate // cut.moe_tp)
        stored += slots * matrices * width * inner * layout.formats.experts.value_bytes
    return stored


def stage_weight_bytes(layout: Layout, slots_per_rank: int | Mapping[str, int] = 0) -> list[float]:
    """Return the stored weight bytes of one device in each pipeline stage.

    The embedding is cut over ``tp`` and sits in the first stage, the head in the last; a tied pair is
    stored once per stage that needs it. Vision towers (``extra_parameters``) are counted whole in the
    first stage, in bf16.
    """
    model, cut = layout.model, layout.parallelism
    end = -(-model.vocab // cut.tp) * model.hidden * layout.formats.ends.value_bytes
    blocks, at, stages = model.blocks(), 0, []
    known = {block: layer_bytes(layout, *block, slots_per_rank) for block in set(blocks)}
    for count in stage_layers(len(blocks), cut.pp):
        stages.append(sum(known[block] for block in blocks[at : at + count]))
        at += count
    stages[0] += end + model.extra_parameters * layout.formats.plain.value_bytes
    if not model.tied_embeddings or cut.pp > 1:
        stages[-1] += end
    return stages


def cache_share(layout: Layout) -> list[CacheShare]:
    """Return the cache of one device in each pipeline stage.

    Grouped-query keys and values are cut over ``tp`` by head and replicated when there are fewer heads
    than devices; the latent of MLA and the keys of an indexer are whole on every device; recurrent state
    is cut by head.
    """
    model, tp = layout.model, layout.parallelism.tp
    blocks, at, shares = model.blocks(), 0, []
    for count in stage_layers(len(blocks), layout.parallelism.pp):
        full = state = 0.0
        windows: dict[int, float] = {}
        for name, _ in blocks[at : at + count]:
            mixer = model.attentions[name]
            if isinstance(mixer, LinearAttention):
                state += state_bytes_per_sequence(model, name) / tp
            elif isinstance(mixer, GroupedQuery | MultiLatent):
                size = _token_bytes(layout, name, mixer)
                if mixer.window:
                    windows[mixer.window] = windows.get(mixer.window, 0.0) + size
                else:
                    full += size
        at += count
        kept = tuple(sorted((window, size) for window, size in windows.items() if size))
        shares.append(CacheShare(full, kept, state))
    return shares


def _token_bytes(layout: Layout, name: str, mixer: GroupedQuery | MultiLatent) -> float:
    whole = kv_bytes_per_token(layout.model, name, layout.formats.kv)
    if isinstance(mixer, MultiLatent) or not whole:
        return whole
    widths = mixer.head_dim + (mixer.v_head_dim or mixer.head_dim)
    heads = mixer.kv_heads * widths * layout.formats.kv_bytes
    mine = kv_heads_per_device(mixer, layout.parallelism.tp) * widths * layout.formats.kv_bytes
    return whole - heads + mine


def activation_bytes(layout: Layout, tokens: int, rows: int) -> float:
    """Return peak working memory of one step: the forward pass, or sampling if that is larger.

    Forward: ``tokens * (5.5 hidden + FFN buffers) * 2 B``; a MoE layer keeps, for each token-expert row it
    computes, the larger of its input and its gate-up output, and the activation. Sampling: 20 B per logit
    of ``rows`` rows beside two hidden buffers. Both constants are read from engine logs (see above), good
    to about 0.3 GiB.

    Parameters
    ----------
    tokens : most tokens of one lane's step
    rows : most sampled rows
    """
    model, cut, act = layout.model, layout.parallelism, layout.formats.activation_bytes
    buffers = 0.0
    for name in {ffn for _, ffn in model.blocks()}:
        ffn = model.ffns[name]
        if isinstance(ffn, DenseFfn):
            buffers = max(buffers, tokens * (3 if ffn.gated else 2) * ffn.intermediate / cut.tp)
            continue
        width, inner, ups = ffn.latent or model.hidden, ffn.intermediate / cut.moe_tp, 2 if ffn.gated else 1
        # with one lane every device makes room for all rows; dispatched rows are spread over the ranks
        routed = tokens * ffn.top_k * (cut.dp / cut.ep if cut.dp > 1 else 1.0)
        buffers = max(buffers, routed * (max(ups * inner, width) + inner))
    forward = act * (buffers + tokens * _LIVE_HIDDEN * model.hidden)
    sampling = rows * model.vocab * _SAMPLER_BYTES + 2 * tokens * model.hidden * act
    return max(forward, sampling)
