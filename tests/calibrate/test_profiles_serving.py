"""Serving results: the clients' own numbers in our words, per-request lists, and a scenario that replays them."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from moesim.calibrate.profiles import import_profile, read_import, scenario_skeleton, write_import
from moesim.calibrate.profiles.serving import RUN_COLUMNS
from moesim.errors import SpecError
from moesim.files import dump_yaml
from moesim.results.latency import tpot_s
from moesim.scenario import load
from moesim.traffic.sample import sample


def run_of(count=40, seed=0, *, failed=2, inputs=None, outputs=None, detailed=True, **extra):
    """Make what vLLM's client writes (vllm/benchmarks/serve.py, 0.8 to 0.19): fields, names, units, statistics."""
    rng = np.random.default_rng(seed)
    lens = rng.integers(50, 500, count) if inputs is None else np.full(count, inputs)
    outs = rng.integers(1, 60, count) if outputs is None else np.full(count, outputs)
    ttfts = rng.gamma(2.0, 0.05, count)
    itls = [list(rng.gamma(4.0, 0.005, n - 1)) for n in outs]
    gone = set(rng.choice(count, failed, replace=False).tolist())
    done = [i for i in range(count) if i not in gone]
    tpots = np.array([sum(itls[i]) / (outs[i] - 1) for i in done if outs[i] > 1])
    gaps = np.concatenate([itls[i] for i in done])
    e2e = np.array([ttfts[i] + sum(itls[i]) for i in done])
    run = {
        "date": "20260102-030405", "endpoint_type": "vllm", "backend": "vllm", "label": None, "model_id": "a/b-30B",
        "tokenizer_id": "a/b-30B", "num_prompts": count, "request_rate": "inf", "burstiness": 1.0,
        "max_concurrency": 8, "duration": 12.5, "completed": len(done), "failed": failed,
        "total_input_tokens": int(sum(lens[i] for i in done)), "total_output_tokens": int(sum(outs[i] for i in done)),
        "request_throughput": len(done) / 12.5, "request_goodput": None, "output_throughput": 10.0,
        "total_token_throughput": 20.0,
    }  # fmt: skip
    for name, values in (("ttft", ttfts[done]), ("tpot", tpots), ("itl", gaps), ("e2el", e2e)):
        run |= {f"mean_{name}_ms": values.mean() * 1e3, f"median_{name}_ms": np.median(values) * 1e3,
                f"std_{name}_ms": values.std() * 1e3, f"p99_{name}_ms": np.percentile(values, 99) * 1e3}  # fmt: skip
    if detailed:
        run |= {
            "input_lens": lens.tolist(), "output_lens": [0 if i in gone else int(outs[i]) for i in range(count)],
            "ttfts": [0.0 if i in gone else float(ttfts[i]) for i in range(count)],
            "itls": [[] if i in gone else itls[i] for i in range(count)],
            "generated_texts": [""] * count, "errors": ["boom" if i in gone else "" for i in range(count)],
        }  # fmt: skip
    return run | extra


def sglang_run(**extra):
    """Make what sglang.bench_serving appends to its JSON lines."""
    base = {k: v for k, v in run_of(detailed=False).items() if k not in {"date", "endpoint_type", "model_id", "failed",
            "label", "tokenizer_id", "num_prompts", "burstiness"} and "e2el" not in k}  # fmt: skip
    return base | {
        "tag": None, "backend": "sglang", "dataset_name": "random", "request_rate": math.inf, "max_concurrency": 16,
        "sharegpt_output_len": None, "random_input_len": 1024, "random_output_len": 128, "random_range_ratio": 0.5,
        "server_info": {"model_path": "a/b-30B"}, "mean_e2e_latency_ms": 900.0, "median_e2e_latency_ms": 800.0,
        "p99_e2e_latency_ms": 2000.0, "total_output_tokens_retokenized": 5, "completed": 64,
    } | extra  # fmt: skip


def write(path, *runs):
    path.write_text("\n".join(json.dumps(run) for run in runs))
    return path


