"""Balance from a scenario: sections, loads, slots, moves, files, verification; and what cannot be planned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moesim as ms
from moesim import api
from moesim.errors import LawBroken, NoResult, SpecError
from moesim.plan.balance import Balance, fetched, worth
from moesim.plan.solution import Point
from moesim.spec.parameters import expert_bytes
from moesim.study.plans.answer import Planned, placement_text
from moesim.study.plans.registry import PLANNERS, planner
from moesim.study.plans.verify import verify

SETS = [
    "deployment.serve.parallelism={tp: 1, dp: 8, ep: 8}", "deployment.serve.engine.max_num_seqs=64",
    "deployment.serve.engine.max_num_batched_tokens=512", "model=deepseek-v2-lite", "cluster=dgx-h100-x1",
    "traffic={from: poisson-1k1k, arrivals: {kind: poisson, rate: 40 request/s}}",
    "run={requests: 60, warmup_requests: 0, cooldown_requests: 0}",
    "deployment.serve.replicas=1", "deployment.serve.engine.max_model_len=null", "deployment.calibration=none",
]  # fmt: skip
"""64 experts in 26 layers, top 6, on 8 ranks."""
EXPERT = 3 * 2048 * 1408 * 2.0  # DeepSeek-V2-Lite in bf16


def loaded(plan: str = "{problem: balance}", *more: str, routing: str = "deepseek-v2-lite") -> ms.Loaded:
    return ms.load("quickstart", sets=[*SETS, f"plan={plan}", f"routing={routing}", *more])


def planned(given: ms.Loaded, **how: Any) -> Planned:
    return api.plan(given, **how)


@pytest.fixture(scope="module")
def simple() -> tuple[ms.Loaded, Planned]:
    given = loaded("{problem: balance, redundant: 8}")
    return given, planned(given)


def test_the_plan_is_the_balance_problems_answer(simple: tuple[ms.Loaded, Planned]) -> None:
    given, found = simple
    assert found.plan is not None
    placement = found.plan.placement
    assert (placement.ranks, placement.slots_per_rank("moe"), placement.model) == (8, 9, "deepseek-v2-lite")
    from moesim.routing.popularity import popularity_of_layers

    share = popularity_of_layers(given.scenario.routing, 64, 6, 26)
    problem = Balance(share[None], 8, 9)
    assert found.objective == pytest.approx(worth(problem, placement.ffns["moe"].slots).mean(), rel=1e-12)
    assert found.bound <= found.objective
    assert found.objective < min(found.baselines[n] for n in ("contiguous", "EPLB pooled", "round robin"))
    assert found.plan.load is not None
    assert found.plan.load.max(axis=2).mean() == pytest.approx(found.objective)
    for name, other in found.others.items():
        assert (
            found.baselines[name]
            == other.objective
            == pytest.approx(
                worth(problem, np.broadcast_to(other.placement.ffns["moe"].slots, (26, 72))).mean()
            )
        )


def test_moved_bytes_are_the_experts_that_ranks_lack(simple: tuple[ms.Loaded, Planned]) -> None:
    given, found = simple
    assert found.plan is not None
    assert expert_bytes(given.scenario.model, "moe") == EXPERT
    slots = np.array(found.plan.placement.ffns["moe"].slots)
    present = np.tile(np.arange(72) % 64, (26, 1))
    assert found.moved_bytes == fetched(present, slots, 8, 64).sum() * EXPERT


def test_the_file_of_a_plan_is_a_placement_that_scenarios_name(
    simple: tuple[ms.Loaded, Planned], tmp_path: Path
) -> None:
    given, found = simple
    path = api.write_placement(given, found, tmp_path / "p.yaml")
    assert found.plan is not None
    again = loaded("null", f"deployment.serve.placement={path}")
    pool = again.scenario.deployment.serve
    assert pool is not None
    assert pool.placement is not None
    assert pool.placement.ffns == found.plan.placement.ffns
    record = pool.placement.plan
    assert record is not None
    assert (record.problem, record.objective, record.bound, record.baselines) == (
        "balance", found.objective, found.bound, dict(found.baselines))  # fmt: skip
    assert all(len(line) == len(line.rstrip()) for line in (tmp_path / "p.yaml").read_text().splitlines())
    # a placement in force is the present one: planning again from it moves nothing that does not pay
    after = planned(loaded("{problem: balance}", f"deployment.serve.placement={path}"))
    assert "present" in after.baselines
    assert after.objective <= found.objective * (1 + 1e-12)
    assert after.moved_bytes is not None
    assert found.moved_bytes is not None
    assert after.moved_bytes < 0.5 * found.moved_bytes


def test_equal_plans_give_equal_files(simple: tuple[ms.Loaded, Planned]) -> None:
    given, found = simple
    again = planned(given)
    assert found.plan is not None
    assert again.plan is not None
    assert placement_text(again.plan.placement) == placement_text(found.plan.placement)


def test_verification_counts_as_the_planner_does(simple: tuple[ms.Loaded, Planned]) -> None:
    given, found = simple
    told = verify(given.scenario, found)
    assert told["counts_agree"] is True
    assert set(told["runs"]) == {"plan", *found.others}
    for name, run in told["runs"].items():
        want = found.objective if name == "plan" else found.baselines[name]
        assert run["imbalance"] == pytest.approx(want, rel=1e-9)
    assert told["speedup"]["contiguous"] > 0
    assert told["runs"]["plan"]["step_s"] < told["runs"]["contiguous"]["step_s"]


def test_a_wrong_count_breaks_the_law(simple: tuple[ms.Loaded, Planned]) -> None:
    from dataclasses import replace

    given, found = simple
    assert found.plan is not None
    wrong = replace(found, plan=replace(found.plan, objective=found.objective * (1 + 1e-6)), others={})
    with pytest.raises(LawBroken, match="the simulator counts"):
        verify(given.scenario, wrong)


def test_other_loads_than_the_scenarios_are_not_held_against_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    (tmp_path / "l.json").write_text(json.dumps({"logical_count": rng.integers(1, 99, (26, 64)).tolist()}))
    given = loaded(f"{{problem: balance, loads: [{{path: {tmp_path / 'l.json'}, name: Monday}}]}}")
    found = planned(given, time_limit=2)
    assert found.scenarios == ("Monday",)
    assert verify(given.scenario, found)["counts_agree"] is None


def test_several_recordings_are_scenarios(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    tables = rng.gamma(1.0, 50.0, (2, 26, 64)).round() + 1
    for index, table in enumerate(tables):
        whole = np.concatenate([np.zeros((1, 64)), table])  # SGLang counts the dense layer too
        (tmp_path / f"{index}.json").write_text(json.dumps({"logical_count": whole.tolist()}))
    files = f"loads: [{{path: {tmp_path}/0.json}}, {{path: {tmp_path}/1.json, weight: 3}}]"
    worst = planned(loaded(f"{{problem: balance, {files}}}"), time_limit=3)
    problem = Balance(tables, 8, 8)
    assert worst.plan is not None
    slots = worst.plan.placement.ffns["moe"].slots
    assert worst.objective == pytest.approx(worth(problem, slots).mean(), rel=1e-12)
    assert worst.scenarios == ("0", "1")
    mixed = planned(loaded(f"{{problem: balance, count: mix, {files}}}"), time_limit=3)
    assert mixed.plan is not None
    weighted = Balance(tables, 8, 8, np.array([0.25, 0.75]))
    slots = mixed.plan.placement.ffns["moe"].slots
    assert mixed.objective == pytest.approx(worth(weighted, slots).mean(), rel=1e-12)


def test_groups_of_a_trace_are_scenarios(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    chosen = np.argsort(rng.random((400, 26, 64)) * (1 + np.arange(64) % 7), axis=2)[:, :, :6]
    np.savez(tmp_path / "t.npz", experts=chosen, sequence_offset=np.arange(0, 400, 20),
             sequence_length=np.full(20, 20), sequence_group=np.array(["law", "code"] * 10))  # fmt: skip
    found = planned(
        loaded(f"{{problem: balance, by_group: true, loads: [{{path: {tmp_path / 't.npz'}}}]}}"),
        time_limit=3,
    )
    assert found.scenarios == ("code", "law")
    assert found.plan is not None
    assert found.plan.load is not None
    assert found.plan.load.shape == (2, 26, 8)


def test_moves_are_limited() -> None:
    free = planned(loaded("{problem: balance}"))
    tight = planned(loaded(f"{{problem: balance, max_moved: {200 * EXPERT:.0f} B}}"))
    assert tight.plan is not None
    assert free.moved_bytes is not None
    slots = np.array(tight.plan.placement.ffns["moe"].slots)
    need = fetched(np.tile(np.arange(64), (26, 1)), slots, 8, 64)
    assert 0 < need.sum() <= 200
    assert tight.moved_bytes == need.sum() * EXPERT < free.moved_bytes
    assert free.objective < tight.objective < tight.baselines["contiguous"]
    assert tight.sol_status == "feasible"
    told = tight.answer["migration"]
    assert told["busiest_device_bytes"] == need.sum(axis=0).max() * EXPERT
    assert told["seconds"] == pytest.approx(told["busiest_device_bytes"] / told["bandwidth_bytes_per_s"])
    assert 0 < told["break_even_s"] < 60


def test_other_slots_than_now_may_need_more_moves_than_allowed(tmp_path: Path) -> None:
    row = " ".join(map(str, range(64)))
    (tmp_path / "p.yaml").write_text(
        f"kind: placement\nname: p\nranks: 8\nffns: {{moe: {{experts: 64, slots: [{row}]}}}}\n"
    )
    given = loaded(
        "{problem: balance, redundant: 8, max_moved: 1 MB}",
        f"deployment.serve.placement={tmp_path / 'p.yaml'}",
    )
    with pytest.raises(NoResult, match=r"max_moved: another number of slots than now moves .*GB, .*GB more"):
        planned(given, time_limit=1)


def test_the_fewest_slots_for_a_wanted_balance() -> None:
    found = planned(loaded("{problem: balance, wanted: 1.02}"), time_limit=20)
    assert found.plan is not None
    assert found.plan.objective <= 1.02
    assert found.objective == found.plan.placement.slots_per_rank("moe") * 8 - 64
    assert "redundant slots per layer for at most 1.02" in found.measure
    assert all(value >= found.objective for value in found.baselines.values())
    assert found.others["EPLB pooled"].placement.slots_per_rank("moe") == found.plan.placement.slots_per_rank(
        "moe"
    )
    with pytest.raises(SpecError, match="expected no redundant"):
        loaded("{problem: balance, wanted: 1.02, redundant: 8}")


def test_progress_falls_and_bounds_hold() -> None:
    points: list[Point] = []
    found = planned(loaded(), on_progress=points.append)
    assert points
    assert [p.seconds for p in points] == sorted(p.seconds for p in points)
    assert all(p.bound <= found.objective * (1 + 1e-9) for p in points)
    assert points[-1].objective >= found.objective * (1 - 1e-12)


@pytest.mark.parametrize(
    ("plan", "more", "error", "message"),
    [
        ("{problem: balance, redundant: 3}", (), SpecError, "expected a multiple: 0 or 8"),
        ("{problem: balance, pool: decode}", (), SpecError, "expected one of the pools: serve"),
        ("{problem: balance}", ("deployment.serve.parallelism.ep=1",), SpecError, "ep 1"),
        ("{problem: balance, redundant: 4096}", (), NoResult, "memory: with 520 of moe expert slots per rank"),
        ("{problem: balance, by_group: true}", (), SpecError, "expected a recorded trace"),
        ("null", (), SpecError, "expected a plan section, or --problem"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_says_why(plan: str, more: tuple[str, ...], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        planned(loaded(plan, *more))


def test_a_dense_model_has_nothing_to_place() -> None:
    with pytest.raises(SpecError, match="no routed experts"):
        api.plan(ms.load("bench/azure-100k"), api.plan_section(ms.load("bench/azure-100k"), "balance"))


def test_a_problem_may_be_named() -> None:
    given = loaded("{problem: balance, redundant: 8}")
    assert api.plan_section(given, "balance").redundant == 8  # type: ignore[union-attr]
    assert api.plan_section(loaded("null"), "balance").redundant is None  # type: ignore[union-attr]
    with pytest.raises(SpecError, match="did you mean 'balance'"):
        api.plan_section(given, "balanse")


@pytest.mark.parametrize("problem", sorted(PLANNERS))
def test_every_entry_of_the_registry_exists(problem: str) -> None:
    assert callable(planner(problem))
