"""Recorded vLLM runs: tables become prices exactly, requests are read as they were, both cards within their bands."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moesim.errors import DataMissing, SpecError
from moesim.spec.base import load_spec
from moesim.spec.deployment import Engine
from moesim.spec.model import ModelSpec
from moesim.study.recorded.kernels import (
    attention_errors,
    attention_table,
    graph_sizes,
    read_kernels,
    table_pricing,
)
from moesim.study.recorded.runs import engine_of, read_requests, replay
from moesim.study.recorded.vllm_rtx import FOLDER, recorded_runs, run
from moesim.study.serving.score import load_bands

BANDS = load_bands(Path(__file__).resolve().parents[2] / "validation" / "bands.yaml").suites


def tables(tmp_path, attention=None, dense=None):
    """A small card: dense layers cost 1 us per token and layer, heads 2 us per sequence, attention c + h + n * k."""
    layers = ["qkv_proj", "rotary_emb", "layernorm", "embedding"]
    rows = [(name, t, float(t)) for name in layers for t in (1, 8, 32)] if dense is None else dense
    pd.DataFrame(rows, columns=["layer", "tokens", "time_us"]).to_csv(tmp_path / "dense.csv", index=False)
    heads = [(name, n, 2.0 * n) for name in ("lm_head", "sampler") for n in (1, 4)]
    pd.DataFrame(heads, columns=["layer", "sequences", "time_us"]).to_csv(
        tmp_path / "per_sequence.csv", index=False
    )
    if attention is None:
        attention = [
            (c, h, n, k, 1.0 + c + h + n * k)
            for c in (0, 4, 16)
            for h in ((0, 8) if c else (0,))
            for n in (0, 1, 4)
            for k in ((2, 16) if n else (0,))
            if c or n
        ]
    names = ["prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"]
    pd.DataFrame(attention, columns=names).to_csv(tmp_path / "attention.csv", index=False)
    return tmp_path


def llama():
    return load_spec(ModelSpec, "llama-3.1-8b", "model")


def test_counts_of_calls_and_lines_between_measurements(tmp_path):
    made = table_pricing(read_kernels(tables(tmp_path)), llama(), max_tokens=32, max_seqs=4)
    by_name = {info.name: row for info, row in zip(made.lane_ops, made.lane_s, strict=True)}
    for name, calls in (("rotary_emb", 32), ("layernorm", 64), ("embedding", 1)):
        np.testing.assert_allclose(by_name[name], calls * 1e-6 * np.arange(33), rtol=1e-12)
    tiles = np.array([0, 1, *[8] * 7, *[32] * 24])  # whole tiles: what the next measured count costs
    np.testing.assert_allclose(by_name["qkv_proj"], 32e-6 * tiles, rtol=1e-12)
    np.testing.assert_allclose(made.head_s, 2e-6 * np.array([[0, 1, 4, 4, 4], [0, 1, 2, 3, 4]]), rtol=1e-12)
    assert made.attention[0].table.seconds[1, 1, 2, 1] == pytest.approx(32e-6 * (1 + 4 + 8 + 4 * 16))


def test_graphs_pad_and_larger_batches_do_not(tmp_path):
    made = table_pricing(read_kernels(tables(tmp_path)), llama(), max_tokens=32, max_seqs=4, graph_tokens=16)
    line = made.lane_s[[info.name for info in made.lane_ops].index("rotary_emb")] / 32e-6
    np.testing.assert_allclose(line[[0, 1, 3, 5, 8, 9, 16, 17]], [0, 1, 4, 8, 8, 16, 16, 17], rtol=1e-12)


def test_captured_sizes():
    sizes = graph_sizes(512)
    assert sizes[:6].tolist() == [1, 2, 4, 8, 16, 24]
    assert sizes[-3:].tolist() == [480, 496, 512]
    assert len(sizes) == 51  # as listed in the recorded configuration


def test_a_hole_in_the_grid_is_named(tmp_path):
    rows = [
        (c, 0, n, 2 if n else 0, 1.0) for c in (0, 4, 8) for n in (0, 1, 2) if (c or n) and (c, n) != (8, 2)
    ]
    read = read_kernels(tables(tmp_path, attention=rows))
    with pytest.raises(SpecError, match=r"attention.csv: no time at 8, 0, 2, 2 of the grid"):
        attention_table(read.attention, 1)


def test_beyond_the_measured_is_refused(tmp_path):
    with pytest.raises(SpecError, match="max_num_batched_tokens 33"):
        table_pricing(read_kernels(tables(tmp_path)), llama(), max_tokens=33, max_seqs=4)


@pytest.mark.parametrize(
    ("dense", "message"),
    [
        ([("qkv_proj", 1, 1.0), ("qkv_proj", 1, 2.0)], "dense.csv:3 time_us"),
        ([("qkv_proj", 1, 0.0)], "dense.csv:2 time_us"),
    ],
)
def test_bad_points_are_named_by_line(tmp_path, dense, message):
    with pytest.raises(SpecError, match=message):
        read_kernels(tables(tmp_path, dense=dense))


def test_missing_files_say_what_they_are(tmp_path):
    with pytest.raises(DataMissing, match=r"dense.csv: no such file"):
        read_kernels(tmp_path)
    with pytest.raises(DataMissing, match="shared data"):
        run()


@pytest.mark.parametrize(("rule", "exact"), [("linear", True), ("log", False)])
def test_points_off_the_grid_are_scored(tmp_path, rule, exact):
    grid = [
        (c, h, n, k, 1.0 + c + h + n * k) for c in (4, 16) for h in (0, 8) for n in (1, 4) for k in (2, 16)
    ]
    pure = [(0, 0, n, k, 1.0 + n * k) for n in (1, 4) for k in (2, 16)] + [
        (c, h, 0, 0, 1.0 + c) for c in (4, 16) for h in (0, 8)
    ]
    read = read_kernels(tables(tmp_path, attention=[*grid, *pure, (6, 8, 4, 9, 1.0 + 6 + 8 + 36)]))
    predicted, measured = attention_errors(read.attention, 1, rule)
    assert len(measured) == 1
    assert bool(predicted[0] == pytest.approx(measured[0], rel=1e-9)) is exact


def test_clocks_are_joined_where_a_request_met_an_idle_engine(tmp_path):
    lines = [
        {
            "arrival_time": 1000.0,
            "queued_ts": 7.5,
            "scheduled_ts": 7.6,
            "first_token_ts": 8.0,
            "last_token_ts": 9.0,
        },
        {
            "arrival_time": 1001.0,
            "queued_ts": 8.2,
            "scheduled_ts": 8.6,
            "first_token_ts": 8.9,
            "last_token_ts": 8.9,
        },
    ]
    path = tmp_path / "requests.jsonl"
    path.write_text(
        "\n".join(json.dumps({**line, "input_toks": 5, "output_toks": 1}) for line in reversed(lines))
    )
    frame = read_requests(path)
    assert frame["arrival"].tolist() == pytest.approx([0.0, 1.0])
    assert frame["queued"].tolist() == pytest.approx([0.3, 1.0])
    assert frame["first"].tolist() == pytest.approx([0.8, 1.7])


def test_times_that_run_backwards_are_refused(tmp_path):
    line = {
        "arrival_time": 0.0,
        "queued_ts": 2.0,
        "scheduled_ts": 1.0,
        "first_token_ts": 3.0,
        "last_token_ts": 4.0,
    }
    (tmp_path / "requests.jsonl").write_text(json.dumps({**line, "input_toks": 5, "output_toks": 1}))
    with pytest.raises(SpecError, match=r"requests\.jsonl:1 queued_ts"):
        read_requests(tmp_path / "requests.jsonl")


def test_a_replay_of_its_own_prediction_is_exact(tmp_path):
    """Requests recorded from the simulator are predicted without error: reading, clocks and scores add none."""
    priced = table_pricing(read_kernels(tables(tmp_path)), llama(), max_tokens=32, max_seqs=4)
    engine = Engine(max_num_seqs=4, max_num_batched_tokens=32)
    frame = pd.DataFrame(
        {"arrival": [0.0, 0.001, 0.0015], "input_toks": [20, 30, 9], "output_toks": [5, 1, 9]}
    )
    first = replay(frame.assign(first=0.0, last=0.0), priced, engine, kv_blocks=100, max_len=100)
    told = frame.assign(
        first=frame["arrival"] + first["predicted_ttft_s"], last=frame["arrival"] + first["predicted_e2e_s"]
    )
    again = replay(told, priced, engine, kv_blocks=100, max_len=100)
    for value in ("ttft", "tpot", "e2e"):
        np.testing.assert_allclose(again[f"predicted_{value}_s"], again[f"{value}_s"], rtol=1e-12)
    assert np.isnan(again["tpot_s"][1])


def test_settings_state_their_sources():
    known = recorded_runs()
    assert {one.device: one.kv_blocks for one in known.runs} == {"rtx-4090": 2588, "rtx-pro-6000": None}
    engine = engine_of(known, known.runs[0])
    assert (engine.max_num_seqs, engine.max_num_batched_tokens, engine.prefix_caching) == (256, 2048, True)
    assert all("LLMServingSim" in one.source for one in known.runs)


@pytest.mark.shared
def test_both_cards_within_their_bands(shared):
    answer = run(shared=shared, bands=BANDS["vllm-rtx"])
    assert answer["rows"] == 600
    assert len(answer["bands"]) == 8
    assert all(band["ok"] for band in answer["bands"]), answer["bands"]
    # the measured means are the published ones (from queueing: 65.456 s and 7.097 s), here from arrival
    figures = answer["metrics"]
    assert figures["rtx-4090_ttft_mean"]["measured_s"] == pytest.approx(65.456, rel=2e-3)
    assert figures["rtx-pro-6000_ttft_mean"]["measured_s"] == pytest.approx(7.097, rel=5e-3)
    assert figures["product_linear"]["mape"] > 3 * figures["product_next"]["mape"]
    assert figures["attention_log"]["mape"] > figures["attention_linear"]["mape"]


@pytest.mark.shared
def test_linear_beats_logarithmic_off_the_grid(shared):
    rows = read_kernels(shared / FOLDER / "RTXPRO6000/llama-3.1-8b").attention
    off = {}
    for rule in ("linear", "log"):
        predicted, measured = attention_errors(rows, 1, rule)
        off[rule] = np.abs(predicted / measured - 1.0).mean(), (predicted / measured - 1.0).mean()
    assert len(measured) > 4000
    assert off["linear"][0] < off["log"][0]
    assert abs(off["linear"][1]) < 0.005 < off["log"][1]
