"""The plan page: whole, safe, offline, true to the decision, with and without a placement."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_report_page import Page

import moesim as ms
from moesim import api
from moesim.plan.solution import Point
from moesim.report import plan_report, render_plan
from moesim.report.plan_figures import plan_figures, rank_table
from moesim.spec.scenario import ScenarioSpec
from moesim.study.plans.answer import Placed, Planned, placement_of

LAYERS, RANKS, SLOTS = 26, 8, 72


@pytest.fixture(scope="module")
def scenario() -> ScenarioSpec:
    return ms.load(
        "quickstart",
        sets=["model=deepseek-v2-lite", "routing=null", "deployment.serve.replicas=1", "cluster=dgx-h100-x1",
              "deployment.serve.parallelism={tp: 1, dp: 8, ep: 8}", "title=Experts on eight GPUs",
              "plan={problem: balance, redundant: 8}"],
    ).scenario  # fmt: skip


def placed(scenario: ScenarioSpec, name: str, seed: int, traffic: bool = False) -> Placed:
    rng = np.random.default_rng(seed)
    rows = np.array(
        [rng.permutation(np.concatenate([np.arange(64), np.arange(8)])) for _ in range(LAYERS)]
        if seed
        else [np.arange(SLOTS) % 64] * LAYERS
    )
    load = rng.gamma(50.0, 1.0, (2, LAYERS, RANKS))
    load /= load.mean(axis=2, keepdims=True)
    flow = rng.random((RANKS, RANKS)) * 100 if traffic else None
    return Placed(
        placement_of(scenario, RANKS, list(rows), name), float(load.max(axis=(0, 2)).mean()), load, flow
    )


@pytest.fixture(scope="module")
def planned(scenario: ScenarioSpec) -> Planned:
    one = placed(scenario, "plan", 3, traffic=True)
    others = {
        "contiguous": placed(scenario, "contiguous", 0, traffic=True),
        "EPLB pooled": placed(scenario, "EPLB", 2),
    }
    course = {"steps": 50, "policies": {
        name: {"imbalance": 1.2, "charged": 1.25, "worst_step": 2.0, "rebalancings": 4, "moved_bytes": 1e9,
               "worst_device_bytes": 2e8, "migration_s": 0.5, "course": [1.1, 1.3, 1.2]}
        for name in ("static", "planned")}}  # fmt: skip
    return Planned(
        problem="balance", measure="busiest rank over mean rank", objective=one.objective,
        bound=one.objective * 0.99, method="annealing", sol_status="feasible", seconds=1.5,
        history=(Point(0.1, 1.4, 1.0), Point(0.5, one.objective, one.objective * 0.99)),
        baselines={name: other.objective for name, other in others.items()}, pool="serve", plan=one,
        others=others, moved_bytes=3.5e9, answer={"online": course}, scenarios=("code", "law"),
        notes=("All copies are equal.",),
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(scenario: ScenarioSpec, planned: Planned) -> Page:
    return Page(render_plan(scenario, planned))


def test_sections_in_order_decision_first(page: Page) -> None:
    assert [a["id"] for tag, a in page.elements if tag == "section"] == [
        "verdict", "what-was-asked", "baselines", "load", "placement", "traffic", "online", "verification",
        "assumptions", "reproduce",
    ]  # fmt: skip
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))


def test_nothing_is_loaded_from_anywhere(page: Page) -> None:
    assert not [t for t, _ in page.elements if t in {"link", "img", "iframe", "object", "embed", "base"}]
    assert not [a for _, a in page.elements if {"src", "srcset", "data", "action", "background"} & set(a)]
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
    (policy,) = (a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_every_figure_has_its_place_and_plotly_knows_it(
    page: Page, scenario: ScenarioSpec, planned: Planned
) -> None:
    import plotly.graph_objects as go

    figures = json.loads(page.scripts["figures"])
    places = [a["data-figure"] for _, a in page.elements if "data-figure" in a]
    assert sorted(places) == sorted(figures)
    assert set(figures) == {
        "convergence", "by-layer", "by-rank", "load-before", "load-after", "placement-before", "placement-after",
        "traffic-before", "traffic-after", "online",
    }  # fmt: skip
    for figure in figures.values():
        go.Figure(figure)  # raises on an unknown key or a value of the wrong kind


def test_the_numbers_are_the_plans(page: Page, scenario: ScenarioSpec, planned: Planned) -> None:
    assert planned.plan is not None
    assert planned.plan.load is not None
    drawn = {key: figure for key, (_, figure) in plan_figures(planned, scenario.model).items()}
    assert drawn["load-after"]["data"][0]["z"] == planned.plan.load.max(axis=0).tolist()
    assert drawn["traffic-after"]["data"][0]["z"] == planned.plan.traffic.tolist()  # type: ignore[union-attr]
    plan = drawn["by-layer"]["data"][-1]
    assert plan["name"] == "plan"
    assert np.mean(plan["y"]) == pytest.approx(planned.objective)
    lines = {trace["name"]: trace["y"] for trace in drawn["convergence"]["data"]}
    assert lines == {"best found": [1.4, planned.objective], "proven bound": [1.0, planned.bound]}
    assert f"{planned.objective:.6g}" in page.words
    told = json.loads(page.scripts["summary"])
    assert told == json.loads(json.dumps(api.plan_summary(planned)))


def test_the_rank_of_the_first_copy_is_drawn(scenario: ScenarioSpec, planned: Planned) -> None:
    assert planned.plan is not None
    table = rank_table(planned.plan.placement, scenario.model)
    assert table.shape == (26, 64)
    for layer in (0, 25):
        row = planned.plan.placement.ffns["moe"].slots[layer]
        assert table[layer].tolist() == [row.index(e) // 9 for e in range(64)]


@pytest.mark.parametrize(
    "evil", ["<script>alert(1)</script>", "</script><b>x", '"><img src=x onerror=alert(1)>', "<!--"]
)
def test_user_text_stays_text(scenario: ScenarioSpec, planned: Planned, page: Page, evil: str) -> None:
    hostile = replace(
        planned, method=evil, scenarios=(evil, evil + "2"), notes=(evil,), measure=evil,
        baselines={evil: 2.0}, others={evil: planned.others["contiguous"]},
        answer={"question": evil, "menu": [{evil: evil}], "online": {"steps": 3, "policies": {
            evil: planned.answer["online"]["policies"]["static"]}}},
    )  # fmt: skip
    named = scenario.model_copy(update={"name": evil, "title": evil, "question": evil, "description": evil})
    shown = Page(
        render_plan(named, hostile, {"runs": {evil: RUN}, "speedup": {evil: 0.1}, "counts_agree": True})
    )
    kinds = lambda p: {t for t, _ in p.elements}  # noqa: E731
    assert kinds(shown) <= kinds(page) | {"ul", "li"}
    assert sum(t == "script" for t, _ in shown.elements) == sum(t == "script" for t, _ in page.elements)
    assert re.sub(r"\s+", " ", evil) in shown.words
    json.loads(shown.scripts["figures"])


RUN: dict[str, Any] = {"imbalance": 1.1, "objective": 1.1, "step_s": 0.01, "ttft_s": 0.1, "tpot_s": 0.02,
                       "output_tokens_per_s": 1000.0, "output_tokens_per_s_per_device": 125.0}  # fmt: skip


def test_verification_is_shown(scenario: ScenarioSpec, planned: Planned) -> None:
    told = {"runs": {"plan": RUN, "contiguous": {**RUN, "output_tokens_per_s": 800.0}},
            "speedup": {"contiguous": 0.25}, "counts_agree": True}  # fmt: skip
    shown = Page(render_plan(scenario, planned, told)).words
    assert "+25.00 %" in shown
    assert "equals the simulator's own count" in shown
    assert (
        "equals the simulator's own count"
        not in Page(render_plan(scenario, planned, {**told, "counts_agree": None})).words
    )


def test_a_decision_that_is_no_placement(scenario: ScenarioSpec, tmp_path: Any) -> None:
    table = [{"device": "h100", "count": 3, "usd_per_h": 2.5, "fits": True, "why": None, "cut": {"tp": 2}}]
    bare = Planned(
        problem="fleet", measure="USD per hour", objective=7.5, bound=7.5, method="program", sol_status="optimal",
        seconds=0.2, answer={"winner": "h100", "menu": table},
    )  # fmt: skip
    path = plan_report(scenario, bare, tmp_path / "f.html")
    shown = Page(path.read_text())
    ids = [a["id"] for tag, a in shown.elements if tag == "section"]
    assert "table-1" in ids
    assert not {"load", "placement", "traffic", "online"} & set(ids)
    assert "proven, no decision is better" in shown.words
    for word in ("Menu", "h100", "2.5", "yes", "tp 2", "usd per h"):
        assert word in shown.words, word


def test_unbounded_and_endless_numbers_are_no_nan(scenario: ScenarioSpec) -> None:
    open_ = Planned("fleet", "USD", 7.5, -np.inf, "luck", "feasible", 0.2, (Point(0.0, np.inf, -np.inf),) * 2)
    shown = Page(render_plan(scenario, open_))
    assert not re.search(r"\b(nan|NaN|inf|Infinity|None|undefined)\b", shown.words)
    for name in ("summary", "figures"):
        json.loads(shown.scripts[name], parse_constant=pytest.fail)
