"""The fast path changes nothing, and neither does handing arrivals over beforehand: equal to the last bit."""

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from worlds import COUNTERS, fed, one_by_one, worlds

QUICK = settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)


def same(a, b, *, without=()) -> None:
    """Two pools that ended alike, to the last bit."""
    assert a.state.req.tobytes() == b.state.req.tobytes()
    for name in COUNTERS:
        assert a.state.rep[name].tobytes() == b.state.rep[name].tobytes(), name
    for name in ("hist", "spent", "timeline", "lane", "prefix", "stage"):
        if name not in without:
            assert getattr(a.state, name).tobytes() == getattr(b.state, name).tobytes(), name


@QUICK
@given(world=worlds(drafts=0), stop=st.booleans())
def test_fast_path_is_step_by_step(world, stop):
    fast = one_by_one(world.pool(fast=True), world.requests, world.homes, stop=stop)
    slow = one_by_one(world.pool(fast=False), world.requests, world.homes, stop=stop)
    event(f"preempted {bool(slow.state.rep['preemptions'].any())}")
    event(f"cached {bool(slow.state.rep['cached_tokens'].any())}")
    same(fast, slow)


@QUICK
@given(world=worlds(drafts=0, slow=[1.3, 1.0, 2.0], replicas=3), stop=st.booleans())
def test_fast_path_of_unequal_replicas(world, stop):
    fast = one_by_one(world.pool(fast=True), world.requests, world.homes, stop=stop)
    slow = one_by_one(world.pool(fast=False), world.requests, world.homes, stop=not stop)
    same(fast, slow)


@QUICK
@given(world=worlds(), fast=st.booleans())
def test_fed_is_one_by_one(world, fast):
    same(
        fed(world.pool(fast=fast), world.requests, world.homes),
        one_by_one(world.pool(), world.requests, world.homes),
    )


@QUICK
@given(world=worlds(drafts=0), cuts=st.lists(st.floats(0, 2), max_size=8))
def test_where_the_advance_is_cut_does_not_matter(world, cuts):
    """Other pools and events cut a pool's advance anywhere; only the clock may notice."""
    requests = world.requests
    cut, whole = world.pool(), one_by_one(world.pool(), requests, world.homes)
    moments = sorted(
        [(t, 1, r) for r, t in enumerate(requests.arrival_s.tolist())] + [(t, 0, -1) for t in cuts]
    )
    before = -1.0
    for at, _, r in moments:
        if r < 0 or at > before:
            cut.advance(at, stop=False)
        if r >= 0:
            cut.enqueue(r, int(world.homes[r]), at)
            before = at
    cut.advance(np.inf, stop=False)
    same(cut, whole)


def test_the_fast_path_is_taken():
    """One request alone: prefill, then one run of decode steps; the kernel returns to its caller once."""
    from worlds import open_pool, pricing, setup

    from moesim.spec.deployment import Engine
    from moesim.traffic.requests import make_requests

    engine = Engine(max_num_seqs=4, max_num_batched_tokens=64)
    requests = make_requests(np.zeros(1), np.array([8]), np.array([5000]))
    pool = open_pool(setup(engine, pricing(64, 4, lane=0.01)), requests)
    pool.enqueue(0, 0, 0.0)
    pool.advance(0.015)
    assert pool.state.req["generated"][0] == 1
    pool.advance(30.005)
    # 0.01 s prefill, then steps of 0.01 s; without the fast path a step would be in flight just the same
    assert pool.state.rep["steps"][0] == 3001
    assert pool.state.req["generated"][0] == pytest.approx(3000, abs=1)
