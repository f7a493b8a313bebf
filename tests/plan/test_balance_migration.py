"""Moves: what is fetched, the fewest by renumbering ranks, when a move pays, and plans within a number of moves."""

import itertools
import math

import numpy as np
import pytest
from balance_cases import all_placements
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import SpecError
from moesim.plan.balance import (
    Balance,
    Effort,
    align,
    balance,
    check_placement,
    contiguous,
    eplb,
    fetched,
    move_cost,
    rank_loads,
    rebalance,
    worth,
)

QUICK = Effort(steps=8000, bound_seconds=0.0, exact=False)


def random_placement(generator, layers, experts, ranks, slots):
    return np.stack([generator.permutation(ranks * slots) % experts for _ in range(layers)])


@given(st.integers(0, 2**31), st.integers(2, 4), st.integers(1, 3))
def test_align_fetches_least_of_all_renumberings(seed, ranks, slots):
    generator = np.random.default_rng(seed)
    experts = max(ranks * slots - 1, 1)
    old, new = (random_placement(generator, 2, experts, ranks, slots) for _ in range(2))
    got = align(old, new, ranks, experts)
    for layer in range(2):
        least = min(
            fetched(
                old[[layer]],
                new[layer].reshape(ranks, slots)[list(order)].reshape(1, -1),
                ranks,
                experts,
            ).sum()
            for order in itertools.permutations(range(ranks))
        )
        assert fetched(old[[layer]], got[[layer]], ranks, experts).sum() == least
    # the same ranks under other numbers, and what a rank keeps stays in its slot
    key = lambda p: sorted(map(tuple, np.sort(p.reshape(ranks, slots), axis=1).tolist()))  # noqa: E731
    assert [key(p) for p in got] == [key(p) for p in new]
    loads = generator.random((1, 2, experts))
    assert np.allclose(
        np.sort(rank_loads(loads, got, ranks), axis=2), np.sort(rank_loads(loads, new, ranks), axis=2)
    )
    for was, now in zip(old.reshape(-1, slots), got.reshape(-1, slots), strict=True):
        for slot in range(slots):
            kept_elsewhere = was[slot] in now and now[slot] != was[slot]
            assert not kept_elsewhere or np.sum(now == was[slot]) < np.sum(was[: slot + 1] == was[slot])


def test_fetched_counts_experts_not_slots():
    # rank 0 keeps both, in other slots; rank 1 takes expert 0 twice but needs its weights once
    assert fetched([[0, 1, 2, 3]], [[1, 0, 0, 0]], 2, 4).tolist() == [[0, 1]]


def test_move_cost_and_break_even():
    problem = Balance(np.array([[[6.0, 2, 2, 2]]]), 2, 2)
    before, after = np.array([[0, 1, 2, 3]]), np.array([[0, 1, 2, 3]])
    still = move_cost(problem, before, after, 10.0, 5.0)
    assert (still.moved_bytes, still.move_s, still.break_even_s) == (0.0, 0.0, 0.0)
    # 5 slots would not fit; 3 per rank: expert 0 twice, 6/2 + 2 + 1 each
    wider = Balance(np.array([[[6.0, 2, 2, 2]]]), 2, 3)
    old, new = np.array([[0, 1, 1, 2, 3, 3]]), np.array([[0, 1, 2, 0, 3, 2]])
    cost = move_cost(wider, old, new, 10.0, 5.0)
    assert cost.moved_bytes == 20.0  # rank 0 fetches 2, rank 1 fetches 0
    assert cost.busiest_bytes == 10.0
    assert cost.move_s == 2.0
    assert cost.saved == pytest.approx(1 - 6 / 8)
    # old pace 8, new pace 6: after t seconds t * 8/6 seconds of old work are done
    t = cost.break_even_s
    assert cost.move_s + t == pytest.approx(t * 8 / 6)
    worse = move_cost(wider, new, old, 10.0, 5.0)
    assert worse.saved < 0
    assert math.isinf(worse.break_even_s)


@given(st.integers(0, 2**31), st.integers(0, 12), st.booleans())
@settings(max_examples=25)
def test_rebalance_keeps_to_its_moves(seed, moves, mixed):
    generator = np.random.default_rng(seed)
    loads = generator.gamma(0.5, size=(2, 3, 12)) + 1e-3
    problem = Balance(loads, 4, 4, generator.random(2) if mixed else None)
    present = random_placement(generator, 3, 12, 4, 4)
    plan = rebalance(problem, present, moves, effort=QUICK)
    check_placement(problem, plan.answer)
    assert fetched(present, plan.answer, 4, 12).sum() <= moves
    assert plan.objective <= worth(problem, present).mean() + 1e-12
    assert plan.bound <= plan.objective


def test_more_moves_are_never_worse_and_many_are_free():
    loads = np.random.default_rng(1).gamma(0.5, size=(2, 6, 32))
    problem = Balance(loads, 8, 5)
    present = contiguous(problem)
    values = [rebalance(problem, present, m, effort=QUICK).objective for m in (0, 6, 12, 24, 48, 10**6)]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(values))
    free = balance(problem, start=present, effort=QUICK)
    assert values[-1] == pytest.approx(free.objective)
    # moves have falling returns: a quarter of the full move brings more than half of the gain
    assert values[0] - values[3] > 0.5 * (values[0] - values[-1])


@pytest.mark.parametrize("size", [(4, 2, 2), (6, 3, 2), (4, 2, 3)])
def test_bounded_moves_against_brute_force(size):
    experts, ranks, slots = size
    everything = all_placements(experts, ranks, slots)
    for seed in range(6):
        generator = np.random.default_rng(seed)
        problem = Balance(generator.integers(1, 40, (2, 1, experts)).astype(float), ranks, slots)
        present = random_placement(generator, 1, experts, ranks, slots)
        orders = list(itertools.permutations(range(ranks)))
        choices = np.array([p.reshape(ranks, slots)[list(o)].ravel() for p in everything for o in orders])
        many = Balance(np.repeat(problem.loads, len(choices), axis=1), ranks, slots)
        value = worth(many, choices)
        moved = fetched(np.repeat(present, len(choices), axis=0), choices, ranks, experts).sum(axis=1)
        for moves in (1, 2, 3, 4):
            best = value[moved <= moves].min()
            got = rebalance(problem, present, moves, effort=QUICK).objective
            assert got >= best - 1e-9
            assert got <= best * 1.02 + 1e-9, (seed, moves)


def test_present_placements_are_checked():
    problem = Balance(np.ones((1, 1, 4)), 2, 2)
    with pytest.raises(SpecError, match="no copy of expert 3"):
        rebalance(problem, [[0, 1, 2, 2]], 1)
    with pytest.raises(SpecError, match="moves -1"):
        rebalance(problem, [[0, 1, 2, 3]], -1)


def test_eplb_again_moves_much_more_than_a_bounded_plan():
    generator = np.random.default_rng(3)
    first = generator.gamma(0.5, size=(8, 64))
    second = first * np.exp(generator.normal(0, 0.3, first.shape))
    present = eplb(first, 80, 1, 1, 8)
    problem = Balance(second[None], 8, 10)
    again = eplb(second, 80, 1, 1, 8)
    theirs = int(fetched(present, again, 8, 64).sum())
    fifth, third = (rebalance(problem, present, theirs // n, effort=QUICK).objective for n in (5, 3))
    assert worth(problem, present).mean() > 1.14
    assert fifth <= worth(problem, again).mean() + 0.005
    assert third <= worth(problem, again).mean()
