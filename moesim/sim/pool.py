"""Pool: the actor that owns one pool's state for one run, and the only caller of the compiled kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moesim.cost.pricing import GRID, AttentionTable, AttentionTerm, StepPricing
from moesim.errors import SpecError
from moesim.sim.kernel import (
    PoolState,
    advance,
    cached_by_replica,
    enqueue,
    fail_replica,
    fits,
    release,
    wake,
)
from moesim.sim.kernel import state as layout
from moesim.spec.deployment import Engine, Speculation
from moesim.traffic.requests import Requests

__all__ = ["Pool", "PoolSetup", "block_records", "request_records"]

_ADMISSION = {"vllm": 0, "sglang": 1, "trtllm": 2}
_NO_TIMES: npt.NDArray[np.float64] = np.empty(0)
_NO_IDS: npt.NDArray[np.int32] = np.empty(0, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class PoolSetup:
    """What a pool is made of.

    Attributes
    ----------
    name : serve, prefill or decode
    replicas : replicas that may exist (with autoscaling: the most)
    pricing : seconds of a step
    engine : scheduler settings
    stages : pipeline stages
    kv_blocks : KV blocks of one lane
    swap_s_per_block : seconds to move one block between host and device
    max_len : longest request in tokens
    """

    name: str
    replicas: int
    pricing: StepPricing
    engine: Engine
    stages: int
    kv_blocks: int
    max_len: int
    swap_s_per_block: float = 0.0
    speculation: Speculation | None = None
    draft_s: float = 0.0


def request_records(requests: Requests) -> npt.NDArray[Any]:
    """Return the kernel's records for a run's requests, nothing done yet."""
    records = np.zeros(len(requests), dtype=layout.REQUEST)
    records["arrival"] = requests.arrival_s
    for name in ("scheduled", "first", "finish", "last"):
        records[name] = np.nan
    records["input"] = requests.input_tokens
    records["output"] = requests.output_tokens
    for name in ("lane", "replica", "decode_replica", "next"):
        records[name] = -1
    ranks = np.unique(-requests.priority.astype(np.int64), return_inverse=True)[1]
    records["cls"] = ranks
    if requests.block_tokens:
        records["block_lo"] = requests.block_offset[:-1]
        records["block_n"] = np.diff(requests.block_offset)
    return records


def _attention_rows(terms: Sequence[AttentionTerm]) -> npt.NDArray[np.float64]:
    rows = [
        (t.window, t.launch_s, t.decode_flop_s, t.decode_kv_s, t.decode_seq_s,
         t.prefill_flop_s, t.prefill_kv_s, t.prefill_token_s,
         float(t.decode_grid is not None), float(t.prefill_grid is not None), float(t.table is not None))
        for t in terms
    ]  # fmt: skip
    return np.array(rows, dtype=np.float64).reshape(len(terms), 11)


def _slack_grids(terms: Sequence[AttentionTerm]) -> npt.NDArray[np.float64]:
    grids = np.ones((len(terms), 2, *GRID))
    for term, pair in zip(terms, grids, strict=True):
        for row, grid in zip(pair, (term.decode_grid, term.prefill_grid), strict=True):
            if grid is not None:
                row[:] = grid
    return grids


def _joint_tables(setup: PoolSetup) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the attention tables [terms, A, B, C, D] and their common axes [4, longest]."""
    terms = setup.pricing.attention
    tables: list[AttentionTable] = [t.table for t in terms if t.table is not None]
    if not tables:
        return np.zeros((len(terms), 1, 1, 1, 1)), np.zeros((4, 1))
    if setup.speculation is not None:
        raise SpecError("speculation: measured attention tables hold one query per decoding sequence")
    first = tables[0]
    for table in tables[1:]:
        if any(not np.array_equal(a, b) for a, b in zip(table.axes, first.axes, strict=True)):
            raise ValueError("attention tables of one model must share their axes")
    joint = np.zeros((len(terms), *first.seconds.shape))
    for row, term in zip(joint, terms, strict=True):
        if term.table is not None:
            row[:] = term.table.seconds
    axes = np.zeros((4, max(first.seconds.shape)))
    for line, nodes in zip(axes, first.axes, strict=True):
        line[: len(nodes)] = nodes
    return joint, axes


