"""State of one pool: records in flat arrays, so that the compiled kernel walks memory in order.

A pool has R replicas. A replica has V virtual engines (one per pipeline stage), each with D lanes (attention data
parallel ranks) that step together. Engine index = replica * V + v, lane index = engine * D + d.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

__all__ = [
    "CONFIG",
    "ENGINE",
    "ITL_BINS",
    "ITL_LOW_S",
    "ITL_RATIO",
    "LANE",
    "REPLICA",
    "REQUEST",
    "PoolState",
    "Status",
]


class Status(IntEnum):
    """Where a request is."""

    OUTSIDE = 0  # not arrived, or at the front door, or between pools
    WAITING = 1
    RUNNING = 2
    HELD = 3  # prefilled, its KV blocks wait for the transfer
    FINISHED = 4
    REJECTED = 5


ITL_LOW_S = 1e-5
ITL_RATIO = 1.02
ITL_BINS = 932
"""Bins of the gap between tokens: bin 0 holds gaps of zero, bin b holds [low * ratio**(b-1), low * ratio**b)."""

REQUEST = np.dtype(
    [
        ("arrival", "f8"), ("scheduled", "f8"), ("first", "f8"), ("finish", "f8"), ("last", "f8"),
        ("block_lo", "i8"), ("block_n", "i4"),
        ("input", "i4"), ("output", "i4"), ("generated", "i4"), ("done", "i4"), ("held", "i4"),
        ("shared", "i4"), ("cached", "i4"),
        ("preemptions", "i4"), ("restarts", "i4"), ("cls", "i4"), ("lane", "i4"),
        ("replica", "i4"), ("decode_replica", "i4"), ("status", "i4"), ("swapped", "i4"), ("next", "i4"),
    ],
    align=True,
)  # fmt: skip
LANE = np.dtype(
    [
        ("free", "i8"), ("idle", "i8"), ("total", "i8"), ("waiting", "i4"), ("running", "i4"),
        ("lru_head", "i4"), ("lru_tail", "i4"), ("tokens", "i4"), ("rows", "i4"), ("decodes", "i4"),
        ("prefills", "i4"), ("steady", "i4"), ("swap_blocks", "i4"),
        ("hidden", "i4"), ("since", "i4"), ("waited", "i4"), ("holding", "i4"),
        ("late_seats", "i4"), ("late_blocks", "i8"),
    ],
    align=True,
)  # fmt: skip
ENGINE = np.dtype([("end", "f8"), ("start", "f8"), ("busy", "i4"), ("replica", "i4")], align=True)
REPLICA = np.dtype(
    [
        ("slow", "f8"), ("area", "f8"), ("area_t", "f8"), ("busy", "f8"), ("busy_since", "f8"), ("step_s", "f8"),
        ("overhead_s", "f8"), ("swap_s", "f8"), ("straggle_s", "f8"), ("hop_s", "f8"), ("draft_s", "f8"),
        ("peak", "f8"), ("step_last", "f8"), ("present", "i8"), ("steps", "i8"), ("prefill_tokens", "i8"),
        ("decode_tokens", "i8"),
        ("cached_tokens", "i8"), ("preemptions", "i8"), ("tokens", "i8"), ("inflight", "i4"), ("alive", "i4"),
        ("timeline_n", "i8"), ("timeline_stride", "i8"), ("timeline_seen", "i8"),
    ],
    align=True,
)  # fmt: skip
CONFIG = np.dtype(
    [
        ("overhead_s", "f8"), ("swap_s_per_block", "f8"), ("watermark", "f8"), ("acceptance", "f8"), ("draft_s", "f8"),
        ("wait_tokens", "f8"), ("poll_steps", "i8"), ("wait_steps", "i8"),
        ("max_seqs", "i8"), ("max_tokens", "i8"), ("prefill_chunk", "i8"), ("block", "i8"), ("hash_blocks", "i8"),
        ("max_len", "i8"), ("seed", "u8"), ("draft", "i4"), ("chunked", "i4"), ("prefill_first", "i4"),
        ("prefix", "i4"), ("swap", "i4"), ("priority", "i4"), ("admission", "i4"), ("stop_first", "i4"),
        ("decode_side", "i4"), ("fast", "i4"), ("lanes", "i4"), ("stages", "i4"), ("hash_tokens", "i4"),
        ("ahead", "i4"),
    ],
    align=True,
)  # fmt: skip
"""``hash_blocks``: KV blocks in one hash block of ``hash_tokens`` tokens. ``admission``: 0 blocks of the first chunk,
1 of the prompt, 2 of prompt and output. ``ahead``: a step is chosen while the one before it runs. ``stop_first``: a
prefill pool. ``decode_side``: a decode pool."""


class PoolState(NamedTuple):
    """All arrays of one pool (E engines, L lanes, R replicas, N requests of the run, U distinct hash blocks).

    ``req`` and ``blocks`` are shared by the pools of a run: a request is in one pool at a time.
    """

    cfg: Any  # CONFIG [1]
    req: Any  # REQUEST [N]
    lane: Any  # LANE [L]
    eng: Any  # ENGINE [E]
    rep: Any  # REPLICA [R]
    seats: Any  # i4 [2, L, max_seqs]: 0 running requests in order of admission, 1 their tokens in the step in progress
    queue: Any  # i4 [2, L, classes]: 0 first, 1 last waiting request of each priority class, -1 for none
    blocks: Any  # i4 [2, total]: 0 hash blocks of all prompts, 1 whether the request counts as a user of the block
    prefix: Any  # i4 [3, L, U]: 0 users of a cached block (0 idle, -1 not cached), 1 and 2 its LRU neighbours
    table: Any  # f8 [4, longest]: seconds by 0 lane tokens, 1 group tokens, 2 sampled rows, 3 tokens of a hop
    hist: (
        Any  # i8 [4, longest]: steps by 0 lane tokens, 1 group tokens, 2 sampled rows; 3 gaps between tokens
    )
    attn: Any  # f8 [terms, 11]: window, launch, decode flop/kv/seq, prefill flop/kv/token; has grids (2), a table
    slack: Any  # f8 [terms, 2, GRID]: seconds over bound of decode and prefill
    joint: (
        Any  # f8 [terms, A, B, C, D]: measured attention of whole batches (all sizes but the first 1 without)
    )
    axes: Any  # f8 [4, longest]: nodes of chunk, history, sequences, context
    spent: Any  # f8 [R, terms, 2]: attention seconds so far, decode and prefill
    stage: Any  # f8 [R + 1, stages]: when each stage is free; the last row is the stage's share of a step
    scratch: Any  # f8 [D, terms, 4]: decode and prefill seconds of the step being priced; keys of a run, and growth
    timeline: Any  # f8 [R, points, 6]: time, waiting, running, kv used, tokens, seconds
    outbox: Any  # i4 [N + 1]: requests that left since the caller last looked; [0] is the count
