"""Traces in time against closed forms and against the counted replay."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from residency_cases import make_accesses
from routing_made import independent

from moesim.errors import NoResult
from moesim.policies.eviction import Lru, NeverEvict
from moesim.policies.miss import Act, HostCompute
from moesim.policies.prefetch import Oracle, PathPredictor, PreGated
from moesim.residency.accesses import Guesses, guesses_of, token_accesses
from moesim.residency.cache import layer_cache, shared_cache
from moesim.residency.link import Link
from moesim.residency.manager import ResidencyManager, Tier
from moesim.residency.pipeline import Seconds, demand_seconds, prefetched_seconds, run_pipeline
from moesim.residency.replay import replay


def manager(
    accesses, slots, *, size=1.0, bandwidth=1.0, setup=0.0, chunk=math.inf, eviction=None, quota=None
):
    return ResidencyManager(
        np.full(accesses.layers * accesses.experts, size),
        [Tier("fast", slots * size), Tier("home", math.inf)],
        [Link(bandwidth, setup, chunk)],
        eviction or Lru(),
        accesses.layers,
        quota,
    )


def seconds(accesses, fixed=0.5, device=0.2, host=math.inf):
    uses = len(accesses.keys)
    return Seconds(np.full(accesses.layers, fixed), np.full(uses, device), np.full(uses, host))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999), slots=st.integers(3, 12), shared=st.booleans(),
    fixed=st.sampled_from([0.0, 0.5]), device=st.sampled_from([0.0, 0.2, 3.0]), setup=st.sampled_from([0.0, 0.4]),
)  # fmt: skip
def test_without_contention_time_is_the_closed_form_of_the_counted_replay(
    seed, slots, shared, fixed, device, setup
):
    a = token_accesses(independent(30, 3, 3, 12, seed))
    count = slots * 3
    cache = shared_cache(3, 12, count) if shared else layer_cache(3, 12, slots)
    counted = replay(a, cache, Lru())
    timed = run_pipeline(
        a, manager(a, count, setup=setup, quota=None if shared else slots), seconds(a, fixed, device)
    )
    assert timed.hit.tolist() == (counted.outcome == 0).tolist()
    misses = counted.misses_by_request()
    expected = demand_seconds(3 - misses, misses, fixed, device, 1.0 + setup)
    assert np.diff(timed.end, prepend=0.0) == pytest.approx(expected)


def test_all_misses_of_mixtral_are_one_token_per_second():
    """352 MB experts over 23.9 GB/s: 14.7 ms each; 64 of them 943 ms, 1.06 tokens/s (memory-tier notes, 6.4)."""
    size = 3 * 4096 * 14336 * 2
    assert Link(23.9e9).seconds(size) == pytest.approx(14.7e-3, rel=0.005)
    sets = [[(2 * t) % 8, (2 * t + 1) % 8] for t in range(4) for _ in range(32)]
    a = make_accesses(sets, 32, 8)
    m = manager(a, 64, size=size, bandwidth=23.9e9)
    timed = run_pipeline(a, m, seconds(a, 0.0, 0.0))
    assert not timed.hit.any()
    assert 4 / timed.end[-1] == pytest.approx(1.06, rel=0.01)


def test_edgemoe_on_demand_reads():
    """Six FP32 experts of 18.9 MB at 200 MB/s are 0.56 s per token; INT4 with 15 ms each 0.16 s (notes, 3.3)."""
    size = 2 * 768 * 3072 * 4
    a = make_accesses([[t % 8] for t in range(12) for _ in range(6)], 6, 8)
    full = run_pipeline(a, manager(a, 6, size=size, bandwidth=200e6), seconds(a, 0.225 / 6, 0.0))
    assert full.end[-1] / 12 == pytest.approx(0.789, rel=0.01)
    m = manager(a, 6, size=size / 8, bandwidth=200e6, setup=0.015)
    quantised = run_pipeline(a, m, seconds(a, 0.225 / 6, 0.0))
    assert quantised.end[-1] / 12 == pytest.approx(0.392, rel=0.02)


@pytest.mark.parametrize(("fixed", "device"), [(0.5, 0.1), (1.0, 1.0), (3.0, 0.5)])
def test_a_pregated_layer_takes_the_longer_of_work_and_copies(fixed, device):
    """Room for two layers' experts, every one fetched while the layer before runs (Pre-gated MoE)."""
    sets = [[(2 * t) % 8, (2 * t + 1) % 8] for t in range(30)]
    a = make_accesses(sets, 30, 8)
    guesses = _truth(a)
    timed = run_pipeline(a, manager(a, 4), seconds(a, fixed, device), guesses=guesses)
    each = np.diff(timed.end)[5:-1]
    assert each == pytest.approx(np.full(len(each), prefetched_seconds(2, fixed, device, 1.0)))


