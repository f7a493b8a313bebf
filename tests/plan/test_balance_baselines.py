"""EPLB reproduces DeepSeek's README; every baseline is a placement; list scheduling keeps its guarantee."""

import numpy as np
import pytest
from balance_cases import README_LOADS, all_placements
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import NoResult, SpecError
from moesim.plan.balance import (
    Balance,
    baselines,
    check_placement,
    contiguous,
    copies,
    eplb,
    imbalance,
    pooled,
    rank_loads,
    round_robin,
    vector_lpt,
    worth,
)
from moesim.plan.balance.baselines import replicate

README_MAP = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]


def test_eplb_reproduces_the_readme():
    placement = eplb(README_LOADS, 16, groups=4, nodes=2, gpus=8)
    assert placement.tolist() == README_MAP
    loads = rank_loads(README_LOADS[None], placement, 8)[0]
    assert loads[0].tolist() == pytest.approx([121.5, 86.5, 125, 113, 147.5, 131.5, 156, 152], abs=1e-9)
    assert loads[1].tolist() == pytest.approx([173, 179.5, 120.5, 172, 123, 152, 118.5, 117.5], abs=1e-9)
    assert loads[0].reshape(2, 4).sum(axis=1).tolist() == pytest.approx([446, 587], abs=1e-9)
    assert imbalance(README_LOADS[None], placement, 8)[0].round(4).tolist() == [1.2081, 1.2422]


def test_eplb_global_reproduces_the_readme_input():
    placement = eplb(README_LOADS, 16, groups=1, nodes=1, gpus=8)
    assert imbalance(README_LOADS[None], placement, 8)[0].round(4).tolist() == [1.0726, 1.1903]
    # three groups do not go onto two nodes: EPLB falls back to the global rule
    assert np.array_equal(eplb(README_LOADS, 16, groups=3, nodes=2, gpus=8), placement)


def test_eplb_hierarchical_keeps_groups_on_one_node():
    loads = np.random.default_rng(0).integers(1, 500, (5, 24)).astype(float)
    placement = eplb(loads, 32, groups=8, nodes=4, gpus=16)
    node = np.repeat(np.arange(4), 8)
    for row in placement:
        for group in range(8):
            assert len(np.unique(node[(row // 3) == group])) == 1
    assert np.all(copies(placement, 24) >= 1)


def test_eplb_leaves_single_items_in_place():
    assert eplb(np.array([[3.0, 1.0, 2.0]]), 3, 1, 1, 3).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("replicas", "groups", "nodes", "gpus", "text"),
    [(16, 4, 2, 7, "GPUs into nodes"), (15, 4, 2, 8, "replicas into GPUs"), (8, 4, 2, 8, "at least 12")],
)
def test_eplb_refuses_uneven_sizes(replicas, groups, nodes, gpus, text):
    with pytest.raises(SpecError, match=text):
        eplb(README_LOADS, replicas, groups, nodes, gpus)


@st.composite
def problems(draw, experts=(2, 24), scenarios=(1, 4)):
    count = draw(st.integers(*experts))
    ranks = draw(st.integers(1, 6))
    slots = -(-count // ranks) + draw(st.integers(0, 3))
    seed = draw(st.integers(0, 2**31))
    generator = np.random.default_rng(seed)
    loads = generator.gamma(0.5, size=(draw(st.integers(*scenarios)), 3, count)) + 1e-3
    return Balance(loads, ranks, slots)


@given(problems())
def test_every_baseline_is_a_placement(problem):
    for placement in baselines(problem).values():
        check_placement(problem, placement)
        assert np.all(worth(problem, placement) >= 1 - 1e-12)


@given(problems())
def test_copies_share_all_load(problem):
    for placement in baselines(problem).values():
        loads = rank_loads(problem.loads, placement, problem.ranks)
        assert np.allclose(loads.sum(axis=2), problem.loads.sum(axis=2), rtol=1e-12)


@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(0, 12))
def test_replicate_gives_the_smallest_largest_copy(seed, items, extra):
    weight = np.random.default_rng(seed).integers(1, 60, (1, items)).astype(float)
    owner, count = replicate(weight, extra)
    assert np.array_equal(np.bincount(owner[0], minlength=items), count[0])
    assert np.array_equal(owner[0, :items], np.arange(items))
    largest = (weight / count).max()
    # a smaller largest copy needs more copies than there are
    assert np.ceil(weight[0] / (largest * (1 - 1e-9))).sum() > items + extra
    assert (weight / replicate(weight, extra + 1)[1]).max() <= largest


@given(st.integers(0, 2**31), st.integers(2, 3))
def test_lpt_is_within_four_thirds_at_two_slots(seed, ranks):
    loads = np.random.default_rng(seed).integers(1, 100, (1, 1, 2 * ranks)).astype(float)
    problem = Balance(loads, ranks, 2)
    best = min(worth(problem, [row])[0] for row in all_placements(2 * ranks, ranks, 2))
    got = worth(problem, vector_lpt(problem))[0]
    assert best - 1e-12 <= got <= (4 / 3 - 1 / (3 * ranks)) * best + 1e-9


def test_lists_of_vllm():
    problem = Balance(np.ones((1, 1, 6)), 3, 3)
    assert contiguous(problem).tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 2]]
    assert round_robin(Balance(np.ones((1, 1, 6)), 3, 2)).tolist() == [[0, 3, 1, 4, 2, 5]]


def test_pooled_counts_scenarios_alike():
    loads = np.array([[[8.0, 1, 1, 2]], [[100, 100, 900, 100]]])
    assert np.array_equal(
        pooled(Balance(loads, 2, 2)), pooled(Balance(loads * np.array([50, 1])[:, None, None], 2, 2))
    )


def test_problems_are_checked():
    good = np.ones((1, 2, 4))
    with pytest.raises(NoResult, match="slots: 1 ranks x 3 hold 3 of 4 experts, 1 short"):
        Balance(good, 1, 3)
    with pytest.raises(SpecError, match="scenario 0 has none in layer 1"):
        Balance(good * np.array([1, 0])[None, :, None], 2, 2)
    with pytest.raises(SpecError, match="none negative"):
        Balance(-good, 2, 2)
    with pytest.raises(SpecError, match="mix"):
        Balance(good, 2, 2, np.array([1.0, 2.0]))
    problem = Balance(good, 2, 2)
    with pytest.raises(SpecError, match="layer 1 has no copy of expert 3"):
        check_placement(problem, [[0, 1, 2, 3], [0, 1, 2, 2]])
    with pytest.raises(SpecError, match=r"expected 0\.\.3"):
        check_placement(problem, [[0, 1, 2, 3], [0, 1, 2, 4]])
    with pytest.raises(SpecError, match="expected integers"):
        check_placement(problem, [[0, 1, 2, 3]])
