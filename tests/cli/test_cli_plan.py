"""``moesim plan``: what it prints and writes, and how it fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from call import command

SCENARIO = """\
kind: scenario
name: small
title: Sixteen experts on four ranks
question: How even?
cluster: dgx-h100-x1
model:
  from: deepseek-v2-lite
  layers:
    - {repeat: 1, layers: [[mla, dense]]}
    - {repeat: 3, layers: [[mla, moe]]}
traffic: {from: poisson-1k1k, arrivals: {kind: poisson, rate: 20 request/s}}
routing: {kind: routing, name: skew, experts: 64, top_k: 6, router: {kind: popularity, zipf: 0.6},
          sources: [{fields: ["*"], cite: made up for tests}]}
deployment:
  serve:
    parallelism: {tp: 1, dp: 4, ep: 4}
    engine: {max_num_seqs: 32, max_num_batched_tokens: 256}
run: {requests: 40}
plan: {problem: balance, redundant: 4, time_limit: 5 s}
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "small.yaml").write_text(SCENARIO)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(*args: str) -> dict[str, Any]:
    answer = command("plan", *args, "--json")
    assert answer.code == 0, answer.err + answer.out
    return json.loads(answer.out)


def test_json_has_the_promised_keys(small: Path) -> None:
    found = told("small.yaml")
    assert set(found) >= {"problem", "objective", "bound", "gap", "method", "sol_status", "seconds", "baselines",
                          "moved_bytes", "placement_file", "verify"}  # fmt: skip
    assert found["problem"] == "balance"
    assert found["gap"] == pytest.approx((found["objective"] - found["bound"]) / found["objective"])
    assert found["objective"] <= min(found["baselines"].values()) * (1 + 1e-9)
    assert found["verify"] is None
    assert found["placement_file"] == "plans/small-balance.yaml"
    assert (small / "plans" / "small-balance.yaml").is_file()
    assert (small / found["report"]).read_text().startswith("<!DOCTYPE html>")


def test_verify_and_export(small: Path) -> None:
    found = told("small.yaml", "--verify", "--export", "maps", "--no-report", "--out", "p.yaml")
    assert found["verify"]["counts_agree"] is True
    assert set(found["verify"]["runs"]) == {"plan", *found["baselines"]}
    assert set(found["maps"]) >= {"sglang", "vllm", "vllm-offline"}
    table = json.loads((small / found["maps"]["vllm"]).read_text())
    assert np.array(table).shape == (3, 68)
    assert found["report"] is None
    answer = command(
        "run", "small.yaml", "--set", "deployment.serve.placement=p.yaml", "--no-report", "--json"
    )
    assert answer.code == 0, answer.err
    assert command("lint", "p.yaml").code == 0


def test_text_names_proof_baselines_and_progress(small: Path) -> None:
    answer = command("plan", "small.yaml", "--no-report", "--verify")
    assert answer.code == 0, answer.err
    for words in (
        "balance: 1",
        "busiest rank over mean rank",
        "EPLB pooled",
        "bound",
        "simulated",
        "placement: plans/",
    ):
        assert words in answer.out, words
    assert "objective" in answer.err
    assert "gap" in answer.err


def test_a_file_is_not_overwritten_unless_asked(small: Path) -> None:
    (small / "p.yaml").write_text("mine")
    answer = command("plan", "small.yaml", "--out", "p.yaml")
    assert (answer.code, answer.err) == (2, "p.yaml: already there; --force replaces it\n")
    assert (small / "p.yaml").read_text() == "mine"
    assert command("plan", "small.yaml", "--out", "p.yaml", "--force", "--no-report").code == 0


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("--problem", "balanse"), 2, "no such problem, did you mean 'balance'"),
        (("--out", "p.txt"), 2, "expected a name ending in .yaml"),
        (("--set", "plan=null"), 2, "expected a plan section, or --problem"),
        (("--set", "plan.redundant=3"), 2, "expected a multiple"),
        (("--set", "plan.redundants=4"), 2, "unknown key, did you mean 'redundant'"),
        (("--set", "plan.redundant=20000"), 3, "short per device"),
    ],
)
def test_mistakes_are_one_line_and_a_code(small: Path, args: tuple[str, ...], code: int, words: str) -> None:
    answer = command("plan", "small.yaml", *args)
    assert answer.code == code, answer.out + answer.err
    assert words in answer.err
    assert len(answer.err.splitlines()) == 1
    assert not (small / "plans").exists()


def test_an_interrupt_keeps_the_incumbent(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moesim.plan.balance import solve

    calls = []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    real = solve.improve
    monkeypatch.setattr(solve, "improve", interrupted)
    found = told("small.yaml", "--no-report")
    assert len(calls) == 2
    assert found["sol_status"] == "feasible"
    assert found["objective"] <= found["baselines"]["contiguous"]
    assert (small / found["placement_file"]).is_file()


def test_seed_and_time_limit_are_options(small: Path) -> None:
    quick = told("small.yaml", "--no-report", "--time-limit", "0", "--out", "a.yaml")
    assert quick["objective"] <= quick["baselines"]["EPLB pooled"] * (1 + 1e-9)
    assert (
        "seed: 7"
        in (
            small / told("small.yaml", "--no-report", "--seed", "7", "--out", "b.yaml")["placement_file"]
        ).read_text()
    )
