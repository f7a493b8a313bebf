"""Joint: bytes as a plain replay counts them, MoETuner's programs against exact solvers, the front and its bound."""

from itertools import pairwise, permutations, product

import numpy as np
import pulp
import pytest
from affinity_cases import markov
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_lp import same_as_stored

from moesim.errors import NoResult, SpecError
from moesim.plan.affinity import BASELINES, Affinity, Topology, hop_cost, hops
from moesim.plan.joint import (
    busiest,
    busiest_bound,
    cluster_flow,
    cluster_layer,
    deviation,
    fewest_nodes,
    moetuner,
    name_clusters,
    naming_cost,
    near_home,
    pareto,
    sequence_homes,
    solve_joint,
    traffic,
)
from moesim.plan.joint import program as made_of
from moesim.plan.program import solve
from moesim.plan.solution import Limits
from moesim.routing.statistics import transitions
from moesim.routing.trace import RoutingTrace

MODES = ["return_home", "node_deduplicated", "node_limited", "context_coherent"]


def some_trace(seed, tokens=60, layers=4, experts=8, k=2):
    rng = np.random.default_rng(seed)
    chosen = np.argsort(rng.random((tokens, layers, experts)) - np.linspace(0.5, 0, experts), axis=2)[
        :, :, :k
    ]
    weights = -np.sort(-rng.random((tokens, layers, k)), axis=2).astype(np.float32)
    length = np.array([tokens // 3, tokens - tokens // 3], dtype=np.int64)
    return RoutingTrace(
        chosen.astype(np.int16), weights, np.cumsum(length) - length, length, np.array(["", ""]), experts
    )


def replay(trace, placement, home, where, mode, out_bytes, back_bytes, most=None):  # noqa: PLR0912 - a plain walk
    """Walk every token through every layer and write down each copy."""
    d, inner = where.devices, where.per_node
    out, back = np.zeros((trace.layers, d, d)), np.zeros((trace.layers, d, d))
    for t in range(len(trace.experts)):
        at = int(home[t])
        for layer in range(trace.layers):
            devices = [int(placement[layer, e]) for e in trace.experts[t, layer]]
            if mode == "return_home":
                for g in devices:
                    if g != at:
                        out[layer, at, g] += out_bytes
                        back[layer, g, at] += back_bytes
            elif mode == "context_coherent":
                for g in devices:
                    if g != at:
                        out[layer, at, g] += out_bytes
                at = devices[0]
                for g in devices[1:]:
                    if g != at:
                        back[layer, g, at] += back_bytes
            else:
                if most is not None:
                    worth = {}
                    for g, w in zip(devices, trace.weights[t, layer].tolist(), strict=True):
                        worth[g // inner] = worth.get(g // inner, 0.0) + w
                    allowed = sorted(worth, key=lambda n: (-worth[n], n))[:most]
                    devices = [g for g in devices if g // inner in allowed]
                for node in {g // inner for g in devices}:
                    entry = node * inner + at % inner
                    legs = [(at, entry)] + [(entry, g) for g in set(devices) if g // inner == node]
                    for a, b in legs:
                        if a != b:
                            out[layer, a, b] += out_bytes
                            back[layer, b, a] += back_bytes
    return out, back


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("where", [Topology.flat(4), Topology(2, 2), Topology(4, 2), Topology(2, 1)], ids=str)
def test_bytes_equal_a_replay_token_by_token(mode, where):
    trace = some_trace(3, k=3)
    home = sequence_homes(trace, where.devices) + 1
    home %= where.devices
    placement = BASELINES["random"](Affinity(np.ones((3, 8, 8)), where), 7)
    most = 1 if mode == "node_limited" else None
    got = traffic(
        trace, placement, home, where, mode, dispatch_bytes=7392.0, combine_bytes=14336.0, most_nodes=most
    )
    out, back = replay(trace, placement, home, where, mode, 7392.0, 14336.0, most)
    np.testing.assert_allclose(got.dispatched, out, rtol=1e-9)
    np.testing.assert_allclose(got.combined, back, rtol=1e-9)
    node = np.arange(where.devices) // where.per_node
    crossing = (out + back)[:, node[:, None] != node[None, :]].sum()
    assert got.between_nodes == pytest.approx(crossing, rel=1e-9)
    assert got.inside_nodes == pytest.approx((out + back).sum() - crossing, rel=1e-9)
    assert np.all(got.sent[:, np.arange(where.devices), np.arange(where.devices)] == 0)


def test_coherent_top1_bytes_are_the_planners_hops():
    """The planner's objective is the trace's own count of bytes."""
    trace = some_trace(5, k=1)
    for where in (Topology.flat(4), Topology(2, 2)):
        problem = Affinity(transitions(trace, top1=True), where)
        placement = BASELINES["random"](problem, 2)
        home = placement[0][trace.experts[:, 0, 0].astype(int)]  # tokens begin where their first expert is
        got = traffic(trace, placement, home, where, "context_coherent", dispatch_bytes=11.0)
        counted = hops(problem, placement)
        assert got.between_nodes == pytest.approx(11.0 * counted.node, rel=1e-9)
        assert got.inside_nodes == pytest.approx(11.0 * counted.device, rel=1e-9)
        assert got.combined.sum() == 0
        assert got.gathered == 11.0 * 3 * len(trace.experts)


def test_exflows_volumes():
    """DeepSpeed-MoE moves 2 L p, context coherence L p* + G per token and iteration (ExFlow, table I)."""
    trace = some_trace(1, tokens=400, layers=24, k=1)
    where = Topology.flat(4)
    placement = BASELINES["contiguous"](Affinity(np.ones((23, 8, 8)), where), 0)
    home = sequence_homes(trace, 4)
    back = traffic(trace, placement, home, where, "return_home")
    assert back.dispatched.sum() == back.combined.sum()
    stay = traffic(trace, placement, home, where, "context_coherent")
    crossed = float(
        (np.diff(placement[0][trace.experts[:, :, 0].astype(int)], axis=1, prepend=home[:, None]) != 0).sum()
    )
    assert stay.sent.sum() == crossed
    assert stay.gathered == 3 * 400


def test_limits_and_deduplication_only_lower_what_crosses_nodes():
    trace, where = some_trace(8, k=4, experts=16), Topology(4, 2)
    home = sequence_homes(trace, 8)
    placement = BASELINES["random"](Affinity(np.ones((3, 16, 16)), where), 0)
    flat = traffic(trace, placement, home, where, "return_home").between_nodes
    once = traffic(trace, placement, home, where, "node_deduplicated")
    assert once.between_nodes < flat
    assert once.kept == 1
    before = 0.0
    for most in (1, 2, 3, 4):
        limited = traffic(trace, placement, home, where, "node_limited", most_nodes=most)
        assert limited.between_nodes <= 2 * most * trace.layers * len(trace.experts)
        assert before < limited.kept <= 1
        before = limited.kept
    assert limited.between_nodes == once.between_nodes


def test_near_home_is_the_least_of_all_and_fewest_nodes_beats_blocks():
    trace = some_trace(2, experts=4, layers=2)
    where = Topology(2, 2)
    home = np.arange(len(trace.experts)) * 7 % 4
    got = near_home(trace, home, where)
    cost = hop_cost(where)

    def paid(placement):
        return sum(
            cost[home, placement[r][trace.experts[:, r, s].astype(int)]].sum()
            for r in range(2)
            for s in range(2)
        )

    best = min(paid(np.array(pair)) for pair in product(permutations(range(4)), repeat=2))
    assert paid(got) == pytest.approx(best)
    trace = some_trace(4, experts=16, k=4, tokens=200)
    where = Topology(4, 2)
    home = sequence_homes(trace, 8)
    blocks = BASELINES["contiguous"](Affinity(np.ones((3, 16, 16)), where), 0)
    ours = traffic(trace, fewest_nodes(trace, where), home, where, "node_deduplicated")
    assert ours.between_nodes < traffic(trace, blocks, home, where, "node_deduplicated").between_nodes


@pytest.mark.parametrize("equal", [True, False])
def test_clusters_are_the_best_of_all(equal):
    for seed in range(4):
        load = np.random.default_rng(seed).zipf(1.6, 6).clip(max=50).astype(float)
        options = [
            np.array(row)
            for row in product(range(3), repeat=6)
            if (np.all(np.bincount(row, minlength=3) == 2) if equal else len(set(row)) == 3)
        ]
        best = min(deviation(load, row, 3) for row in options)
        found = cluster_layer(load, 3, equal=equal)
        assert deviation(load, found, 3) == pytest.approx(best)
        assert any(np.array_equal(found, row) for row in options)


def paper_loads(layers=32, seed=0):
    """MoETuner's skew: 64 % of a layer's tokens on two neighbouring experts."""
    rng = np.random.default_rng(seed)
    loads = rng.dirichlet(np.full(6, 2.0), layers) * 0.36
    hot = rng.uniform(0.28, 0.36, layers)
    return np.concatenate([np.stack([hot, 0.64 - hot], axis=1), loads], axis=1) * 1000


@pytest.mark.parametrize("equal", [True, False])
def test_clusters_equal_the_integer_program_at_paper_size(equal):
    for load in paper_loads(3):
        outcome = solve(made_of.cluster_program(load, 4, equal=equal).program, Limits(30.0))
        assert outcome.sol_status == "optimal"
        assert deviation(load, cluster_layer(load, 4, equal=equal), 4) == pytest.approx(
            outcome.objective, abs=1e-6 * 1000
        )


def test_contiguous_skew_of_the_paper_is_256():
    """64 % on the first of four devices is 2.56 times the mean, and no placement goes below 4 x the largest share."""
    for load in paper_loads(4):
        assert np.bincount(np.arange(8) // 2, weights=load).max() / load.sum() * 4 == pytest.approx(2.56)
        ours = np.bincount(cluster_layer(load, 4), weights=load).max() / load.sum() * 4
        assert max(1.0, 4 * load.max() / load.sum()) <= ours + 1e-12 < 2.56


def test_swaps_stay_near_the_exact_clusters(monkeypatch):
    for seed in range(5):
        load = np.random.default_rng(seed).gamma(1.0, size=12)
        exact = deviation(load, cluster_layer(load, 4), 4)
        monkeypatch.setattr("moesim.plan.joint.clusters._EXACT_EXPERTS", 0)
        swapped = cluster_layer(load, 4)
        monkeypatch.undo()
        assert np.all(np.bincount(swapped) == 3)
        assert exact - 1e-9 <= deviation(load, swapped, 4) <= exact + 0.1 * load.sum()


def flow_of(layers, devices, seed):
    return np.random.default_rng(seed).gamma(0.5, size=(layers - 1, devices, devices)) * 100


def uneven(devices):
    where = Topology(2, devices // 2, 1.0, 9.0)
    return hop_cost(where)


@pytest.mark.parametrize("objective", ["sum", "max"])
@pytest.mark.parametrize("slowness", [1.0 - np.eye(4), uneven(4)], ids=["one bandwidth", "two nodes"])
def test_naming_is_the_best_of_all(objective, slowness):
    for seed in range(3):
        flow = flow_of(3, 4, seed)
        device = name_clusters(flow, slowness, objective)
        best = min(
            naming_cost(flow, np.array(rows), slowness, objective)
            for rows in product(permutations(range(4)), repeat=3)
        )
        assert naming_cost(flow, device, slowness, objective) == pytest.approx(best)
        assert all(sorted(row) == [0, 1, 2, 3] for row in device)


@pytest.mark.slow
def test_naming_equals_the_integer_program_at_paper_size():
    flow = flow_of(32, 4, 1)
    slowness = 1.0 - np.eye(4)
    outcome = solve(made_of.naming_program(flow, slowness).program, Limits(60.0))
    assert outcome.sol_status == "optimal"
    cost = naming_cost(flow, name_clusters(flow, slowness), slowness)
    assert cost == pytest.approx(outcome.objective, rel=1e-6)


@pytest.mark.parametrize("worst", [False, True])
def test_naming_equals_the_integer_program_on_two_nodes(worst):
    flow, slowness = flow_of(3, 4, 2), uneven(4)
    made = made_of.naming_program(flow, slowness, worst=worst, sizes=np.full((3, 4), 2))
    outcome = solve(made.program, Limits(300.0))
    objective = "max" if worst else "sum"
    cost = naming_cost(flow, name_clusters(flow, slowness, objective), slowness, objective)
    assert outcome.sol_status == "optimal"
    assert cost == pytest.approx(outcome.objective, rel=1e-6)


def test_experts_per_device_can_be_infeasible_and_says_so():
    """Eq. 13 wants 4 experts per device; one with a cluster of 4 gets at least 1 more in the other layer."""
    made = made_of.naming_program(flow_of(2, 3, 0), 1.0 - np.eye(3), sizes=np.array([[4, 1, 1], [4, 1, 1]]))
    outcome = solve(made.program, Limits(20.0))
    assert outcome.sol_status == "infeasible"
    assert any(name.startswith("experts_") for name in outcome.short)


def test_moetuner_lowers_both_load_and_traffic():
    loads = paper_loads(8)
    counts = np.stack([np.outer(a, b) / b.sum() for a, b in pairwise(loads)])
    problem = Affinity(counts, Topology.flat(4))
    ours, blocks = moetuner(counts, loads, problem.topology), BASELINES["contiguous"](problem, 0)
    assert busiest(loads, ours, 4).sum() < 0.75 * busiest(loads, blocks, 4).sum()
    clusters = np.stack([cluster_layer(load, 4) for load in loads])
    flow = cluster_flow(counts, clusters, 4)
    slowness = 1.0 - np.eye(4)
    assert hops(problem, ours).weighted == pytest.approx(
        naming_cost(flow, name_clusters(flow, slowness), slowness)
    )


def test_front_is_a_front_and_its_bound_holds():
    counts = markov(5, 8, alpha=0.2, seed=2)
    problem = Affinity(counts, Topology.flat(4))
    loads = np.concatenate([counts.sum(axis=2), counts[-1:].sum(axis=1)])
    front = pareto(problem, loads, limits=Limits(20.0))
    assert len(front) >= 3
    for a, b in pairwise(front):
        assert a.weighted_hops < b.weighted_hops
        assert a.busiest > b.busiest
    for point in front:
        assert hops(problem, point.placement).weighted == pytest.approx(point.weighted_hops)
        assert busiest(loads, point.placement, 4).sum() == pytest.approx(point.busiest)
        assert point.bound <= point.weighted_hops + point.price * point.busiest + 1e-9


def test_joint_is_near_the_best_of_all():
    from affinity_cases import layers_of

    rng = np.random.default_rng(0)
    counts, loads = rng.integers(0, 9, (2, 4, 4)).astype(float), rng.integers(1, 20, (3, 4)).astype(float)
    problem = Affinity(counts, Topology.flat(2))
    rows = layers_of(4, 2)
    for price in (0.0, 0.7, 3.0):
        best = min(
            hops(problem, np.array(p)).weighted + price * busiest(loads, np.array(p), 2).sum()
            for p in product(rows, repeat=3)
        )
        got = solve_joint(problem, loads, price)
        assert got.objective == pytest.approx(best)
        assert got.bound <= best + 1e-9


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_busiest_bound_holds(seed):
    loads = np.random.default_rng(seed).gamma(0.3, size=(3, 8))
    problem = Affinity(np.ones((2, 8, 8)), Topology.flat(4))
    assert busiest_bound(loads, 4) <= busiest(loads, BASELINES["random"](problem, seed), 4).sum() + 1e-9
    assert (
        busiest_bound(loads, 4)
        <= busiest(loads, np.stack([cluster_layer(w, 4) for w in loads]), 4).sum() + 1e-9
    )


CONSTRAINTS = {
    "clusters_least_deviation": made_of.least_deviation,
    "clusters_absolute_deviation": made_of.absolute_deviation,
    "clusters_expert_one_cluster": made_of.expert_one_cluster,
    "clusters_cluster_not_empty": made_of.cluster_not_empty,
}
NAMING = {
    "naming_least_sum": made_of.least_sum,
    "naming_least_worst_pairs": made_of.least_worst_pairs,
    "naming_worst_pair": made_of.worst_pair,
    "naming_cluster_one_device": made_of.cluster_one_device,
    "naming_device_one_cluster": made_of.device_one_cluster,
    "naming_experts_per_device": lambda m: made_of.experts_per_device(m, np.array([[1, 2], [2, 1]])),
    "naming_first_layer_pinned": made_of.first_layer_pinned,
    "naming_product_rows": made_of.product_rows,
    "naming_product_columns": made_of.product_columns,
}


@pytest.mark.parametrize("name", [*CONSTRAINTS, *NAMING])
def test_program_files(name):
    if name in CONSTRAINTS:
        made = made_of.ClusterProgram(np.array([5.0, 3.0, 1.0]), 2)
        CONSTRAINTS[name](made)
    else:
        made = made_of.NamingProgram(np.array([[[4.0, 1.0], [2.0, 3.0]]]), np.array([[0.0, 1.0], [2.0, 0.0]]))
        NAMING[name](made)
    if made.program.objective is None:
        made.program += pulp.lpSum([])
    assert same_as_stored(made.program, name)


def test_bad_input_is_refused_in_one_line():
    trace, where = some_trace(0), Topology(2, 2)
    placement = BASELINES["contiguous"](Affinity(np.ones((3, 8, 8)), where), 0)
    home = sequence_homes(trace, 4)
    with pytest.raises(SpecError, match="most_nodes None with node_limited"):
        traffic(trace, placement, home, where, "node_limited")
    with pytest.raises(SpecError, match=r"homes 0\.\.4: expected devices 0\.\.3"):
        traffic(trace, placement, np.where(home == 1, 4, home), where, "return_home")
    with pytest.raises(SpecError, match=r"expected .* and one per token"):
        traffic(trace, placement[:2], home, where, "return_home")
    with pytest.raises(NoResult, match="7 experts do not split into 4 equal clusters"):
        cluster_layer(np.ones(7), 4)
    with pytest.raises(NoResult, match="3 experts in 4 clusters: 1 short"):
        cluster_layer(np.ones(3), 4, equal=False)
    with pytest.raises(SpecError, match="at most 12 experts"):
        cluster_layer(np.ones(16), 4, equal=False)
    with pytest.raises(SpecError, match="expected at most 6"):
        name_clusters(np.ones((1, 8, 8)), hop_cost(Topology(2, 4)))
    with pytest.raises(SpecError, match="at price -1"):
        solve_joint(Affinity(np.ones((3, 8, 8)), where), np.ones((4, 8)), -1)