def test_vllm_numbers_in_seconds_and_our_words(tmp_path):
    run = run_of()
    found = import_profile(write(tmp_path / "r.json", run))
    assert found.kind == "serving"
    assert list(found.frame.columns) == list(RUN_COLUMNS)
    row = found.frame.iloc[0]
    assert row["client"] == "vllm"
    assert (row["model_id"], row["prompts"], row["completed"], row["failed"]) == ("a/b-30B", 40, 38, 2)
    assert math.isinf(row["request_rate"])
    assert row["max_concurrency"] == 8
    for ours, theirs in (("ttft", "ttft"), ("tpot", "tpot"), ("itl", "itl"), ("e2e", "e2el")):
        for short, statistic in (("mean", "mean"), ("p50", "median"), ("p99", "p99")):
            assert row[f"{ours}_{short}_s"] == pytest.approx(run[f"{statistic}_{theirs}_ms"] / 1e3)
    assert math.isnan(row["ttft_p90_s"])
    assert any("2 requests failed" in note for note in found.notes)
    assert found.fittable.empty
    assert found.as_dict()["rows"] == 1


def test_tpot_of_requests_is_ours_and_the_clients(tmp_path):
    run = run_of()
    found = import_profile(write(tmp_path / "r.json", run))
    requests = found.requests
    assert len(requests) == run["completed"]
    assert requests["tpot_s"].mean() * 1e3 == pytest.approx(run["mean_tpot_ms"])
    assert requests["e2e_s"].mean() * 1e3 == pytest.approx(run["mean_e2el_ms"])
    ours = tpot_s(
        pd.DataFrame(
            {
                "output_tokens": requests["output_tokens"],
                "first_token_s": requests["ttft_s"],
                "finish_s": requests["e2e_s"],
            }
        )
    )
    np.testing.assert_allclose(ours, requests["tpot_s"], rtol=1e-9)
    assert not any("the client states" in note for note in found.notes)


def test_means_that_are_not_those_of_the_requests_are_told(tmp_path):
    run = run_of()
    run["mean_tpot_ms"] *= 1.5
    found = import_profile(write(tmp_path / "r.json", run))
    assert any("mean tpot of its requests is" in note for note in found.notes)


def test_sglang_lines(tmp_path):
    runs = sglang_run(), sglang_run(request_rate=4.0, max_concurrency=None), sglang_run(completed=0)
    found = import_profile(write(tmp_path / "r.jsonl", *runs))
    assert found.frame["client"].tolist() == ["sglang", "sglang"]
    assert found.frame["line"].tolist() == [1, 2]
    assert found.frame["model_id"].tolist() == ["a/b-30B"] * 2
    assert found.frame["e2e_p50_s"].tolist() == [0.8, 0.8]
    assert (found.read, found.kept, found.dropped) == (3, 2, {"no request completed": 1})
    assert found.requests is None


def replayed(tmp_path, found, run=0, **options):
    data = scenario_skeleton(found, run, cluster="h100-sxm-1", model="qwen3-8b", **options)
    path = tmp_path / "s.yaml"
    path.write_text(dump_yaml(data))
    return load(str(path)).scenario


def test_a_closed_loop_is_replayed_with_its_lengths(tmp_path):
    run = run_of(400, failed=0)
    found = import_profile(write(tmp_path / "r.json", run))
    scenario = replayed(tmp_path, found)
    assert scenario.name == "vllm-qwen3-8b-c8"
    requests = sample(scenario.traffic, 0, scenario.run.requests)
    assert (requests.concurrency, len(requests)) == (8, 400)
    for ours, theirs in (
        (requests.input_tokens, run["input_lens"]),
        (requests.output_tokens, run["output_lens"]),
    ):
        for q in (0.1, 0.5, 0.9):
            assert np.quantile(ours, q) == pytest.approx(np.quantile(theirs, q), rel=0.1, abs=2)


def test_open_loops(tmp_path):
    runs = (
        run_of(inputs=100, outputs=20, request_rate=2.5, max_concurrency=None),
        run_of(inputs=100, outputs=20, request_rate=2.5, burstiness=0.25, max_concurrency=4),
        run_of(inputs=100, outputs=20, max_concurrency=None),
        run_of(detailed=False),
    )
    found = import_profile(write(tmp_path / "r.json", *runs))
    poisson, bursty, at_once, means = (replayed(tmp_path, found, i) for i in range(4))
    assert (poisson.traffic.arrivals.kind, poisson.traffic.arrivals.rate) == ("poisson", 2.5)
    assert (poisson.traffic.lengths.kind, poisson.traffic.lengths.input) == ("fixed", 100)
    assert (bursty.traffic.arrivals.kind, bursty.traffic.arrivals.cv) == ("gamma", 2.0)
    assert "at most 4 in flight" in bursty.description
    assert at_once.traffic.arrivals.concurrency == 40
    assert means.traffic.lengths.input == round(runs[3]["total_input_tokens"] / runs[3]["completed"])
    assert "the file keeps no more" in means.description


