"""Store and trace: what is written is what is read; damage is named."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from synthetic import make_result

from moesim.errors import SpecError
from moesim.results import (
    TABLES,
    Result,
    Tables,
    chrome_trace,
    conform,
    read_result,
    write_result,
    write_trace,
)


def files(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_round_trip(run, tmp_path):
    folder = write_result(run, tmp_path / "deep" / "run")
    back = read_result(folder)
    assert back.manifest == run.manifest
    for name, columns in TABLES.items():
        mine, theirs = conform(name, getattr(run.tables, name)), getattr(back.tables, name)
        pd.testing.assert_frame_equal(mine, theirs, check_exact=True)
        assert [str(theirs[c.name].dtype) for c in columns] == [c.dtype for c in columns]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep"]
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["run"]  # no temporary folder left


def test_empty_tables_round_trip(run, tmp_path):
    bare = Result(run.manifest, Tables(requests=run.tables.requests))
    back = read_result(write_result(bare, tmp_path / "run"))
    assert len(back.tables.ops) == 0
    assert [str(d) for d in back.tables.ops.dtypes] == [c.dtype for c in TABLES["ops"]]


def test_equal_runs_give_equal_bytes_apart_from_the_clock(tmp_path):
    first, second = make_result(seed=3, requests=80), make_result(seed=3, requests=80)
    second = replace(second, manifest={**second.manifest, "wall_s": 99.0})
    a, b = files(write_result(first, tmp_path / "a")), files(write_result(second, tmp_path / "b"))
    assert a.pop("timing.json") != b.pop("timing.json")
    assert a == b
    other = files(write_result(make_result(seed=4, requests=80), tmp_path / "c"))
    assert other["requests.parquet"] != a["requests.parquet"]
    assert read_result(tmp_path / "b").manifest["wall_s"] == 99.0


def test_an_earlier_run_is_replaced_but_nothing_else(run, cut_run, tmp_path):
    folder = write_result(run, tmp_path / "run")
    (folder / "report.html").write_text("old")
    write_result(cut_run, folder)
    assert read_result(folder).manifest == cut_run.manifest
    assert not (folder / "report.html").exists()  # it told of the earlier run
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("mine")
    with pytest.raises(SpecError, match="not a run"):
        write_result(run, precious)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SpecError, match="not a run"):
        write_result(run, tmp_path / "file")
    assert (precious / "thesis.tex").read_text() == "mine"


def test_a_failed_write_leaves_the_earlier_run(run, tmp_path):
    folder = write_result(run, tmp_path / "run")
    before = files(folder)
    broken = replace(run, tables=replace(run.tables, ops=run.tables.ops.drop(columns="seconds")))
    with pytest.raises(SpecError, match="table ops  seconds: expected a column, it is missing"):
        write_result(broken, folder)
    with pytest.raises(SpecError, match=r"manifest  scenario.weird: expected JSON data"):
        write_result(replace(run, manifest={**run.manifest, "scenario": {"weird": object()}}), folder)
    with pytest.raises(SpecError, match="expected a finite number"):
        write_result(replace(run, manifest={**run.manifest, "simulated_s": float("nan")}), folder)
    assert files(folder) == before
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_numpy_numbers_in_the_manifest_are_numbers(run, tmp_path):
    manifest = {**run.manifest, "events": np.int64(5), "memory": {"serve": {"kv": (np.float64(1.5), True)}}}
    back = read_result(write_result(replace(run, manifest=manifest), tmp_path / "run")).manifest
    assert back["events"] == 5
    assert back["memory"] == {"serve": {"kv": [1.5, True]}}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "manifest.json").unlink(), "manifest.json: expected a file of the run"),
        (lambda f: (f / "manifest.json").write_text("{\n  nope"), r"manifest.json:2: expected JSON"),
        (lambda f: (f / "manifest.json").write_text('{"format": 99}'), "format  99: expected 1"),
        (lambda f: (f / "manifest.json").write_text('{"format": 1}'), "scenario: expected a mapping"),
        (lambda f: (f / "manifest.json").write_text("[1]"), "expected a mapping"),
        (lambda f: (f / "ops.parquet").unlink(), "ops.parquet: expected a table of the run"),
        (
            lambda f: (f / "ops.parquet").write_bytes(b"PAR1 not really"),
            "ops.parquet: expected a parquet file",
        ),
        (
            lambda f: pd.DataFrame({"pool": ["serve"]}).to_parquet(f / "ops.parquet"),
            "ops.parquet: table ops  op: expected a",
        ),
    ],
)
def test_damage_is_named(run, tmp_path, damage, message):
    folder = write_result(run, tmp_path / "run")
    damage(folder)
    with pytest.raises(SpecError, match=message):
        read_result(folder)


def test_no_such_run(tmp_path):
    with pytest.raises(SpecError, match="no such run folder"):
        read_result(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, "extra: unknown column"),
        ({"seconds": "much"}, "seconds: expected float64"),
        ({"kind": None}, "kind: expected text"),
    ],
)
def test_conform_refuses(run, change, message):
    with pytest.raises(SpecError, match=message):
        conform("ops", run.tables.ops.assign(**change))


def test_conform_refuses_half_requests(run):
    with pytest.raises(SpecError, match="waiting: expected whole numbers"):
        conform("timeline", run.tables.timeline.assign(waiting=0.5))
    with pytest.raises(SpecError, match="waiting: expected whole numbers"):
        conform("timeline", run.tables.timeline.assign(waiting=np.nan))


def test_trace_slices_and_spans(cut_run, tmp_path):
    trace = chrome_trace(cut_run, request_cap=40)
    events = trace["traceEvents"]
    steps = [e for e in events if e["ph"] == "X"]
    assert len(steps) == len(cut_run.tables.timeline)
    assert sum(e["dur"] for e in steps) == pytest.approx(cut_run.tables.timeline["step_s"].sum() * 1e6)
    assert {e["tid"] for e in steps} == {0}  # one engine, steps one after another
    begins = [(e["id"], e["name"]) for e in events if e["ph"] == "b"]
    assert sorted(begins) == sorted((e["id"], e["name"]) for e in events if e["ph"] == "e")
    assert len({i for i, _ in begins}) == 40
    end_us = cut_run.manifest["simulated_s"] * 1e6
    assert all(0 <= e["ts"] <= end_us * (1 + 1e-9) for e in events if e["ph"] in "bexXC")
    request = cut_run.tables.requests.set_index("request").loc[1]
    ttft = [e["ts"] for e in events if e.get("id") == 1 and e["name"] == "prefill" and e["ph"] == "e"]
    assert ttft == [pytest.approx(request["first_token_s"] * 1e6)]
    path = write_trace(cut_run, tmp_path / "trace.json.gz", 40)
    assert json.loads(gzip.decompress(path.read_bytes())) == json.loads(json.dumps(trace))
    assert path.read_bytes()[4:8] == bytes(4)  # no time of writing in the header
    assert write_trace(cut_run, tmp_path / "again.json.gz", 40).read_bytes() == path.read_bytes()


def test_overlapping_steps_lie_on_separate_tracks(run):
    rows = run.tables.timeline.head(3).assign(replica=0, time_s=[1.0, 1.5, 2.5], step_s=[1.0, 1.0, 1.0])
    trace = chrome_trace(replace(run, tables=replace(run.tables, timeline=rows)))
    tracks = [(e["ts"], e["tid"]) for e in trace["traceEvents"] if e["ph"] == "X"]
    assert tracks == [(0.0, 0), (5e5, 1), (1.5e6, 0)]