class Pool:
    """Replicas of one pool in motion. Times are absolute simulated seconds."""

    def __init__(
        self,
        setup: PoolSetup,
        requests: Requests,
        records: npt.NDArray[Any],
        blocks: npt.NDArray[np.int32],
        *,
        seed: int = 0,
        fast: bool = True,
        timeline_points: int = 2000,
    ) -> None:
        pricing, engine = setup.pricing, setup.engine
        width = setup.stages * pricing.lanes
        lanes = setup.replicas * width
        joint, axes = _joint_tables(setup)
        self.setup = setup
        self.alive_since = np.full(setup.replicas, np.nan)
        self.alive_s = np.zeros(setup.replicas)
        self.accepting = np.zeros(setup.replicas, dtype=bool)
        self._session = requests.session
        self.state = PoolState(
            cfg=_config(setup, requests, seed=seed, fast=fast),
            req=records,
            lane=np.zeros(lanes, dtype=layout.LANE),
            eng=np.zeros(setup.replicas * setup.stages, dtype=layout.ENGINE),
            rep=np.zeros(setup.replicas, dtype=layout.REPLICA),
            seats=np.zeros((2, lanes, engine.max_num_seqs), dtype=np.int32),
            queue=np.full((2, lanes, int(records["cls"].max(initial=0)) + 1), -1, dtype=np.int32),
            blocks=blocks,
            prefix=np.full((3, lanes, _distinct_blocks(engine, requests)), -1, dtype=np.int32),
            table=_table(pricing),
            hist=np.zeros((4, max(layout.ITL_BINS, _longest(pricing))), dtype=np.int64),
            attn=_attention_rows(pricing.attention),
            slack=_slack_grids(pricing.attention),
            joint=joint,
            axes=axes,
            spent=np.zeros((setup.replicas, len(pricing.attention), 2)),
            stage=np.vstack([np.zeros((setup.replicas, setup.stages)), pricing.stage_share]),
            scratch=np.zeros((pricing.lanes, len(pricing.attention), 4)),
            timeline=np.zeros((setup.replicas, max(2, timeline_points // 2 * 2), 6)),
            outbox=np.zeros(len(records) + 1, dtype=np.int32),
        )
        state = self.state
        state.lane["total"] = state.lane["free"] = setup.kv_blocks
        state.lane["lru_head"] = state.lane["lru_tail"] = -1
        state.eng["end"] = math.inf
        state.eng["replica"] = np.arange(len(state.eng)) // setup.stages
        state.rep["slow"] = 1.0
        state.rep["timeline_stride"] = 1

    # -- life of a replica -------------------------------------------------------------------------------------------
    def start(self, replica: int, now: float) -> None:
        """Put a replica into service."""
        self.state.rep["alive"][replica] = 1
        self.accepting[replica] = True
        self.alive_since[replica] = now
        for engine in range(replica * self.setup.stages, (replica + 1) * self.setup.stages):
            wake(self.state, engine, now)

    def stop(self, replica: int, now: float) -> list[int]:
        """Take a replica out of service at once; returns the requests it held."""
        if not self.state.rep["alive"][replica]:
            return []
        fail_replica(self.state, replica, now)
        self.accepting[replica] = False
        self.alive_s[replica] += now - self.alive_since[replica]
        self.alive_since[replica] = np.nan
        return self.take_departures()

    def close(self, now: float) -> None:
        """Book the time in service and the requests still present at the end of the run."""
        rep = self.state.rep
        alive = ~np.isnan(self.alive_since)
        self.alive_s[alive] += now - self.alive_since[alive]
        rep["area"] += rep["present"] * (now - rep["area_t"])
        rep["area_t"] = now
        inflight = rep["inflight"] > 0
        rep["busy"][inflight] += now - rep["busy_since"][inflight]

    # -- requests ----------------------------------------------------------------------------------------------------
    def enqueue(self, request: int, replica: int, now: float) -> bool:
        """Queue a request; False when it can never fit (its status says rejected)."""
        return bool(enqueue(self.state, request, replica, now))

    def fits(self, request: int) -> bool:
        """Say whether an empty replica could serve the request."""
        return bool(fits(self.state, request))

    def release(self, request: int, now: float) -> None:
        """Free the blocks of a prefilled request whose KV has been moved."""
        release(self.state, request, now)

    def take_departures(self) -> list[int]:
        """Return the requests that left since the last call, in order."""
        outbox = self.state.outbox
        count = int(outbox[0])
        left: list[int] = outbox[1 : count + 1].tolist()
        outbox[0] = 0
        return left

    # -- what a replica router may look at (policies.PoolView) -------------------------------------------------------
    def candidates(self) -> npt.NDArray[np.int64]:
        """Return the replicas that take requests."""
        return np.flatnonzero(self.accepting)

    def requests(self) -> npt.NDArray[np.int64]:
        """Return the requests present on each replica."""
        present: npt.NDArray[np.int64] = self.state.rep["present"]
        return present

    def tokens(self) -> npt.NDArray[np.int64]:
        """Return the tokens of the requests present on each replica."""
        tokens: npt.NDArray[np.int64] = self.state.rep["tokens"]
        return tokens

    def cached_tokens(self, request: int) -> npt.NDArray[np.int64]:
        """Return the prompt tokens of a request that each replica has cached."""
        out = np.zeros(self.setup.replicas, dtype=np.int64)
        cached_by_replica(self.state, request, out)
        return out

    def session(self, request: int) -> int:
        """Return the conversation of a request, -1 for none."""
        return int(self._session[request])

    def waiting(self) -> int:
        """Return the requests queued on all replicas."""
        return int(self.state.lane["waiting"].sum())

    # -- time --------------------------------------------------------------------------------------------------------
    def next_event(self) -> float:
        """Return the time of the next step end (or wake-up)."""
        return float(self.state.eng["end"].min())

    def advance(self, until: float, *, stop: bool = True) -> float:
        """Run all replicas to ``until`` (``stop``: or to the first step after which a request leaves).

        Returns the time of the last event handled.
        """
        last, _ = advance(self.state, 0, self.setup.replicas, until, stop, _NO_TIMES, _NO_IDS, _NO_IDS, 0)
        return float(last)

    def advance_fed(
        self,
        until: float,
        times: npt.NDArray[np.float64],
        ids: npt.NDArray[np.int32],
        to: npt.NDArray[np.int32],
    ) -> float:
        """Run each replica on its own to ``until``, with arrivals known beforehand; returns the last event's time."""
        last = -math.inf
        order = np.argsort(to, kind="stable")
        bounds = np.searchsorted(to[order], np.arange(self.setup.replicas + 1))
        times, ids, to = times[order], ids[order], to[order]
        for replica in range(self.setup.replicas):
            part = slice(bounds[replica], bounds[replica + 1])
            feed = times[part], ids[part], to[part], 0
            at, _ = advance(self.state, replica, replica + 1, until, *(False, *feed))
            last = max(last, float(at))
        return last


def block_records(requests: Requests) -> npt.NDArray[np.int32]:
    """Return the kernel's [2, total] array of hash blocks, none in use."""
    return np.stack([requests.block_hash, np.zeros_like(requests.block_hash)]).astype(np.int32)


def _distinct_blocks(engine: Engine, requests: Requests) -> int:
    return requests.distinct_blocks if engine.prefix_caching and requests.block_tokens else 0


def _longest(pricing: StepPricing) -> int:
    return int(max(t.shape[1] for t in (pricing.lane_s, pricing.group_s, pricing.head_s)))


def _table(pricing: StepPricing) -> npt.NDArray[np.float64]:
    table = np.zeros((4, _longest(pricing)))
    for row, part in enumerate((pricing.lane_s, pricing.group_s, pricing.head_s, pricing.hop_s[None])):
        table[row, : part.shape[1]] = part.sum(axis=0)
    return table


def _config(setup: PoolSetup, requests: Requests, *, seed: int, fast: bool) -> npt.NDArray[Any]:
    engine, speculation = setup.engine, setup.speculation
    if setup.name == "prefill":
        speculation = None
    prefix = engine.prefix_caching and requests.block_tokens > 0 and setup.name != "decode"
    if prefix and requests.block_tokens % engine.block_tokens:
        message = (
            f"hash blocks of {requests.block_tokens} tokens are not whole KV blocks of {engine.block_tokens}"
        )
        raise ValueError(message)
    if speculation is not None and engine.max_num_batched_tokens <= speculation.draft_tokens:
        raise SpecError(
            f"max_num_batched_tokens {engine.max_num_batched_tokens}: "
            f"expected room for one token and its {speculation.draft_tokens} drafts"
        )
    cfg = np.zeros(1, dtype=layout.CONFIG)
    values: dict[str, Any] = {
        "overhead_s": setup.pricing.overhead_s,
        "swap_s_per_block": setup.swap_s_per_block,
        "watermark": engine.watermark,
        "acceptance": speculation.acceptance if speculation else 0.0,
        "draft": speculation.draft_tokens if speculation else 0,
        "draft_s": setup.draft_s if speculation else 0.0,
        "poll_steps": engine.poll_steps,
        "wait_steps": engine.wait_steps,
        "wait_tokens": engine.wait_fill * engine.max_num_batched_tokens,
        "max_seqs": engine.max_num_seqs,
        "max_tokens": engine.max_num_batched_tokens,
        "prefill_chunk": min(
            engine.prefill_chunk or engine.max_num_batched_tokens, engine.max_num_batched_tokens
        ),
        "block": engine.block_tokens,
        "hash_tokens": requests.block_tokens if prefix else 0,
        "hash_blocks": requests.block_tokens // engine.block_tokens if prefix else 1,
        "max_len": setup.max_len,
        "seed": seed,
        "chunked": engine.chunked_prefill,
        "prefill_first": engine.prefill_first or not engine.chunked_prefill,
        "prefix": prefix,
        "swap": engine.preemption == "swap",
        "priority": engine.scheduling == "priority",
        "admission": _ADMISSION[engine.flavor],
        "stop_first": setup.name == "prefill",
        "decode_side": setup.name == "decode",
        "fast": fast,
        "ahead": engine.async_scheduling,
        "lanes": setup.pricing.lanes,
        "stages": setup.stages,
    }
    for name, value in values.items():
        cfg[name] = value
    return cfg
