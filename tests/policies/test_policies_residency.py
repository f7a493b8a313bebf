"""Eviction, prefetch and miss rules: registered names, contracts, what each does by its name."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import TypeAdapter

from moesim.errors import SpecError
from moesim.policies.eviction import EVICTIONS, NEVER, Eviction, Facts, make_eviction
from moesim.policies.miss import MISSES, Act, Miss, make_miss
from moesim.policies.prefetch import PREFETCHERS, Prefetch, make_prefetch

FIELDS = {
    "lookahead": {"window": 4},
    "weighted": {"recency": 0.25, "frequency": 0.25, "precision": 0.25, "nearness": 0.25},
    "next_layer": {"count": 2},
    "path_predictor": {"accuracy": 0.9},
    "host": {"host_token_s": "1 ms"},
}
PLAIN = Facts(10.0, 5.0, 3.0, 2.0, 20.0, 0.5, 2.0, 8.0, 0.0, 0.5)


@pytest.mark.parametrize(
    ("registry", "kind", "make"),
    [(EVICTIONS, Eviction, make_eviction), (PREFETCHERS, Prefetch, make_prefetch), (MISSES, Miss, make_miss)],
)
def test_files_may_say_every_registered_name(registry, kind, make):
    for name, rule in registry.items():
        read = TypeAdapter(kind).validate_python({"policy": name, **FIELDS.get(name, {})})
        assert type(read) is rule
        assert read == make(name, **FIELDS.get(name, {}))
    with pytest.raises(SpecError, match="unknown policy"):
        make("lur")
    with pytest.raises(SpecError):
        make(next(iter(registry)), nonsense=1)


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("lru", {"last": 6.0}),
        ("lfu", {"uses": 4.0}),
        ("lfru", {"last": 6.0}),
        ("lfru", {"uses": 4.0}),
        ("random", {"draw": 0.6}),
        ("belady", {"upcoming": 19.0}),
        ("lookahead", {"upcoming": 14.0}),
        ("frequency_distance", {"uses": 4.0}),
        ("frequency_distance", {"ahead": 1.0}),
        ("activation_aware", {"probability": 0.6}),
        ("activation_aware", {"ahead": 1.0}),
        ("weighted", {"last": 6.0}),
        ("weighted", {"uses": 4.0}),
        ("weighted", {"heavy": 3.0}),
        ("weighted", {"ahead": 1.0}),
        ("usage_probability", {"probability": 0.6}),
    ],
)
def test_rules_prefer_what_they_say(name, better):
    rule = make_eviction(name, **FIELDS.get(name, {}))
    keep = type(rule).keep
    assert keep(PLAIN._replace(**better), rule.parameters()) > keep(PLAIN, rule.parameters())


def test_rules_without_foresight_do_not_look():
    for name, kind in EVICTIONS.items():
        rule = make_eviction(name, **FIELDS.get(name, {}))
        seen = {kind.keep(PLAIN._replace(upcoming=u), rule.parameters()) for u in (11.0, 15.0, NEVER)}
        assert (len(seen) > 1) == kind.foresight


def test_orphans_go_before_the_least_probable():
    keep = EVICTIONS["usage_probability"].keep
    certain = keep(PLAIN._replace(probability=1.0, orphan=1.0), (0.0,) * 4)
    assert certain < keep(PLAIN._replace(probability=0.0), (0.0,) * 4)


def test_weights_add_up():
    with pytest.raises(SpecError, match="add up to 1"):
        make_eviction("weighted", recency=0.5, frequency=0.5, precision=0.5, nearness=0.0)


def chosen(tokens=300, layers=4, k=2, total=8, seed=0):
    score = np.random.default_rng(seed).random((tokens, layers, total))
    return np.argsort(-score, axis=2)[:, :, :k].astype(np.int16)


@pytest.mark.parametrize("name", sorted(PREFETCHERS))
def test_guesses_are_experts_and_repeat(name):
    rule, experts = make_prefetch(name, **FIELDS.get(name, {})), chosen()
    found = rule.guess(experts, 8, chosen(seed=1))
    assert found.shape[:2] == experts.shape[:2]
    assert found.size == 0 or (found.min() >= -1 and found.max() < 8)
    assert np.array_equal(found, rule.guess(experts, 8, chosen(seed=1)))
    if type(rule).recorded:
        with pytest.raises(SpecError, match="expected a recording"):
            rule.guess(experts, 8)
        # the future is not read: other choices in later layers change nothing
        other = experts.copy()
        other[:, 2:] = chosen(seed=2)[:, 2:]
        assert np.array_equal(found[:, :3], rule.guess(other, 8, chosen(seed=1))[:, :3])


def test_a_chain_is_learnt_by_both_predictors():
    """Layer l + 1 takes the experts of layer l plus one: both predictors must find that out."""
    first = chosen(400, 1)
    experts = np.concatenate([(first + shift) % 8 for shift in range(4)], axis=1).astype(np.int16)
    pair = make_prefetch("two_layer_dictionary", count=2).guess(experts, 8, experts)
    assert np.array_equal(np.sort(pair[:, 2:], axis=2)[:, :, 1] >= 0, np.ones((400, 2), dtype=bool))
    heavy = make_prefetch("two_layer_dictionary").guess(experts[:, :, :1], 8, experts[:, :, :1])
    assert np.array_equal(heavy[:, 2:], experts[:, 2:, :1])
    follow = make_prefetch("next_layer", count=1).guess(experts[:, :, :1], 8, experts[:, :, :1])
    assert np.array_equal(follow[:, 1:], experts[:, 1:, :1])


def test_a_path_predictor_is_as_accurate_as_it_says():
    experts = chosen(4000)
    for accuracy in (0.0, 0.7, 1.0):
        found = make_prefetch("path_predictor", accuracy=accuracy).guess(experts, 8)
        right = found == experts
        assert right.mean() == pytest.approx(accuracy, abs=0.01)
        wrong = found[~right][:, None] == np.repeat(experts[:, :, None], 2, axis=2)[~right]
        assert not wrong.any()  # an error never names another chosen expert


def test_rules_for_misses():
    above, tokens, fetch = np.array([0.0, 0.6, 0.7, 0.95]), np.array([1.0, 2, 3, 50]), np.full(4, 3e-3)
    acts = {n: make_miss(n, **FIELDS.get(n, {})).act(above, tokens, fetch).tolist() for n in MISSES}
    assert acts == {
        "fetch": [Act.FETCH] * 4,
        "host": [Act.HOST, Act.HOST, Act.HOST, Act.FETCH],
        "lower_precision": [Act.FETCH, Act.FETCH, Act.LOW, Act.SKIP],
        "skip": [Act.FETCH, Act.SKIP, Act.SKIP, Act.SKIP],
    }
    with pytest.raises(SpecError, match="at least low_above"):
        make_miss("lower_precision", low_above=0.9, skip_above=0.5)
