"""Expected distinct experts, ranks and the busiest rank: closed forms, brute force, Monte Carlo."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import SpecError
from moesim.routing.expected import (
    expected_distinct,
    expected_distinct_ranks,
    inclusion,
    plackett_luce_inclusion,
    rank_shares,
    straggler_factor,
    zipf_weights,
)
from moesim.routing.gate import limit_groups

WEIGHTS = st.lists(st.floats(0.05, 1.0), min_size=4, max_size=24)


def draw(weights, k, tokens, generator):
    score = np.log(weights) + generator.gumbel(size=(tokens, len(weights)))
    return np.argpartition(score, -k, axis=1)[:, -k:]


@pytest.mark.parametrize(
    ("experts", "k", "tokens", "touched"), [(64, 6, 1, 6), (64, 6, 16, 50.8), (64, 6, 128, 64)]
)
def test_uniform_distinct_matches_the_published_points(experts, k, tokens, touched):
    assert expected_distinct(np.ones(experts), k, tokens) == pytest.approx(touched, abs=0.05)
    assert expected_distinct(np.ones(experts), k, tokens) == pytest.approx(
        experts * (1 - (1 - k / experts) ** tokens)
    )


def test_distinct_equals_enumeration_of_every_pair_of_tokens():
    sets = list(itertools.combinations(range(5), 2))
    union = [len(set(a) | set(b)) for a in sets for b in sets]
    assert expected_distinct(np.ones(5), 2, 2) == pytest.approx(np.mean(union))


def test_plackett_luce_inclusion_equals_enumeration():
    weights = np.array([8.0, 3.0, 1.0, 0.5, 0.1])
    exact = np.zeros(5)
    for order in itertools.permutations(range(5), 3):
        chance, left = 1.0, weights.sum()
        for expert in order:
            chance *= weights[expert] / left
            left -= weights[expert]
        exact[list(order)] += chance
    assert plackett_luce_inclusion(weights, 3) == pytest.approx(exact, abs=1e-9)
    assert exact[0] < 3 * weights[0] / weights.sum()  # replacement would overstate the favourite


def test_distinct_matches_sampled_tokens():
    weights = zipf_weights(32, 1.0)
    q = plackett_luce_inclusion(weights, 4)
    generator = np.random.default_rng(5)
    for tokens in (1, 4, 16, 64):
        sampled = np.mean([len(np.unique(draw(weights, 4, tokens, generator))) for _ in range(800)])
        assert expected_distinct(q, 4, tokens) == pytest.approx(sampled, rel=0.02)


@given(weights=WEIGHTS, k=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_touched_grows_stays_below_experts_and_below_uniform(weights, k):
    q = plackett_luce_inclusion(weights, k)
    assert q.sum() == pytest.approx(k)
    tokens = np.arange(0, 300, 7)
    touched = expected_distinct(q, k, tokens)
    assert touched[0] == 0
    assert np.all(np.diff(touched) >= -1e-9)
    assert np.all(touched <= len(weights) + 1e-9)
    assert np.all(touched <= expected_distinct(np.ones(len(weights)), k, tokens) + 1e-9)
    assert expected_distinct(q, k, 1) == pytest.approx(k)


def test_layers_are_averaged_and_shape_is_kept():
    table = np.stack([np.ones(8), [4, 1, 1, 1, 1, 1, 1, 1]])
    tokens = np.array([[1, 2, 3], [4, 5, 100]])
    both = expected_distinct(table, 2, tokens)
    assert both.shape == tokens.shape
    assert both == pytest.approx(
        (expected_distinct(table[0], 2, tokens) + expected_distinct(table[1], 2, tokens)) / 2
    )


@pytest.mark.parametrize(
    ("bins", "published"), [(8, 5.295), (16, 6.523), (32, 7.267), (64, 7.676), (4, 3.614)]
)
def test_distinct_ranks_of_uniform_top_8_of_256(bins, published):
    assert expected_distinct_ranks(256, 8, bins) == pytest.approx(published, abs=6e-4)


@pytest.mark.parametrize(("bins", "published"), [(8, 3.98), (64, 7.48)])
def test_node_limited_gate_of_deepseek_v3(bins, published):
    assert expected_distinct_ranks(256, 8, bins, groups=8, top_groups=4) == pytest.approx(published, rel=0.01)


def test_group_limit_keeps_tokens_inside_their_groups():
    scores = np.random.default_rng(1).standard_normal((500, 64))
    chosen = limit_groups(scores, 6, 8, 2)
    groups = [set(row // 8) for row in chosen]
    assert max(len(g) for g in groups) <= 2
    best_two = np.sort(scores.reshape(500, 8, 8), axis=2)[:, :, -2:].sum(axis=2)
    for token in range(500):
        assert groups[token] <= set(np.argsort(best_two[token])[-2:])


def test_no_group_limit_is_the_closed_form_by_monte_carlo():
    generator = np.random.default_rng(2)
    chosen = draw(np.ones(32), 4, 20000, generator) // 4
    sampled = np.mean([len(set(row)) for row in chosen.tolist()])
    assert expected_distinct_ranks(32, 4, 8) == pytest.approx(sampled, rel=0.005)


@pytest.mark.parametrize(("experts", "k", "ranks"), [(8, 2, 4), (64, 6, 8), (256, 8, 64)])
@pytest.mark.parametrize("exponent", [0.0, 0.5])
@pytest.mark.parametrize("tokens", [1, 3, 8, 40, 300])
def test_straggler_factor_matches_simulation(experts, k, ranks, exponent, tokens):
    generator = np.random.default_rng(7)
    weights = generator.permutation(zipf_weights(experts, exponent))
    shares = rank_shares(experts, ranks)
    most = []
    for _ in range(1500 if tokens < 10 else 250):
        load = np.bincount(draw(weights, k, tokens, generator).ravel(), minlength=experts)
        most.append((load @ shares).max())
    simulated = np.mean(most) / (tokens * k / ranks)
    noise = 3 * np.std(most) / math.sqrt(len(most)) / (tokens * k / ranks)
    found = float(straggler_factor(plackett_luce_inclusion(weights, k), k, tokens, ranks))
    assert abs(found - simulated) < 0.03 * simulated + noise


def test_straggler_factor_tends_to_the_heaviest_rank_and_one():
    share = np.array([3.0, 1, 1, 1, 1, 1])
    assert straggler_factor(share, 1, 10**6, 3) == pytest.approx(1.5, rel=1e-3)
    assert straggler_factor(np.ones(6), 2, 10**7, 3) == pytest.approx(1.0, abs=1e-3)
    assert straggler_factor(share, 1, [0, 5], 1).tolist() == [1.0, 1.0]
    assert straggler_factor(share, 1, 0, 3) == 1.0


def test_straggler_factor_of_two_ranks_is_half_normal():
    # one rank's load has variance T k (1/2)(1/2)(E - k)/(E - 1) = T/3, the other's is the rest
    tokens = 20000
    excess = float(straggler_factor(np.ones(4), 2, tokens, 2)) - 1
    assert excess == pytest.approx(np.sqrt(2 / (3 * np.pi * tokens)), rel=0.01)


def test_many_counts_are_interpolated_closely():
    q = plackett_luce_inclusion(zipf_weights(64, 0.4), 6)
    counts = np.arange(4000)
    curve = straggler_factor(q, 6, counts, 16)
    some = np.array([9, 13, 29, 77, 205, 1033, 3999])
    assert curve[some] == pytest.approx(straggler_factor(q, 6, some, 16), rel=0.002)


def test_replicas_spread_a_hot_expert():
    q = inclusion([6.0, 2, 2, 2], 1)
    alone = np.eye(2)[[0, 0, 1, 1]]
    split = np.array([[0.5, 0.5], [1, 0], [0, 1], [0.5, 0.5]])
    generator = np.random.default_rng(3)
    tokens, most = 400, []
    for _ in range(600):
        chosen = generator.choice(4, tokens, p=q)
        most.append(np.bincount((generator.random(tokens) > split[chosen, 0]).astype(int), minlength=2).max())
    assert straggler_factor(q, 1, tokens, split) == pytest.approx(np.mean(most) / (tokens / 2), rel=0.01)
    assert straggler_factor(q, 1, tokens, split) < straggler_factor(q, 1, tokens, alone)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: inclusion([9.0, 1, 1], 2), "one expert takes"),
        (lambda: inclusion([1.0, 0, 0], 2), "at least k = 2"),
        (lambda: inclusion([1.0, -1], 1), "non-negative"),
        (lambda: plackett_luce_inclusion([1.0, 0.0], 2), "positive weight"),
        (lambda: expected_distinct(np.ones(4), 1, -1), "at least 0"),
        (lambda: expected_distinct(np.ones(4), 1, 1.5), "whole numbers"),
        (lambda: expected_distinct_ranks(10, 2, 3), "multiple of ranks"),
        (lambda: expected_distinct_ranks(16, 5, 4, 4, 1), "hold top_k"),
        (lambda: rank_shares(6, 4), "divisor"),
        (lambda: rank_shares(2, [[0.5, 0.6], [1, 0]]), "sum to 1"),
        (lambda: rank_shares(3, [0, 1]), "rank of each"),
        (lambda: zipf_weights(4, -1.0), "non-negative exponent"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(SpecError, match=words):
        call()
