"""Metrics: closed forms, brute force, and what counts as what."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import SpecError
from moesim.results import TABLES, Result, Tables, compare, summary, verdicts
from moesim.results.latency import histogram_spread, pooled_tpot_s, spread, tpot_s, ttft_s
from moesim.results.metrics import cost, goodput, throughput


def requests_table(rows):
    """Build a requests table from (arrival, scheduled, first, finish, input, output, status, measured)."""
    names = (
        "arrival_s",
        "scheduled_s",
        "first_token_s",
        "finish_s",
        "input_tokens",
        "output_tokens",
        "status",
        "measured",
    )
    frame = pd.DataFrame(rows, columns=names)
    defaults = {"int64": 0, "float64": 0.0, "object": "", "bool": True}
    for column in TABLES["requests"]:
        if column.name not in frame:
            frame[column.name] = defaults[column.dtype]
    frame["request"] = range(len(frame))
    frame["generated_tokens"] = np.where(frame["finish_s"].notna(), frame["output_tokens"], 0)
    return frame[[c.name for c in TABLES["requests"]]]


def hand(rows, targets=None, **manifest):
    base = {
        "scenario": {"name": "hand", "targets": targets or {}},
        "seed": 1,
        "simulated_s": 100.0,
        "devices": 4,
    }
    return Result({**base, **manifest}, Tables(requests=requests_table(rows)))


NAN = math.nan
ROWS = [
    (0.0, 0.0, 1.0, 1.0, 10, 5, "finished", False),  # warm-up: must not count
    (10.0, 11.0, 12.0, 20.0, 100, 5, "finished", True),  # ttft 2, tpot 8/4 = 2, e2e 10
    (20.0, 20.0, 21.0, 21.0, 200, 1, "finished", True),  # ttft 1, one token: no tpot, e2e 1
    (25.0, 25.0, 29.0, 30.0, 300, 11, "finished", True),  # ttft 4, tpot 1/10, e2e 5
    (26.0, NAN, NAN, NAN, 9999, 7, "rejected", True),
    (90.0, 91.0, 95.0, NAN, 50, 7, "in_flight", True),  # ttft 5
]


def test_definitions_by_hand():
    result = hand(ROWS)
    found = summary(result)
    assert found["requests"] == {"arrived": 6, "finished": 4, "rejected": 1, "in_flight": 1, "measured": 5}
    assert found["window_s"] == [10.0, 30.0]
    assert found["ttft_s"]["mean"] == pytest.approx((2 + 1 + 4 + 5) / 4)
    assert found["ttft_s"]["p50"] == pytest.approx(3.0)  # between 2 and 4
    assert found["ttft_s"]["p90"] == pytest.approx(4.7)  # position 2.7 of 1, 2, 4, 5
    assert found["tpot_s"]["mean"] == pytest.approx((2.0 + 0.1) / 2)
    assert found["tpot_pooled_s"] == pytest.approx((8 + 1) / (4 + 10))
    assert found["e2e_s"]["mean"] == pytest.approx(16 / 3)
    assert found["queue_s"]["mean"] == pytest.approx((1 + 0 + 0 + 1) / 4)
    assert found["throughput"] == pytest.approx(
        {
            "requests_per_s": 3 / 20,
            "output_tokens_per_s": 17 / 20,
            "output_tokens_per_s_per_device": 17 / 80,
            "total_tokens_per_s": 617 / 20,
        }
    )
    assert found["goodput"] is None
    assert found["verdict"] == {}


def test_verdict_counts_rejected_as_missed_and_leaves_undecided_out():
    result = hand(ROWS, {"ttft": "4.5 s", "tpot": "1 s", "e2e": 20.0, "percentile": 50})
    ttft, tpot, e2e = verdicts(result)
    # ttft: 1, 2, 4, 5, endless: the median is 4
    assert (ttft.value_s, ttft.share, ttft.decided, ttft.undecided, ttft.met) == (4.0, 0.6, 5, 0, True)
    # tpot: 0.1, 2, endless; one token is not judged, in flight is undecided
    assert (tpot.value_s, tpot.share, tpot.decided, tpot.undecided, tpot.met) == (2.0, 1 / 3, 3, 1, False)
    # e2e: the request in flight has waited 10 s of 20 s: nobody knows
    assert (e2e.decided, e2e.undecided, e2e.met) == (4, 1, True)
    assert goodput(result) == pytest.approx(
        {"share": 2 / 5, "requests_per_s": 2 / 20, "good": 2, "decided": 5}
    )


def test_a_request_that_outlived_its_limit_has_missed_it():
    (e2e,) = verdicts(hand(ROWS, {"e2e": "9.5 s", "percentile": 99}))
    assert (e2e.decided, e2e.undecided, e2e.met, e2e.value_s) == (5, 0, False, None)


@given(st.lists(st.floats(0.01, 50), min_size=1, max_size=40), st.floats(0.01, 50), st.floats(1, 99))
def test_verdict_is_the_percentile_when_all_finish(times, limit, percentile):
    rows = [(0.0, 0.0, t, t, 1, 1, "finished", True) for t in times]
    (verdict,) = verdicts(hand(rows, {"e2e": limit, "percentile": percentile}))
    assert verdict.value_s == pytest.approx(np.percentile(times, percentile))
    assert verdict.met == (verdict.value_s <= limit)
    assert verdict.share == pytest.approx(np.mean(np.array(times) <= limit))


@given(st.lists(st.floats(0, 1e3) | st.just(math.nan), max_size=50))
def test_spread_against_brute_force(values):
    known = sorted(v for v in values if not math.isnan(v))
    found = spread(np.array(values, np.float64))
    if not known:
        assert set(found.values()) == {None}
        return
    for rank in (50, 90, 95, 99):
        position = (len(known) - 1) * rank / 100
        lower, upper = known[math.floor(position)], known[math.ceil(position)]
        assert found[f"p{rank}"] == pytest.approx(lower + (position - math.floor(position)) * (upper - lower))
    assert found["mean"] == pytest.approx(math.fsum(known) / len(known))


@given(st.lists(st.floats(0.001, 0.999), min_size=1, max_size=200))
def test_histogram_percentiles_are_off_by_at_most_a_bin(gaps):
    edges = np.linspace(0, 1, 51)
    tokens, _ = np.histogram(gaps, edges)
    found = histogram_spread(
        pd.DataFrame({"pool": "serve", "low_s": edges[:-1], "high_s": edges[1:], "tokens": tokens})
    )
    assert abs(found["mean"] - np.mean(gaps)) <= 0.01 + 1e-9
    for rank in (50, 90, 95, 99):
        exact = np.percentile(gaps, rank, method="inverted_cdf")
        assert abs(found[f"p{rank}"] - exact) <= 0.02 + 1e-9


def test_uniform_histogram_has_closed_form_percentiles():
    table = pd.DataFrame({"pool": ["a", "b"], "low_s": [0.0, 1.0], "high_s": [1.0, 2.0], "tokens": [50, 50]})
    assert histogram_spread(table) == pytest.approx(
        {"mean": 1.0, "p50": 1.0, "p90": 1.8, "p95": 1.9, "p99": 1.98}
    )
    overlapping = pd.DataFrame(
        {"pool": ["a", "b"], "low_s": [0.0, 0.0], "high_s": [1.0, 2.0], "tokens": [50, 50]}
    )
    assert histogram_spread(overlapping)["p50"] == pytest.approx(2 / 3)  # 50 x + 25 x = 50


def test_pooled_tpot_is_the_mean_gap_and_vllm_tpot_is_not(run):
    """Where all requests finish and count, the pooled value is the histogram's mean, up to its bins."""
    requests = run.tables.requests
    assert pooled_tpot_s(requests) == pytest.approx(histogram_spread(run.tables.itl)["mean"], rel=0.04)
    assert np.nanmean(tpot_s(requests)) != pytest.approx(pooled_tpot_s(requests), rel=1e-4)