def test_a_random_range_is_replayed(tmp_path):
    found = import_profile(write(tmp_path / "r.jsonl", sglang_run()))
    lengths = replayed(tmp_path, found).traffic.lengths
    assert (lengths.kind, lengths.input, lengths.output, lengths.range_ratio) == (
        "uniform_range",
        1024,
        128,
        0.5,
    )
    other = import_profile(write(tmp_path / "o.jsonl", sglang_run(dataset_name="sharegpt")))
    assert replayed(tmp_path, other).traffic.lengths.kind == "fixed"
    assert replayed(tmp_path, other).deployment.serve.engine.flavor == "sglang"


def test_what_cannot_be_replayed_is_refused(tmp_path):
    found = import_profile(write(tmp_path / "r.jsonl", sglang_run(request_rate="trace")))
    with pytest.raises(SpecError, match="line 1: arrivals were replayed"):
        scenario_skeleton(found, cluster="h100-sxm-1", model="qwen3-8b")
    with pytest.raises(SpecError, match="run 1: expected 0 to 0"):
        scenario_skeleton(found, 1, cluster="h100-sxm-1", model="qwen3-8b")
    table = tmp_path / "t.csv"
    table.write_text("op,size,seconds\ncopy,2,1\n")
    with pytest.raises(SpecError, match="expected a serving result to replay, not table"):
        scenario_skeleton(import_profile(table), cluster="h100-sxm-1", model="qwen3-8b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean_ttft_ms": "fast"}, r"r\.json:1  mean_ttft_ms  fast: expected a number"),
        ({"completed": 1.5}, r"r\.json:1  completed  1\.5: expected a whole number"),
        ({"request_rate": -1}, r"request_rate  -1: expected requests per second, above 0"),
        ({"ttfts": [0.1]}, "expected lists of one length"),
        ({"itls": [0.1] * 40}, r"itls\.0  0\.1: expected a list of seconds"),
        ({"ttfts": [-1.0] * 40}, r"ttfts\.0  -1\.0: expected a number, not negative"),
        ({"duration": None, "completed": 0}, "expected at least one run with completed requests"),
    ],
)
def test_mistakes(tmp_path, change, message):
    with pytest.raises(SpecError, match=message) as caught:
        import_profile(write(tmp_path / "r.json", run_of() | change))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"request_rate": 1}', "completed  missing: expected a result of vllm bench serve"),
        ('\n{"completed": 1,,}', r"r\.json:2  .*expected JSON"),
        ("[1]", "expected a run, a JSON object"),
        ("", "expected at least one run"),
    ],
)
def test_files_that_are_no_results(tmp_path, text, message):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(SpecError, match=message):
        import_profile(path, "serving")


def test_an_import_is_kept_with_its_report(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text(
        "op,dtype,m,n,k,time_us\ngemm,bf16,8192,8192,8192,1\ngemm,bf16,1,2,3,5\ngem,bf16,1,2,3,5\n"
    )
    for found in (
        import_profile(write(tmp_path / "r.json", run_of())),
        import_profile(table, device="h100-sxm"),
    ):
        write_import(tmp_path / "kept.parquet", found)
        frame, report = read_import(tmp_path / "kept.parquet")
        pd.testing.assert_frame_equal(frame, found.frame)
        assert {k: v for k, v in report.items() if k != "version"} == found.as_dict()
    assert frame["possible"].tolist() == [True, False]
    assert report["faster_than_bound_rows"] == 1
    frame.to_parquet(tmp_path / "other.parquet")
    with pytest.raises(SpecError, match="moesim calibrate import wrote"):
        read_import(tmp_path / "other.parquet")
    with pytest.raises(SpecError, match="expected a parquet file"):
        read_import(tmp_path / "missing.parquet")
