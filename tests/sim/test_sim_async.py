"""Asynchronous scheduling: a step is chosen while the one before it runs."""

import numpy as np
import pytest
from worlds import fed, one_by_one, open_pool, pricing, setup

from moesim.spec.deployment import Engine
from moesim.traffic.requests import make_requests

COLUMNS = ("scheduled", "first", "finish", "preemptions")


def ran(arrivals, inputs, outputs, *, ahead=True, fast=True, how=fed, blocks=1000, seqs=4):
    engine = Engine(max_num_seqs=seqs, max_num_batched_tokens=64, block_tokens=4, async_scheduling=ahead)
    requests = make_requests(np.array(arrivals, dtype=float), np.array(inputs), np.array(outputs))
    pool = open_pool(setup(engine, pricing(64, seqs, lane=1.0), kv_blocks=blocks), requests, fast=fast)
    return how(pool, requests, np.zeros(len(requests), dtype=int)).state


def test_a_newcomer_waits_for_the_step_that_was_already_chosen():
    state = ran([0.0, 1.5], [8, 8], [6, 2])
    assert state.req["scheduled"].tolist() == [0.0, 3.0]  # the step from 2 to 3 was chosen at 1
    assert ran([0.0, 1.5], [8, 8], [6, 2], ahead=False).req["scheduled"].tolist() == [0.0, 2.0]


def test_a_seat_is_free_one_step_after_its_request_has_left():
    state = ran([0.0, 0.0, 0.0], [8, 8, 8], [2, 5, 2], seqs=2)
    assert state.req["finish"][0] == 2.0
    assert state.req["scheduled"][2] == 3.0
    assert ran([0.0, 0.0, 0.0], [8, 8, 8], [2, 5, 2], seqs=2, ahead=False).req["scheduled"][2] == 2.0


def test_blocks_come_back_with_the_seat():
    # 4 + 4 blocks are in use; the third needs 2 that only the first gives back
    state = ran([0.0, 0.0, 0.0], [13, 13, 8], [2, 4, 2], blocks=8)
    assert state.req["scheduled"].tolist() == [0.0, 0.0, 3.0]


@pytest.mark.parametrize("ahead", [True, False])
def test_an_idle_engine_looks_at_once(ahead):
    state = ran([0.0, 5.25], [8, 8], [2, 2], ahead=ahead)
    assert state.req["scheduled"].tolist() == [0.0, 5.25]


def test_the_last_request_leaves_an_engine_that_looks_at_once():
    state = ran([0.0, 1.5], [8, 8], [2, 2])
    assert state.req["scheduled"].tolist() == [0.0, 2.0]  # nothing was left to choose at 1


@pytest.mark.parametrize("seed", range(30))
def test_fast_slow_and_one_by_one_agree(seed):
    rng = np.random.default_rng(seed)
    n = 40
    arrivals = np.cumsum(rng.exponential(2.0, n) * (rng.random(n) < 0.8))
    inputs, outputs = rng.integers(1, 30, n), rng.integers(1, 30, n)
    ways = [
        ran(arrivals, inputs, outputs, fast=fast, how=how, blocks=30)
        for fast, how in ((True, fed), (False, fed), (True, one_by_one))
    ]
    for column in COLUMNS:
        assert all(way.req[column].tobytes() == ways[0].req[column].tobytes() for way in ways), column
    assert ways[0].lane["free"][0] == 30  # everything came back
    assert (ways[0].lane[["late_seats", "late_blocks", "hidden"]].tolist()) == [(0, 0, 0)]


@pytest.mark.parametrize("seed", range(10))
def test_nobody_is_served_earlier_with_blocks_to_spare(seed):
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(2.0, 40))
    work = arrivals, rng.integers(1, 30, 40), rng.integers(1, 30, 40)
    late, prompt = ran(*work).req["scheduled"], ran(*work, ahead=False).req["scheduled"]
    assert (late >= prompt - 1e-9).all()
    assert (late > prompt).any()
