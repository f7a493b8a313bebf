"""End to end: every shipped scenario runs, holds its laws and gives the stable JSON; the report is one safe page."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import moesim as ms

ROOT = Path(__file__).parent.parent
SHORT = {"run.requests": 300, "run.warmup_requests": 30, "run.cooldown_requests": 30}
NAMES = sorted(
    p.relative_to(ROOT / "scenarios").with_suffix("").as_posix() for p in (ROOT / "scenarios").rglob("*.yaml")
)


def _short(name, **more):
    loaded = ms.load(name)
    closed = loaded.scenario.traffic.arrivals.kind == "closed_loop"
    sets = [f"{key}={value}" for key, value in ({} if closed else SHORT | more).items()]
    return ms.load(name, sets=sets)


@pytest.mark.parametrize("name", NAMES)
def test_scenario_holds_its_laws(name):
    result = ms.simulate(_short(name), check=True)
    laws = result.manifest["laws"]
    assert {v for k, v in laws.items() if k != "expert_load"} == {"holds"}
    requests = result.tables.requests
    assert (requests["status"] == "finished").mean() > 0.99
    assert result.manifest["devices"] >= 1


def test_json_has_the_promised_keys(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "moesim", "run", "quickstart", "--json", "--set", "run.requests=600", "--out", "out"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    told = json.loads(done.stdout)
    assert set(told["requests"]) >= {"arrived", "finished", "rejected", "in_flight"}
    for key in ("ttft_s", "tpot_s", "e2e_s"):
        assert set(told[key]) >= {"mean", "p50", "p90", "p95", "p99"}
    assert set(told["throughput"]) >= {
        "requests_per_s",
        "output_tokens_per_s",
        "output_tokens_per_s_per_device",
    }
    assert set(told) >= {"scenario", "energy_J", "cost_usd", "sources", "events", "wall_s", "report"}
    assert (tmp_path / told["report"]).is_file()
    assert sum(told["sources"].values()) == pytest.approx(1)


def test_equal_runs_give_equal_bytes_whatever_the_hash_seed(tmp_path):
    import os

    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-m", "moesim", "run", "disaggregated", "--no-report", "--out", seed,
             "--set", "run.requests=400", "--set", "run.warmup_requests=40", "--set", "run.cooldown_requests=40"],
            cwd=tmp_path, env=os.environ | {"PYTHONHASHSEED": seed}, check=True, capture_output=True, timeout=300,
        )  # fmt: skip
    files = sorted(p.name for p in (tmp_path / "1").iterdir() if p.name != "timing.json")
    assert "requests.parquet" in files
    for name in files:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


def test_a_faster_memory_is_never_slower():
    slow = ms.simulate(_short("quickstart"))
    fast = ms.simulate(_short("quickstart", **{"device.memory.hbm.bandwidth": '"6.7 TB/s"'}))
    assert ms.summary(fast)["tpot_s"]["mean"] < ms.summary(slow)["tpot_s"]["mean"]


def test_scenario_named_like_a_tag_stays_text(tmp_path):
    from dataclasses import replace

    result = ms.simulate(_short("quickstart"))
    scenario = result.manifest["scenario"] | {"title": "<script>alert(1)</script>"}
    page = ms.write_report(
        replace(result, manifest=result.manifest | {"scenario": scenario}), tmp_path / "r.html"
    )
    assert "<script>alert(1)</script>" not in page.read_text()
