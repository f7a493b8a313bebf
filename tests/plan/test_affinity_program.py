"""Affinity's integer program: a file per constraint, the exact optimum, the closed form of its relaxation."""

import numpy as np
import pulp
import pytest
from affinity_cases import markov
from plan_lp import same_as_stored

from moesim.plan.affinity import Affinity, Topology, hops
from moesim.plan.affinity import program as made_of
from moesim.plan.affinity.exact import solve_exact
from moesim.plan.affinity.solve import matching_bound
from moesim.plan.program import solve
from moesim.plan.solution import Limits

NAMES = [
    "least_hops",
    "expert_one_device",
    "equal_shares",
    "product_rows",
    "product_columns",
    "first_expert_pinned",
]


@pytest.mark.parametrize("name", NAMES)
def test_program_files(name):
    made = made_of.AffinityProgram(Affinity(np.array([[[5.0, 1.0], [0.0, 2.0]]]), Topology.flat(2)))
    getattr(made_of, name)(made)
    if made.program.objective is None:
        made.program += pulp.lpSum([])
    assert same_as_stored(made.program, f"affinity_{name}")


def test_node_level_uses_devices_of_the_node():
    made = made_of.AffinityProgram(Affinity(np.ones((1, 4, 4)), Topology(2, 2)))
    made_of.product_rows(made)
    assert len(made.both) == 2
    row = made.program.constraints["row0_0_1_0"]  # expert 0 in node 1: devices 2 and 3
    assert {v.name for v, _ in row.items() if v.name.startswith("x")} == {"x_0_2_0", "x_0_3_0"}


@pytest.mark.parametrize("where", [Topology.flat(2), Topology(2, 2), Topology(2, 2, 1.0, 4.0)], ids=str)
def test_program_equals_the_exact_solver(where):
    problem = Affinity(markov(3, 4, alpha=0.4, seed=5), where)
    made = made_of.affinity_program(problem)
    outcome = solve(made.program, Limits(60.0))
    exact = solve_exact(problem)
    assert outcome.sol_status == "optimal"
    assert outcome.objective == pytest.approx(exact.objective, rel=1e-6)
    assert hops(problem, made_of.placement_of(made, dict(outcome.values))).weighted == pytest.approx(
        exact.objective, rel=1e-6
    )


def test_relaxation_is_the_matching_bound():
    """Symmetry between device names lets the linear relaxation be solved one boundary at a time."""
    problem = Affinity(markov(4, 8, alpha=0.3, seed=2), Topology.flat(4))
    made = made_of.AffinityProgram(problem)
    for constraint in NAMES[:-1]:  # all but the pin, which breaks the symmetry
        getattr(made_of, constraint)(made)
    for variable in made.on.values():
        variable.cat = pulp.LpContinuous
        variable.upBound, variable.lowBound = 1, 0
    outcome = solve(made.program, Limits(60.0))
    assert outcome.objective == pytest.approx(problem.total - matching_bound(problem.counts, 4), rel=1e-6)
