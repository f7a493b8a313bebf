"""Prefill and decode pools: the KV cache crosses links once, takes its time, and waits its turn."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from worlds import books_close, drive, pricing, setup

from moesim.sim.kernel import Status
from moesim.sim.transfer import KvPath
from moesim.spec.caches import CacheBytes
from moesim.spec.deployment import Engine, Fault
from moesim.traffic.requests import make_requests

STEP = 0.01
LATENCY, RATE, TOKEN = 0.002, 1e6, 1e3
QUICK = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)


def path():
    return KvPath(CacheBytes(TOKEN, (), 0.0, 0.0), RATE, LATENCY)


def seconds(tokens):
    return LATENCY + TOKEN * np.asarray(tokens) / RATE


def pair(prefill=1, decode=1, seqs=4, blocks=10**5, decode_blocks=None, **changes):
    engine = Engine(max_num_seqs=seqs, max_num_batched_tokens=1000, **changes)
    priced = pricing(1000, seqs, lane=STEP)
    return [
        setup(engine, priced, name="prefill", replicas=prefill, kv_blocks=blocks),
        setup(engine, priced, name="decode", replicas=decode, kv_blocks=decode_blocks or blocks),
    ]


def test_one_request_takes_the_sum_of_its_parts():
    requests = make_requests(np.array([0.5]), np.array([100]), np.array([6]))
    driver = drive(pair(), requests, path=path())
    rec = driver.records[0]
    first = 0.5 + STEP
    assert rec["first"] == pytest.approx(first, rel=1e-12)
    assert driver.transfer_s[0] == pytest.approx(float(seconds(100)), rel=1e-12)
    assert rec["finish"] == pytest.approx(first + float(seconds(100)) + 5 * STEP, rel=1e-12)
    assert (rec["replica"], rec["decode_replica"]) == (0, 0)
    books_close(driver)


def test_a_single_token_never_crosses():
    requests = make_requests(np.zeros(3), np.full(3, 100), np.ones(3, dtype=int))
    driver = drive(pair(), requests, path=path())
    assert driver.records["finish"].tolist() == [STEP] * 3
    assert not driver.transfer_s.any()
    assert driver.records["decode_replica"].tolist() == [-1] * 3


def test_transfers_of_one_sender_wait_for_each_other():
    requests = make_requests(np.zeros(4), np.full(4, 100), np.full(4, 3))
    driver = drive(pair(decode=4), requests, path=path())
    assert sorted(driver.transfer_s) == pytest.approx(
        [k * float(seconds(100)) for k in (1, 2, 3, 4)], rel=1e-9
    )
    books_close(driver)


def test_transfers_to_one_receiver_wait_for_each_other():
    requests = make_requests(np.zeros(4), np.full(4, 100), np.full(4, 3))
    driver = drive(pair(prefill=4), requests, path=path())
    assert sorted(driver.transfer_s) == pytest.approx(
        [k * float(seconds(100)) for k in (1, 2, 3, 4)], rel=1e-9
    )


def test_separate_links_do_not_wait():
    requests = make_requests(np.zeros(4), np.full(4, 100), np.full(4, 3))
    driver = drive(pair(prefill=4, decode=4), requests, path=path())
    assert driver.transfer_s.tolist() == pytest.approx([float(seconds(100))] * 4, rel=1e-9)


@QUICK
@given(seed=st.integers(0, 10**6), load=st.sampled_from([3.0, 12.0, 40.0]), fast=st.booleans())
def test_three_queues_in_a_row(seed, load, fast):
    """One prompt at a time, one transfer at a time, one answer at a time: a tandem queue has a recursion."""
    rng = np.random.default_rng(seed)
    n = 40
    requests = make_requests(
        np.cumsum(rng.exponential(1 / load, n)), rng.integers(1, 200, n), rng.integers(1, 12, n)
    )
    driver = drive(pair(seqs=1), requests, path=path(), fast=fast)
    prefill = link = decode = 0.0
    for r in range(n):
        prefill = max(prefill, requests.arrival_s[r]) + STEP
        assert driver.records["first"][r] == pytest.approx(prefill, rel=1e-9)
        end = prefill
        if requests.output_tokens[r] > 1:
            link = max(link, prefill) + float(seconds(requests.input_tokens[r]))
            assert driver.transfer_s[r] == pytest.approx(link - prefill, rel=1e-7)
            end = decode = max(decode, link) + STEP * (int(requests.output_tokens[r]) - 1)
        assert driver.records["finish"][r] == pytest.approx(end, rel=1e-9)
    books_close(driver)


def crowd(seed, n=60, rate=60.0, longest=120):
    rng = np.random.default_rng(seed)
    return make_requests(
        np.cumsum(rng.exponential(1 / rate, n)), rng.integers(1, longest, n), rng.integers(1, 40, n)
    )


@QUICK
@given(
    seed=st.integers(0, 10**6),
    blocks=st.sampled_from([12, 20, 60]),
    policy=st.sampled_from(["random", "least_tokens"]),
)
def test_short_of_blocks_everything_still_arrives(seed, blocks, policy):
    """Prefilled prompts hold their blocks until they have crossed; decode preempts; nothing is lost or stuck."""
    requests = crowd(seed)
    driver = drive(pair(2, 2, seqs=6, blocks=blocks), requests, policy, path=path())
    status = driver.records["status"]
    longest = (requests.input_tokens + requests.output_tokens + 15) // 16
    assert (status == np.where(longest > blocks, Status.REJECTED, Status.FINISHED)).all()
    books_close(driver)


@QUICK
@given(seed=st.integers(0, 10**6))
def test_fast_path_changes_nothing(seed):
    requests = crowd(seed)
    a, b = (
        drive(pair(2, 3, seqs=6, blocks=30), requests, "least_requests", path=path(), fast=f)
        for f in (True, False)
    )
    assert a.records.tobytes() == b.records.tobytes()
    assert a.end == b.end
    for name in a.pools:
        for array in ("rep", "hist", "spent", "timeline"):
            left, right = getattr(a.pools[name].state, array), getattr(b.pools[name].state, array)
            if array == "rep":
                left, right = (
                    x[[k for k in x.dtype.names if k != "step_last"]].copy() for x in (left, right)
                )
                assert left.tolist() == right.tolist()
            else:
                assert left.tobytes() == right.tobytes(), array


@QUICK
@given(
    seed=st.integers(0, 10**6),
    faults=st.lists(
        st.tuples(st.sampled_from(["prefill", "decode"]), st.integers(0, 1), st.floats(0.01, 1.5), st.floats(0.01, 1)),
        min_size=1, max_size=4,
    ),
)  # fmt: skip
def test_failures_on_both_sides_lose_nothing(seed, faults):
    made = tuple(
        Fault.model_construct(pool=pool, replica=replica, at=at, repair=repair)
        for pool, replica, at, repair in faults
    )
    driver = drive(pair(2, 2, seqs=6, blocks=200), crowd(seed), "least_requests", path=path(), faults=made)
    assert (driver.records["status"] == Status.FINISHED).all()
    assert (driver.records["generated"] == driver.records["output"]).all()
    books_close(driver)


def test_a_sender_that_fails_sends_nothing():
    """The cache is lost in the middle of its transfer: the prompt is computed again elsewhere."""
    requests = make_requests(np.zeros(1), np.array([900]), np.array([4]))
    crossing = float(seconds(900))
    fault = Fault.model_construct(pool="prefill", replica=0, at=STEP + crossing / 2, repair=100.0)
    driver = drive(pair(2, 1), requests, "least_requests", path=path(), faults=(fault,))
    rec = driver.records[0]
    assert rec["restarts"] == 1
    assert rec["replica"] == 1
    assert rec["first"] == pytest.approx(STEP)  # the first token was out already
    # the links are free at once; computed again with its first token, it crosses with 901 tokens, two more to make
    again = STEP + crossing / 2 + STEP
    assert rec["finish"] == pytest.approx(again + float(seconds(901)) + 2 * STEP, rel=1e-9)
    books_close(driver)


def test_what_decode_cannot_hold_is_turned_away_at_the_door():
    requests = make_requests(np.zeros(2), np.array([100, 30]), np.array([50, 10]))
    driver = drive(pair(blocks=100, decode_blocks=5), requests, path=path())
    assert driver.records["status"].tolist() == [Status.REJECTED, Status.FINISHED]
    assert np.isnan(driver.records["scheduled"][0])
    books_close(driver)


def test_a_receiver_that_fails_is_replaced():
    """The cache is still with the sender: it crosses again, whole, to the other replica."""
    requests = make_requests(np.zeros(1), np.array([900]), np.array([4]))
    crossing = float(seconds(900))
    fault = Fault.model_construct(pool="decode", replica=0, at=STEP + crossing / 2, repair=100.0)
    driver = drive(pair(1, 2), requests, "least_requests", path=path(), faults=(fault,))
    assert driver.records["decode_replica"][0] == 1
    assert driver.records["restarts"][0] == 0
    assert driver.transfer_s[0] == pytest.approx(2 * crossing, rel=1e-9)
    assert driver.records["finish"][0] == pytest.approx(STEP + 2 * crossing + 3 * STEP, rel=1e-9)
    books_close(driver)


def test_with_no_receiver_the_cache_stays_with_the_sender():
    requests = make_requests(np.zeros(1), np.array([900]), np.array([4]))
    fault = Fault.model_construct(pool="decode", replica=0, at=0.001, repair=5.0)
    driver = drive(pair(1, 1), requests, path=path(), faults=(fault,))
    assert driver.records["finish"][0] == pytest.approx(5.001 + float(seconds(900)) + 3 * STEP, rel=1e-9)
    books_close(driver)
