"""Hidden multi-token prediction: which runs, how it is simulated, and that stated inputs keep their own figures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moesim.study.serving.hidden import ACCEPTANCE, speculation_of
from moesim.study.serving.replay import Prediction, Replayer, replay_rows
from moesim.study.serving.rows import ServingRow, Shape, distinct, read_rows
from moesim.study.serving.score import Sets, report

ROW = ServingRow(
    id="a", source="source_file=2026-04-06.csv; measured=2026-02-05T00:00:00.000Z", backend="trtllm",
    version="1.2.0rc6.post3", model="deepseek-ai/DeepSeek-R1", named="m", system="b200_sxm", precision="fp8", gemm="",
    moe="", mode="agg", isl=1024, osl=256, concurrency=4, shape=Shape(8, batch=4, moe_tp=8), prefill=None, decode=None,
    ttft_s=0.2, tpot_s=0.0075, client="inferencemax",
)  # fmt: skip


def test_the_image_or_the_day_tells() -> None:
    assert speculation_of(ROW).draft_tokens == 3
    assert speculation_of(replace(ROW, shape=Shape(1, dp=8, ep=8))).draft_tokens == 1
    for other in ("1.2.0rc6.post2", "1.1.0rc2.post2", ""):
        assert speculation_of(replace(ROW, version=other)) is None
    first = replace(ROW, version="1.1.0rc2.post2", source="measured=2026-01-14T00:00:00Z")
    assert speculation_of(first).acceptance == ACCEPTANCE
    assert speculation_of(replace(ROW, backend="sglang")) is None
    assert speculation_of(replace(ROW, model="openai/gpt-oss-120b")) is None
    assert speculation_of(replace(ROW, shape=None)) is None


@pytest.mark.silicon
def test_drafting_makes_decode_faster_by_less_than_the_tokens_it_yields() -> None:
    pytest.importorskip("aiconfigurator_core", reason="needs the extra `silicon`")
    plain = replay_rows([ROW], Replayer())["a"]
    drafted = replay_rows([ROW], Replayer(speculation=speculation_of))["a"]
    yields = sum(ACCEPTANCE**i for i in range(4))
    assert 1.5 < plain.tpot_s / drafted.tpot_s < yields


@pytest.mark.silicon
def test_the_runs_of_the_file_fall_into_two_kinds() -> None:
    pytest.importorskip("aiconfigurator_core", reason="needs the extra `silicon`")
    runs = [
        r for r in distinct(read_rows()) if not r.left_out and r.model == ROW.model and r.backend == "trtllm"
    ]
    drafted = [r for r in runs if speculation_of(r)]
    assert (len(runs), len(drafted)) == (230, 99)
    key = lambda r: (r.system, r.precision, r.shape.tp, r.shape.dp, r.shape.ep, r.isl, r.osl, r.concurrency)  # noqa: E731
    faster = []
    for row in drafted:
        twins = [other.tpot_s for other in runs if key(other) == key(row) and not speculation_of(other)]
        faster += [row.tpot_s < twin for twin in twins]
    assert len(faster) >= 40
    assert sum(faster) >= 0.95 * len(faster)  # the evidence that the images mean what the changelog says


def test_figures_of_stated_inputs_stay_and_others_stand_beside_them() -> None:
    rows = [ROW, replace(ROW, id="b", version="1.2.0rc6.post2")]
    stated = {r.id: Prediction(r.id, 0.2, 0.0150) for r in rows}
    drafted = {"a": Prediction("a", 0.2, 0.0075)}
    sets = Sets(frozenset(), frozenset({"a", "b"}), frozenset(), frozenset())
    figures = report(rows, stated, sets, drafted=drafted)["metrics"]
    assert figures["C_tpot"]["mape"] == pytest.approx(1.0)
    assert figures["C_mtp_tpot"]["mape"] == pytest.approx(0.5)
    assert "C_mtp_tpot" not in report(rows, stated, sets)["metrics"]
