"""Attention grids: the kernel multiplies the bound by the grid's value at the step's own point."""

from dataclasses import replace

import numpy as np
import pytest

from moesim.cost.pricing import GRID, AttentionTerm, StepPricing
from moesim.sim.pool import Pool, PoolSetup, block_records, request_records
from moesim.spec.deployment import Engine
from moesim.traffic.requests import make_requests

TERM = AttentionTerm("full", 0, 1e-6, 1e-9, 2e-9, 3e-9, 4e-10, 5e-10, 6e-10)


def _seconds(term, inputs, outputs, fast=True):
    """Seconds from first step to last of one request alone."""
    nothing, rows = np.zeros((1, 65)), np.zeros((1, 9))
    pricing = StepPricing(
        (), nothing, (), nothing, (), rows, (term,), np.ones(1), np.zeros(65), 1e-6, 1, 1, 0.0, 0.0
    )
    requests = make_requests(np.zeros(1), np.array([inputs]), np.array([outputs]))
    setup = PoolSetup("serve", 1, pricing, Engine(max_num_seqs=8, max_num_batched_tokens=64), 1, 1000, 4096)
    records = request_records(requests)
    pool = Pool(setup, requests, records, block_records(requests), fast=fast)
    pool.start(0, 0.0)
    pool.enqueue(0, 0, 0.0)
    pool.advance(np.inf)
    return float(records["finish"][0])


def _grid(value):
    x, y = np.meshgrid(np.arange(GRID[0]), np.arange(GRID[1]), indexing="ij")
    return value(x, y).astype(float)


@pytest.mark.parametrize("fast", [True, False])
def test_decode_follows_the_grid(fast):
    slack = _grid(lambda x, y: 1 + 0.1 * x + 0.25 * y)  # linear, so interpolation is exact
    plain = [
        TERM.launch_s + max(k * TERM.decode_flop_s, k * TERM.decode_kv_s + TERM.decode_seq_s)
        for k in range(9, 40)
    ]
    prefill = TERM.launch_s + max(36 * TERM.prefill_flop_s, 8 * (TERM.prefill_kv_s + TERM.prefill_token_s))
    expected = (
        32 * 1e-6
        + prefill
        + sum(s * (1 + 0.25 * np.log2(k)) for s, k in zip(plain, range(9, 40), strict=True))
    )
    assert _seconds(replace(TERM, decode_grid=slack), 8, 32, fast) == pytest.approx(expected, rel=1e-12)


def test_prefill_follows_the_grid():
    slack = _grid(lambda x, y: 2 + 0.5 * x + 0.25 * y)
    bound = TERM.launch_s + max(36 * TERM.prefill_flop_s, 8 * (TERM.prefill_kv_s + TERM.prefill_token_s))
    expected = 1e-6 + bound * (2 + 0.5 * 3 + 0.25 * np.log2(36 / 8))
    assert _seconds(replace(TERM, prefill_grid=slack), 8, 1) == pytest.approx(expected, rel=1e-12)


def test_a_grid_of_ones_is_the_bound_and_edges_are_flat():
    ones = np.ones(GRID)
    assert _seconds(replace(TERM, decode_grid=ones, prefill_grid=ones), 8, 20) == pytest.approx(
        _seconds(TERM, 8, 20), rel=1e-12
    )
    capped = _grid(lambda x, y: np.where(y >= 3, 3.0, 3.0))
    assert _seconds(replace(TERM, decode_grid=capped), 2000, 2) > _seconds(TERM, 2000, 2)
