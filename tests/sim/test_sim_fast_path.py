"""The fast path changes nothing, and neither does handing arrivals over beforehand: equal to the last bit."""

import time

import numpy as np
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from worlds import COUNTERS, fed, one_by_one, open_pool, pricing, setup, worlds

from moesim.sim.kernel import Status
from moesim.spec.deployment import Engine
from moesim.traffic.requests import make_requests

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


@QUICK
@given(world=worlds(drafts=0, ahead=True, poll=1, wait=0))
def test_fast_path_of_asynchronous_scheduling(world):
    fast = one_by_one(world.pool(fast=True), world.requests, world.homes)
    slow = one_by_one(world.pool(fast=False), world.requests, world.homes)
    same(fast, slow)
    assert np.isin(slow.state.req["status"], (Status.FINISHED, Status.REJECTED)).all()


def three_ways(engine, requests, lane, tokens=64, seqs=4, **made):
    """Run on one replica: at once, one by one, and without the fast path; check that they agree."""
    homes = np.zeros(len(requests), dtype=int)

    def pool(fast=True):
        return open_pool(setup(engine, pricing(tokens, seqs, lane=lane), **made), requests, fast=fast)

    first = fed(pool(), requests, homes)
    same(first, one_by_one(pool(), requests, homes))
    same(first, one_by_one(pool(fast=False), requests, homes))
    return first.state


def test_a_step_that_ends_when_a_request_arrives_ends_first():
    """The next step starts at that moment without the newcomer, who waits for one step."""
    requests = make_requests(np.array([0.0, 0.5]), np.array([8, 8]), np.array([4, 4]))
    state = three_ways(Engine(max_num_seqs=4, max_num_batched_tokens=64), requests, 0.5)
    assert state.req["scheduled"].tolist() == [0.0, 1.0]
    assert state.req["finish"].tolist() == [2.0, 3.0]


def test_all_of_one_moment_share_the_first_step():
    requests = make_requests(np.full(3, 0.25), np.full(3, 8), np.full(3, 2))
    state = three_ways(Engine(max_num_seqs=4, max_num_batched_tokens=64), requests, 0.5)
    assert state.req["first"].tolist() == [0.75] * 3


def test_a_prompt_that_lost_its_blocks_is_tried_again_at_the_next_step():
    """Prefill first: between two decode steps the prompt comes back, although nothing else has changed."""
    engine = Engine(max_num_seqs=4, max_num_batched_tokens=8, prefill_first=True, block_tokens=1)
    requests = make_requests(np.array([0.0, 1.5]), np.array([8, 12]), np.array([12, 2]))
    state = three_ways(engine, requests, 1.0, tokens=8, kv_blocks=20)
    # decode steps of the first alternate with vain attempts of the second
    assert state.req["preemptions"].tolist() == [0, 4]


def test_the_fast_path_is_fast():
    """A run of equal steps costs per step, not per step and sequence."""

    def seconds(fast):
        requests = make_requests(np.zeros(512), np.full(512, 1), np.full(512, 4000))
        engine = Engine(max_num_seqs=512, max_num_batched_tokens=512)
        pool = open_pool(setup(engine, pricing(512, 512, lane=0.01)), requests, fast=fast)
        begin = time.process_time()
        fed(pool, requests, np.zeros(512, dtype=int))
        assert pool.state.rep["steps"][0] == 4000
        return time.process_time() - begin

    assert min(seconds(fast=True) for _ in range(3)) < 0.2 * min(seconds(fast=False) for _ in range(3))
