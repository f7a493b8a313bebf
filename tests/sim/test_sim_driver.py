"""The driver: failures, stragglers, scaling, horizon, closed loop, rejection, pipelines, drafts."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from worlds import books_close, drive, fed, open_pool, pricing, setup

from moesim.policies import REPLICA_ROUTERS, make_scaler
from moesim.sim.kernel import Status
from moesim.spec.deployment import Autoscaling, Engine, Fault, Speculation, Straggler
from moesim.traffic.requests import make_requests

STEP = 0.01
QUICK = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)


def serve(replicas=1, seqs=4, lane=STEP, tokens=512, stages=1, hop=0.0, lanes=1, **changes):
    engine = Engine(max_num_seqs=seqs, max_num_batched_tokens=tokens)
    priced = pricing(tokens, seqs * 4, lane=lane, stages=stages, hop=hop, lanes=lanes)
    return [setup(engine, priced, replicas=replicas, stages=stages, **changes)]


def crowd(seed, n=80, rate=60.0, longest=200, **how):
    rng = np.random.default_rng(seed)
    return make_requests(
        np.cumsum(rng.exponential(1 / rate, n)), rng.integers(1, longest, n), rng.integers(1, 40, n), **how
    )


def users(n, concurrency, seed=0, longest=200):
    rng = np.random.default_rng(seed)
    return make_requests(
        np.zeros(n), rng.integers(1, longest, n), rng.integers(1, 40, n), concurrency=concurrency
    )


def fault(replica, at, repair):
    return Fault.model_construct(pool="serve", replica=replica, at=at, repair=repair)


def scaling(low=0.5, high=4.0, **how):
    known = {"min_replicas": 1, "max_replicas": 4, "interval": 0.5, "startup": 0.7} | how
    rule = Autoscaling.model_construct(policy="queue", low=low, high=high, **known)
    return {"autoscaling": rule, "scaler": make_scaler("queue", low, high)}


# -- failures --------------------------------------------------------------------------------------
@QUICK
@given(
    seed=st.integers(0, 10**6),
    policy=st.sampled_from(sorted(REPLICA_ROUTERS)),
    faults=st.lists(
        st.tuples(st.integers(0, 2), st.floats(0.01, 2), st.floats(0.01, 2)), min_size=1, max_size=5
    ),
    concurrency=st.sampled_from([0, 9]),
)
def test_failures_lose_nothing(seed, policy, faults, concurrency):
    requests = users(80, concurrency, seed) if concurrency else crowd(seed)
    driver = drive(serve(3), requests, policy, faults=tuple(fault(*f) for f in faults))
    rec = driver.records
    assert (rec["status"] == Status.FINISHED).all()
    assert (rec["generated"] == rec["output"]).all()
    books_close(driver)


def test_a_failure_restarts_what_was_there_and_nothing_else():
    driver = drive(serve(2), crowd(1), "least_requests", faults=(fault(0, 0.5, 0.4),))
    rec = driver.records
    there = (rec["arrival"] < 0.5) & (rec["restarts"] > 0)
    assert (rec["restarts"] > 0).sum() == there.sum() > 0
    assert set(rec["replica"][there]) == {1}  # the only one left
    rows = driver.pools["serve"].state.timeline[0]
    ends = rows[rows[:, 0] > 0, 0]
    assert ((ends <= 0.5) | (ends > 0.9)).all()
    assert (ends > 0.9).any()  # it serves again after the repair
    during = (rec["arrival"] > 0.5) & (rec["arrival"] < 0.9)
    assert during.any()
    assert set(rec["replica"][during]) == {1}
    assert driver.pools["serve"].alive_s[0] == pytest.approx(driver.end - 0.4)
    books_close(driver)


def test_an_exact_restart():
    """Ten tokens made, then lost with the cache: 30 + 10 tokens are computed again in one step elsewhere."""
    requests = make_requests(np.zeros(1), np.array([30]), np.array([20]))
    at = 10 * STEP + STEP / 2
    driver = drive(serve(2), requests, faults=(fault(0, at, 9.0),))
    rec = driver.records[0]
    assert (rec["restarts"], rec["replica"]) == (1, 1)
    assert rec["finish"] == pytest.approx(at + 10 * STEP)
    assert driver.pools["serve"].state.rep["prefill_tokens"].tolist() == [30, 40]


def test_with_nobody_in_service_requests_wait_at_the_door():
    requests = make_requests(np.array([1.0, 1.5]), np.array([10, 10]), np.array([1, 1]))
    driver = drive(serve(1), requests, faults=(fault(0, 0.5, 2.0),))
    assert driver.records["first"] == pytest.approx([2.5 + STEP] * 2)
    assert driver.outside_s == pytest.approx(1.5 + 1.0)
    books_close(driver)


def test_too_long_at_a_closed_door_is_rejected_without_time():
    requests = make_requests(np.array([1.0, 1.5]), np.array([10, 10]), np.array([1, 90]))
    driver = drive(serve(1, max_len=50), requests, faults=(fault(0, 0.5, 2.0),))
    assert driver.records["status"].tolist() == [Status.FINISHED, Status.REJECTED]
    assert driver.outside_s == pytest.approx(1.5)
    books_close(driver)


def test_a_repair_after_the_last_request_is_no_part_of_the_run():
    requests = make_requests(np.zeros(2), np.array([10, 10]), np.array([3, 3]))
    driver = drive(serve(2), requests, faults=(fault(0, 0.001, 1000.0), fault(1, 500.0, 1.0)))
    assert driver.end < 1.0
    books_close(driver)


def test_overlapping_failures_end_with_the_later_repair():
    requests = make_requests(np.array([0.0, 3.0]), np.array([10, 10]), np.array([1, 1]))
    driver = drive(serve(1), requests, faults=(fault(0, 1.0, 9.0), fault(0, 2.0, 0.5)))
    assert driver.records["first"][1] == pytest.approx(10.0 + STEP)
    books_close(driver)


def test_a_failed_cache_is_cold():
    requests = make_requests(
        np.array([0.0, 1.0, 3.0]), np.full(3, 33), np.ones(3, dtype=int), block_offset=np.array([0, 2, 4, 6]),
        block_hash=np.array([0, 1, 0, 1, 0, 1]), block_tokens=16,
    )  # fmt: skip
    engine = Engine(max_num_seqs=4, max_num_batched_tokens=512, prefix_caching=True)
    made = [setup(engine, pricing(512, 4, lane=STEP), replicas=1)]
    assert drive(made, requests).records["cached"].tolist() == [0, 32, 32]
    driver = drive(made, requests, faults=(fault(0, 2.0, 0.5),))
    assert driver.records["cached"].tolist() == [0, 32, 0]
    assert driver.pools["serve"].state.rep["cached_tokens"][0] == 32


# -- stragglers ------------------------------------------------------------------------------------
@pytest.mark.parametrize("fast", [True, False])
def test_a_straggler_slows_the_steps_that_start_in_its_time(fast):
    requests = make_requests(np.zeros(2), np.array([10, 10]), np.array([300, 300]))
    slow = Straggler.model_construct(pool="serve", replica=1, slowdown=2.5, at=0.5003, duration=1.0)
    driver = drive(serve(2), requests, stragglers=(slow,), fast=fast)
    now, lost = 0.0, 0.0
    for _ in range(300):
        factor = 2.5 if 0.5003 < now <= 1.5003 else 1.0
        lost += STEP * (factor - 1)
        now += STEP * factor
    assert driver.records["finish"] == pytest.approx([3.0, now], rel=1e-9)
    rep = driver.pools["serve"].state.rep
    assert rep["straggle_s"] == pytest.approx([0.0, lost], rel=1e-9)
    assert rep["step_s"] == pytest.approx([3.0, now], rel=1e-9)


def test_stragglers_multiply():
    requests = make_requests(np.zeros(1), np.array([10]), np.array([10]))
    both = tuple(
        Straggler.model_construct(pool="serve", replica=0, slowdown=s, at=0.0, duration=None)
        for s in (2.0, 3.0)
    )
    driver = drive(serve(1), requests, stragglers=both)
    assert driver.records["finish"][0] == pytest.approx(10 * STEP * 6)


# -- scaling ---------------------------------------------------------------------------------------
class Spy:
    def __init__(self, inner):
        self.inner, self.seen = inner, []

    def wanted(self, replicas, waiting):
        answer = self.inner.wanted(replicas, waiting)
        self.seen.append((replicas, waiting, answer))
        return answer


def test_scaling_follows_the_load_inside_its_bounds():
    rush = np.sort(np.random.default_rng(0).uniform(0, 4, 400))
    calm = np.linspace(20, 40, 21)
    n = len(rush) + len(calm)
    requests = make_requests(np.concatenate([rush, calm]), np.full(n, 20), np.full(n, 20))
    how = scaling()
    how["scaler"] = Spy(how["scaler"])
    driver = drive(serve(4), requests, "least_requests", replicas={"serve": 1}, **how)
    serving = [s for s, _, _ in how["scaler"].seen]
    assert max(serving) == 4
    assert min(serving) >= 1
    assert serving[-1] == 1
    assert (driver.records["status"] == Status.FINISHED).all()
    assert not driver.records["restarts"].any()  # a replica that goes finishes its work first
    pool = driver.pools["serve"]
    assert pool.alive_s[0] == pytest.approx(driver.end)
    assert 0 < pool.alive_s[3] < 0.6 * driver.end
    # a cold replica serves only after its startup
    rows = pool.state.timeline[1:]
    assert rows[rows[..., 0] > 0][:, 0].min() > 0.5 + 0.7
    books_close(driver)


@QUICK
@given(
    seed=st.integers(0, 10**6), low=st.integers(1, 4), high=st.integers(1, 4), start=st.integers(1, 4),
    faults=st.lists(st.tuples(st.integers(0, 3), st.floats(0.01, 5), st.floats(0.01, 3)), max_size=4),
)  # fmt: skip
def test_scaling_and_failures_lose_nothing(seed, low, high, start, faults):
    low, high = min(low, high), max(low, high)
    driver = drive(
        serve(4), crowd(seed, n=150, rate=40.0), "least_requests", replicas={"serve": start},
        faults=tuple(fault(*f) for f in faults), **scaling(min_replicas=low, max_replicas=high),
    )  # fmt: skip
    assert (driver.records["status"] == Status.FINISHED).all()
    books_close(driver)


def test_a_repair_does_not_open_what_was_scaled_down():
    requests = make_requests(np.array([0.0, 20.0]), np.array([10, 10]), np.array([2, 2]))
    driver = drive(
        serve(4), requests, replicas={"serve": 1}, faults=(fault(3, 1.0, 1.0),), **scaling(min_replicas=1)
    )
    assert driver.pools["serve"].alive_s[1:].tolist() == [0.0, 0.0, 0.0]


def test_a_replica_that_fails_while_starting_is_started_again():
    rush = make_requests(np.zeros(300), np.full(300, 20), np.full(300, 20))
    driver = drive(
        serve(2), rush, "least_requests", replicas={"serve": 1}, faults=(fault(1, 0.6, 5.0),),
        **scaling(max_replicas=2),
    )  # fmt: skip
    # repaired at 5.6, wanted at 6.0, ready at 6.7
    assert driver.pools["serve"].alive_s[1] == pytest.approx(driver.end - 6.7)
    books_close(driver)


# -- horizon ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("policy", ["round_robin", "least_requests"])
def test_a_horizon_cuts_the_run_and_changes_nothing_before_it(policy):
    requests = crowd(3)
    whole = drive(serve(2), requests, policy)
    cut = drive(serve(2), requests, policy, horizon_s=0.7)
    assert cut.end == 0.7
    assert cut.sent == (requests.arrival_s <= 0.7).sum() < len(requests)
    for name in ("scheduled", "first", "finish"):
        known = whole.records[name] <= 0.7
        assert cut.records[name][known].tolist() == whole.records[name][known].tolist()
        assert np.isnan(cut.records[name][~known]).all()
    books_close(cut)


def test_a_horizon_that_is_not_reached_does_not_stretch_the_run():
    requests = crowd(4)
    assert drive(serve(2), requests, horizon_s=1e6).end == drive(serve(2), requests).end < 100


# -- closed loop -----------------------------------------------------------------------------------
@QUICK
@given(seed=st.integers(0, 10**6), concurrency=st.integers(1, 12), max_len=st.sampled_from([10**6, 120]))
def test_closed_loop_refills_every_slot_at_once(seed, concurrency, max_len):
    requests = users(60, concurrency, seed)
    driver = drive(serve(2, max_len=max_len), requests, "least_requests")
    rec = driver.records
    kept = rec[rec["status"] == Status.FINISHED]
    assert ((rec["status"] == Status.REJECTED) == (rec["input"] + rec["output"] > max_len)).all()
    sent, left = np.sort(kept["arrival"]), np.sort(kept["finish"])
    assert (sent[:concurrency] == 0).all()
    # the one sent k-th after the first comes in the moment the k-th leaves: never more, never fewer in flight
    assert sent[concurrency:].tolist() == left[: max(0, len(sent) - concurrency)].tolist()
    books_close(driver)


@QUICK
@given(seed=st.integers(0, 10**6), concurrency=st.integers(1, 12), replicas=st.integers(1, 3))
def test_closed_loop_fast_path_changes_nothing(seed, concurrency, replicas):
    """Nobody runs past a departure, for the request sent in its place may come here."""
    requests = users(40, concurrency, seed)
    fast, slow = (drive(serve(replicas), requests, "random", fast=f) for f in (True, False))
    assert fast.records.tobytes() == slow.records.tobytes()
    assert fast.end == slow.end


def test_closed_loop_of_one_is_sequential():
    requests = make_requests(np.zeros(3), np.array([10, 10, 10]), np.array([4, 5, 6]), concurrency=1)
    driver = drive(serve(1), requests)
    assert driver.records["finish"] == pytest.approx(np.cumsum([4, 5, 6]) * STEP)


# -- rejection -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("engine", "made", "input_tokens", "output", "status"),
    [
        ({}, {"max_len": 100}, 60, 40, Status.FINISHED),
        ({}, {"max_len": 100}, 60, 41, Status.REJECTED),
        ({}, {"kv_blocks": 4}, 32, 32, Status.FINISHED),
        ({}, {"kv_blocks": 4}, 32, 33, Status.REJECTED),
        ({"chunked_prefill": False}, {}, 64, 5, Status.FINISHED),
        ({"chunked_prefill": False}, {}, 65, 5, Status.REJECTED),
        ({"watermark": 0.5}, {"kv_blocks": 4}, 60, 4, Status.FINISHED),
    ],
)
def test_only_what_can_never_fit_is_rejected(engine, made, input_tokens, output, status):
    engine = Engine(max_num_seqs=4, max_num_batched_tokens=64, **engine)
    requests = make_requests(np.zeros(1), np.array([input_tokens]), np.array([output]))
    pool = [setup(engine, pricing(64, 4, lane=STEP), **made)]
    driver = drive(pool, requests)
    assert driver.records["status"].tolist() == [status]
    books_close(driver)


# -- pipelines -------------------------------------------------------------------------------------
def test_one_request_passes_all_stages():
    requests = make_requests(np.zeros(1), np.array([10]), np.array([7]))
    driver = drive(serve(stages=4, hop=0.001), requests)
    assert driver.records["finish"][0] == pytest.approx(7 * (STEP + 3 * 0.001))
    rep = driver.pools["serve"].state.rep[0]
    assert rep["step_s"] == pytest.approx(7 * (STEP + 3 * 0.001))
    assert rep["hop_s"] == pytest.approx(7 * 3 * 0.001)
    books_close(driver)


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_full_stages_give_their_number_in_throughput(stages):
    """Each stage works on another batch: as many steps end per second as stages, when every batch is full."""
    n, tokens, seqs = 4 * 12 * stages, 200, 4
    requests = make_requests(np.zeros(n), np.full(n, 1), np.full(n, tokens))
    one = drive(serve(1, seqs=seqs), requests).end
    many = drive(serve(1, seqs=seqs, stages=stages), requests).end
    assert one == pytest.approx(n / seqs * tokens * STEP, rel=0.01)
    assert one / many == pytest.approx(stages, rel=0.02)


def test_a_stage_works_on_one_batch_at_a_time():
    requests = make_requests(np.zeros(3), np.full(3, 10), np.full(3, 1))
    driver = drive(serve(1, seqs=1, stages=2), requests)
    # the second batch follows half a step behind; the third takes the first's place, behind the second on stage one
    assert sorted(driver.records["finish"]) == pytest.approx([STEP, 1.5 * STEP, 2 * STEP])


# -- drafts ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(("drafts", "chance"), [(1, 0.85), (3, 0.6), (4, 0.9), (2, 0.0), (2, 1.0)])
def test_tokens_per_step_of_drafting(drafts, chance):
    """A step yields (1 - a^(k+1)) / (1 - a) tokens on average (Leviathan, Kalman, Matias 2023, eq. 1)."""
    n, output = 40, 2000
    engine = Engine(max_num_seqs=4, max_num_batched_tokens=64)
    made = setup(
        engine, pricing(64, 4 * (1 + drafts), lane=STEP), draft_s=0.001,
        speculation=Speculation(draft_tokens=drafts, acceptance=chance),
    )  # fmt: skip
    requests = make_requests(np.arange(n) * 1e4, np.ones(n, dtype=int), np.full(n, output))
    pool = fed(open_pool(made, requests, seed=5), requests, np.zeros(n, dtype=int))
    steps = pool.state.rep["steps"][0] - n  # less the prefills
    # the last step of each is cut by the end of the answer: at most ``drafts`` tokens are missing
    low, high = n * (output - 1) / steps, (n * (output - 1) + n * drafts) / steps
    counts = np.arange(1, drafts + 2)
    odds = np.append(chance ** (counts[:-1] - 1) * (1 - chance), chance**drafts)
    mean = float(counts @ odds)
    assert mean == pytest.approx((1 - chance ** (drafts + 1)) / (1 - chance) if chance < 1 else drafts + 1)
    half = 2.576 * np.sqrt(float(counts**2 @ odds) - mean**2) / np.sqrt(steps)
    assert low - half <= mean <= high + half
    assert half + high - low < 0.02 * mean
    assert pool.state.rep["draft_s"][0] == pytest.approx(0.001 * steps)
    assert pool.state.rep["decode_tokens"][0] == n * output


def test_drafts_need_room_in_a_step():
    from moesim.errors import SpecError

    engine = Engine(max_num_seqs=2, max_num_batched_tokens=3)
    made = setup(engine, pricing(3, 8), speculation=Speculation(draft_tokens=3, acceptance=0.5))
    requests = make_requests(np.zeros(1), np.ones(1, dtype=int), np.ones(1, dtype=int))
    with pytest.raises(SpecError, match="3 drafts"):
        open_pool(made, requests)
