"""Affinity: hops counted as a replay counts them, exact answers, bounds that hold, plans that beat the baselines."""

import os
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from affinity_cases import brute_force, markov, tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import NoResult, SpecError
from moesim.plan.affinity import BASELINES, Affinity, Topology, hop_cost, hops, solve_affinity
from moesim.plan.affinity.chain import canonical, nesting, splice
from moesim.plan.affinity.exact import can_be_exact, grouping_count, groupings, solve_exact
from moesim.plan.affinity.kernel import anneal, match
from moesim.plan.affinity.relaxation import relax
from moesim.plan.affinity.rounding import place_layer, saved_weights
from moesim.plan.affinity.solve import matching_bound
from moesim.plan.solution import Limits
from moesim.routing.statistics import transitions
from moesim.routing.trace import read_trace

TOPOLOGIES = [
    Topology.flat(2),
    Topology.flat(4),
    Topology(2, 2),
    Topology(2, 2, 1.0, 5.0),
    Topology(2, 1),
    Topology(2, 2, 0.0, 1.0),
]


def random_counts(seed, layers=3, experts=4):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 9, (layers - 1, experts, experts)).astype(float) * (
        rng.random((layers - 1, experts, experts)) < 0.6
    )


def test_hops_of_uniform_routing_are_exflows_random_figures():
    for devices, expected in ((4, 23.25), (8, 27.125)):
        problem = Affinity(np.ones((31, 8, 8)), Topology.flat(devices))
        for rule in BASELINES.values():
            assert hops(problem, rule(problem, 3)).per_token == pytest.approx(expected, rel=1e-12)


