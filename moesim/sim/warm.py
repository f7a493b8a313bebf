"""Warm: compile or load the kernel before the clock starts, by running one request through the smallest pool."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from moesim.cost.pricing import StepPricing
from moesim.sim.pool import Pool, PoolSetup, block_records, request_records
from moesim.spec.deployment import Engine
from moesim.traffic.requests import make_requests

__all__ = ["load_kernel"]


@cache
def load_kernel() -> None:
    """Make the kernel's entry points ready: a fraction of a second from the cache, half a minute without."""
    one = np.ones(1, dtype=np.int64)
    requests = make_requests(np.zeros(1), one, one)
    pricing = StepPricing(
        lane_ops=(),
        lane_s=np.zeros((1, 2)),
        group_ops=(),
        group_s=np.zeros((1, 2)),
        head_ops=(),
        head_s=np.zeros((1, 2)),
        attention=(),
        stage_share=np.ones(1),
        hop_s=np.zeros(2),
        overhead_s=1.0,
        lanes=1,
        devices=1,
        flop_per_token=0.0,
        bytes_per_step=0.0,
    )
    engine = Engine(max_num_seqs=1, max_num_batched_tokens=1)
    setup = PoolSetup("serve", 1, pricing, engine, stages=1, kv_blocks=1, max_len=2)
    pool = Pool(setup, requests, request_records(requests), block_records(requests), timeline_points=2)
    pool.start(0, 0.0)
    pool.enqueue(0, 0, 0.0)
    pool.advance(0.5)
    pool.advance_fed(math.inf, np.empty(0), np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int32))
