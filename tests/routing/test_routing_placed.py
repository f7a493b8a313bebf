"""Placed: loads, imbalance and distinct bins against enumeration, closed forms and sampled tokens."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import SpecError
from moesim.routing.expected import expected_distinct_ranks
from moesim.routing.placed import (
    copies_per_expert,
    distinct_bins,
    distinct_bins_of_groups,
    distinct_bins_of_trace,
    imbalance,
    rank_loads,
    rank_of_slot,
    slot_bins,
    slot_shares,
)
from moesim.routing.trace import RoutingTrace

SLOTS = np.array([[0, 1, 2, 0, 3, 4, 0, 5], [5, 4, 3, 2, 1, 0, 5, 5]])  # 6 experts, 4 ranks of 2 slots


def odds_of(q: np.ndarray, k: int) -> np.ndarray:
    """Weights whose conditional Poisson sampling uses expert e with chance q[e], by brute force."""
    weights = q / (1 - q)
    sets = [list(c) for c in combinations(range(len(q)), k)]
    for _ in range(4000):
        chance = np.array([weights[c].prod() for c in sets])
        chance /= chance.sum()
        got = np.array([sum(p for p, c in zip(chance, sets, strict=True) if e in c) for e in range(len(q))])
        weights = weights * (q / got)
        if np.abs(got - q).max() < 1e-12:
            break
    return weights


def distinct_by_enumeration(q: np.ndarray, k: int, slots: np.ndarray, bin_of_slot: np.ndarray) -> float:
    """Every set of experts, every choice among replicas."""
    weights = odds_of(q, k)
    places = [np.flatnonzero(slots == e) for e in range(len(q))]
    total = mass = 0.0
    for chosen in combinations(range(len(q)), k):
        chance = weights[list(chosen)].prod()
        options = list(product(*(places[e] for e in chosen)))
        mass += chance
        total += chance * np.mean([len(set(bin_of_slot[list(option)])) for option in options])
    return total / mass


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_distinct_bins_are_those_of_enumeration(layer: int, k: int) -> None:
    q = np.array([0.9, 0.5, 0.7, 0.3, 0.2, 0.4]) * k / 3.0
    rank = rank_of_slot(8, 4)
    parts = slot_bins(SLOTS[layer], rank, 6)
    assert distinct_bins(q, k, parts)[0] == pytest.approx(
        distinct_by_enumeration(q, k, SLOTS[layer], rank), rel=1e-9
    )


@pytest.mark.parametrize(("experts", "k", "ranks"), [(8, 2, 4), (64, 6, 8), (256, 8, 32), (16, 16, 4)])
def test_equal_chances_give_the_closed_form(experts: int, k: int, ranks: int) -> None:
    parts = slot_bins(np.arange(experts), rank_of_slot(experts, ranks), experts)
    found = distinct_bins(np.ones(experts), k, parts)[0]
    assert found == pytest.approx(expected_distinct_ranks(experts, k, ranks), rel=1e-7)


def test_node_limited_routing_is_that_of_the_contiguous_split() -> None:
    parts = slot_bins(np.arange(64), rank_of_slot(64, 8), 64)
    found = distinct_bins_of_groups(8, parts, 8, 4)[0]
    assert found == pytest.approx(expected_distinct_ranks(64, 8, 8, 8, 4), rel=0.005)
    scattered = slot_bins(np.arange(64).reshape(8, 8).T.ravel(), rank_of_slot(64, 8), 64)
    assert distinct_bins_of_groups(8, scattered, 8, 4)[0] > found + 0.5  # groups no longer share a rank


def trace_of(experts: np.ndarray, total: int) -> RoutingTrace:
    weights = np.full(experts.shape, 1 / experts.shape[2], dtype=np.float32)
    length = np.array([len(experts)])
    return RoutingTrace(experts.astype(np.int16), weights, np.array([0]), length, np.array([""]), total)


def test_a_trace_is_counted_token_by_token() -> None:
    rng = np.random.default_rng(1)
    chosen = np.stack([np.stack([rng.permutation(6)[:3] for _ in range(2)]) for _ in range(50)])
    rank = rank_of_slot(8, 4)
    found = distinct_bins_of_trace(trace_of(chosen, 6), [1, 0], slot_bins(SLOTS, rank, 6))
    for place, layer in enumerate([1, 0]):
        counts = []
        for token in chosen[:, layer]:
            options = product(*(np.flatnonzero(SLOTS[place] == e) for e in token))
            counts.append(np.mean([len(set(rank[list(option)])) for option in options]))
        assert found[place] == pytest.approx(np.mean(counts), rel=1e-12)


@given(
    st.lists(st.floats(0.1, 100), min_size=6, max_size=6),
    st.permutations([*range(6), 0, 5]),
)
def test_rank_loads_by_hand(loads: list[float], slots: list[int]) -> None:
    expected = [sum(loads[e] / slots.count(e) for e in slots[at : at + 2]) for at in range(0, 8, 2)]
    found = rank_loads([loads], [slots], 4)
    assert found[0] == pytest.approx(expected, rel=1e-12)
    assert imbalance(found)[0] == pytest.approx(max(expected) * 4 / sum(loads), rel=1e-12)


def test_load_is_conserved_and_copies_are_counted() -> None:
    loads = np.random.default_rng(2).random((2, 6))
    assert slot_shares(loads, SLOTS).sum(axis=1) == pytest.approx(loads.sum(axis=1))
    assert copies_per_expert(SLOTS, 6).tolist() == [[3, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 3]]
    assert slot_bins(SLOTS, rank_of_slot(8, 4), 6).sum(axis=2) == pytest.approx(1.0)


def test_what_cannot_be_placed_is_refused() -> None:
    with pytest.raises(SpecError, match="layer 0 has no slot for expert 2"):
        slot_shares([[1.0, 1.0, 1.0]], [[0, 1]])
    with pytest.raises(SpecError, match="expected a multiple of the ranks"):
        rank_of_slot(7, 2)
    with pytest.raises(SpecError, match="expected a multiple of the ranks"):
        rank_loads([[1.0, 1.0, 1.0]], [[0, 1, 2]], 2)
