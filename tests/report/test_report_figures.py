"""Figures' numbers against brute force; drawings against plotly's own schema; words against closed cases."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.report import draw, figures, words
from moesim.results.latency import ttft_s


@given(st.lists(st.floats(0, 100) | st.just(float("nan")), max_size=60), st.integers(2, 30))
def test_cdf_against_counting(values, points):
    data = figures.cdf(np.array(values, np.float64), points)
    known = [v for v in values if not math.isnan(v)]
    assert len(data["value"]) <= points
    if not known:
        assert data == {"value": [], "share": []}
        return
    assert data["value"][0] == min(known)
    assert (data["value"][-1], data["share"][-1]) == (max(known), 1.0)
    assert (np.diff(data["share"]) > 0).all()
    for value, share in zip(data["value"], data["share"], strict=True):
        below, at_most = np.mean(np.array(known) < value), np.mean(np.array(known) <= value)
        assert below < share <= at_most + 1e-12


def test_cdf_of_many_values_keeps_a_thousand_points():
    data = figures.cdf(np.random.default_rng(0).exponential(1, 200_000))
    assert len(data["value"]) == 1000
    assert np.allclose(data["share"], 1 - np.exp(-np.array(data["value"])), atol=0.01)


def test_latency_cdfs_carry_targets_and_only_measured(run):
    ttft, tpot, e2e = figures.latency_cdfs(run)
    measured = run.tables.requests[run.tables.requests["measured"]]
    assert ttft["requests"] == ttft_s(measured)[~np.isnan(ttft_s(measured))].size
    assert (ttft["limit_s"], tpot["limit_s"], e2e["limit_s"], e2e["percentile"]) == (0.2, 0.02, None, None)


def test_presence_against_counting(cut_run):
    data = figures.presence(cut_run, 37)
    requests = cut_run.tables.requests
    kept = requests[requests["status"] != "rejected"]
    for i, time in enumerate(data["time_s"]):
        waits = decodes = prefills = 0
        for row in kept.itertuples():
            if row.arrival_s <= time and not row.scheduled_s <= time:
                waits += 1
            elif row.scheduled_s <= time and not row.first_token_s <= time:
                prefills += 1
            elif row.first_token_s <= time and not row.finish_s <= time:
                decodes += 1
        assert (data["waiting"][i], data["prefill"][i], data["decode"][i]) == (waits, prefills, decodes)


def test_samples_are_means_and_gaps_are_gaps(run):
    timeline = run.tables.timeline.head(3).assign(
        time_s=[1.0, 1.2, 25.0], running=[2, 4, 9], waiting=[0, 1, 5], kv_used=[0.1, 0.3, 0.5]
    )
    (pool,) = figures.samples(replace(run, tables=replace(run.tables, timeline=timeline)), bins=10)
    assert pool["running"][0] == 3.0
    assert pool["kv_used"][0] == pytest.approx(0.2)
    assert pool["running"][1:9] == [None] * 8
    assert pool["running"][9] == 9.0


def test_time_by_adds_up_and_sorts(run):
    for column in ("kind", "op"):
        data = figures.time_by(run, column)
        seconds = [row["seconds"] for row in data]
        assert sum(seconds) == pytest.approx(run.tables.ops["seconds"].sum())
        assert seconds == sorted(seconds, reverse=True)
        assert sum(row["share"] for row in data) == pytest.approx(1)
        assert all(sum(row[s] for s in figures.SOURCES) == pytest.approx(row["seconds"]) for row in data)


def test_many_ops_leave_one_row_of_others(run):
    ops = pd.DataFrame(
        {
            "pool": ["prefill", "decode"] * 20,
            "op": [f"op{i}" for i in range(40)],
            "phase": "lane",
            "kind": "gemm",
            "source": "bound",
            "seconds": np.arange(40.0),
        }
    )
    data = figures.time_by(replace(run, tables=replace(run.tables, ops=ops)), "op", most=5)
    assert [r["name"] for r in data] == [
        "decode: op39",
        "prefill: op38",
        "decode: op37",
        "prefill: op36",
        "(36 others)",
    ]
    assert sum(r["seconds"] for r in data) == 780.0


def test_expert_load_is_relative_to_an_even_share(run):
    experts = pd.DataFrame(
        {
            "layer": [3, 3, 3, 5, 5, 5, 5],
            "expert": [0, 1, 1, 0, 1, 0, 1],
            "rank": [0, 0, 1, 0, 1, 1, 0],
            "load": [0.6, 0.3, 0.1, 0.25, 0.25, 0.25, 0.25],
        }
    )
    data = figures.expert_load(replace(run, tables=replace(run.tables, experts=experts)))
    assert data["layers"] == [3, 5]
    assert np.allclose(data["relative"], [[1.2, 0.8], [1.0, 1.0]])
    assert data["rank_peak"] == pytest.approx([1.8, 1.0])


def test_many_experts_share_columns_without_losing_load(run, monkeypatch):
    monkeypatch.setattr(figures, "_MOST_CELLS", 60)
    data = figures.expert_load(run)  # 6 layers of 32 experts
    assert data["group"] == 4
    assert data["experts"] == list(range(0, 32, 4))
    assert np.allclose(np.mean(data["relative"], axis=1), 1.0)


def test_drawings_pass_plotlys_schema(run, cut_run):
    for result in (run, cut_run):
        drawn = [draw.draw_cdf(d) for d in figures.latency_cdfs(result)]
        drawn += [draw.draw_presence(figures.presence(result)), draw.draw_samples(figures.samples(result))]
        drawn += [
            draw.draw_time(figures.time_by(result, "op")),
            draw.draw_experts(figures.expert_load(result)),
        ]
        for figure in drawn:
            go.Figure(figure)  # raises on an unknown or wrong property
            assert figure["data"]


def test_the_cdf_drawn_is_the_cdf(run):
    data = figures.latency_cdfs(run)[0]
    drawn = draw.draw_cdf(data)
    assert drawn["data"][0]["x"] == [1e3 * v for v in data["value"]]  # short latencies are in ms
    assert drawn["layout"]["xaxis"]["title"]["text"] == "TTFT (ms)"
    assert drawn["data"][1]["x"] == [200.0]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "s", "not known"),
        (float("nan"), "J", "not known"),
        (0.0, "s", "0 s"),
        (1.5, "s", "1.5 s"),
        (0.00123, "s", "1.23 ms"),
        (126e3, "J", "126 kJ"),
        (0.5, "%", "50 %"),
        (1234567, "", "1,234,567"),
        (6350.73, "token/s", "6351 token/s"),
        (12345.6, "token/s", "12,346 token/s"),
        (0.1423, "USD", "0.1423 USD"),
    ],
)
def test_quantity(value, unit, text):
    assert words.quantity(value, unit) == text


def with_scenario(result, **changes):
    return replace(
        result, manifest={**result.manifest, "scenario": {**result.manifest["scenario"], **changes}}
    )


def test_verdict_sentences(run):
    def said(targets):
        return words.verdict_sentence(with_scenario(run, targets=targets))

    assert said({})[0] == "none"
    assert said({"ttft": "200 ms"}) == (
        "met",
        "The target is met: TTFT p95 is 24.56 ms, within the limit of 200 ms.",
    )
    state, text = said({"ttft": "1 ms", "e2e": "100 s", "percentile": 50})
    assert state == "missed"
    assert text.startswith("1 of 2 targets is missed: TTFT p50 is")
    assert "over the limit of 1 ms" in text
    requests = run.tables.requests.head(0)
    empty = replace(
        with_scenario(run, targets={"ttft": "1 s"}), tables=replace(run.tables, requests=requests)
    )
    assert words.verdict_sentence(empty)[0] == "unknown"


def test_scenario_rows_know_their_origin(run):
    rows, left = words.scenario_rows(run)
    found = {key: (value, origin) for key, value, origin in rows}
    assert left == 0
    assert found["targets.ttft"] == ("200 ms", "synthetic.yaml:12")
    assert found["model.hidden"] == ("2048", "catalog")  # the mapping around it
    assert found["targets.tpot"][1] == "default"
    assert found["device.sources.0.cite"][0] == "A datasheet, 2024"


def test_huge_scenarios_are_cut_and_say_so(run):
    rows, left = words.scenario_rows(
        with_scenario(run, traffic={"trace": [{"t": i} for i in range(5000)], "x": "y" * 999})
    )
    assert len(rows) == 3000
    assert left > 2000
    assert max(len(value) for _, value, _ in rows) <= 300


def test_command(run):
    assert words.command(run) == ("moesim run synthetic --set run.seed=7", False)
    assert (
        words.command(with_scenario(run, name="chat+fast"))[0]
        == "moesim run chat --variant fast --set run.seed=7"
    )
    told = replace(run, manifest={**run.manifest, "command": ["moesim", "run", "a b", "--json"]})
    assert words.command(told) == ("moesim run 'a b' --json", True)


def test_only_web_addresses_become_links(run):
    sources = [{"cite": "a", "url": "javascript:alert(1)"}, {"cite": "b", "url": "https://example.org"}]
    found = words.cited_sources(with_scenario(run, device={"sources": sources}, model={}))
    assert [(s["part"], s["url"]) for s in found] == [("device", ""), ("device", "https://example.org")]


def test_long_lists_are_counted_not_told(run):
    traffic = {"name": "chat", "arrivals": {"kind": "profile", "weights": list(range(60))}}
    told = dict(words.what_was_run(with_scenario(run, traffic=traffic)))
    assert told["Traffic"] == "chat"
    assert told["Traffic, arrivals"] == "kind profile, weights 0, 1, 2, … (60 values)"
