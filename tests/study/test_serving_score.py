"""Scores: closed forms, brute force, and that a figure outside its band is reported."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from moesim.study.serving.replay import Prediction
from moesim.study.serving.rows import ServingRow, Shape
from moesim.study.serving.score import (
    Band,
    Sets,
    check_bands,
    dense_interval,
    errors,
    interval_coverage,
    metrics,
    one_factor_left_out,
    report,
    throughput,
    widened,
)

ROW = ServingRow(
    id="a", source="s", backend="vllm", version="1", model="MiniMaxAI/MiniMax-M2.5", named="m", system="h200_sxm",
    precision="fp8", gemm="", moe="", mode="agg", isl=1000, osl=101, concurrency=8,
    shape=Shape(8), prefill=None, decode=None, ttft_s=1.0, tpot_s=0.01, client="inferencemax",
)  # fmt: skip
positive = st.floats(0.01, 100)


def rows(count: int, **changes) -> list[ServingRow]:
    return [replace(ROW, id=f"r{i}", ttft_s=1.0 + i, tpot_s=0.01 * (1 + i), **changes) for i in range(count)]


def test_errors_are_the_textbook_ones() -> None:
    found = errors([11, 8, 10, 20], [10, 10, 10, 10])
    assert found.n == 4
    assert found.mape == pytest.approx((0.1 + 0.2 + 0 + 1) / 4)
    assert found.median_ape == pytest.approx(0.15)
    assert found.bias == pytest.approx((0.1 - 0.2 + 0 + 1) / 4)
    assert found.within_30 == pytest.approx(0.75)


@given(st.lists(st.tuples(positive, positive), min_size=3, max_size=40))
def test_rank_correlation_is_scipys_ties_included(pairs) -> None:
    p, m = (np.round(np.array(column), 1) + 0.1 for column in zip(*pairs, strict=True))
    ours = errors(p, m).spearman
    if len(set(p)) > 1 and len(set(m)) > 1:
        assert ours == pytest.approx(spearmanr(p, m).statistic, abs=1e-9)
    else:
        assert np.isnan(ours)


def test_a_measurement_of_zero_is_no_measurement() -> None:
    with pytest.raises(ValueError, match="positive"):
        errors([1.0], [0.0])


@given(st.floats(0.2, 5), st.integers(2, 12))
def test_one_factor_takes_a_constant_error_away_and_never_sees_its_own_row(factor, count) -> None:
    made = rows(count)
    pairs = [(r, Prediction(r.id, r.ttft_s * factor, r.tpot_s * factor)) for r in made]
    predicted, measured = one_factor_left_out(pairs, "tpot")
    assert predicted == pytest.approx(measured)
    # one row that is off by 7 leaves its own error standing: the factor comes from the others
    off = [(made[0], Prediction(made[0].id, 1.0, made[0].tpot_s * 7 * factor)), *pairs[1:]]
    worst, truth = one_factor_left_out(off, "tpot")
    if count > 2:
        assert worst[0] / truth[0] == pytest.approx(7)


def test_a_row_alone_in_its_group_gets_no_factor() -> None:
    predicted, _ = one_factor_left_out([(ROW, Prediction("a", 1.0, 1.0))], "tpot")
    assert len(predicted) == 0


def test_throughput_is_littles_law_on_means() -> None:
    assert throughput(ROW, 1.0, 0.01) == pytest.approx(8 * 101 / (1.0 + 100 * 0.01))


def test_an_interval_covers_its_level_on_new_runs_and_needs_enough_of_them() -> None:
    draws = np.random.default_rng(5)

    def pairs(count: int):
        made = rows(count, model="Qwen/Qwen3-32B")
        return [(r, Prediction(r.id, 1, r.tpot_s / float(np.exp(draws.normal(0, 0.2))))) for r in made]

    low, high = dense_interval(pairs(2000), "tpot")
    inside = [low <= r.tpot_s / p.tpot_s <= high for r, p in pairs(2000)]
    assert np.mean(inside) == pytest.approx(0.9, abs=0.02)
    with pytest.raises(ValueError, match="too few"):
        dense_interval(pairs(19), "tpot")


def test_intervals_are_calibrated_on_dense_runs_alone() -> None:
    dense = rows(60, model="Qwen/Qwen3-32B")
    moe = [replace(r, id=f"m{r.id}", model="openai/gpt-oss-120b") for r in rows(10)]
    pairs = [(r, Prediction(r.id, 1, r.tpot_s / (0.9 + 0.2 * i / 60))) for i, r in enumerate(dense)]
    near = [(r, Prediction(r.id, 1, r.tpot_s)) for r in moe[:6]]
    far = [(r, Prediction(r.id, 1, r.tpot_s / 2)) for r in moe[6:]]
    assert interval_coverage([*pairs, *near, *far], "tpot")["value"] == pytest.approx(0.6)
    wide = widened(dense_interval(pairs, "tpot"), (1.0, 2.0))
    assert interval_coverage([*pairs, *near, *far], "tpot", wide)["value"] == pytest.approx(1.0)


def test_sets_choose_rows_and_dense_ones_do_not_count_as_experts() -> None:
    made = [*rows(4), *[replace(r, id=f"d{r.id}", model="Qwen/Qwen3-32B") for r in rows(3)]]
    predictions = {r.id: Prediction(r.id, r.ttft_s * 1.1, r.tpot_s * 0.8) for r in made}
    sets = Sets(frozenset({"r0"}), frozenset(r.id for r in made), frozenset({"r1", "r2"}), frozenset())
    found = metrics(made, predictions, sets)
    assert {name: found[name].n for name in ("A_tpot", "C_tpot", "C_moe_tpot", "D_ttft", "E_tpot")} == {
        "A_tpot": 1, "C_tpot": 7, "C_moe_tpot": 4, "D_ttft": 2, "E_tpot": 4,
    }  # fmt: skip
    assert found["C_tpot"].bias == pytest.approx(-0.2)
    assert found["C_ttft"].mape == pytest.approx(0.1)
    assert found["E_tpot"].mape == pytest.approx(0, abs=1e-12)


def test_report_counts_what_is_covered_and_says_why_the_rest_is_not() -> None:
    made = [*rows(2), replace(ROW, id="x", left_out="no shapes"), replace(ROW, id="y")]
    predictions = {"r0": Prediction("r0", 1.0, 0.01), "r1": Prediction("r1", error="r1: does not fit")}
    answer = report(made, predictions, None)
    assert (answer["rows"], answer["distinct"], answer["covered"]) == (4, 4, 1)
    reasons = {left["reason"]: left["rows"] for left in answer["left_out"]}
    assert reasons == {"does not fit": 1, "no shapes": 1, "not replayed": 1}
    assert answer["metrics"]["coverage"]["value"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("band", "ok"),
    [
        (Band(name="C.mape", limit=0.2), True),
        (Band(name="C.mape", limit=0.1), False),
        (Band(name="C.bias", limit=0.1), False),  # a bias of -0.15 is outside +-0.1
        (Band(name="C.spearman", limit=0.95, least=True), True),
        (Band(name="C.spearman", limit=0.99, least=True), False),
        (Band(name="C.nothing", limit=9.0), False),
        (Band(name="D.mape", limit=9.0), False),
    ],
)
def test_bands(band, ok) -> None:
    figures = {"C": {"mape": 0.15, "bias": -0.15, "spearman": 0.96}}
    (checked,) = check_bands([band], figures)
    assert checked["ok"] is ok
    assert checked["limit"] == band.limit
