"""Cross-checks: parts that do not fit each other are named, each at its own key; parts that fit are left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from moesim.errors import SpecError
from moesim.scenario import load
from moesim.spec.scenario import ScenarioSpec

POOLS = (
    "{serve: null, prefill: {replicas: 1, parallelism: {tp: 2}}, decode: {replicas: 1, parallelism: {tp: 2}}}"
)


def answer(*sets: str) -> list[str]:
    try:
        load("toy.yaml", (), sets)
    except SpecError as error:
        return str(error).splitlines()
    return []


@pytest.mark.parametrize(
    ("sets", "line"),
    [
        (["deployment.serve.parallelism={tp: 8}", "deployment.serve.replicas=1"], "at most the 4 devices"),
        (["deployment=" + POOLS, "deployment.decode.replicas=2"], "prefill 1 x 2 + decode 2 x 2 = 6"),
        (["deployment.autoscaling={max_replicas: 3, interval: 1 s, startup: 1 s}"], "serve 3 x 2 = 6"),
        (["deployment.autoscaling={min_replicas: 3, max_replicas: 2, interval: 1 s, startup: 1 s}"],
         "--set  deployment.autoscaling.min_replicas  3: expected at most max_replicas = 2"),
        (["deployment.serve.parallelism={tp: 1, pp: 5}", "deployment.serve.replicas=1", "cluster=dgx-h100"],
         "--set  deployment.serve.parallelism.pp  5: expected at most the 4 layers of tiny-moe"),
        (["model.attentions.full.kv_heads=3", "model.attentions.full.heads=6"],
         "must divide, or be a multiple of, the 3 KV heads"),
        (["deployment.serve.parallelism={tp: 1, dp: 16, ep: 16}", "deployment.serve.replicas=1", "cluster=h100-2"],
         "--set  deployment.serve.parallelism.ep  16: expected at most the 8 experts of tiny-moe"),
        (["model=llama-3-8b", "deployment.serve.parallelism.ep=2"],
         "--set  deployment.serve.parallelism.ep  2: expected 1: llama-3-8b has no routed experts"),
        (["model.ffns.experts.intermediate=1023"], "does not divide its width 1023"),
        (["deployment.serve.engine.max_num_seqs=1024"],
         "toy.yaml:11  deployment.serve.engine.max_num_batched_tokens  512: expected at least max_num_seqs = 1024"),
        (["deployment.serve.engine.max_model_len=5000"],
         "--set  deployment.serve.engine.max_model_len  5000: expected at most the context of tiny-moe, 4096 tokens"),
        (["deployment.faults=[{pool: decode, replica: 0, at: 1 s, repair: 1 s}]"],
         "--set  deployment.faults.0.pool  'decode': expected one of the pools: serve"),
        (["deployment.stragglers=[{replica: 2, slowdown: 2}]"],
         "--set  deployment.stragglers.0.replica  2: expected below 2, the replicas of pool serve"),
        (["run.warmup_requests=30", "run.cooldown_requests=20"],
         "--set  run.warmup_requests  30: expected warm-up and cool-down together below requests = 50"),
        (["run.requests=null"], "the run does not end"),
        (["routing=olmoe-1b-7b"], "--set  routing: olmoe-1b-7b is for top 8 of 64 experts, tiny-moe takes top 2 of 8"),
        (["routing=uniform", "model=llama-3-8b"], "routing: expected null: llama-3-8b has no routed experts"),
        (["deployment.serve.engine.prefix_caching=true", "traffic.prefix={kind: shared, tokens: 64, block_tokens: 24}"],
         "toy.yaml:11  deployment.serve.engine.block_tokens  16: must divide the 24 tokens of a prefix block"),
        (["deployment.serve.cluster=dgx-h100"], "pools on another cluster than the scenario's are not supported yet"),
        (["cluster={kind: cluster, name: two, node: node.yaml, nodes: 2, fabric: {kind: fat_tree}}"],
         "node.network: expected a network: two joins 2 nodes"),
    ],
)  # fmt: skip
def test_one_finding(toy: Path, sets: list[str], line: str) -> None:
    found = answer(*sets)
    assert len(found) == 1, found
    assert line in found[0]


@pytest.mark.parametrize(
    "sets",
    [
        ["deployment=" + POOLS],
        ["deployment.serve.parallelism={tp: 4}", "deployment.serve.replicas=1"],
        ["deployment.serve.parallelism={tp: 1, dp: 2, ep: 2}"],
        ["deployment.serve.parallelism={tp: 1, pp: 2}"],
        ["deployment.autoscaling={max_replicas: 2, interval: 1 s, startup: 1 s}"],
        ["deployment.stragglers=[{replica: 1, slowdown: 2}]"],
        ["run={requests: null, horizon: 5 s}"],
        ["run.requests=null", "traffic.arrivals={kind: closed_loop, concurrency: 4, requests_per_slot: 3}"],
        ["routing=uniform"],
        ["routing=mixtral-8x7b"],
        ["deployment.serve.engine.prefix_caching=true", "traffic.prefix={kind: shared, tokens: 64}"],
        ["deployment.serve.engine.max_model_len=4096"],
        ["run.warmup_requests=30", "run.cooldown_requests=19"],
    ],
)
def test_no_finding(toy: Path, sets: list[str]) -> None:
    assert answer(*sets) == []


def test_several_findings_come_together(toy: Path) -> None:
    found = answer(
        "deployment.serve.replicas=9", "deployment.serve.engine.max_model_len=5000", "run.requests=null"
    )
    assert len(found) == 3
    assert {line.split("  ")[0] for line in found} == {"--set", "toy.yaml:13"}


def test_a_spec_built_in_python_is_checked_too(toy: Path) -> None:
    data = load("toy.yaml").scenario.model_dump(mode="json")
    data["deployment"]["serve"]["replicas"] = 9
    with pytest.raises(ValidationError, match=r"deployment\.serve\.replicas: expected at most the 4 devices"):
        ScenarioSpec.model_validate(data)
