"""Each verb: what it prints, what it writes, and that ``--json`` is JSON and nothing else."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from call import command

from moesim.results import DEFINITIONS
from moesim.scenario import KINDS, load


def shell(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "moesim", *args], capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.fixture
def run_dir(toy: Path) -> Path:
    assert command("run", "toy.yaml", "--no-report", "--out", "a").code == 0
    return toy / "a"


# -- run --------------------------------------------------------------------------------------------------------


def test_run_writes_a_run_and_prints_its_numbers(toy: Path) -> None:
    answer = command("run", "toy.yaml", "--check")
    assert answer.code == 0, answer.err
    (folder,) = (toy / "runs").iterdir()
    assert folder.name.startswith("toy-")
    assert {"manifest.json", "requests.parquet", "report.html"} <= {p.name for p in folder.iterdir()}
    assert "50 of 50 requests finished" in answer.out
    assert f"report: runs/{folder.name}/report.html" in answer.out
    assert "target ttft p95 <= 1 s: met" in answer.out
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["origins"]["run.requests"] == "toy.yaml:13"
    assert set(manifest["laws"].values()) == {"holds"}


def test_run_json_is_the_summary(toy: Path) -> None:
    answer = command("run", "toy.yaml", "--json", "--no-report")
    numbers = json.loads(answer.out)
    assert numbers["requests"]["finished"] == 50
    assert {"ttft_s", "tpot_s", "e2e_s", "itl_s", "throughput", "goodput", "energy_J", "cost_usd", "sources",
            "events", "wall_s", "definitions", "verdict"} <= set(numbers)  # fmt: skip
    assert numbers["definitions"] == DEFINITIONS
    assert numbers["report"] is None


def test_equal_runs_land_in_one_folder_with_equal_bytes(toy: Path) -> None:
    def content() -> dict[str, bytes]:
        (folder,) = (toy / "runs").iterdir()
        return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "timing.json"}

    command("run", "toy.yaml", "--no-report", "--seed", "3")
    first = content()
    command("run", "toy.yaml", "--no-report", "--set", "run.seed=3")
    again = content()
    first_manifest, again_manifest = (json.loads(c.pop("manifest.json")) for c in (first, again))
    assert first == again
    assert first_manifest.pop("origins")["run.seed"] == "--seed"
    assert again_manifest.pop("origins")["run.seed"] == "--set"
    assert first_manifest == again_manifest


def test_another_process_and_hash_seed_give_equal_bytes(toy: Path) -> None:
    for name, seed in (("a", "1"), ("b", "2")):
        assert shell("run", "toy.yaml", "--no-report", "--out", name, PYTHONHASHSEED=seed).returncode == 0
    for path in sorted((toy / "a").iterdir()):
        if path.name != "timing.json":
            assert path.read_bytes() == (toy / "b" / path.name).read_bytes(), path.name


def test_out_is_not_overwritten_without_force(toy: Path, run_dir: Path) -> None:
    before = (run_dir / "manifest.json").read_bytes()
    assert command("run", "toy.yaml", "--no-report", "--out", "a", "--seed", "5").code == 2
    assert (run_dir / "manifest.json").read_bytes() == before
    assert command("run", "toy.yaml", "--no-report", "--out", "a", "--seed", "5", "--force").code == 0
    assert (run_dir / "manifest.json").read_bytes() != before
    (toy / "mine").mkdir()
    (toy / "mine" / "thesis.txt").write_text("precious")
    assert command("run", "toy.yaml", "--no-report", "--out", "mine", "--force").code == 2
    assert (toy / "mine" / "thesis.txt").read_text() == "precious"


def test_strict_exits_with_three_when_a_target_is_missed(toy: Path) -> None:
    missed = ("run", "toy.yaml", "--no-report", "--set", "targets.tpot=1 ns")
    assert command(*missed).code == 0
    answer = command(*missed, "--strict")
    assert answer.code == 3
    assert answer.err.startswith("target missed: tpot p95 ")
    assert answer.err.rstrip().endswith("limit 1e-09 s")
    assert command("run", "toy.yaml", "--no-report", "--strict").code == 0


def test_strict_with_json_still_prints_one_object(toy: Path) -> None:
    answer = command("run", "toy.yaml", "--no-report", "--strict", "--json", "--set", "targets.tpot=1 ns")
    assert answer.code == 3
    assert json.loads(answer.out)["verdict"]["tpot"]["met"] is False


def test_trace_is_perfetto_json(toy: Path) -> None:
    answer = command("run", "toy.yaml", "--no-report", "--trace", "--out", "t")
    assert answer.code == 0
    assert json.loads(gzip.decompress((toy / "t" / "trace.json.gz").read_bytes()))["traceEvents"]


# -- show -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [(), ("--origins",), ("--variant", "fast,busy", "--set", "run.seed=4")])
def test_show_prints_a_scenario_that_resolves_to_itself(toy: Path, args: tuple[str, ...]) -> None:
    answer = command("show", "toy.yaml", *args)
    assert answer.code == 0
    (toy / "again.yaml").write_text(answer.out)
    chosen = [args[1]] if args[:1] == ("--variant",) else []
    expected = load("toy.yaml", chosen, ["run.seed=4"] if chosen else []).scenario
    assert load("again.yaml").scenario == expected


@pytest.mark.parametrize("name", ["quickstart", "disaggregated", "speculative"])
def test_shipped_scenarios_resolve_to_themselves(toy: Path, name: str) -> None:
    assert command("show", name, "--out", "again.yaml").code == 0
    assert load("again.yaml").scenario == load(name).scenario


def test_show_origins_and_a_part(toy: Path) -> None:
    answer = command("show", "toy.yaml", "device.memory.hbm", "--origins", "--variant", "fast")
    lines = {line.split(":")[0]: line for line in answer.out.splitlines()}
    assert lines["bandwidth"].split("  #")[0].rstrip() == "bandwidth: 4 TB/s"
    assert lines["bandwidth"].endswith("# variant fast (toy.yaml:17)")
    assert lines["capacity"].endswith("# device.yaml:8")
    assert lines["latency"].endswith("# default")
    assert command("show", "toy.yaml", "run.requests").out == "run.requests: 50\n"


def test_show_tells_the_memory_of_a_device(toy: Path) -> None:
    assert "# memory of one device of pool serve: weights " in command("show", "toy.yaml").out
    answer = command("show", "toy.yaml", "--set", "model=deepseek-v3")
    assert answer.code == 0
    assert answer.err.startswith("deepseek-v3 does not fit on toy")


def test_show_json_has_scenario_origins_memory(toy: Path) -> None:
    data = json.loads(command("show", "toy.yaml", "--json").out)
    assert data["scenario"]["run"]["requests"] == 50
    assert data["origins"]["run.requests"] == "toy.yaml:13"
    assert data["memory"]["serve"]["kv_blocks_per_lane"] > 0
    part = json.loads(command("show", "toy.yaml", "deployment.serve", "--json").out)
    assert part["deployment.serve"]["replicas"] == 2
    assert all(key.startswith("deployment.serve.") for key in part["origins"])


def test_show_of_an_unknown_part(toy: Path) -> None:
    answer = command("show", "toy.yaml", "deployment.srve")
    assert (answer.code, answer.err) == (2, "show  deployment.srve: no such key, did you mean 'serve'?\n")


# -- the others -------------------------------------------------------------------------------------------------


def test_lint(toy: Path) -> None:
    assert command("lint", ".").out == "6 files, no mistakes\n"
    (toy / "toy.yaml").write_text((toy / "toy.yaml").read_text().replace("replicas: 2", "replicas: two"))
    answer = command("lint", ".")
    assert answer.code == 2
    assert answer.err.startswith("toy.yaml:9  deployment.serve.replicas  'two': ")


def test_lint_says_when_a_model_does_not_fit(toy: Path) -> None:
    (toy / "toy.yaml").write_text((toy / "toy.yaml").read_text() + "  big:\n    model: deepseek-v3\n")
    answer = command("lint", "toy.yaml")
    assert answer.code == 2
    assert answer.err.startswith("toy.yaml  variant big: deepseek-v3 does not fit on toy")


@pytest.mark.parametrize(
    "kind", ["devices", "nodes", "clusters", "models", "traffic", "routing", "scenarios"]
)
def test_list(kind: str) -> None:
    rows = json.loads(command("list", kind, "--json").out)[
        kind if kind in {"traffic", "routing"} else kind[:-1]
    ]
    printed = command("list", kind)
    assert printed.code == 0
    for row in rows:
        assert row["name"] in printed.out
    assert len(rows) >= 3


def test_list_numbers_have_units_in_their_names() -> None:
    row = next(
        r for r in json.loads(command("list", "devices", "--json").out)["device"] if r["name"] == "h100-sxm"
    )
    assert row["bf16_FLOP_per_s"] == pytest.approx(989.4e12, rel=1e-3)
    assert row["bandwidth_bytes_per_s"] == pytest.approx(3.35e12, rel=1e-2)


def test_schema(toy: Path) -> None:
    assert json.loads(command("schema", "scenario").out)["title"] == "moesim scenario file"
    answer = command("schema", "--all", "schemas", "--json")
    assert sorted(json.loads(answer.out)["written"]) == sorted(
        f"schemas/{kind}.schema.json" for kind in KINDS
    )
    assert command("schema").code == 2


def test_import_model(toy: Path) -> None:
    config = {
        "architectures": ["MixtralForCausalLM"], "hidden_size": 64, "vocab_size": 100, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128, "num_local_experts": 4,
        "num_experts_per_tok": 2, "max_position_embeddings": 512, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "model_type": "mixtral", "hidden_act": "silu",
    }  # fmt: skip
    (toy / "config.json").write_text(json.dumps(config))
    answer = command("import", "model", "config.json", "--name", "mine", "--out", "mine.yaml")
    assert answer.code == 0, answer.err
    assert command("lint", "mine.yaml").code == 0
    assert load("toy.yaml", (), ["model=mine.yaml"]).scenario.model.name == "mine"
    assert command("import", "model", "config.json", "--out", "mine.yaml").code == 2
    (toy / "config.json").write_text(json.dumps({**config, "architectures": ["NobodyForCausalLM"]}))
    refused = command("import", "model", "config.json")
    assert refused.code == 2
    assert "NobodyForCausalLM" in refused.err


def test_routing_show() -> None:
    answer = command("routing", "show", "mixtral-8x7b")
    assert answer.code == 0
    assert "hottest expert over mean" in answer.out
    data = json.loads(command("routing", "show", "mixtral-8x7b", "--json").out)
    assert (data["experts"], data["top_k"]) == (8, 2)
    assert command("routing", "show", "mixtral").code == 2


def test_report_and_compare(toy: Path, run_dir: Path) -> None:
    assert command("run", "toy.yaml", "--no-report", "--out", "b", "--variant", "busy").code == 0
    answer = command("report", "a", "b")
    assert (answer.code, answer.out.split()) == (0, ["a/report.html", "b/report.html"])
    assert "<html" in (toy / "a" / "report.html").read_text()[:2000]
    both = json.loads(command("compare", "a", "b", "--json").out)["metrics"]
    rate = next(row for row in both if row["metric"] == "throughput.requests_per_s")
    assert rate["ratio"] == pytest.approx(rate["b"] / rate["a"])
    assert rate["ratio"] > 1.2
    printed = command("compare", "a", "b")
    assert "throughput.requests_per_s" in printed.out


def test_version() -> None:
    from moesim.version import __version__

    assert json.loads(command("version", "--json").out)["version"] == __version__
    assert __version__ in command("version").out


# -- purity, bugs, signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ("version",), ("list", "routing"), ("schema", "cluster"), ("show", "toy.yaml"), ("lint", "toy.yaml"),
        ("run", "toy.yaml", "--no-report"), ("routing", "show", "uniform"), ("run", "nothing"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_json_purity_in_a_real_process(toy: Path, args: tuple[str, ...]) -> None:
    done = shell(*args, "--json")
    json.loads(done.stdout)
    assert done.stdout.count("\x1b") == 0
    if done.returncode == 0:
        assert done.stderr == ""


def test_a_bug_is_one_short_line_and_a_traceback_on_request(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import moesim.api

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("seven by naught")

    monkeypatch.setattr(moesim.api, "simulate", broken)
    answer = command("run", "toy.yaml", "--json")
    assert answer.code == 70
    assert answer.err.splitlines()[0] == "ZeroDivisionError: seven by naught"
    assert "this is a bug in moesim" in answer.err.splitlines()[1]
    assert "Traceback" not in answer.err
    assert json.loads(answer.out)["error"]["type"] == "bug"
    monkeypatch.setenv("MOESIM_DEBUG", "1")
    from moesim.cli import app

    with pytest.raises(ZeroDivisionError):
        app(["run", "toy.yaml"])


def test_a_broken_law_is_our_bug(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import moesim.api
    from moesim.errors import LawBroken

    def broken(*_: object, **__: object) -> None:
        raise LawBroken("conservation: 3 of 4 (seed 7)")

    monkeypatch.setattr(moesim.api, "simulate", broken)
    answer = command("run", "toy.yaml")
    assert (answer.code, answer.err) == (70, "conservation: 3 of 4 (seed 7)\n")


def test_an_interrupt_exits_with_130(toy: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "moesim", "run", "toy.yaml", "--no-report", "--set", "run.requests=3000000"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert err.strip() == "interrupted"


def test_a_reader_that_goes_away_is_no_error(toy: Path) -> None:
    done = subprocess.run(
        ["/bin/bash", "-c", f"{sys.executable} -m moesim show quickstart --json | head -1; exit ${{PIPESTATUS[0]}}"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "{\n"


def test_progress_is_silent_without_a_terminal(toy: Path) -> None:
    assert shell("run", "toy.yaml", "--no-report").stderr == ""


# -- help and completion ----------------------------------------------------------------------------------------


def test_every_verb_has_help_and_json() -> None:
    verbs = [("run",), ("show",), ("lint",), ("list",), ("schema",), ("report",), ("compare",), ("version",),
             ("import", "model"), ("routing", "fit"), ("routing", "show")]  # fmt: skip
    for verb in verbs:
        answer = command(*verb, "--help")
        assert answer.code == 0, verb
        assert "--json" in answer.out, verb


def test_names_complete(toy: Path) -> None:
    def complete(words: str) -> list[str]:
        done = shell(
            _MOESIM_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(len(words.split()) - 1)
        )
        return done.stdout.split()

    assert complete("moesim run quick") == ["quickstart"]
    assert complete("moesim list dev") == ["devices"]
    assert complete("moesim run quickstart --variant bur") == ["bursty"]


def test_routing_fit_and_use(toy: Path) -> None:
    generator = np.random.default_rng(0)
    sequences, tokens, experts = 24, 20, 8
    score = generator.random((sequences * tokens, 2, experts)) - np.linspace(0, 0.5, experts)
    np.savez(
        "trace.npz", experts=np.argsort(score, axis=2)[:, :, :2].astype(np.uint8),
        sequence_offset=np.arange(sequences) * tokens, sequence_length=np.full(sequences, tokens),
    )  # fmt: skip
    fit = ("routing", "fit", "trace.npz", "--out", "fitted.yaml", "--cite", "drawn for a test")
    answer = command(*fit, "--json")
    assert answer.code == 0, answer.err
    found = {row["statistic"]: row for row in json.loads(answer.out)["statistics"]}
    assert found["distinct_mixed_128"]["recorded"] == pytest.approx(8, abs=0.1)
    assert abs(found["hottest_over_mean"]["relative_error"]) < 0.2
    assert command(*fit).err == "fitted.yaml: already there; --force replaces it\n"
    shown = command("routing", "show", "fitted.yaml")
    assert "previous_overlap" in shown.out
    assert "source: drawn for a test" in shown.out
    assert command("lint", "fitted.yaml").code == 0
    assert command("run", "toy.yaml", "--set", "routing=fitted.yaml", "--no-report").code == 0
    assert command("routing", "fit", "trace.npz", "--out", "other.yaml").code == 2  # no source, no facts
