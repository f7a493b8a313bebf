"""Every registered policy keeps the contract; each does what its name says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import SpecError
from moesim.policies import REPLICA_ROUTERS, SCALERS, make_replica_router, make_scaler
from moesim.spec.deployment import Autoscaling
from moesim.spec.deployment import ReplicaRouter as RouterSpec

QUICK = settings(max_examples=60, deadline=None, derandomize=True, database=None)


class View:
    """A pool to look at; a router that asks for more fails."""

    def __init__(self, candidates, requests, tokens, cached=None, sessions=None):
        self._candidates, self._requests, self._tokens = (
            np.array(x, dtype=np.int64) for x in (candidates, requests, tokens)
        )
        self._cached = np.zeros(len(requests), dtype=np.int64) if cached is None else np.array(cached)
        self._sessions = sessions or {}

    def candidates(self):
        return self._candidates

    def requests(self):
        return self._requests

    def tokens(self):
        return self._tokens

    def cached_tokens(self, request):
        return self._cached

    def session(self, request):
        return self._sessions.get(request, -1)


@st.composite
def views(draw):
    n = draw(st.integers(1, 8))
    serving = sorted(draw(st.sets(st.integers(0, n - 1), min_size=1)))
    counts = st.lists(st.integers(0, 50), min_size=n, max_size=n)
    return View(serving, draw(counts), draw(counts), draw(counts), {r: r % 5 - 1 for r in range(50)})


def router(name, seed=0):
    return make_replica_router(name, np.random.default_rng(seed))


def test_the_registry_is_what_a_file_may_say():
    assert set(REPLICA_ROUTERS) == set(RouterSpec.model_fields["policy"].annotation.__args__)
    assert set(SCALERS) == set(Autoscaling.model_fields["policy"].annotation.__args__)


@pytest.mark.parametrize("make", [lambda: router("least_request"), lambda: make_scaler("queues", 0.5, 4)])
def test_an_unknown_name_is_a_spec_error(make):
    with pytest.raises(SpecError, match="unknown policy"):
        make()


@pytest.mark.parametrize("name", sorted(REPLICA_ROUTERS))
@QUICK
@given(seen=st.lists(views(), min_size=1, max_size=20), seed=st.integers(0, 99))
def test_routers_choose_candidates_and_repeat_themselves(name, seen, seed):
    first, second = router(name, seed), router(name, seed)
    for request, view in enumerate(seen):
        chosen = first.choose(view, request)
        assert type(chosen) is int
        assert chosen in view.candidates()
        assert second.choose(view, request) == chosen


@pytest.mark.parametrize("name", sorted(REPLICA_ROUTERS))
@QUICK
@given(
    count=st.integers(1, 40), split=st.integers(0, 40), replicas=st.integers(1, 7), seed=st.integers(0, 99)
)
def test_placing_many_at_once_is_choosing_one_by_one(name, count, split, replicas, seed):
    view = View(range(replicas), [0] * replicas, [0] * replicas)
    if not REPLICA_ROUTERS[name].stateless:
        with pytest.raises(NotImplementedError):
            router(name).assign(view.candidates(), count)
        return
    split = min(split, count)
    one, many = router(name, seed), router(name, seed)
    placed = np.concatenate(
        [many.assign(view.candidates(), split), many.assign(view.candidates(), count - split)]
    )
    assert placed.tolist() == [one.choose(view, r) for r in range(count)]


@pytest.mark.parametrize("name", sorted(REPLICA_ROUTERS))
@QUICK
@given(view=views(), seed=st.integers(0, 99))
def test_stateless_routers_do_not_look(name, view, seed):
    if not REPLICA_ROUTERS[name].stateless:
        return

    class Blind(View):
        requests = tokens = cached_tokens = session = None

    blind = Blind(view.candidates(), view.requests(), view.tokens())
    assert router(name, seed).choose(blind, 0) == router(name, seed).choose(view, 0)


@QUICK
@given(view=views())
def test_least_picks_the_minimum(view):
    serving = view.candidates()
    for name, load in (("least_requests", view.requests()), ("least_tokens", view.tokens())):
        chosen = router(name).choose(view, 0)
        assert load[chosen] == load[serving].min()
        assert chosen == min(r for r in serving if load[r] == load[serving].min())


@QUICK
@given(view=views(), seed=st.integers(0, 99))
def test_power_of_two_never_picks_the_worst_of_distinct_loads(view, seed):
    serving = view.candidates()
    view._requests[serving] = np.arange(len(serving)) * 3
    chosen = router("power_of_two", seed).choose(view, 0)
    assert len(serving) == 1 or chosen != serving[-1]


def test_power_of_two_draws_every_pair():
    """Of four, the k-th least loaded wins when it is drawn with a more loaded one: 3, 2 and 1 of 6 pairs."""
    view, choose = View(range(4), [0, 1, 2, 3], [0] * 4), router("power_of_two")
    won = np.bincount([choose.choose(view, r) for r in range(6000)], minlength=4)
    assert won / 6000 == pytest.approx([3 / 6, 2 / 6, 1 / 6, 0], abs=0.02)


def test_random_is_even_and_round_robin_exact():
    view = View([0, 2, 5], [0] * 6, [0] * 6)
    drawn = np.bincount([router("random", s).choose(view, 0) for s in range(3000)], minlength=6)
    assert drawn[[0, 2, 5]] / 3000 == pytest.approx([1 / 3] * 3, abs=0.03)
    turn = router("round_robin")
    assert [turn.choose(view, r) for r in range(7)] == [0, 2, 5, 0, 2, 5, 0]


def test_prefix_aware_prefers_the_cache_until_it_is_swamped():
    choose = router("prefix_aware").choose
    assert choose(View(range(3), [9, 5, 30], [0] * 3, cached=[0, 16, 64]), 0) == 2
    assert choose(View(range(3), [9, 5, 37], [0] * 3, cached=[0, 16, 64]), 0) == 2  # 32 more is still fine
    assert choose(View(range(3), [9, 5, 38], [0] * 3, cached=[0, 16, 64]), 0) == 1
    assert choose(View(range(3), [9, 5, 5], [0] * 3, cached=[64, 64, 64]), 0) == 1
    assert choose(View([0, 1], [9, 5, 0], [0] * 3, cached=[0, 0, 64]), 0) == 1


def test_sessions_stick_until_their_replica_goes():
    sessions = {0: 7, 1: 8, 2: 7, 3: 7, 4: 7, 5: -1}
    sticky = router("session_sticky")

    def choose(request, candidates, loads):
        return sticky.choose(View(candidates, loads, [0] * 3, sessions=sessions), request)

    assert choose(0, range(3), [3, 1, 2]) == 1
    assert choose(1, range(3), [0, 9, 2]) == 0
    assert choose(2, range(3), [0, 99, 0]) == 1  # busy, but at home
    assert choose(3, [0, 2], [5, 0, 4]) == 2  # the home is out of service: a new one
    assert choose(4, range(3), [0, 0, 50]) == 2
    assert choose(5, range(3), [4, 3, 50]) == 1  # no session: the least loaded


@pytest.mark.parametrize("name", sorted(SCALERS))
@QUICK
@given(replicas=st.integers(0, 50), waiting=st.integers(0, 5000), low=st.floats(0, 4), gap=st.floats(0.1, 10))
def test_scalers_answer_sensibly(name, replicas, waiting, low, gap):
    scaler = make_scaler(name, low, low + gap)
    wanted = scaler.wanted(replicas, waiting)
    assert type(wanted) is int
    assert wanted >= 1
    assert scaler.wanted(replicas, waiting) == wanted  # no memory
    assert scaler.wanted(replicas, waiting + 1) >= wanted  # more waiting never means fewer replicas


def test_the_queue_scaler_holds_between_its_marks():
    scaler = make_scaler("queue", 0.5, 4.0)
    assert [scaler.wanted(4, w) for w in (0, 1, 2, 16, 17, 40)] == [3, 3, 4, 4, 5, 10]
    assert scaler.wanted(1, 0) == 1
