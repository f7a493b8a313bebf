"""Plans are never worse than the baselines, bounds never above the optimum, small layers solved exactly."""

import itertools

import numpy as np
import pulp
import pytest
from balance_cases import README_LOADS, all_placements
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_lp import same_as_stored

from moesim.errors import NoResult, SpecError
from moesim.plan.balance import (
    Balance,
    Effort,
    balance,
    baselines,
    check_placement,
    eplb,
    fewest_replicas,
    pooled,
    rank_loads,
    spread_of,
    worth,
)
from moesim.plan.balance import bounds as bounds_module
from moesim.plan.balance import exact as exact_module
from moesim.plan.balance import solve as solve_module
from moesim.plan.balance.bounds import pattern_bound, row_bounds, simple_bound
from moesim.plan.balance.kernel import best_pattern
from moesim.plan.balance.search import improve
from moesim.plan.solution import Limits

QUICK = Effort(steps=4000, bound_seconds=2.0, exact=False)
SIZES = [(5, 2, 3), (4, 3, 2), (6, 3, 2), (6, 2, 3), (3, 2, 3), (4, 4, 1)]


def layer(seed, experts, ranks, slots, scenarios, mix=None, whole=True):
    generator = np.random.default_rng(seed)
    loads = generator.integers(1, 40, (scenarios, 1, experts)).astype(float)
    return Balance(loads if whole else loads**2 / 7, ranks, slots, mix)


def optimum(problem):
    rows = all_placements(problem.experts, problem.ranks, problem.slots)
    return min(float(worth(problem, row[None])[0]) for row in rows)


def test_readme_plan_is_proven_optimal_and_below_global():
    problem = Balance(README_LOADS[None], 8, 2)
    plan = balance(problem)
    ours, theirs = worth(problem, plan.answer), worth(problem, eplb(README_LOADS, 16, 1, 1, 8))
    assert plan.sol_status == "optimal"
    assert np.all(ours <= theirs)
    assert ours.round(4).tolist() == [1.0532, 1.1903]
    assert plan.bound == pytest.approx(plan.objective, rel=1e-9)


@given(st.integers(0, 2**31), st.sampled_from(SIZES), st.integers(1, 3))
@settings(max_examples=60)
def test_bounds_are_below_the_optimum_and_plans_above(seed, size, scenarios):
    problem = layer(seed, *size, scenarios)
    best = optimum(problem)
    rows = problem.relative()[:, 0]
    assert simple_bound(rows, problem.ranks, problem.slots, None) <= best + 1e-9
    low = simple_bound(rows, problem.ranks, problem.slots, None)
    assert pattern_bound(rows, problem.ranks, problem.slots, low, best * 1.5, 1e-4, 5.0) <= best + 1e-9
    plan = balance(problem, effort=QUICK)
    assert plan.bound - 1e-9 <= best <= plan.objective + 1e-9


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scenarios", [1, 3])
def test_exact_equals_brute_force(size, scenarios):
    for seed in range(3):
        problem = layer(seed, *size, scenarios, whole=False)
        plan = balance(problem)
        assert plan.sol_status == "optimal"
        assert plan.objective == pytest.approx(optimum(problem), rel=1e-9)


def test_exact_mends_a_search_that_finds_nothing(monkeypatch):
    monkeypatch.setattr(solve_module, "improve", lambda rows, slot, *a, **k: slot)
    monkeypatch.setattr(solve_module, "layer_bound", lambda *a: 1.0)
    for seed in range(3):
        problem = layer(seed, 5, 2, 3, 2)
        plan = balance(problem)
        assert plan.sol_status == "optimal"
        assert plan.objective == pytest.approx(optimum(problem), rel=1e-9)


@given(st.integers(0, 2**31), st.sampled_from(SIZES))
@settings(max_examples=30)
def test_mix_is_bounded_and_never_worse_than_its_baselines(seed, size):
    generator = np.random.default_rng(seed)
    problem = layer(seed, *size, 3, mix=generator.random(3) + 0.01)
    plan = balance(problem, effort=QUICK)
    best = optimum(problem)
    assert plan.bound - 1e-9 <= best <= plan.objective + 1e-9
    assert plan.objective <= best * 1.1
    assert plan.objective <= min(float(worth(problem, p)[0]) for p in baselines(problem).values()) + 1e-9


