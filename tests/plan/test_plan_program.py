"""The solver edge: bounds are true, starts are used and checked, interrupts keep the incumbent, shortages are named."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pulp
import pytest

from moesim.plan.program import solve
from moesim.plan.solution import Limits


def partition(items, bins, *, sense=pulp.LpMinimize):
    """Return min max bin load of assignments, a program whose gap HiGHS cannot close soon when it is large."""
    program = pulp.LpProblem("partition", sense)
    top = pulp.LpVariable("top", 0)
    x = [[pulp.LpVariable(f"x_{i}_{b}", cat=pulp.LpBinary) for b in range(bins)] for i in range(len(items))]
    program += top if sense == pulp.LpMinimize else -top
    for i in range(len(items)):
        program += pulp.lpSum(x[i]) == 1, f"one_{i}"
    for b in range(bins):
        program += pulp.lpSum(v * x[i][b] for i, v in enumerate(items)) <= top, f"load_{b}"
    return program


def best_partition(items, bins):
    return min(
        np.bincount(np.array(choice), weights=items, minlength=bins).max()
        for choice in itertools.product(range(bins), repeat=len(items))
    )


def start_of(items, bins):
    """Return the round-robin assignment as values."""
    values = {f"x_{i}_{b}": float(i % bins == b) for i in range(len(items)) for b in range(bins)}
    return values | {"top": max(sum(items[b::bins]) for b in range(bins))}


def hard(seed=0, count=40):
    generator = np.random.default_rng(seed)
    return [float(v) for v in generator.integers(10**5, 10**6, count)]


@pytest.mark.parametrize("sense", [pulp.LpMinimize, pulp.LpMaximize])
@pytest.mark.parametrize("seed", range(4))
def test_optimum_and_bound_equal_brute_force(seed, sense):
    items = [float(v) for v in np.random.default_rng(seed).integers(3, 60, 7)]
    outcome = solve(partition(items, 3, sense=sense), Limits())
    sign = 1 if sense == pulp.LpMinimize else -1
    assert outcome.sol_status == "optimal"
    assert outcome.objective == pytest.approx(sign * best_partition(items, 3), rel=1e-9)
    assert outcome.bound == pytest.approx(outcome.objective, rel=1e-9)
    assert outcome.values["top"] == pytest.approx(best_partition(items, 3))


def test_time_limit_keeps_the_incumbent_and_claims_no_proof():
    items = hard()
    outcome = solve(partition(items, 7), Limits(seconds=1.0))
    assert outcome.sol_status == "feasible"  # PuLP says Optimal here
    assert sum(items) / 7 - 1 <= outcome.bound < outcome.objective
    rows = np.array([[outcome.values[f"x_{i}_{b}"] for b in range(7)] for i in range(40)])
    assert np.all(rows.sum(axis=1) == 1)
    assert outcome.objective == pytest.approx((rows.T @ np.array(items)).max(), rel=1e-6)


@pytest.mark.parametrize("sense", [pulp.LpMinimize, pulp.LpMaximize])
def test_start_survives_a_solve_without_time(sense):
    items = hard()
    without = solve(partition(items, 7, sense=sense), Limits(seconds=0.0))
    outcome = solve(partition(items, 7, sense=sense), Limits(seconds=0.0), start=start_of(items, 7))
    sign = 1 if sense == pulp.LpMinimize else -1
    assert without.sol_status == "no solution" or sign * without.objective > sign * outcome.objective
    assert sign * outcome.objective <= start_of(items, 7)["top"] + 1e-6
    assert outcome.history[0].objective == pytest.approx(sign * start_of(items, 7)["top"])


def test_start_reaches_highs_when_partial():
    items = hard(1, 12)
    goal = solve(partition(items, 2), Limits()).values
    part = {name: value for name, value in goal.items() if name != "top"}
    seen = []
    solve(partition(items, 2), Limits(), start=part, on_progress=seen.append)
    assert seen[0].objective == pytest.approx(goal["top"], rel=1e-6)


def test_wrong_starts_are_refused():
    items = hard(2, 4)
    good = start_of(items, 2)
    with pytest.raises(ValueError, match="which is no variable"):
        solve(partition(items, 2), Limits(), start={"y": 1.0})
    with pytest.raises(ValueError, match="breaks one_0 by 1"):
        solve(partition(items, 2), Limits(), start=good | {"x_0_1": 1.0, "top": 1e9})
    with pytest.raises(ValueError, match="outside its domain"):
        solve(partition(items, 2), Limits(), start=good | {"x_0_0": 0.5, "x_0_1": 0.5})


def test_interrupt_keeps_the_incumbent():
    items = hard()

    def press(point):
        if math.isfinite(point.objective):
            raise KeyboardInterrupt

    outcome = solve(partition(items, 7), Limits(seconds=60.0), on_progress=press)
    assert outcome.seconds < 30
    assert outcome.sol_status == "feasible"
    assert outcome.bound < outcome.objective < math.inf


def test_other_errors_of_the_listener_come_through():
    def press(point):
        raise RuntimeError("listener")

    with pytest.raises(RuntimeError, match="listener"):
        solve(partition(hard(), 7), Limits(seconds=5.0), on_progress=press)


def test_same_answer_twice():
    items = hard(3, 14)
    first, second = (solve(partition(items, 3), Limits(seed=5)) for _ in range(2))
    assert first.values == second.values


def test_wanted_gap_stops_early_without_a_proof():
    items = hard(4)
    outcome = solve(partition(items, 5), Limits(seconds=30.0, gap=0.2))
    assert (outcome.objective - outcome.bound) / outcome.objective <= 0.2
    assert outcome.seconds < 20


def budget(limit):
    program = pulp.LpProblem("budget", pulp.LpMinimize)
    y = [pulp.LpVariable(f"y_{i}", cat=pulp.LpBinary) for i in range(4)]
    program += pulp.lpSum(y) + 2.5
    program += 3 * pulp.lpSum(y) >= 9, "demand"
    program += 30 * pulp.lpSum(y) <= limit, "memory"
    return program


def test_short_constraint_is_named_with_its_shortage():
    outcome = solve(budget(65), Limits())
    assert outcome.sol_status == "infeasible"
    assert set(outcome.short) == {"demand"}  # 3 of 9 is missed, cheaper than 25 of 65
    assert outcome.short["demand"] == pytest.approx(3)
    outcome = solve(budget(65), Limits(), elastic=lambda name: name == "memory")
    assert outcome.short == pytest.approx({"memory": 25})
    assert math.isnan(outcome.objective)
    assert outcome.values == {}


def test_constant_of_the_objective_counts():
    assert solve(budget(95), Limits()).objective == 5.5
    assert solve(budget(95), Limits()).bound == pytest.approx(5.5)


def test_linear_program_has_its_own_bound():
    program = pulp.LpProblem("lp", pulp.LpMaximize)
    a, b = pulp.LpVariable("a", 0, 3), pulp.LpVariable("b", 0)
    program += a + b + 1
    program += a + 2 * b <= 4, "row"
    outcome = solve(program, Limits())
    assert (outcome.objective, outcome.bound, outcome.sol_status) == (4.5, 4.5, "optimal")


def test_two_variables_of_one_name_are_refused():
    program = pulp.LpProblem("twins", pulp.LpMinimize)
    program += pulp.LpVariable("a", 0) + pulp.LpVariable("a", 1)
    with pytest.raises(ValueError, match="two variables are called a"):
        solve(program, Limits())


def test_nothing_is_written_to_standard_output():
    code = (
        "import pulp; from moesim.plan.program import solve; from moesim.plan.solution import Limits;"
        "p = pulp.LpProblem('p'); x = pulp.LpVariable('x', 0, 1); p += -x; solve(p, Limits()); print('answer')"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout == "answer\n"
