"""Tiering: equal to brute force, certified at size, replayed load by load, and clear about what is short."""

import itertools
import math
import time

import numpy as np
import pytest
from plan_lp import same_as_stored

from moesim.errors import NoResult, SpecError
from moesim.plan.solution import Limits
from moesim.plan.tiering import (
    Tier,
    Tiering,
    TieringProblem,
    baselines,
    count_accesses,
    edgemoe,
    replay_seconds,
    solve_tiering,
    tier_of,
)
from moesim.plan.tiering.access import steps_of
from moesim.plan.tiering.choice import Choices
from moesim.plan.tiering.dual import price_limits
from moesim.plan.tiering.program import TieringProgram, least_seconds, one_choice, within_limit
from moesim.routing.trace import RoutingTrace
from moesim.spec.topology import resolve_cluster


def problem(seed=0, experts=5, tiers=3, bits=(2, 4), *, equal=False, slack=1.0, budget=0.5):
    rng = np.random.default_rng(seed)
    size4 = np.full(experts, 4e6) if equal else rng.integers(1, 9, experts) * 1e6
    size = size4[:, None] * np.array(bits) / 4
    loss = rng.random((experts, 1)) * np.array([1.0 / b for b in bits])
    room = slack * size.sum(axis=0).mean()
    every = (
        Tier("sram", 0.2 * room, 1e12),
        Tier("hbm", 0.4 * room, 1e11, 1e-6),
        Tier("ddr", 0.6 * room, 2e10, 2e-6, staged=True),
    )[:tiers]
    return TieringProblem(
        every, tuple(bits), rng.random(experts), rng.random(experts) / 2, size, loss,
        budget * float(loss.max(axis=1).sum()), (2e-6,) + (0.0,) * (len(bits) - 1),
    )  # fmt: skip


def brute(p):
    best = math.inf
    for pick in itertools.product(
        itertools.product(range(len(p.tiers)), range(len(p.bits))), repeat=p.experts
    ):
        tier, width = (np.array(axis) for axis in zip(*pick, strict=True))
        answer = Tiering(tier, width)
        if not p.broken(answer):
            best = min(best, p.objective(answer))
    return best


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_equals_brute_force(seed, equal):
    p = problem(seed, experts=4, equal=equal, slack=0.9 + 0.05 * seed, budget=0.5 + 0.04 * seed)
    want = brute(p)
    if math.isinf(want):
        with pytest.raises(NoResult, match=r"short of|fits no tier"):
            solve_tiering(p)
        return
    found = solve_tiering(p)
    assert found.sol_status == "optimal"
    assert found.objective == pytest.approx(want, rel=1e-9)
    assert found.objective == p.objective(found.answer)
    assert not p.broken(found.answer)
    assert price_limits(Choices.of(p)).bound <= want * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_three_bitwidths_two_tiers_equal_brute_force(seed):
    p = problem(seed + 50, experts=5, tiers=2, bits=(2, 4, 8), slack=1.6, budget=0.6)
    want = brute(p)
    if math.isinf(want):
        pytest.skip("nothing fits")
    assert solve_tiering(p).objective == pytest.approx(want, rel=1e-9)


def test_never_worse_than_the_baselines_and_certified_at_size():
    rng = np.random.default_rng(3)
    experts = 16 * 256
    size = np.full((experts, 1), 44e6) * np.array([0.25, 0.5, 1.0])
    importance = rng.gamma(0.5, 1e-5, experts)
    p = TieringProblem(
        (Tier("hbm", 55e9, 4.8e12), Tier("ddr", 83e9, 50e9, 1e-5, staged=True),
         Tier("nvme", 3e12, 7e9, 1e-4, staged=True)),
        (2, 4, 8), rng.zipf(1.6, experts).clip(1, 400) / 400, rng.random(experts) * 0.4, size,
        importance[:, None] * np.array([1.0, 0.2, 0.0]), 0.3 * float(importance.sum()),
    )  # fmt: skip
    began = time.perf_counter()
    found = solve_tiering(p, Limits(seconds=20, gap=1e-4))
    assert time.perf_counter() - began < 60
    assert found.gap <= 1e-3
    assert not p.broken(found.answer)
    for answer in baselines(p).values():
        assert found.objective <= p.objective(answer) * (1 + 1e-12)


def test_edgemoe_lowers_the_least_important_up_to_the_budget():
    loss = np.array([[0.5, 0.1], [0.2, 0.1], [0.4, 0.1], [0.3, 0.1]])
    p = TieringProblem(
        (Tier("ram", math.inf, 1e10),),
        (2, 4),
        np.ones(4),
        np.zeros(4),
        np.tile([2.0, 4.0], (4, 1)),
        loss,
        0.95,
    )
    # 0.4 at 4 bits; sorted by loss at 2 bits: 1 (+0.1), 3 (+0.2), 2 (+0.3 = 1.0 > 0.95)
    assert edgemoe(p).width.tolist() == [1, 0, 1, 0]
    best = solve_tiering(p)
    assert p.lost(best.answer) <= 0.95
    assert best.objective <= p.objective(edgemoe(p))