@given(
    st.integers(0, 2**31),
    st.integers(4, 40),
    st.integers(2, 6),
    st.integers(0, 3),
    st.integers(1, 4),
    st.booleans(),
)
@settings(max_examples=40)
def test_never_worse_than_eplb_or_the_start(seed, experts, ranks, spare, scenarios, mixed):
    generator = np.random.default_rng(seed)
    loads = generator.gamma(0.4, size=(scenarios, 2, experts)) + 1e-4
    slots = -(-experts // ranks) + spare
    problem = Balance(loads, ranks, slots, generator.random(scenarios) if mixed else None)
    start = np.stack([generator.permutation(problem.places) % experts for _ in range(2)])
    plan = balance(problem, start=start, effort=Effort(2000, 0.0, exact=False))
    check_placement(problem, plan.answer)
    for other in (pooled(problem), start):
        assert np.all(worth(problem, plan.answer) <= worth(problem, other) + 1e-9)
    assert plan.objective == pytest.approx(float(worth(problem, plan.answer).mean()), rel=1e-12)
    assert plan.bound <= plan.objective


def test_bound_of_patterns_sees_what_the_mean_does_not():
    # three heavy experts on two ranks: two of them meet, and in each pair one scenario is heavy twice
    rows = np.array([[0.8, 0.8, 0.1, 0.3], [0.1, 0.8, 0.8, 0.3], [0.8, 0.1, 0.8, 0.3]])
    problem = Balance(rows[:, None], 2, 2)
    best = optimum(problem)
    assert simple_bound(problem.relative()[:, 0], 2, 2, None) < best * 0.95
    plan = balance(problem, Limits(gap=1e-3), effort=QUICK)
    assert plan.objective == pytest.approx(best)
    assert plan.gap <= 0.01


@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 2))
def test_best_pattern_equals_enumeration(seed, slots, rows):
    generator = np.random.default_rng(seed)
    pieces = 6
    value = generator.normal(size=pieces)
    load = generator.random((rows, pieces))
    owner = generator.integers(0, 4, pieces)
    most = generator.integers(1, 3, pieces)
    target = 0.6 * slots
    want = np.full(pieces, -np.inf)
    for chosen in itertools.combinations_with_replacement(range(pieces), slots):
        count = np.bincount(chosen, minlength=pieces)
        kinds = np.flatnonzero(count)
        if np.any(count > most) or len(np.unique(owner[kinds])) < len(kinds):
            continue
        if np.any(load @ count > target):
            continue
        want[kinds] = np.maximum(want[kinds], value @ count)
    best, pattern, finished = best_pattern(value, np.argsort(-value), load, owner, most, slots, target, 10**6)
    assert finished
    assert best == pytest.approx(want)
    for piece in np.flatnonzero(np.isfinite(best)):
        assert piece in pattern[piece]
        assert value[pattern[piece]].sum() == pytest.approx(best[piece])


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(0, 3))
def test_least_value_of_copies_equals_enumeration(seed, experts, spare):
    rows = np.random.default_rng(seed).random((1, experts)) * 2 * spare
    owner, least, most, load = bounds_module._pieces(rows, spare)
    value = np.random.default_rng(seed + 1).normal(size=len(owner))
    want = np.inf
    for counts in itertools.product(range(1, spare + 2), repeat=experts):
        if sum(counts) != experts + spare:
            continue
        total = 0.0
        for expert, count in enumerate(counts):
            (piece,) = np.flatnonzero((owner == expert) & (least <= count) & (count <= most))
            assert np.all(load[:, piece] <= rows[:, expert] / count + 1e-15)
            total += count * value[piece]
        want = min(want, total)
    got = bounds_module._fewest_value(value, owner, least, most, experts, experts + spare)
    assert got == pytest.approx(want)


@given(st.integers(0, 2**31), st.sampled_from(SIZES))
def test_row_bounds_hold_row_by_row(seed, size):
    problem = layer(seed, *size, 2)
    bounds = row_bounds(problem.relative()[:, 0], problem.ranks, problem.slots)
    for k in range(2):
        alone = Balance(problem.loads[[k]], problem.ranks, problem.slots)
        assert bounds[k] <= optimum(alone) + 1e-9


def test_same_seed_same_plan_and_loads_scale_away():
    loads = np.random.default_rng(0).gamma(0.5, size=(2, 3, 24))
    first, second = (
        balance(Balance(x, 4, 8), Limits(seed=3), effort=Effort(3000, 0.0, exact=False))
        for x in (loads, loads)
    )
    assert np.array_equal(first.answer, second.answer)
    scaled = balance(
        Balance(loads * np.array([4.0, 256])[:, None, None], 4, 8),
        Limits(seed=3),
        effort=Effort(3000, 0.0, exact=False),
    )
    assert scaled.objective == pytest.approx(first.objective, rel=1e-9)


