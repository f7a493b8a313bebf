"""Joint, parallelism, fleet, tiering and composition from scenarios: the right problem, told whole, refused clearly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_plans_affinity import trace_file

import moesim as ms
from moesim import api
from moesim.errors import NoResult, SpecError
from moesim.spec.parameters import expert_bytes

QUICK = ["run.requests=40", "run.warmup_requests=0", "run.cooldown_requests=0"]


def planned(name: str, *sets: str, **how: Any) -> tuple[ms.Loaded, Any]:
    given = ms.load(name, sets=[*QUICK, *sets])
    return given, api.plan(given, **how)


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> tuple[ms.Loaded, Any]:
    path = trace_file(tmp_path_factory.mktemp("joint"), 150)
    text = f"plan={{problem: joint, trace: {path}, price: 2, time_limit: 4 s}}"
    return planned("plan/exflow-mixtral-4gpu", text)


def test_joint_weighs_hops_against_load(joint: tuple[ms.Loaded, Any]) -> None:
    _, found = joint
    rows = {row["placement"]: row for row in found.answer["placements"]}
    for name, row in rows.items():
        value = found.objective if name == "plan" else found.baselines[name]
        busiest = row["imbalance"] * 32 * 2 / 4  # choices of a token in all layers, over the ranks
        assert value == pytest.approx(row["hops_per_token"] + 2 * busiest, rel=1e-9)
    assert found.bound <= found.objective <= min(found.baselines.values()) * (1 + 1e-12)
    assert found.plan.objective == found.objective


def test_the_front_trades_hops_for_balance(joint: tuple[ms.Loaded, Any]) -> None:
    front = joint[1].answer["front"]
    assert front
    hops, load = ([row[key] for row in front] for key in ("hops_per_token", "imbalance"))
    assert hops == sorted(hops)
    assert load == sorted(load, reverse=True)


def test_parallelism_tells_every_option_and_simulates_finalists() -> None:
    _, found = planned(
        "plan/mixtral-parallelism", "plan.axes={tp: [1, 2, 4], pp: [1], dp: [1, 2], ep: [1], max_num_seqs: [128], "
        "max_num_batched_tokens: [2048]}", "plan.finalists=2",
    )  # fmt: skip
    options = found.answer["options"]
    assert len(options) == sum(found.answer["counts"].values()) == 6
    assert {row["status"] for row in options if row["tp"] * row["dp"] == 1} == {"does not fit"}
    assert all(row["reason"] for row in options if row["status"] != "good")
    assert found.sol_status == "optimal"
    assert found.objective == min(row["devices"] for row in options if row["status"] == "good")
    assert len(found.answer["finalists"]) == 2
    assert found.answer["launch"]["vllm"].removeprefix("2 times: ").startswith("vllm serve mixtral-8x7b")
    # the deployment is one that a scenario may state
    assert set(found.answer["deployment"]) == {"serve"}
    again = ms.load("quickstart", sets=[f"deployment={found.answer['deployment']}"])
    assert again.scenario.deployment.serve.parallelism.devices * again.scenario.deployment.serve.replicas == (  # type: ignore[union-attr]
        found.answer["devices"])  # fmt: skip
    assert found.baselines["the scenario's deployment"] == 8


def test_parallelism_names_what_is_short() -> None:
    axes = (
        "plan.axes={tp: [2], pp: [1], dp: [1], ep: [1], max_num_seqs: [128], max_num_batched_tokens: [2048]}"
    )
    with pytest.raises(NoResult, match=r"short of devices: \d+ needed for 500 request/s, 8 there"):
        planned("plan/mixtral-parallelism", axes, "plan.rate=500 request/s")


def test_fleet_serves_the_demand_at_least_cost() -> None:
    axes = "plan.axes={tp: [2, 4], pp: [1], dp: [1], ep: [1], max_num_seqs: [128], max_num_batched_tokens: [2048]}"
    given, found = planned("plan/mixtral-fleet", axes)
    rows = found.answer["fleet"]
    assert found.sol_status == "optimal"
    assert found.objective <= found.baselines["greedy cover"] * (1 + 1e-9)
    cost = sum(
        row["reserved"] * (row["usd_per_h_reserved"] or 0.0) + np.mean(row["on_demand"]) * row["usd_per_h_on_demand"]
        for row in rows
    )  # fmt: skip
    assert found.objective == pytest.approx(cost)
    section = given.scenario.plan
    for index, period in enumerate(section.periods):  # type: ignore[union-attr]
        for name, rate in period.rate.items():
            each = [row["request_per_s"][name] for row in rows for _ in range(row["serves"][name][index])]
            assert sum(each) - max(each) >= rate * (1 - 1e-9)  # one may fail
    with pytest.raises(NoResult):
        planned("plan/mixtral-fleet", axes, "plan.available={h100-sxm: 2, a100-80-sxm: 0}")
    with pytest.raises(SpecError, match="is no class, expected chat, code"):
        planned("plan/mixtral-fleet", axes, "plan.periods=[{hours: 1, rate: {talk: 1 request/s}}]")


def test_tiering_fills_the_fast_tier_with_what_is_used() -> None:
    given, found = planned("plan/deepseek-v2-lite-tiers", time_limit=5)
    card, host = found.answer["tiers"]
    assert card["tier"] == "gddr"
    assert card["experts_bf16"] + host["experts_bf16"] == 26 * 64
    size = expert_bytes(given.scenario.model, "moe", ms_precision("bf16"))
    assert card["held_bytes"] == pytest.approx(card["experts_bf16"] * size)
    assert card["held_bytes"] <= card["capacity_bytes"] < card["held_bytes"] + size
    assert card["touches_per_step"] + host["touches_per_step"] == pytest.approx(26 * 6)
    assert card["touches_per_step"] / (26 * 6) > card["experts_bf16"] / (26 * 64)
    assert np.array(found.answer["tier_of_expert"]).shape == (26, 64)
    assert found.bound <= found.objective <= min(found.baselines.values()) * (1 + 1e-9)


def ms_precision(dtype: str) -> Any:
    from moesim.spec.deployment import PrecisionChoice

    return PrecisionChoice.model_validate({"experts": dtype})


def test_tiering_without_room_says_so() -> None:
    with pytest.raises(NoResult, match=r"\bg?ddr\b"):
        planned("plan/deepseek-v2-lite-tiers", "node.host.memory.ddr.capacity=1 GB", time_limit=5)


def test_composition_packs_nodes() -> None:
    _, found = planned("plan/coe-150-experts")
    assert (found.objective, found.sol_status) == (1.0, "optimal")
    rows = found.answer["experts"]
    assert len(rows) == 150
    late = sum(row["share"] for row in rows if row["seconds"] > 0.51)
    assert late <= 0.1
    assert {row["tier"] for row in rows} == {"hbm", "ddr"}
    with pytest.raises(NoResult, match="short"):
        planned("plan/coe-150-experts", "plan.rate=50 request/s")


@pytest.mark.parametrize("name", ["plan/mixtral-parallelism", "plan/coe-150-experts"])
def test_no_placement_no_file(name: str, tmp_path: Path) -> None:
    sets = ["plan.axes={tp: [2], pp: [1], dp: [1], ep: [1], max_num_seqs: [128], max_num_batched_tokens: [2048]}",
            "plan.finalists=0"] if "parallelism" in name else []  # fmt: skip
    given, found = planned(name, *sets)
    assert api.write_placement(given, found, tmp_path / "p.yaml") is None
    with pytest.raises(NoResult, match="no placement"):
        api.export_placement(given, found, tmp_path)
    with pytest.raises(NoResult, match="nothing to simulate"):
        api.verify_plan(given, found)
    page = api.write_plan_report(given, found, tmp_path / "p.html")
    assert "NaN" not in page.read_text()[: page.read_text().index('id="plotly"')]