def test_warm_up_is_left_out(run):
    measured = run.tables.requests[run.tables.requests["measured"]]
    assert summary(run)["ttft_s"]["mean"] == pytest.approx(np.nanmean(ttft_s(measured)))
    everything = replace(run, tables=replace(run.tables, requests=run.tables.requests.assign(measured=True)))
    assert summary(everything)["ttft_s"]["mean"] != summary(run)["ttft_s"]["mean"]


def test_cost_by_hand(run):
    hours = 8 * run.manifest["simulated_s"] / 3600
    money = cost(run)
    tokens = run.tables.requests["generated_tokens"].sum()
    assert money["device_hours"] == pytest.approx(hours)
    assert money["usd"] == pytest.approx(hours * 2.5)
    assert money["usd_per_million_output_tokens"] == pytest.approx(hours * 2.5e6 / tokens)
    assert money["electricity_usd"] == pytest.approx(
        run.tables.replicas["energy_J"].sum() / 3.6e6 * 1.3 * 0.1
    )
    assert money["carbon_g"] is None


@pytest.mark.parametrize(
    ("change", "usd_per_hour"),
    [
        ({"economics": {"rental": "4 USD/h"}}, 4.0),
        ({"device": {}, "node": {"devices": 8, "price": {"rental": "24 USD/h"}}}, 3.0),
        ({"device": {}}, None),
    ],
)
def test_where_the_rental_price_comes_from(run, change, usd_per_hour):
    scenario = {**run.manifest["scenario"], **change}
    money = cost(replace(run, manifest={**run.manifest, "scenario": scenario}))
    expected = None if usd_per_hour is None else pytest.approx(money["device_hours"] * usd_per_hour)
    assert money["usd"] == expected