def test_interrupt_keeps_the_baselines_for_layers_not_reached(monkeypatch):
    problem = Balance(np.random.default_rng(0).gamma(0.5, size=(2, 4, 24)), 4, 7)
    calls = []

    def pressed(*args, **kwargs):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return improve(*args, **kwargs)

    monkeypatch.setattr(solve_module, "improve", pressed)
    plan = balance(problem, effort=QUICK)
    assert len(plan.history) == 4  # start, two layers, end
    got = worth(problem, plan.answer)
    base = np.minimum(worth(problem, pooled(problem)), worth(problem, baselines(problem)["vector LPT"]))
    assert np.all(got[:2] < base[:2])
    assert got[2:] == pytest.approx(base[2:])


def test_no_time_is_the_best_baseline():
    problem = Balance(np.random.default_rng(0).gamma(0.5, size=(1, 2, 24)), 4, 7)
    plan = balance(problem, Limits(seconds=0.0))
    assert plan.objective <= float(worth(problem, pooled(problem)).mean())
    assert plan.bound <= plan.objective


def test_progress_tells_falling_objectives_and_rising_bounds():
    problem = Balance(np.random.default_rng(0).gamma(0.5, size=(2, 4, 24)), 4, 7)
    seen = []
    plan = balance(problem, effort=QUICK, on_progress=seen.append)
    assert len(seen) == 4
    assert all(a.objective >= b.objective and a.bound <= b.bound for a, b in itertools.pairwise(seen))
    assert seen[-1].objective == pytest.approx(plan.objective)


def test_spread_calms_unseen_traffic_for_at_most_one_percent():
    generator = np.random.default_rng(5)
    mean = generator.gamma(2.0, size=32)
    # two tasks that come and go: experts 0-7 and 8-15 rise together
    lift = np.zeros((2, 32))
    lift[0, :8], lift[1, 8:16] = 1.0, 1.0
    samples = np.array([mean * np.exp(generator.normal(0, 0.5, 2) @ lift) for _ in range(200)])[:, None]
    problem = Balance(samples[:100].sum(axis=0)[None], 4, 8)
    spread = spread_of(samples[:100], np.zeros(100, dtype=int), 4)
    plain, calm = (balance(problem, spread=s, effort=Effort(50_000, 0.0)) for s in (None, spread))

    def judged(plan):
        loads = rank_loads(samples[100:], np.tile(plan.answer, (1, 1)), 4)[:, 0]
        return (loads.max(axis=1) / loads.mean(axis=1)).mean()

    assert calm.objective <= plain.objective * 1.01 + 1e-9
    assert judged(calm) < judged(plain) - 0.005


def test_fewest_replicas_equals_brute_force():
    for seed in range(4):
        problem = layer(seed, 4, 2, 2, 1)
        by_slots = {slots: optimum(problem.with_slots(slots)) for slots in (2, 3, 4)}
        wanted = by_slots[3] + 1e-6
        least = min(s for s, value in by_slots.items() if value <= wanted)
        plan = fewest_replicas(problem, wanted)
        assert plan.objective == 2 * least - 4
        assert plan.sol_status == "optimal"


def test_out_of_reach_balance_says_by_how_much():
    problem = layer(0, 6, 3, 2, 1)
    best = optimum(problem)
    with pytest.raises(NoResult, match=f"is not reached: {best:.4g} with 2 slots per rank"):
        fewest_replicas(problem, 1.0, most_slots=2)
    with pytest.raises(NoResult, match="1 per rank hold 3 of 6 experts"):
        fewest_replicas(problem, 1.1, most_slots=1)
    with pytest.raises(SpecError, match="expected 1 or more"):
        fewest_replicas(problem, 0.9)


@pytest.mark.parametrize("name", ["supply", "one_count", "rank_count"])
def test_lp_goldens(name):
    rows = np.array([[0.9, 0.3, 0.8]])
    choice = exact_module.patterns(rows, 2, 1, 1.15)
    program = pulp.LpProblem(f"balance_{name}", pulp.LpMinimize)
    extra = (2,) if name == "rank_count" else ()
    getattr(exact_module, name)(program, choice, *extra)
    assert same_as_stored(program, f"balance_{name}")