def test_edgemoe_is_beaten_where_importance_and_popularity_disagree():
    """EdgeMoE lowers by loss alone; the best decision trades loss for the time of popular experts."""
    touches = np.array([0.01, 0.01, 1.0, 1.0])
    loss = np.array([[0.1, 0.0], [0.1, 0.0], [0.11, 0.0], [0.11, 0.0]])
    tiers = (Tier("ram", 0.0, 1e12), Tier("ssd", math.inf, 2e8, staged=True))
    p = TieringProblem(tiers, (2, 4), touches, np.zeros(4), np.tile([2e6, 4e6], (4, 1)), loss, 0.22)
    best = solve_tiering(p)
    assert best.answer.width.tolist() == [1, 1, 0, 0]
    assert edgemoe(p).width.tolist() == [0, 0, 1, 1]
    assert best.objective < 0.6 * p.objective(edgemoe(p))


def test_forbidden_bitwidths_and_tiers_that_are_too_small_are_never_taken():
    """Expert 0 must not be narrowed and does not fit the fast tier at 8 bits, however popular it is."""
    loss = np.array([[math.inf, 0.0], [0.0, 0.0]])
    tiers = (Tier("sram", 1.5e6, 1e12), Tier("hbm", 1e9, 1e11))
    p = TieringProblem(tiers, (4, 8), np.array([1.0, 0.1]), np.zeros(2), np.tile([1e6, 2e6], (2, 1)), loss)
    found = solve_tiering(p)
    assert (found.answer.tier.tolist(), found.answer.width.tolist()) == ([1, 0], [1, 0])


def recorded(tokens=60, layers=3, total=8, k=2, seed=0):
    rng = np.random.default_rng(seed)
    experts = np.argsort(rng.random((tokens, layers, total)) * np.linspace(1, 3, total), axis=2)[:, :, :k]
    return RoutingTrace(
        experts.astype(np.int16), np.full(experts.shape, 0.5, np.float32),
        np.array([0, 30]), np.array([30, tokens - 30]), np.array(["a", "b"]), total,
    )  # fmt: skip


@pytest.mark.parametrize("batch", [1, 4])
def test_objective_is_the_replay_of_the_trace(batch):
    trace = recorded()
    seen = count_accesses(trace, batch)
    assert seen.steps == 60 // batch
    count = 24
    p = TieringProblem(
        (Tier("hbm", 12e6, 1e11, 1e-7), Tier("ssd", 1e9, 5e8, 1e-4, staged=True)), (4, 8), seen.touches, seen.reuse,
        np.tile([1e6, 2e6], (count, 1)), np.tile([0.01, 0.0], (count, 1)), 0.1, (1e-3, 0.0),
    )  # fmt: skip
    found = solve_tiering(p)
    assert found.sol_status == "optimal"
    replayed = replay_seconds(p, found.answer, steps_of(trace, batch))
    assert replayed.mean() == pytest.approx(found.objective, rel=1e-9)
    assert replayed.max() > replayed.min()


def test_short_answers_name_the_limit_and_the_amount():
    def of(capacity, budget):
        return TieringProblem(
            (Tier("hbm", capacity, 1e11), Tier("ddr", 4e6, 1e10, staged=True)), (4, 8), np.ones(10), np.zeros(10),
            np.tile([1e6, 2e6], (10, 1)), np.tile([0.1, 0.0], (10, 1)), budget,
        )  # fmt: skip

    assert solve_tiering(of(6e6, 1.0)).sol_status == "optimal"
    with pytest.raises(NoResult, match=r"short of: hbm 2 MB|short of: ddr 2 MB"):
        solve_tiering(of(4e6, 1.0))
    with pytest.raises(NoResult, match=r"loss|hbm|ddr"):
        solve_tiering(of(6e6, 0.5))
    with pytest.raises(NoResult, match=r"expert 0 .* fits no tier"):
        solve_tiering(problem_too_big())


def problem_too_big():
    return TieringProblem(
        (Tier("hbm", 1e6, 1e9),), (8,), np.ones(1), np.zeros(1), np.array([[2e6]]), np.zeros((1, 1))
    )


def test_wrong_input_is_refused():
    good = problem()
    with pytest.raises(SpecError, match="staged"):
        TieringProblem(good.tiers[::-1], good.bits, good.touches, good.reuse, good.size, good.loss)
    with pytest.raises(SpecError, match="reuse"):
        TieringProblem(good.tiers, good.bits, good.touches, good.reuse + 1, good.size, good.loss)
    with pytest.raises(SpecError, match="shape"):
        TieringProblem(good.tiers, good.bits, good.touches, good.reuse, good.size[:2], good.loss)


def test_tiers_come_from_the_hardware_files():
    rdu, gpu = resolve_cluster("sn40l-8"), resolve_cluster("dgx-h100")
    assert [tier_of(rdu, name).staged for name in ("sram", "hbm", "ddr")] == [False, False, True]
    host = tier_of(gpu, "ddr")
    assert host.staged
    assert host.capacity == pytest.approx(2 * 2**40 / 8)
    assert host.bandwidth == pytest.approx(64e9)
    with pytest.raises(SpecError, match="no memory tier 'dd'"):
        tier_of(gpu, "dd")


def small():
    return Choices.of(problem(experts=2, tiers=2))


@pytest.mark.parametrize("name", ["one_choice", "tier", "loss", "objective"])
def test_each_constraint_is_as_stored(name):
    choices = small()
    made = TieringProgram(choices, np.isfinite(choices.cost))
    if name == "objective":
        least_seconds(made)
    elif name == "one_choice":
        one_choice(made)
    else:
        within_limit(made, choices.names.index("loss" if name == "loss" else "hbm"))
    assert same_as_stored(made.program, f"tiering_{name}")
