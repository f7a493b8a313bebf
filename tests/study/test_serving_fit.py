"""Fit of overheads: recovers what was put in, and touches no run of a model with experts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moesim.cost.overheads import OverheadTable
from moesim.errors import SpecError
from moesim.files import parse_yaml
from moesim.spec.base import validate
from moesim.study.serving.fit import fit_overheads, least_relative, overheads_yaml
from moesim.study.serving.replay import Prediction
from moesim.study.serving.rows import ServingRow, Shape
from moesim.study.serving.scenario import architecture_of

TRUE = (700e-6, 8e-6, 12e-3, 1.3)


def prompt(isl: int) -> float:
    return 0.02 + 1e-4 * isl


def rows(count: int = 40) -> list[ServingRow]:
    draws = np.random.default_rng(3)
    made = []
    for i in range(count):
        batch, isl = int(draws.integers(1, 128)), int(draws.integers(100, 8000))
        kernel = 5e-3 + 1e-5 * batch
        made.append(
            ServingRow(
                id=f"r{i}", source="s", backend="vllm", version="0.18.0", model="Qwen/Qwen3-32B", named="n",
                system="h100_sxm", precision="fp8", gemm="", moe="", mode="agg", isl=isl, osl=100,
                concurrency=batch, shape=Shape(1, batch=batch), prefill=None, decode=None,
                ttft_s=TRUE[3] * prompt(isl) + TRUE[2], tpot_s=kernel + TRUE[0] + TRUE[1] * batch, client="aiperf",
            )
        )  # fmt: skip
    return made


def replayed(members, table: OverheadTable) -> dict[str, Prediction]:
    """An engine whose steps simply take kernels plus overheads."""
    found = {}
    for row in members:
        o = table.of(row.backend, row.client)
        tpot = 5e-3 + 1e-5 * row.concurrency + o.step_s + o.sequence_s * row.concurrency
        found[row.id] = Prediction(row.id, o.prefill * prompt(row.isl) + o.request_s, tpot)
    return found


def replayed_by_system(members, table: OverheadTable) -> dict[str, Prediction]:
    """The same engine on two generations of devices."""
    found = {}
    for row in members:
        o = table.of(row.backend, row.client, architecture_of(row.system))
        tpot = 5e-3 + 1e-5 * row.concurrency + o.step_s + o.sequence_s * row.concurrency
        found[row.id] = Prediction(row.id, o.prefill * prompt(row.isl) + o.request_s, tpot)
    return found


def test_terms_that_were_put_in_are_found() -> None:
    table = fit_overheads(rows(), replayed, "toy")
    (rule,) = table.rules
    assert (rule.step, rule.sequence, rule.request, rule.prefill) == pytest.approx(TRUE, rel=1e-3)
    assert (rule.rows, rule.versions, table.estimators) == (40, ("0.18.0",), "toy")


def test_a_few_wild_runs_do_not_move_the_terms() -> None:
    made = rows()
    made[::10] = [replace(row, tpot_s=9 * row.tpot_s) for row in made[::10]]
    (rule,) = fit_overheads(made, replayed, "toy").rules
    assert (rule.step, rule.sequence) == pytest.approx(TRUE[:2], rel=1e-2)


def test_runs_of_an_unknown_client_do_not_move_the_request_term() -> None:
    draws = np.random.default_rng(1)
    strange = [replace(r, id=f"x{r.id}", version="9", ttft_s=float(draws.uniform(0.2, 4.0))) for r in rows()]
    (rule,) = fit_overheads([*rows(), *strange], replayed, "toy").rules
    assert rule.request == pytest.approx(TRUE[2], rel=1e-2)


def test_terms_are_never_negative() -> None:
    slow = [replace(row, tpot_s=1e-3, ttft_s=1e-3) for row in rows()]
    (rule,) = fit_overheads(slow, replayed, "toy").rules
    assert (rule.step, rule.sequence, rule.request, rule.prefill) == (0, 0, 0, 1)


def test_a_run_of_a_model_with_experts_is_refused() -> None:
    with pytest.raises(SpecError, match="r0: openai/gpt-oss-120b has experts"):
        fit_overheads([replace(rows(1)[0], model="openai/gpt-oss-120b")], replayed, "toy")


def test_an_engine_without_dense_runs_under_a_client_keeps_its_own_terms() -> None:
    other = [replace(r, id=f"s{r.id}", backend="sglang", client="inferencemax") for r in rows()]
    table = fit_overheads([*rows(), *other], replayed, "toy")
    found = {(r.backend, r.client): r for r in table.rules}
    assert len(table.rules) == 4
    assert set(found) == {(b, c) for b in ("vllm", "sglang") for c in ("aiperf", "inferencemax")}
    assert found["sglang", "aiperf"].step == found["sglang", "inferencemax"].step
    assert found["sglang", "aiperf"].request == found["sglang", "inferencemax"].request
    assert "too few dense runs under aiperf on hopper" in found["sglang", "aiperf"].source.note


def test_generations_have_their_own_terms_and_lend_their_ratio() -> None:
    def slower(row: ServingRow) -> ServingRow:
        wait = 1.5 * TRUE[3] * prompt(row.isl) + TRUE[2]
        return replace(row, id=f"b{row.id}", system="b200_sxm", ttft_s=wait)

    other = [replace(r, id=f"s{r.id}", backend="sglang") for r in rows()]
    table = fit_overheads([*rows(), *map(slower, rows()), *other], replayed_by_system, "toy")
    assert table.of("vllm", "aiperf", "hopper").prefill == pytest.approx(1.3, rel=1e-3)
    assert table.of("vllm", "aiperf", "blackwell").prefill == pytest.approx(1.95, rel=1e-3)
    assert table.of("sglang", "aiperf", "hopper").prefill == pytest.approx(1.3, rel=1e-3)
    assert table.of("sglang", "aiperf", "blackwell").prefill == pytest.approx(1.95, rel=1e-3)
    assert table.of("vllm", "aiperf", "ampere") == table.of("vllm", "aiperf", "hopper")


def test_an_engine_with_few_runs_gets_no_terms() -> None:
    assert fit_overheads(rows(10), replayed, "toy").rules == ()


def test_the_file_reads_back_and_warns_of_other_versions() -> None:
    table = fit_overheads(rows(), replayed, "toy")
    again = validate(OverheadTable, parse_yaml(overheads_yaml(table), "overheads.yaml"))
    assert again.rules[0].step == pytest.approx(table.rules[0].step, rel=1e-3)
    row = rows(1)[0]
    assert again.note(row.backend, row.client, "hopper", row.version) == ""
    assert "fitted on 0.18.0, this run is 0.19.0" in again.note(row.backend, row.client, "hopper", "0.19.0")
    assert again.of("sglang").step_s == 0


def test_least_relative_is_the_median_for_a_constant() -> None:
    target = np.array([1.0, 2.0, 3.0, 50.0, 4.0])
    assert least_relative(np.ones((5, 1)), target, np.ones(5))[0] == pytest.approx(3.0, abs=1e-3)
