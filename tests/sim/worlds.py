"""Worlds: small random engines, prices and workloads, and the ways to run them through a pool."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from reference import Prices, Request, Settings

from moesim.cost.pricing import GRID, AttentionTerm, OpInfo, StepPricing
from moesim.sim.pool import Pool, PoolSetup, block_records, request_records
from moesim.spec.deployment import Engine, Speculation
from moesim.traffic.requests import Requests, dense, make_requests

COUNTERS = (
    "steps", "prefill_tokens", "decode_tokens", "cached_tokens", "preemptions", "present", "tokens", "inflight",
    "area", "busy", "step_s", "overhead_s", "swap_s", "straggle_s", "hop_s", "draft_s", "peak", "alive",
    "timeline_n", "timeline_stride", "timeline_seen",
)  # fmt: skip


def pricing(
    tokens: int,
    seqs: int,
    *,
    lane: Any = 0.0,
    group: Any = 0.0,
    head: Any = 0.0,
    overhead: float = 0.0,
    attention: tuple[AttentionTerm, ...] = (),
    lanes: int = 1,
    stages: int = 1,
    hop: float = 0.0,
) -> StepPricing:
    """Make a price list by hand: seconds by count, a constant or an array each; nothing costs nothing."""

    def table(value: Any, width: int) -> np.ndarray:
        row = np.broadcast_to(np.asarray(value, dtype=np.float64), (1, width)).copy()
        row[0, 0] = 0.0
        return row

    def info(name: str, phase: Any) -> tuple[OpInfo, ...]:
        return (OpInfo(name, phase, "gemm", "bound"),)

    return StepPricing(
        lane_ops=info("lane", "lane"), lane_s=table(lane, tokens + 1),
        group_ops=info("group", "group"), group_s=table(group, lanes * tokens + 1),
        head_ops=info("head", "head"), head_s=table(head, seqs + 1),
        attention=attention, stage_share=np.full(stages, 1 / stages), hop_s=np.full(tokens + 1, hop),
        overhead_s=overhead, lanes=lanes, devices=lanes * stages, flop_per_token=1.0, bytes_per_step=1.0,
    )  # fmt: skip


def setup(engine: Engine, priced: StepPricing, **changes: Any) -> PoolSetup:
    known: dict[str, Any] = {
        "name": "serve", "replicas": 1, "pricing": priced, "engine": engine, "stages": 1, "kv_blocks": 10**6,
        "max_len": 10**6,
    }  # fmt: skip
    return PoolSetup(**(known | changes))


def open_pool(made: PoolSetup, requests: Requests, **how: Any) -> Pool:
    """Return a pool with every replica in service at time 0."""
    pool = Pool(made, requests, request_records(requests), block_records(requests), **how)
    for replica in range(made.replicas):
        pool.start(replica, 0.0)
    return pool


def one_by_one(pool: Pool, requests: Requests, homes: np.ndarray, *, stop: bool = False) -> Pool:
    """Offer the requests at their times, each after everything that happened before it; then run to the end."""

    def run(until: float) -> None:
        while pool.next_event() <= until and pool.next_event() < np.inf:
            pool.advance(until, stop=stop)
            pool.take_departures()

    times = requests.arrival_s.tolist()
    for r, at in enumerate(times):
        if r == 0 or at > times[r - 1]:  # those of one moment come together
            run(at)
        pool.enqueue(r, int(homes[r]), at)
    run(np.inf)
    return pool


def fed(pool: Pool, requests: Requests, homes: np.ndarray) -> Pool:
    """Offer all requests at once."""
    ids = np.arange(len(requests), dtype=np.int32)
    pool.advance_fed(np.inf, requests.arrival_s, ids, homes.astype(np.int32))
    return pool


@dataclass(frozen=True)
class World:
    """One engine under one workload, for the simulator and for the reference."""

    settings: Settings
    prices: Prices
    requests: Requests
    homes: np.ndarray
    hashes: list = field(default_factory=list)
    stages: int = 1

    def engine(self) -> Engine:
        s = self.settings
        return Engine(
            flavor=s.admission, max_num_seqs=s.seqs, max_num_batched_tokens=s.tokens, chunked_prefill=s.chunked,
            prefill_chunk=s.chunk, prefill_first=s.prefill_first, block_tokens=s.block, watermark=s.watermark,
            prefix_caching=s.hash_tokens > 0, preemption="swap" if s.swap else "recompute",
            scheduling="priority" if s.priority else "fcfs",
            async_scheduling=s.ahead,
            poll_steps=s.poll,
            wait_steps=s.wait,
            wait_fill=s.wait_tokens / s.tokens,
        )  # fmt: skip

    def pool(self, **how: Any) -> Pool:
        s, p = self.settings, self.prices
        terms = tuple(
            AttentionTerm(
                f"kind{i}", t["window"], t["launch"], t["decode_flop"], t["decode_kv"], t["decode_seq"],
                t["prefill_flop"], t["prefill_kv"], t["prefill_token"],
                decode_grid=None if t["decode_grid"] is None else np.array(t["decode_grid"]),
                prefill_grid=None if t["prefill_grid"] is None else np.array(t["prefill_grid"]),
            )
            for i, t in enumerate(p.terms)
        )  # fmt: skip
        priced = pricing(
            s.tokens, s.seqs * (1 + s.drafts), lane=p.lane, group=p.group, head=p.head, overhead=p.overhead,
            attention=terms, lanes=s.lanes, stages=self.stages,
        )  # fmt: skip
        speculation = Speculation(draft_tokens=s.drafts, acceptance=s.acceptance) if s.drafts else None
        made = setup(
            self.engine(), priced, replicas=s.replicas, kv_blocks=s.blocks, max_len=s.max_len, stages=self.stages,
            swap_s_per_block=s.swap_s, speculation=speculation, draft_s=s.draft_s,
        )  # fmt: skip
        pool = open_pool(made, self.requests, seed=s.seed, timeline_points=64, **how)
        if s.slow:
            pool.state.rep["slow"] = s.slow
        return pool

    def reference(self) -> list[Request]:
        q = self.requests
        classes = sorted({-int(p) for p in q.priority})
        return [
            Request(
                r, float(q.arrival_s[r]), int(q.input_tokens[r]), int(q.output_tokens[r]),
                cls=classes.index(-int(q.priority[r])), hashes=q.blocks(r).tolist() if q.block_tokens else [],
            )
            for r in range(len(q))
        ]  # fmt: skip

    def with_settings(self, **changes: Any) -> World:
        return replace(self, settings=replace(self.settings, **changes))


@st.composite
def worlds(draw: st.DrawFn, **fixed: Any) -> World:
    """Random worlds, many of them short of KV blocks; ``fixed`` sets settings."""
    block = draw(st.sampled_from([1, 2, 4]))
    seqs = draw(st.integers(1, 6))
    drafts = fixed.get("drafts", draw(st.sampled_from([0, 0, 0, 1, 3])))
    tokens = max(seqs, drafts + 1, draw(st.integers(4, 40)))
    hash_tokens = block * draw(st.sampled_from([0, 1, 2, 3]))
    longest = draw(st.sampled_from([6, 20, 50]))
    replicas = draw(st.sampled_from([1, 1, 2, 3]))
    settings = Settings(
        seqs=seqs,
        tokens=tokens,
        chunk=draw(st.sampled_from([tokens, tokens, max(1, tokens // 2)])),
        block=block,
        # between one longest request and plenty
        blocks=-(-(longest + drafts) // block) + draw(st.sampled_from([0, 1, 3, 10, 200])),
        max_len=draw(st.sampled_from([10**6, longest, max(2, longest - 3)])),
        watermark=draw(st.sampled_from([0.0, 0.0, 0.05, 0.3])),
        admission=draw(st.sampled_from(["vllm", "vllm", "sglang", "trtllm"])),
        chunked=draw(st.sampled_from([True, True, False])),
        prefill_first=draw(st.booleans()),
        priority=draw(st.booleans()),
        swap=draw(st.booleans()),
        hash_tokens=hash_tokens,
        lanes=draw(st.sampled_from([1, 1, 2, 3])),
        replicas=replicas,
        drafts=drafts,
        acceptance=draw(st.sampled_from([0.0, 0.6, 1.0])),
        draft_s=0.003,
        swap_s=0.0007,
        slow=[draw(st.sampled_from([1.0, 1.7])) for _ in range(replicas)],
        seed=draw(st.integers(0, 3)),
    )
    patience = draw(st.sampled_from(["", "", "poll", "wait"]))
    if patience == "poll":  # SGLang's, which has no classes here
        settings = replace(settings, poll=draw(st.integers(2, 6)), priority=False)
    if patience == "wait":
        fill = draw(st.sampled_from([0.25, 0.5, 1.0]))
        settings = replace(settings, wait=draw(st.integers(1, 6)), wait_tokens=fill * tokens)
    settings = replace(settings, **fixed)
    if not settings.chunked:
        settings = replace(settings, prefill_first=True, chunk=settings.tokens)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    windows = draw(st.lists(st.sampled_from([0, -1, 1, 3, 8, 16]), max_size=3))
    load = draw(st.sampled_from([0.2, 1.0, 5.0]))
    count = draw(st.integers(1, 24))
    return World(
        settings, _prices(settings, windows, rng), _requests(settings, longest, count, load, rng),
        np.arange(count) % settings.replicas, stages=1,
    )  # fmt: skip


def _prices(s: Settings, windows: list[int], rng: np.random.Generator) -> Prices:
    def rising(n: int, scale: float) -> list[float]:
        return [0.0, *(scale * (1 + rng.random(n - 1)) * np.sqrt(np.arange(1, n))).tolist()]

    names = (
        "launch",
        "decode_flop",
        "decode_kv",
        "decode_seq",
        "prefill_flop",
        "prefill_kv",
        "prefill_token",
    )
    terms = []
    for window in windows:
        term = {"window": window} | dict(zip(names, (rng.random(len(names)) * 1e-3).tolist(), strict=True))
        for grid in ("decode_grid", "prefill_grid"):
            term[grid] = (1 + rng.random(GRID)).tolist() if rng.random() < 0.5 else None
        terms.append(term)
    return Prices(
        overhead=float(rng.random() * 1e-3), lane=rising(s.tokens + 1, 1e-3),
        group=rising(s.lanes * s.tokens + 1, 1e-3), head=rising(s.seqs * (1 + s.drafts) + 1, 1e-4), terms=terms,
    )  # fmt: skip


def _requests(s: Settings, longest: int, count: int, load: float, rng: np.random.Generator) -> Requests:
    gaps = rng.exponential(0.03 / load, count) * (rng.random(count) < 0.8)  # some arrive at one moment
    inputs = rng.integers(1, longest, count)
    outputs = np.minimum(rng.geometric(0.12, count), np.maximum(1, longest + 2 - inputs))
    blocks: dict[str, Any] = {}
    if s.hash_tokens:
        # prompts are a common start of one of three stories, then their own; equal id is equal prefix
        size, keys, offset = s.hash_tokens, [], [0]
        for r in range(count):
            story, shared = rng.integers(3), rng.integers(0, longest // size + 2)
            n = -(-int(inputs[r]) // size) if rng.random() < 0.5 else int(inputs[r]) // size
            keys += [j * 8 + story if j < shared else 10**6 + r * 1000 + j for j in range(n)]
            offset.append(len(keys))
        blocks = {
            "block_offset": np.array(offset), "block_hash": dense(np.array(keys, dtype=np.int64)),
            "block_tokens": size,
        }  # fmt: skip
    return make_requests(
        np.cumsum(gaps), inputs, outputs, priority=rng.integers(0, 3, count), session=rng.integers(-1, 4, count),
        **blocks,
    )  # fmt: skip


def drive(setups: list[PoolSetup], requests: Requests, policy: str = "round_robin", **how: Any) -> Any:
    """Run setups (one, or prefill and decode) as the simulator does; returns the driver, its end in ``end``."""
    from moesim.policies import make_replica_router
    from moesim.sim.driver import Driver, Plan

    fast = how.pop("fast", True)
    seed = how.pop("seed", 0)
    plan = {k: how.pop(k) for k in ("faults", "stragglers", "autoscaling", "horizon_s") if k in how}
    records, blocks = request_records(requests), block_records(requests)
    pools = {s.name: Pool(s, requests, records, blocks, fast=fast, seed=seed) for s in setups}
    routers = {
        s.name: make_replica_router(policy, np.random.default_rng([seed, k])) for k, s in enumerate(setups)
    }
    driver = Driver(pools, requests, routers, Plan(**plan), **how)
    driver.end = driver.run()
    return driver


def books_close(driver: Any) -> None:
    """Check the laws that need no tables: Little, tokens, blocks, busy time, order of events."""
    rec, n = driver.records, driver.sent
    kept = rec[:n][rec["status"][:n] != 5]
    leave = np.where(np.isnan(kept["finish"]), driver.end, kept["finish"])
    area = sum(float(p.state.rep["area"].sum()) for p in driver.pools.values()) + driver.outside_s
    np.testing.assert_allclose(area, (leave - kept["arrival"]).sum(), rtol=1e-9, atol=1e-9)
    made = sum(int(p.state.rep["decode_tokens"].sum()) for p in driver.pools.values())
    assert made == rec["generated"].sum()
    gaps = sum(int(p.state.hist[3].sum()) for p in driver.pools.values())
    assert gaps == np.maximum(rec["generated"].astype(int) - 1, 0).sum()
    times = np.stack([rec[name][:n] for name in ("arrival", "scheduled", "first", "finish")])
    assert not (np.diff(times, axis=0) < 0).any()
    for pool in driver.pools.values():
        assert (pool.state.rep["busy"] <= pool.alive_s * (1 + 1e-9) + 1e-12).all()
        assert (pool.alive_s >= 0).all()
        assert (pool.alive_s <= driver.end * (1 + 1e-9)).all()
        if not np.isnan(kept["finish"]).any():
            assert (
                pool.state.lane["free"] + pool.state.lane["idle"] * pool.state.cfg["hash_blocks"]
            ).tolist() == (pool.state.lane["total"].tolist())