def test_exflows_printed_costs_close_on_their_shares():
    """The file names of ExFlow's shipped solutions carry cost and cintra = cost / (GPUs - 1): 17.4953, 22.1660."""
    for devices, cost, intra in (
        (4, 17.495347692691237, 5.831782564230412),
        (8, 22.166013704896926, 3.166573386413847),
    ):
        staying = 1 - cost / 31
        counts = np.zeros((31, 8, 8))
        counts[:, 0, 0], counts[:, 0, 7] = staying, 1 - staying
        problem = Affinity(counts, Topology.flat(devices))
        got = hops(problem, np.tile(np.arange(8) * devices // 8, (32, 1)))
        assert got.per_token == pytest.approx(cost, rel=1e-12)
        assert got.intra(problem.topology) == pytest.approx(intra, rel=1e-12)
        assert got.inter(problem.topology) == 0


def test_hops_equal_a_replay_of_every_token():
    counts = markov(6, 8)
    paths = tokens_of(counts, 500, 1)
    seen = np.zeros(counts.shape)
    for b in range(5):
        np.add.at(seen[b], (paths[:, b], paths[:, b + 1]), 1.0)
    for where in TOPOLOGIES:
        problem = Affinity(seen, where)
        placement = BASELINES["random"](problem, 5)
        device = placement[np.arange(6), paths]
        weighted = nodes = inside = 0.0
        for row in device.tolist():
            for a, b in pairwise(row):
                if a // where.per_node != b // where.per_node:
                    nodes, weighted = nodes + 1, weighted + where.node_hop
                elif a != b:
                    inside, weighted = inside + 1, weighted + where.device_hop
        got = hops(problem, placement)
        assert (got.node, got.device) == (nodes, inside)
        assert got.weighted == pytest.approx(weighted, rel=1e-12)
        assert got.weighted == pytest.approx(
            (seen * hop_cost(where)[placement[:-1, :, None], placement[1:, None, :]]).sum()
        )


@pytest.mark.parametrize("where", TOPOLOGIES, ids=str)
def test_exact_is_the_best_of_all_placements(where):
    for seed in range(3):
        counts = random_counts(seed)
        found = solve_exact(Affinity(counts, where))
        assert found.objective == pytest.approx(brute_force(counts, hop_cost(where), where.devices), abs=1e-9)
        assert found.sol_status == "optimal"


@pytest.mark.parametrize("where", TOPOLOGIES, ids=str)
def test_relaxation_and_matching_never_pass_the_optimum(where):
    for seed in range(4):
        counts = markov(5, 8, alpha=0.3, seed=seed)
        problem = Affinity(counts, where)
        best = solve_exact(problem).objective
        for iterations in (1, 7, 60, 200):  # unfinished runs are weaker, never wrong
            kept = sum(w * (problem.total - relax(counts, g, iterations).bound) for g, w in where.levels)
            assert kept <= best + 1e-9
        weak = sum(w * (problem.total - matching_bound(counts, g)) for g, w in where.levels)
        assert weak <= best + 1e-9
        assert kept >= weak - 1e-3 * problem.total
        if where == Topology.flat(4):
            assert kept >= 0.95 * best


def test_matching_bound_is_exact_for_one_expert_per_device():
    counts = markov(6, 8, alpha=0.2)
    best = solve_exact(Affinity(counts, Topology.flat(8))).objective
    assert counts.sum() - matching_bound(counts, 8) == pytest.approx(best, rel=1e-9)


def test_mixtral_size_is_exact_within_two_seconds():
    problem = Affinity(markov(32, 8), Topology.flat(4))
    solve_affinity(Affinity(markov(3, 8), Topology.flat(4)))  # compiled before the clock starts
    began = time.process_time()
    found = solve_affinity(problem)
    assert time.process_time() - began <= 2.0
    assert found.sol_status == "optimal"
    assert found.method == "dynamic program over 105 groupings"
    assert found.objective < min(hops(problem, rule(problem, 0)).weighted for rule in BASELINES.values())


def test_groupings_are_all_and_different():
    for experts, where, expected in (
        (8, Topology.flat(4), 105),
        (8, Topology(2, 2), 315),
        (8, Topology.flat(2), 35),
        (6, Topology.flat(6), 1),
    ):
        nested = nesting(where)
        found = groupings(experts, nested)
        assert len(found) == expected == grouping_count(experts, nested)
        assert len(canonical(found, nested)) == expected


def test_search_reaches_the_optimum_where_it_is_known(monkeypatch):
    for where in (Topology.flat(4), Topology(2, 2)):
        problem = Affinity(markov(10, 8, alpha=0.1, seed=3), where)
        best = solve_exact(problem).objective
        monkeypatch.setattr("moesim.plan.affinity.solve.can_be_exact", lambda _: False)
        found = solve_affinity(problem)
        monkeypatch.undo()
        assert found.objective == pytest.approx(best, rel=1e-9)
        assert 0.9 * best <= found.bound <= best
        assert found.sol_status == "feasible" or found.gap <= 1e-9


@pytest.mark.parametrize("where", [Topology.flat(4), Topology(2, 4), Topology(4, 2)], ids=str)
def test_plan_beats_the_baselines_with_a_narrow_gap(where):
    problem = Affinity(markov(6, 16, alpha=0.1), where)
    assert not can_be_exact(problem)
    found = solve_affinity(problem)
    assert hops(problem, found.answer).weighted == pytest.approx(found.objective, rel=1e-12)
    assert found.objective <= min(hops(problem, rule(problem, 0)).weighted for rule in BASELINES.values())
    assert found.gap <= 0.10
    again = solve_affinity(problem)
    assert np.array_equal(found.answer, again.answer)
    assert [p.objective for p in found.history] == sorted((p.objective for p in found.history), reverse=True)


def test_splice_is_at_least_the_best_and_joins_halves_under_other_names():
    problem = Affinity(markov(8, 8, alpha=0.05), Topology.flat(4))
    best = solve_exact(problem).answer
    left, right = BASELINES["random"](problem, 1), BASELINES["random"](problem, 2)
    left[:4], right[4:] = best[:4], (best[4:] + 1) % 4  # the second half's devices renamed
    assert hops(problem, splice(problem, [left, right])).weighted == pytest.approx(
        hops(problem, best).weighted
    )


def test_never_worse_than_a_start_and_an_interrupt_keeps_it(monkeypatch):
    problem = Affinity(markov(6, 16, alpha=0.1), Topology.flat(4))
    start = solve_affinity(problem).answer

    def stopped(*_args, **_keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr("moesim.plan.affinity.solve.relax", stopped)
    found = solve_affinity(problem, starts=[start])
    assert found.objective == hops(problem, start).weighted
    assert "interrupted" in found.method
    assert found.bound == 0


def test_time_limit_keeps_the_incumbent():
    found = solve_affinity(Affinity(markov(12, 32, alpha=0.1), Topology.flat(4)), Limits(seconds=0.0))
    assert np.isfinite(found.objective)
    assert found.bound <= found.objective


def test_free_hops_cost_nothing():
    assert solve_affinity(Affinity(markov(3, 8), Topology(1, 4, 0.0, 0.0))).objective == 0
    assert solve_affinity(Affinity(markov(3, 8), Topology(1, 1))).objective == 0


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from([2, 3, 4, 5, 7]))
def test_match_is_linear_assignment(seed, size):
    from scipy.optimize import linear_sum_assignment

    table = np.random.default_rng(seed).normal(size=(3, size, size))
    total, column = match(table)
    for n in range(3):
        rows, columns = linear_sum_assignment(table[n], maximize=True)
        assert total[n] == pytest.approx(table[n][rows, columns].sum(), abs=1e-12)
        assert table[n][np.arange(size), column[n]].sum() == pytest.approx(total[n], abs=1e-12)
        assert sorted(column[n]) == list(range(size))


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from(TOPOLOGIES))
def test_annealing_keeps_shares_and_its_own_books(seed, where):
    counts = markov(4, 8, alpha=0.3, seed=seed)
    problem = Affinity(counts, where)
    load = np.random.default_rng(seed).random((4, 8))
    saved = saved_weights(where.levels, where.devices)
    start = BASELINES["random"](problem, seed)
    value, placement = anneal(counts, saved, load, 7.0, start, 3000, 50.0, 1.0, seed)
    kept = problem.total * saved.max() - hops(problem, placement).weighted
    worst = sum(
        np.bincount(p, weights=w, minlength=where.devices).max() for p, w in zip(placement, load, strict=True)
    )
    assert value == pytest.approx(kept - 7.0 * worst, rel=1e-9)


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_renaming_devices_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    problem = Affinity(random_counts(seed, 4, 8), Topology(2, 2))
    placement = BASELINES["random"](problem, seed)
    name = np.concatenate([2 * n + rng.permutation(2) for n in rng.permutation(2)])
    assert hops(problem, name[placement]).weighted == hops(problem, placement).weighted


def test_place_layer_is_exact():
    from affinity_cases import layers_of

    gain = np.random.default_rng(0).normal(size=(6, 3))
    best = max(gain[np.arange(6), row].sum() for row in layers_of(6, 3))
    assert gain[np.arange(6), place_layer(gain, 2)].sum() == pytest.approx(best)


def test_bad_input_is_refused_in_one_line():
    with pytest.raises(NoResult, match="8 experts do not split evenly over 3 devices: 1 short"):
        Affinity(np.ones((2, 8, 8)), Topology.flat(3))
    with pytest.raises(SpecError, match=r"expected \[layers - 1, experts, experts\]"):
        Affinity(np.ones((2, 8, 7)), Topology.flat(2))
    with pytest.raises(SpecError, match="none negative"):
        Affinity(-np.ones((2, 8, 8)), Topology.flat(2))
    with pytest.raises(SpecError, match="expected 0 <= inside <= between"):
        Topology(2, 2, 3.0, 1.0)
    with pytest.raises(SpecError, match="layer 1 puts 3 experts on device 0, expected 2"):
        hops(Affinity(np.ones((1, 4, 4)), Topology.flat(2)), [[0, 0, 1, 1], [0, 0, 0, 1]])
    with pytest.raises(SpecError, match=r"expected devices 0\.\.1"):
        hops(Affinity(np.ones((1, 4, 4)), Topology.flat(2)), [[0, 0, 1, 1], [0, 0, 2, 1]])
    with pytest.raises(SpecError, match="too many groupings"):
        solve_exact(Affinity(np.ones((1, 32, 32)), Topology.flat(4)))


@pytest.mark.parametrize(("devices", "shipped"), [(4, 17.495347692691237), (8, 22.166013704896926)])
def test_plan_is_at_most_exflows_on_an_equally_affine_trace(devices, shipped):
    """Mixed with uniform routing until ExFlow's own method gives the hops of its shipped Mixtral solution."""
    where = Topology.flat(devices)
    strong, even = markov(32, 8, alpha=0.1), np.full((31, 8, 8), 1000.0 / 64)

    def theirs(mix):
        problem = Affinity(mix * strong + (1 - mix) * even, where)
        return problem, hops(problem, BASELINES["bipartition"](problem, 0)).per_token

    low, high = 0.0, 1.0
    for _ in range(8):
        low, high = (
            ((low + high) / 2, high) if theirs((low + high) / 2)[1] > shipped else (low, (low + high) / 2)
        )
    problem, reached = theirs(low)
    assert reached == pytest.approx(shipped, rel=0.02)
    found = solve_affinity(problem)
    assert found.sol_status == "optimal"
    assert hops(problem, found.answer).per_token <= shipped


@pytest.mark.shared
@pytest.mark.slow
def test_recorded_transitions_beat_every_baseline_also_on_unseen_sequences():
    folder = (
        Path(os.environ.get("MOESIM_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data/routing"
    )
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}")
    trace = read_trace(folder / "gpt-oss-20b-decode.npz", 32)
    plan, judge = (transitions(half, top1=True) for half in trace.split(0))
    for where, most in ((Topology.flat(4), 0.05), (Topology(2, 8), 0.15)):
        problem, unseen = Affinity(plan, where), Affinity(judge, where)
        began = time.process_time()
        found = solve_affinity(problem, Limits(seconds=600.0))
        assert time.process_time() - began <= 60.0
        assert found.gap <= most
        for rule in BASELINES.values():
            other = rule(problem, 0)
            assert found.objective < hops(problem, other).weighted
            assert hops(unseen, found.answer).weighted < hops(unseen, other).weighted