def test_scaled_pools_pay_for_time_in_service(run):
    replicas = run.tables.replicas.assign(alive_s=[10.0, 20.0])
    scenario = {**run.manifest["scenario"], "deployment": {"autoscaling": {"policy": "queue"}}}
    scaled = Result({**run.manifest, "scenario": scenario}, replace(run.tables, replicas=replicas))
    assert cost(scaled)["device_hours"] == pytest.approx(4 * 30 / 3600)


def test_prices_per_pool(run):
    def priced(pools):
        return cost(replace(run, manifest={**run.manifest, "prices": {"rental_usd_per_h": pools}}))["usd"]

    assert priced({"serve": 1.0}) == pytest.approx(8 * run.manifest["simulated_s"] / 3600)
    assert priced({"decode": 1.0}) is None  # a pool without a price leaves the whole unknown


def test_unreadable_target_and_price_are_spec_errors(run):
    for change in ({"targets": {"ttft": "fast"}}, {"economics": {"rental": "2 EUR/h"}}):
        broken = replace(run, manifest={**run.manifest, "scenario": {**run.manifest["scenario"], **change}})
        with pytest.raises(SpecError) as caught:
            summary(broken)
        assert "\n" not in str(caught.value)


def test_summary_is_json_without_nan(run, cut_run):
    nothing = hand([(1.0, NAN, NAN, NAN, 5, 5, "in_flight", True)], {"ttft": "1 s"})
    empty = Result(hand(ROWS).manifest, Tables(requests=requests_table([])))
    for result in (run, cut_run, nothing, empty, hand(ROWS)):
        text = json.dumps(summary(result), allow_nan=False)
        assert json.loads(text) == json.loads(json.dumps(summary(result)))
    assert throughput(nothing)["requests_per_s"] is None
    assert summary(empty)["ttft_s"]["p99"] is None


def test_every_number_of_the_summary_is_defined(run):
    found = summary(run)
    for group in (
        "ttft_s",
        "tpot_s",
        "itl_s",
        "e2e_s",
        "queue_s",
        "throughput",
        "goodput",
        "energy_J",
        "cost_usd",
        "sources",
        "requests",
        "verdict",
        "utilisation",
    ):
        assert group in found
        assert len(found["definitions"][group]) > 20
    assert all("  " not in text for text in found["definitions"].values())
    assert sum(found["sources"].values()) == pytest.approx(1.0)


def test_nan_energy_is_unknown_not_zero(run):
    replicas = run.tables.replicas.assign(energy_J=[1.0, NAN])
    found = summary(Result(run.manifest, replace(run.tables, replicas=replicas)))
    assert found["energy_J"] is found["electricity_usd"] is found["energy_J_per_output_token"] is None


def test_compare(run, cut_run):
    frame = compare(run, cut_run).set_index("metric")
    a, b = summary(run), summary(cut_run)
    row = frame.loc["ttft_s.p95"]
    assert (row["a"], row["b"]) == (a["ttft_s"]["p95"], b["ttft_s"]["p95"])
    assert row["difference"] == row["b"] - row["a"]
    assert row["ratio"] == row["b"] / row["a"]
    assert math.isnan(frame.loc["requests.in_flight", "ratio"])  # over zero
    assert "goodput.share" in frame.index
    assert not frame.index.duplicated().any()
    same = compare(run, run)
    assert (same["difference"].dropna() == 0).all()
    assert (same["ratio"].dropna() == 1).all()
