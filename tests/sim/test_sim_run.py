"""Whole runs from scenario files: laws, determinism across processes, what counts as measured, how fast it is."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import moesim as ms
from moesim.sim.run import build, simulate
from moesim.sim.setup import pool_parts
from moesim.traffic.sample import sample

ROOT = Path(__file__).resolve().parents[2]
RUNS = {
    "quickstart": ["run.requests=300", "run.warmup_requests=20", "run.cooldown_requests=30"],
    "disaggregated": ["run.requests=120", "run.warmup_requests=0", "run.cooldown_requests=0"],
    "faults": ["run.requests=1500"],
    "closed-loop": [],
    "speculative": ["run.requests=100", "run.warmup_requests=0", "run.cooldown_requests=0"],
}


def scenario(name, *sets, variants=()):
    return ms.load(name, variants=variants, sets=[*RUNS[name], *sets]).scenario


@pytest.mark.parametrize("name", sorted(RUNS))
def test_every_law_holds(name):
    result = simulate(scenario(name), check=True)
    assert set(result.manifest["laws"].values()) <= {"holds", "not checked"}
    assert result.manifest["laws"]["little"] == "holds"


@pytest.mark.parametrize("name", ["quickstart", "disaggregated", "faults"])
def test_step_by_step_gives_the_same_tables(name):
    fast, slow = (simulate(scenario(name), fast=f) for f in (True, False))
    for table in ("requests", "timeline", "ops", "replicas", "itl", "experts"):
        a, b = getattr(fast.tables, table), getattr(slow.tables, table)
        assert a.equals(b), table
    assert fast.manifest["steps"] == slow.manifest["steps"]


SCRIPT = """
import sys
import moesim as ms
name, out, *sets = sys.argv[1:]
ms.write(ms.simulate(ms.load(name, sets=sets)), out)
"""


@pytest.mark.parametrize("name", ["quickstart", "disaggregated", "faults"])
def test_equal_scenarios_give_equal_bytes_in_any_process(name, tmp_path):
    """Another hash seed, another number of threads, another folder: the same bytes, but for the clock's file."""
    worlds = {
        "one": {"PYTHONHASHSEED": "1", "NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        "two": {"PYTHONHASHSEED": "4242", "NUMBA_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"},
    }
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, name, str(tmp_path / folder), *RUNS[name]],
            env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        )
        for folder, env in worlds.items()
    ]
    try:
        assert [run.wait(timeout=500) for run in runs] == [0, 0]  # long, for they may have to compile
    finally:
        for run in runs:
            run.kill()
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / folder).iterdir()} for folder in worlds)
    assert set(one) == set(two) >= {"manifest.json", "requests.parquet", "timeline.parquet"}
    assert [n for n in sorted(one) if one[n] != two[n] and n != "timing.json"] == []


def test_another_seed_is_another_run():
    a, b = (simulate(ms.load("quickstart", sets=RUNS["quickstart"], seed=s).scenario) for s in (1, 2))
    assert not a.tables.requests["finish_s"].equals(b.tables.requests["finish_s"])


def test_warm_up_and_cool_down_are_marked():
    table = simulate(scenario("quickstart")).tables.requests
    assert table["measured"].tolist() == [False] * 20 + [True] * 250 + [False] * 30
    late = simulate(scenario("quickstart", "run.warmup=3 s")).tables.requests
    assert late["measured"].tolist() == (table["measured"] & (late["arrival_s"] >= 3)).tolist()
    assert 0 < late["measured"].sum() < 250


def test_warm_up_of_a_closed_loop_is_marked():
    table = simulate(scenario("closed-loop")).tables.requests
    first = 16 * 2  # two per slot
    assert table["measured"].tolist() == [False] * first + [True] * (len(table) - first)


def test_pipeline_stages_share_the_cache():
    """Every stage's batch has its own blocks: together they are what the memory plan found, not a multiple of it."""
    spec = scenario("quickstart", "deployment.serve.parallelism.pp=2", "deployment.serve.replicas=2")
    parts = pool_parts(spec, "serve", spec.deployment.pools["serve"])
    assert parts.setup.stages == 2
    assert parts.setup.kv_blocks == parts.memory.kv_blocks_per_lane // 2
    result = simulate(spec, check=True)
    assert (result.tables.requests["status"] == "finished").all()


# -- speed ---------------------------------------------------------------------------------------
def cpu_seconds(requests):
    """CPU seconds of the run loop for so many requests of the timing workload, one replica, its load per replica."""
    spec = ms.load("bench/azure-100k", variants=["one-replica"], sets=[f"run.requests={requests}"]).scenario
    parts = {name: pool_parts(spec, name, pool) for name, pool in spec.deployment.pools.items()}
    traffic = sample(spec.traffic, spec.run.seed, requests, None, None)
    times = []
    for _ in range(3):
        driver = build(spec, parts, traffic)
        begin = time.process_time()
        driver.run()
        times.append(time.process_time() - begin)
        assert np.isfinite(driver.records["finish"]).all()
    return min(times)


def test_the_run_loop_is_fast_and_linear():
    cpu_seconds(1000)  # compiled code is loaded
    assert 20_000 / cpu_seconds(20_000) >= 10_000
    assert cpu_seconds(40_000) / cpu_seconds(10_000) <= 4 * 1.6


def test_a_run_can_be_replayed():
    """A driver is used once; its parts are not touched by a run."""
    spec = scenario("quickstart")
    parts = {name: pool_parts(spec, name, pool) for name, pool in spec.deployment.pools.items()}
    traffic = sample(spec.traffic, spec.run.seed, spec.run.requests, None, None)
    first, second = build(spec, parts, traffic), build(spec, parts, traffic)
    assert first.run() == second.run()
    assert first.records.tobytes() == second.records.tobytes()
