"""Collectives: textbook forms, published tables of expert exchanges, and laws."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.cost.collectives import (
    ALL_GATHER,
    ALL_REDUCE,
    Group,
    all_gather,
    all_reduce,
    all_to_all,
    all_to_all_deduplicated,
    all_to_all_flat,
    exchange_bytes,
    p2p,
    reduce_scatter,
)
from moesim.errors import SpecError

# DeepEP on H800: dispatched copy of hidden 7168 in fp8 with one fp32 scale per 128 values; combine in bf16
DISPATCH, COMBINE = 7168 + 7168 / 128 * 4, 7168 * 2


def test_deepseek_insights_communication_bound():
    """Insights into DeepSeek-V3 (arXiv:2505.09343) section 2.3.2: 32 tokens, 9 copies, 7K, 1 + 2 bytes."""
    for bandwidth, step, total, rate in (
        (50e9, 120.96e-6, 14.757e-3, 67.76),
        (900e9, 6.72e-6, 0.8198e-3, 1219.75),
    ):
        far = Group(ranks=10**9, nodes=10**9, inter_bandwidth=bandwidth)
        once = float(all_to_all_flat(32 * 7000 * 1, far, 9) + all_to_all_flat(32 * 7000 * 2, far, 9))
        assert once == pytest.approx(step, rel=1e-6)
        assert once * 2 * 61 == pytest.approx(total, rel=1e-4)
        assert 1 / (once * 2 * 61) == pytest.approx(rate, rel=1e-4)


@pytest.mark.parametrize(
    ("ranks", "dispatch_us", "combine_us"), [(16, 118, 195), (32, 155, 273), (64, 173, 314)]
)
def test_deepep_low_latency(ranks, dispatch_us, combine_us):
    """DeepEP README, June 2025, 128 tokens, top-8: 50 and 160 GB/s, plus 42 and 52 us of kernel latency."""
    for copy, alpha, measured in ((DISPATCH, 42e-6, dispatch_us), (COMBINE, 52e-6, combine_us)):
        group = Group(ranks, ranks // 8, 160e9, 50e9, 0.0, alpha)
        assert float(all_to_all_flat(128 * copy, group, 8)) * 1e6 == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize(
    ("ranks", "nodes_per_token", "ranks_per_token", "dispatch_gb", "combine_gb"),
    [(8, 1.0, 5.32, 153, 158), (16, 1.99, 6.52, 43, 43), (32, 3.62, 7.27, 58, 57), (64, 3.98, 7.48, 51, 50)],
)
def test_deepep_normal(ranks, nodes_per_token, ranks_per_token, dispatch_gb, combine_gb):
    """DeepEP README, 4096 tokens, top-4 groups, top-8; GB/s of one copy per distinct node (EP8: rank)."""
    group = Group(ranks, max(ranks // 8, 1), 150e9, 44.5e9)
    for copy, rate in ((DISPATCH, dispatch_gb), (COMBINE, combine_gb)):
        counted = ranks_per_token if ranks == 8 else nodes_per_token
        measured = 4096 * copy * counted / (rate * 1e9)
        model = float(all_to_all_deduplicated(4096 * copy, group, ranks_per_token, nodes_per_token))
        assert model == pytest.approx(measured, rel=0.10)


def test_deepep_16_ranks_are_bound_by_nvlink_and_more_by_the_network():
    for ranks, nodes, per_rank, link_bound in ((16, 1.99, 6.52, True), (32, 3.62, 7.27, False)):
        network, link = exchange_bytes(4096 * DISPATCH, Group(ranks, ranks // 8), per_rank, nodes)
        assert (link / 150e9 > network / 44.5e9) == link_bound


def test_textbook_all_reduce():
    group = Group(4, 1, 100e9, intra_latency=1e-6)
    assert ALL_REDUCE["ring"](8e9, group) == pytest.approx(6e-6 + 2 * 3 / 4 * 8e9 / 100e9)
    assert ALL_REDUCE["tree"](8e9, group) == pytest.approx(4e-6 + 2 * 8e9 / 100e9)
    assert ALL_REDUCE["one_shot"](8e9, group) == pytest.approx(1e-6 + 3 * 8e9 / 100e9)
    assert ALL_REDUCE["hierarchical"](8e9, group) == pytest.approx(2e-6 + 2 * 3 / 4 * 8e9 / 100e9)
    # two nodes of four: inside 2 (3/4), between 2 (1/2) of the quarter that each device owns
    wide = Group(8, 2, 100e9, 10e9, 1e-6, 5e-6)
    inside, between = 2 * 3 / 4 * 8e9 / 100e9, 2 * 1 / 2 * 2e9 / 10e9
    assert ALL_REDUCE["hierarchical"](8e9, wide) == pytest.approx(2e-6 + 10e-6 + inside + between)
    assert ALL_REDUCE["ring"](8e9, wide) == pytest.approx(2 * 7 * 5e-6 + 2 * 7 / 8 * 8e9 / 40e9)


def test_small_messages_take_one_shot_and_large_ones_do_not():
    group = Group(8, 1, 300e9, intra_latency=2e-6)
    assert all_reduce(1024, group) == ALL_REDUCE["one_shot"](1024, group)
    assert all_reduce(1e9, group) < ALL_REDUCE["one_shot"](1e9, group) / 3


@pytest.mark.parametrize(
    ("shape", "ranks", "factor"),
    [
        ("switch", 8, 1),
        ("mesh", 8, 1),
        ("pcie_tree", 8, 64 / 28),
        ("ring", 4, 16 / 12),
        ("torus", 16, 256 / 60 / 2),
    ],
)
def test_bisection(shape, ranks, factor):
    """Count it: bytes from one half to the other, over the links that join the halves."""
    assert Group(ranks, topology=shape).congestion == pytest.approx(factor)
    if shape in {"pcie_tree", "ring"}:
        crossing = sum(1 / (ranks - 1) for a in range(ranks // 2) for b in range(ranks // 2, ranks) if a != b)
        assert Group(ranks, topology=shape).congestion == pytest.approx(crossing)


def test_flat_exchange_counts_every_pair():
    """Brute force: each of 8 ranks on 2 nodes sends 1/8 of its bytes to each rank."""
    group, size = Group(8, 2, 100e9, 20e9), 8e9
    far = sum(size / 8 for target in range(8) if target // 4 != 0)
    near = sum(size / 8 for target in range(8) if target // 4 == 0 and target != 0)
    assert all_to_all_flat(size, group, 1) == pytest.approx(max(far / 20e9, near / 100e9))


groups = st.builds(
    lambda per, nodes, intra, inter, near, far: Group(per * nodes, nodes, intra, inter, near, far),
    st.integers(1, 16), st.integers(1, 16), st.floats(1e9, 1e12), st.floats(1e8, 1e11),
    st.floats(0, 1e-5), st.floats(0, 1e-4),
)  # fmt: skip
OPERATIONS = {
    "all_reduce": all_reduce,
    "all_gather": all_gather,
    "reduce_scatter": reduce_scatter,
    "p2p": p2p,
    "all_to_all": lambda size, group: all_to_all(
        size, group, 8, min(group.ranks, 7.5), min(group.nodes, 4.0)
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
@given(group=groups, a=st.floats(1, 1e10), b=st.floats(1, 1e10))
def test_laws(name, group, a, b):
    run = OPERATIONS[name]
    assert run(0, group) == 0
    assert np.all(run(np.array([a]), Group(1)) == 0)
    low, high = sorted((a, b))
    assert run(low, group) <= run(high, group) * (1 + 1e-12)
    assert run(a + b, group) <= (run(a, group) + run(b, group)) * (
        1 + 1e-12
    )  # one call is never worse than two
    faster = Group(
        group.ranks, group.nodes, 2 * group.intra_bandwidth, 2 * group.inter_bandwidth,
        group.intra_latency, group.inter_latency,
    )  # fmt: skip
    assert run(a, faster) <= run(a, group) * (1 + 1e-12)


@given(group=groups, size=st.floats(1, 1e10))
def test_all_reduce_is_never_better_than_its_parts(group, size):
    """Bandwidth bound: every byte of an n-way sum leaves some rank once and comes back once."""
    if group.ranks == 1:
        return
    n, node = group.ranks, max(group.intra_bandwidth, group.per_node * group.inter_bandwidth)
    floor = 2 * (n - 1) / n * size / (group.intra_bandwidth if group.nodes == 1 else node) / 2
    assert all_reduce(size, group) >= floor * (1 - 1e-12)
    assert all_gather(size, group) == reduce_scatter(size, group)
    assert min(rule(size, group) for rule in ALL_GATHER.values()) == all_gather(size, group)


def test_deduplication_saves_what_it_says():
    flat = all_to_all_flat(1e9, Group(64, 8, math.inf, 50e9), 8)
    limited = all_to_all_deduplicated(1e9, Group(64, 8, math.inf, 50e9), 7.48, 3.98)
    assert flat / limited == pytest.approx(8 / 3.98)


def test_impossible_groups_are_refused():
    with pytest.raises(SpecError, match="2 ranks on 3 nodes"):
        Group(2, 3)
    with pytest.raises(SpecError, match="positive bandwidths"):
        Group(2, 1, 0.0)
