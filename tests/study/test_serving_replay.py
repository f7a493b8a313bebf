"""Replay: a measured run becomes a scenario with sourced settings, and overheads add up as stated."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moesim.cost.overheads import OverheadTable
from moesim.errors import SpecError
from moesim.study.serving.engines import engine_of, load_rules, rule_of
from moesim.study.serving.replay import Replayer, replay_rows
from moesim.study.serving.rows import ServingRow, Shape, distinct, read_rows
from moesim.study.serving.scenario import checkpoint_of, scenario_of

pytestmark = pytest.mark.silicon
pytest.importorskip("aiconfigurator_core", reason="needs the extra `silicon`")

ONE = ServingRow(
    id="one", source="s", backend="vllm", version="0.18.0", model="meta-llama/Meta-Llama-3.1-8B", named="n",
    system="h100_sxm", precision="", gemm="", moe="", mode="agg", isl=256, osl=64, concurrency=1,
    shape=Shape(1, batch=1), prefill=None, decode=None, ttft_s=0.02, tpot_s=0.008, client="inferencemax",
)  # fmt: skip
SGLANG = replace(
    ONE, id="two", backend="sglang", model="deepseek-ai/DeepSeek-R1", precision="fp8", system="b200_sxm",
    shape=Shape(8, 1, 1, 8, 1, batch=64), concurrency=64,
)  # fmt: skip


def table(step: str, sequence: str, request: str = "0 s", prefill: float = 1.0) -> OverheadTable:
    rule = {"backend": "vllm", "step": step, "sequence": sequence, "request": request, "prefill": prefill, "rows": 1,
            "source": {"fields": ["*"], "cite": "test"}}  # fmt: skip
    return OverheadTable.model_validate({"kind": "overheads", "rules": [rule]})


def only(row: ServingRow, **settings):
    return replay_rows([row], Replayer(**settings))[row.id]


def test_a_single_sequence_pays_each_overhead_once_per_token() -> None:
    plain = only(ONE)
    loaded = only(ONE, overheads=table("500 us", "20 us", "3 ms"))
    assert loaded.tpot_s - plain.tpot_s == pytest.approx(520e-6, rel=1e-6)
    assert loaded.ttft_s - plain.ttft_s == pytest.approx(520e-6 + 3e-3, rel=1e-6)
    assert plain.steps == loaded.steps


def test_the_prefill_factor_touches_steps_beyond_the_graphs_alone() -> None:
    long = replace(ONE, isl=4096)
    plain, slower = only(long), only(long, overheads=table("0 s", "0 s", prefill=2.0))
    assert slower.tpot_s == pytest.approx(plain.tpot_s, rel=1e-9)
    # all of a prompt's step but sampling takes twice as long
    assert slower.ttft_s == pytest.approx(2 * plain.ttft_s, rel=0.01)
    # a prompt inside the graphs' reach has only its attention slowed
    short = replace(ONE, isl=128)
    assert only(short, overheads=table("0 s", "0 s", prefill=2.0)).ttft_s < 1.1 * only(short).ttft_s


def test_the_mean_time_per_output_token_follows_from_the_run() -> None:
    made = only(ONE)
    # one request at a time: tokens per second are tokens over (ttft + (osl - 1) tpot), lengths about 0.9 nominal
    osl = 0.9 * ONE.osl
    assert made.tokens_per_s == pytest.approx(osl / (made.ttft_s + (osl - 1) * made.tpot_s), rel=0.02)


def test_answers_are_kept_by_content(tmp_path) -> None:
    first = only(ONE, folder=tmp_path)
    (kept,) = tmp_path.rglob("*.json")
    kept.write_text(kept.read_text().replace(repr(first.tpot_s), "123.0"))
    again = only(replace(ONE, id="other", tpot_s=9.9), folder=tmp_path)
    assert (again.id, again.tpot_s) == ("other", 123.0)  # another name and measurement, the same question
    for change in ({"stamp": "x"}, {"seed": 1}, {"overheads": table("1 us", "0 s")}):
        assert only(ONE, folder=tmp_path, **change).tpot_s != 123.0
    assert only(replace(ONE, isl=300), folder=tmp_path).tpot_s != 123.0
    assert len(list(tmp_path.rglob("*.json"))) == 5


def test_a_broken_answer_is_computed_anew(tmp_path) -> None:
    first = only(ONE, folder=tmp_path)
    (kept,) = tmp_path.rglob("*.json")
    kept.write_text("{")
    assert only(ONE, folder=tmp_path).tpot_s == first.tpot_s


def test_a_run_that_cannot_be_predicted_says_why() -> None:
    assert only(replace(ONE, left_out="no shapes")).error == "no shapes"
    assert "no checkpoint" in only(replace(ONE, precision="int4")).error
    assert "no node" in only(replace(ONE, system="a30")).error


def test_rows_of_one_cell_do_not_depend_on_their_company() -> None:
    crowd = [replace(ONE, id=f"c{c}", concurrency=c, shape=Shape(1, batch=c)) for c in (1, 2, 300)]
    together = replay_rows(crowd, Replayer())
    for row in crowd:
        assert only(row).tpot_s == together[row.id].tpot_s


def test_engines_start_as_the_public_scripts_say() -> None:
    rule = rule_of(SGLANG)
    engine = engine_of(SGLANG, rule, SGLANG.shape, 64)
    assert (engine.prefill_first, engine.max_num_batched_tokens, engine.poll_steps) == (True, 32768, 30)
    assert engine_of(SGLANG, rule, SGLANG.shape, 8).poll_steps == 10
    trt = replace(SGLANG, backend="trtllm", version="1.1.0rc2.post2", isl=1024, osl=1024)
    assert engine_of(trt, rule_of(trt), trt.shape, 64).max_num_batched_tokens == (64 + 1024 + 127) // 64 * 64
    newer = replace(trt, version="1.2.0rc6.post3")
    engine = engine_of(newer, rule_of(newer), newer.shape, 64)
    assert (engine.max_num_batched_tokens, engine.wait_steps) == (8192, 40)
    assert engine_of(newer, rule_of(newer), newer.shape, 32).wait_steps == 0


def test_every_rule_names_its_source_and_is_reached() -> None:
    rules = load_rules().rules
    assert all(rule.source.cite for rule in rules)
    reached = {id(rule_of(row)) for row in read_rows() if not row.left_out}
    assert [rule.match for rule in rules if id(rule) not in reached] == []


def test_mxfp4_runs_with_8_bit_activations_on_blackwell_alone() -> None:
    row = replace(ONE, model="openai/gpt-oss-120b", precision="fp4")
    assert checkpoint_of(replace(row, system="b200_sxm")).activations == "fp8"
    assert checkpoint_of(replace(row, system="h200_sxm")).activations is None


def test_every_distinct_run_is_a_scenario_on_enough_devices() -> None:
    seen = set()
    for row in distinct(read_rows()):
        key = (row.group, row.shape, row.concurrency)
        if row.left_out or key in seen:
            continue
        seen.add(key)
        scenario = scenario_of(row)
        assert scenario.deployment.serve.parallelism.devices == row.shape.devices
        assert scenario.traffic.arrivals.concurrency == row.concurrency
    assert len(seen) > 500


def test_a_run_left_out_is_no_scenario() -> None:
    with pytest.raises(SpecError, match="no shapes"):
        scenario_of(replace(ONE, left_out="no shapes"))


def test_a_disaggregated_run_goes_through_both_pools() -> None:
    split = replace(
        ONE, mode="disagg", shape=None, prefill=Shape(1, replicas=1, batch=1), decode=Shape(1, replicas=2, batch=4),
        concurrency=8, model="Qwen/Qwen3-32B", precision="fp8",
    )  # fmt: skip
    scenario = scenario_of(split)
    assert list(scenario.deployment.pools) == ["prefill", "decode"]
    together = replace(split, mode="agg", shape=Shape(1, batch=8), prefill=None, decode=None)
    apart, one = only(split), only(together)
    assert not apart.error
    # decode workers see no prompts: tokens come at an even pace, sooner than beside prefill of all eight
    assert apart.tpot_s < one.tpot_s
