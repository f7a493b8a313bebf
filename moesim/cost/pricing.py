"""Step pricing: tables from which the simulator prices a step, made by the functions that price an op.

A step of one virtual engine (a pipeline slot of a replica) runs ``lanes`` attention ranks in lock-step. Its
time is

    overhead + max over lanes of (lane ops of that lane's tokens + attention of that lane + head of its
    sampled rows)
             + group ops of all lanes' tokens together (routed experts, dispatch, combine)

times ``stage_share`` per pipeline stage. Tables are indexed by the integer count itself (0..max), so looking
a step up is exact: nothing is interpolated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["GRID", "AttentionTable", "AttentionTerm", "FloatArray", "OpInfo", "StepPricing"]

FloatArray = npt.NDArray[np.float64]

GRID = (16, 22)
"""Nodes of the attention grids: up to 32,768 queries and 2 million keys."""


@dataclass(frozen=True, slots=True)
class OpInfo:
    """One named piece of device work, for breakdowns.

    Attributes
    ----------
    name : e.g. ``qkv_proj``, ``moe_experts``, ``tp_all_reduce``
    phase : which table it is a row of
    kind : what binds it on paper: ``gemm``, ``grouped_gemm``, ``attention``, ``collective``, ``memory``,
        ``overhead``
    source : ``bound`` (roofline), ``fitted`` or ``measured``
    """

    name: str
    phase: Literal["lane", "group", "head", "attention"]
    kind: str
    source: Literal["bound", "fitted", "measured"]


@dataclass(frozen=True, slots=True, eq=False)
class AttentionTable:
    """Measured seconds of one attention kernel over whole batches, prompts and decodes together.

    A kernel that serves both at once is not the sum of its parts, so no formula in the two stands here. Linear
    between nodes and beyond the last ones; flat below the first, but below no history, where several short prompts
    share a step: there the slope from no history to the first node at least as long as the chunk goes on. Where the
    kernel cuts no sequence into parts (any step with prefill) the longest decoding sequence ends last: it adds what
    it takes alone, beyond one of mean length.

    Attributes
    ----------
    chunk : [A] prefill tokens of the step; the first is 0 (no prefill), never mixed with the others
    history : [B] keys before the chunk, per query: attended pairs / tokens - (tokens + 1) / 2; the first is 0
    sequences : [C] decoding sequences; the first is 0 (none), never mixed with the others
    context : [D] keys per decoding sequence
    seconds : [A, B, C, D] all layers of this kind, one device; the corner [0, :, 0, :] is not read
    """

    chunk: FloatArray
    history: FloatArray
    sequences: FloatArray
    context: FloatArray
    seconds: FloatArray

    @property
    def axes(self) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """The four axes, in the order of ``seconds``."""
        return self.chunk, self.history, self.sequences, self.context


@dataclass(frozen=True, slots=True)
class AttentionTerm:
    """Seconds of one kind of attention summed over its layers, per device, for one lane's batch.

    With n decoding sequences, S = sum of min(context, window) over them, q prefill tokens, P = attended
    (query, key) pairs of the prefill chunks and K = keys read by the prefill chunks, their own q keys
    included:

        decode  = launch + max(S * decode_flop_s,  S * decode_kv_s + n * decode_seq_s)   if n > 0
        prefill = launch + max(P * prefill_flop_s, K * prefill_kv_s + q * prefill_token_s) if q > 0

    Attributes
    ----------
    window : tokens; 0 is full attention; -1 is a recurrent mixer whose work does not depend on context (S =
        n, P = q)
    *_s : seconds per unit, all layers of this kind, one device. ``prefill_token_s`` is negative where K must
        not count the chunk's own keys (an op of the lane has made them): K * a - q * a, never below zero
    decode_grid : seconds over the bound above, of shape ``GRID``, at [2**i sequences, 2**j keys per sequence];
        linear between powers of two in their logarithm, flat beyond the edges. None: the bound itself
    prefill_grid : the same at [2**i prefill tokens, 2**j attended keys per token]
    table : measured seconds that replace all of the above but ``window``; None: the formulas
    """

    name: str
    window: int
    launch_s: float
    decode_flop_s: float
    decode_kv_s: float
    decode_seq_s: float
    prefill_flop_s: float
    prefill_kv_s: float
    prefill_token_s: float
    source: Literal["bound", "fitted", "measured"] = "bound"
    decode_grid: FloatArray | None = None
    prefill_grid: FloatArray | None = None
    table: AttentionTable | None = None


@dataclass(frozen=True, slots=True)
class StepPricing:
    """Everything the simulator needs to price a step of one replica.

    Attributes
    ----------
    lane_ops, lane_s : ops and seconds [op, tokens 0..max_tokens]; column 0 is all zero
    group_ops, group_s : ops and seconds [op, tokens of all lanes 0..lanes*max_tokens]; empty rows for dense
        models
    head_ops, head_s : ops and seconds [op, sampled rows 0..max_seqs]
    attention : one term per attention kind of the model
    stage_share : share of the step in each pipeline stage, sums to 1 (one entry without pipelining)
    hop_s : seconds to pass activations to the next stage, [tokens 0..max_tokens]
    overhead_s : host seconds per step that the device waits for
    overhead_source : where they come from: ``fitted``, or ``bound`` where they are stated or left out
    lanes : attention data parallel ranks
    devices : devices of the replica
    flop_per_token, bytes_per_step : for reports: model FLOPs per token, weight bytes read in a step with one
        token
    notes : assumptions and sources, one sentence each
    """

    lane_ops: tuple[OpInfo, ...]
    lane_s: FloatArray
    group_ops: tuple[OpInfo, ...]
    group_s: FloatArray
    head_ops: tuple[OpInfo, ...]
    head_s: FloatArray
    attention: tuple[AttentionTerm, ...]
    stage_share: FloatArray
    hop_s: FloatArray
    overhead_s: float
    lanes: int
    devices: int
    flop_per_token: float
    bytes_per_step: float
    notes: tuple[str, ...] = ()
    overhead_source: Literal["bound", "fitted"] = "bound"