def _truth(a):
    return Guesses(a.keys, a.start, 1)


def test_better_guesses_never_wait_longer():
    trace = independent(60, 6, 2, 16)
    a = token_accesses(trace)
    waits, ends = [], []
    for rule in (
        PathPredictor(accuracy=0.0),
        PathPredictor(accuracy=0.5),
        PathPredictor(accuracy=0.9),
        Oracle(),
    ):
        timed = run_pipeline(
            a, manager(a, 30, chunk=0.1), seconds(a, 1.0, 0.2), guesses=guesses_of(rule, trace)
        )
        waits.append(timed.waited.sum())
        ends.append(timed.end[-1])
    assert waits == sorted(waits, reverse=True)
    assert ends == sorted(ends, reverse=True)
    none = run_pipeline(a, manager(a, 30), seconds(a, 1.0, 0.2))
    gated = run_pipeline(a, manager(a, 30), seconds(a, 1.0, 0.2), guesses=guesses_of(PreGated(), trace))
    assert gated.end[-1] < none.end[-1]
    assert timed.useful <= timed.guessed


def test_wrong_guesses_are_withdrawn():
    a = make_accesses([[0], [0], [0]], 2, 4)
    guesses = Guesses(np.array([5, 6, 7], dtype=np.int32), np.array([0, 0, 3, 3]), 1)
    timed = run_pipeline(a, manager(a, 8, chunk=0.25), seconds(a, 0.5, 0.0), guesses=guesses)
    # half of the first guess moves before the second layer's router has spoken; the other half never does
    assert timed.end.tolist() == [1.5, 3.0, 3.5]
    assert timed.moved[0] == pytest.approx(2.5)
    assert (timed.guessed, timed.useful) == (3, 0)


def test_chunks_let_demands_pass_wrong_guesses():
    trace = independent(60, 4, 2, 16)
    a = token_accesses(trace)
    guesses = guesses_of(PathPredictor(accuracy=0.2), trace)
    whole, chunked = (
        run_pipeline(a, manager(a, 16, chunk=c), seconds(a, 0.3, 0.1), guesses=guesses)
        for c in (math.inf, 0.05)
    )
    assert chunked.end[-1] < whole.end[-1]
    assert chunked.moved[0] < whole.moved[0]


def test_the_host_computes_what_is_sooner_there():
    """Fiddler's rule: few tokens on the host, many are worth the fetch."""
    a = make_accesses([[0, 1], [2, 3]], 1, 4)
    rule = HostCompute.model_validate({"host_token_s": "1 s"})
    act = rule.act(np.zeros(4), np.array([1.0, 30.0, 2.0, 29.0]), np.full(4, 29.0))
    assert act.tolist() == [Act.HOST, Act.FETCH, Act.HOST, Act.HOST]
    timed = run_pipeline(a, manager(a, 2, bandwidth=1 / 29), seconds(a, 0.0, 0.0, host=2.0), act=act)
    assert timed.end.tolist() == pytest.approx([29.0, 33.0])  # the second: 2 + 2 on the host, nothing fetched


def test_a_tier_too_small_for_a_request_computes_in_turns():
    a = make_accesses([[0, 1, 2]], 1, 3)
    timed = run_pipeline(a, manager(a, 1), seconds(a, 0.0, 0.2))
    assert timed.end[-1] == pytest.approx(3 * 1.2)  # no overlap: one leaves before the next comes
    with pytest.raises(NoResult, match="no room"):
        run_pipeline(a, manager(a, 0.5), seconds(a, 0.0, 0.2))
    with pytest.raises(NoResult, match="no room"):
        run_pipeline(a, manager(a, 1, eviction=NeverEvict()), seconds(a))


@pytest.mark.shared
def test_recorded_tokens_in_time_hit_as_counted(gpt_oss):
    trace = gpt_oss.take([5])
    a = token_accesses(trace)
    counted = replay(a, layer_cache(24, 32, 8), Lru())
    timed = run_pipeline(a, manager(a, 8 * 24, quota=8), seconds(a))
    assert timed.hit.mean() == counted.share()
