"""Queueing theory: a synthetic price list turns one replica into the textbook's queues.

A prompt of one token and N output tokens takes N steps, so geometric N with tiny steps is an exponential service. Means
are over independent replications, each without its first tenth; the formula must lie inside their 99 % confidence
interval (Student t). Where a queue serves several at once an arrival waits for the end of the step in progress, which
widens the interval by one step.
"""

import math

import numpy as np
import pytest
from scipy import stats
from worlds import fed, one_by_one, open_pool, pricing, setup

from moesim.policies import make_replica_router
from moesim.spec.deployment import Engine
from moesim.traffic.requests import make_requests

STEP = 5e-3
MEAN = 200  # tokens: one second
REPLICATIONS = 20
SHORT = 1 - 1 / (2 * MEAN)
"""The geometric's second moment over that of an exponential of equal mean: what Pollaczek and Khinchine need."""


def station(servers, *, lane=STEP, replicas=1):
    engine = Engine(max_num_seqs=servers, max_num_batched_tokens=max(16, servers), block_tokens=16)
    return setup(engine, pricing(max(16, servers), servers, lane=lane), replicas=replicas)


def workload(rate, seed, count, tokens):
    rng = np.random.default_rng([seed, 7])
    arrivals = np.cumsum(rng.exponential(1 / rate, count))
    outputs = rng.geometric(1 / MEAN, count) if tokens == "geometric" else np.full(count, MEAN)
    return make_requests(arrivals, np.ones(count, dtype=np.int64), outputs)


def replications(made, rate, tokens, measure, count=5000):
    means = []
    for seed in range(REPLICATIONS):
        requests = workload(rate, seed, count, tokens)
        rng = np.random.default_rng([seed, 11])
        pool = fed(open_pool(made, requests), requests, rng.integers(made.replicas, size=count))
        rec = pool.state.req
        assert np.isfinite(rec["finish"]).all()
        means.append(measure(rec)[count // 10 :].mean())
    return np.array(means)


def inside(means, expected, slack=0.0):
    half = stats.t.ppf(0.995, len(means) - 1) * means.std(ddof=1) / math.sqrt(len(means))
    assert abs(means.mean() - expected) <= half + slack, (
        f"mean {means.mean():.5f} +- {half:.5f} (99 %), formula {expected:.5f}"
    )
    # an interval that holds everything proves nothing
    assert half < 0.25 * max(expected, 10 * STEP), f"interval +-{half:.5f} is too wide for {expected:.5f}"


def wait(rec):
    return rec["scheduled"] - rec["arrival"]


def stay(rec):
    return rec["finish"] - rec["arrival"]


def erlang_c(servers, load):
    """Probability that an arrival waits (Erlang 1917); ``load`` in Erlang."""
    terms = [load**k / math.factorial(k) for k in range(servers)]
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    return last / (sum(terms) + last)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_mm1(load):
    means = replications(station(1), load, "geometric", wait)
    inside(means, SHORT * load / (1 - load))


@pytest.mark.parametrize("load", [0.3, 0.6, 0.9])
def test_md1(load):
    inside(replications(station(1), load, "fixed", wait), load / (2 * (1 - load)))


@pytest.mark.parametrize(("servers", "load"), [(2, 0.5), (2, 0.8), (4, 0.8), (8, 0.7)])
def test_mmc(servers, load):
    rate = servers * load
    means = replications(station(servers), rate, "geometric", wait)
    # the mean wait for a step in progress is half a step when busy
    inside(means, erlang_c(servers, rate) / (servers - rate), slack=STEP)


@pytest.mark.parametrize("tokens", ["geometric", "fixed"])
@pytest.mark.parametrize("load", [0.4, 0.7])
def test_processor_sharing(load, tokens):
    """A step that takes a time per sequence shares the replica equally: E[T] = E[S] / (1 - load), whatever S."""
    made = station(64, lane=STEP * np.arange(65))
    means = replications(made, load, tokens, stay, count=4000)
    inside(means, 1 / (1 - load), slack=2 * STEP / (1 - load) ** 2)


@pytest.mark.parametrize("load", [0.7])
def test_random_split_is_independent_queues(load):
    means = replications(station(1, replicas=4), 4 * load, "geometric", wait)
    inside(means, SHORT * load / (1 - load))


@pytest.mark.parametrize("tokens", ["geometric", "fixed"])
def test_lindley_holds_for_every_request(tokens):
    """W[n+1] = max(0, W[n] + S[n] - A[n+1]): exact, request by request (Lindley 1952)."""
    requests = workload(0.9, 3, 5000, tokens)
    pool = fed(open_pool(station(1), requests), requests, np.zeros(5000, dtype=int))
    expected, wait_s = np.zeros(5000), 0.0
    gaps, service = np.diff(requests.arrival_s), STEP * requests.output_tokens
    for n in range(1, 5000):
        wait_s = max(0.0, wait_s + service[n - 1] - gaps[n - 1])
        expected[n] = wait_s
    np.testing.assert_allclose(wait(pool.state.req), expected, rtol=1e-6, atol=1e-7)


def test_little_is_exact():
    """The integral of requests present is the sum of times in the system."""
    requests = workload(3.0, 5, 3000, "geometric")
    pool = one_by_one(open_pool(station(4), requests), requests, np.zeros(3000, dtype=int))
    end = pool.state.req["finish"].max()
    pool.close(float(end))
    assert pool.state.rep["area"][0] == pytest.approx(stay(pool.state.req).sum(), rel=1e-9)


def route(policy, seed, count, replicas=8, load=0.9):
    """Requests through a router that may look at loads, as the driver does it."""
    requests = workload(replicas * load, seed, count, "geometric")
    pool = open_pool(station(1, replicas=replicas), requests)
    router = make_replica_router(policy, np.random.default_rng([seed, 13]))
    for r, at in enumerate(requests.arrival_s.tolist()):
        pool.advance(at, stop=False)
        pool.take_departures()
        pool.enqueue(r, router.choose(pool, r), at)
    pool.advance(np.inf, stop=False)
    return wait(pool.state.req)[count // 10 :]


def test_power_of_two_beats_random_at_high_load():
    """Mitzenmacher 2001: two choices shorten the tail exponentially; full information shortens it further."""
    tail = {
        policy: np.mean([np.percentile(route(policy, seed, 5000), 99) for seed in range(2)])
        for policy in ("random", "power_of_two", "least_requests")
    }
    assert tail["power_of_two"] < 0.5 * tail["random"]
    assert tail["least_requests"] < tail["power_of_two"]
