"""Sampling: determinism in any process, closed loops, extents, traces, priorities, the arrays' own laws."""

import hashlib
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from moesim.errors import LawBroken, SpecError
from moesim.traffic import make_requests, sample, stream
from moesim.traffic.requests import dense, dense_within

LOGNORMAL = "{kind: lognormal, input: {mean: 300, cv: 1}, output: {mean: 50, cv: 1}}"
SHARED = (
    "prefix: {kind: shared, groups: 5, tokens: 100, zipf: 1, block_tokens: 16}\n"
    "priorities: {gold: 0.3, rest: 0.7}"
)
COLUMNS = ("arrival_s", "input_tokens", "output_tokens", "priority", "session", "block_offset", "block_hash")


def digest(requests):
    return hashlib.sha256(b"".join(getattr(requests, name).tobytes() for name in COLUMNS)).hexdigest()


def test_the_same_bytes_in_any_process(traffic):
    here = digest(sample(traffic(lengths=LOGNORMAL, rest=SHARED), 11, 3000))
    script = (
        "import sys; sys.path.insert(0, 'tests/traffic')\n"
        "from test_traffic_sample import *\n"
        "from moesim.files import parse_yaml; from moesim.spec.base import validate\n"
        "from moesim.spec.traffic import TrafficSpec\n"
        "text = 'kind: traffic\\nname: t\\narrivals: {kind: poisson, rate: 5 request/s}\\n'\n"
        "text += 'lengths: ' + LOGNORMAL + '\\n' + SHARED + '\\n'\n"
        "print(digest(sample(validate(TrafficSpec, parse_yaml(text, 't')), 11, 3000)))"
    )
    for seed in ("0", "77"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stdout.strip() == here


def test_the_bytes_stay_what_they_were(traffic):
    # a golden: numpy promises PCG64's stream, and floats are rounded here
    r = sample(traffic(lengths="{kind: uniform_range, input: 1024, output: 64, range_ratio: 0.5}"), 42, 4)
    assert r.arrival_s.round(6).tolist() == GOLDEN["arrival_s"]
    assert r.input_tokens.tolist() == GOLDEN["input_tokens"]
    assert r.output_tokens.tolist() == GOLDEN["output_tokens"]


GOLDEN = {
    "arrival_s": [0.087479, 0.381398, 1.114933, 1.167029],
    "input_tokens": [1024, 856, 574, 788],
    "output_tokens": [40, 35, 58, 55],
}


def test_streams_differ_by_name_and_seed():
    draws = {stream(seed, name).random() for seed in range(20) for name in ("a", "b", "arrivals")}
    assert len(draws) == 60
    with pytest.raises(SpecError, match="non-negative"):
        stream(-1, "a")


def test_streams_are_uncorrelated():
    a, b = stream(0, "lengths.input").random(100_000), stream(0, "lengths.output").random(100_000)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.01


def test_a_million_requests_take_less_than_a_second(traffic):
    spec = traffic("{kind: gamma, rate: 5 request/s, cv: 2}", LOGNORMAL)
    sample(spec, 0, 1000)
    begin = time.process_time()
    assert len(sample(spec, 0, 1_000_000)) == 1_000_000
    assert time.process_time() - begin < 1.0


def test_closed_loop_fields(traffic):
    loop = traffic(
        "{kind: closed_loop, concurrency: 8, requests_per_slot: 10, warmup_per_slot: 2}", LOGNORMAL
    )
    r = sample(loop, 0)
    assert (len(r), r.concurrency, r.warmup) == (96, 8, 16)
    assert not r.arrival_s.any()
    assert len(sample(loop, 0, 40)) == 40
    assert np.array_equal(sample(loop, 0, 40).input_tokens, r.input_tokens[:40])
    with pytest.raises(SpecError, match="16 requests do not exceed the 16 of warm-up"):
        sample(loop, 0, 16)
    with pytest.raises(SpecError, match=r"needs arrivals\.requests_per_slot or run.requests"):
        sample(traffic("{kind: closed_loop, concurrency: 8}"), 0, horizon_s=10.0)


def test_extent_must_be_said_and_sensible(traffic):
    with pytest.raises(SpecError, match=r"expected run\.requests or run.horizon"):
        sample(traffic(), 0)
    for bad in ({"requests": 0}, {"horizon_s": -1.0}, {"horizon_s": float("nan")}):
        with pytest.raises(SpecError, match="expected"):
            sample(traffic(), 0, **bad)
    with pytest.raises(SpecError, match="no request arrives before"):
        sample(traffic(), 0, horizon_s=1e-9)
    both = sample(traffic(), 0, 1000, horizon_s=10.0)
    assert len(both) < 100
    assert both.arrival_s[-1] < 10


def test_priorities_follow_the_shares(traffic):
    r = sample(traffic(rest="priorities: {urgent: 0.2, normal: 0.5, batch: 0.3}"), 0, 100_000)
    share = np.bincount(r.priority) / len(r)
    assert share == pytest.approx([0.3, 0.5, 0.2], abs=0.01)
    with pytest.raises(SpecError, match=r"shares must sum to 1, not 0\.7"):
        traffic(rest="priorities: {a: 0.2, b: 0.5}")


@pytest.fixture
def recorded(traffic, tmp_path):
    lines = ["arrival,input_tokens,output_tokens,s,c"] + [
        f"{10 + i},{100 * (i + 1)},{i + 1},{i // 2},{i % 2}" for i in range(6)
    ]
    (tmp_path / "t.csv").write_text("\n".join(lines))

    def make(arrivals="{kind: trace}", lengths="{kind: trace}", rest=""):
        columns = "columns: {session: s, priority: c}"
        path = tmp_path / "t.csv"
        return traffic(arrivals, lengths, f"trace: {{format: generic, path: {path}, {columns}}}\n{rest}")

    return make


def test_trace_replay(recorded):
    r = sample(recorded(), 0)
    assert r.arrival_s.tolist() == [0, 1, 2, 3, 4, 5]
    assert r.input_tokens.tolist() == [100, 200, 300, 400, 500, 600]
    assert r.session.tolist() == [0, 0, 1, 1, 2, 2]
    assert r.priority.tolist() == [0, 1, 0, 1, 0, 1]
    fast = sample(recorded("{kind: trace, scale: 2}"), 0, horizon_s=1.1)
    assert fast.arrival_s.tolist() == [0, 0.5, 1.0]
    kept = sample(recorded(rest="clip: {total: 405, rule: drop}"), 0)
    assert kept.input_tokens.tolist() == [100, 200, 300, 400]
    late = sample(recorded(rest="clip: {input: 250, rule: shorten_input}"), 0)
    assert late.input_tokens.tolist() == [100, 200, 250, 250, 250, 250]
    with pytest.raises(SpecError, match="clip drops every request"):
        sample(recorded(rest="clip: {total: 5, rule: drop}"), 0)


def test_trace_lengths_under_other_arrivals(recorded):
    poisson = "{kind: poisson, rate: 5 request/s}"
    assert sample(recorded(poisson), 0, 4).input_tokens.tolist() == [100, 200, 300, 400]
    with pytest.raises(SpecError, match=r"9 requests asked for, the trace has 6 \(lengths.repeat"):
        sample(recorded(poisson), 0, 9)
    again = sample(recorded(poisson, "{kind: trace, repeat: true}"), 0, 9)
    assert again.output_tokens.tolist() == [1, 2, 3, 4, 5, 6, 1, 2, 3]
    with pytest.raises(SpecError, match=r"7 requests asked for, the trace has 6$"):
        sample(recorded(lengths=LOGNORMAL), 0, 7)
    fresh = sample(recorded(lengths=LOGNORMAL), 0)
    assert (len(fresh), fresh.session.max()) == (6, -1)
    assert len(sample(recorded(poisson), 0, horizon_s=0.5)) <= 6


def test_specs_refuse_what_does_not_fit(traffic):
    sessions = (
        "prefix: {kind: sessions, turns: [1, 1], gap: {kind: lognormal, mean: 9 s, cv: 1},"
        " growth: {levels: [0, 1], tokens: [1, 9]}}"
    )
    for arrivals, lengths, rest, message in (
        ("{kind: trace}", LOGNORMAL, "", "arrivals: kind trace needs the key 'trace'"),
        ("{kind: closed_loop, concurrency: 2}", LOGNORMAL, sessions, "sessions need an arrival process"),
        ("{kind: poisson, rate: 5}", LOGNORMAL, "", "arrivals.rate  5: expected requests per second"),
        ("{kind: poison, rate: 5 request/s}", LOGNORMAL, "", "poison"),
        ("{kind: poisson, rate: 0 request/s}", LOGNORMAL, "", "positive"),
        ("{kind: diurnal, rate: 5 request/s}", LOGNORMAL, "", "either 'peak_to_mean' or 'hourly'"),
        ("{kind: profile, rate: 5 request/s, bin: 1 s, weights: [0, 0]}", LOGNORMAL, "", "positive weight"),
        ("{kind: poisson, rate: 5 request/s, burst: 2}", LOGNORMAL, "", "arrivals.burst.*unknown key"),
        ("{kind: poisson, rate: 5 request/s}", "{kind: fixed, input: 0, output: 1}", "", "lengths.input"),
        ("{kind: poisson, rate: 5 request/s}", LOGNORMAL, "clip: {total: 1}", "clip.total"),
        (
            "{kind: poisson, rate: 5 request/s}",
            LOGNORMAL,
            "trace: {format: azure, path: x, columns: {}}",
            "fixed",
        ),
        (
            "{kind: poisson, rate: 5 request/s}",
            LOGNORMAL,
            sessions.replace("[0, 1], tokens", "[0, 0.9], tokens"),
            "levels must rise strictly from 0 to 1",
        ),
    ):
        with pytest.raises(SpecError, match=message):
            traffic(arrivals, lengths, rest)


def good(**change):
    fields = {
        "arrival_s": np.array([0.0, 1.0]),
        "input_tokens": np.array([5, 9]),
        "output_tokens": np.array([1, 2]),
        "block_offset": np.array([0, 1, 3]),
        "block_hash": np.array([0, 0, 1]),
        "block_tokens": 5,
    }
    return make_requests(**(fields | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arrival_s": np.array([1.0, 0.0])}, "must not fall"),
        ({"arrival_s": np.array([0.0, np.nan])}, "finite"),
        ({"arrival_s": np.array([-1.0, 0.0])}, "not negative"),
        ({"output_tokens": np.array([1, 0])}, "at least one token"),
        ({"output_tokens": np.array([1])}, "shape"),
        ({"input_tokens": np.array([5.0, 9.0])}, "must be integers"),
        ({"input_tokens": np.array([5, 2**40])}, "beyond int32"),
        ({"block_hash": np.array([0, 0, 2])}, "0..U-1"),
        ({"block_hash": np.array([0, 0, -1])}, "not be negative"),
        ({"block_offset": np.array([0, 2, 3])}, "more blocks than its prompt fills"),
        ({"block_offset": np.array([0, 1, 2])}, "rise to the number of blocks"),
        ({"block_tokens": 0}, "blocks need block_tokens"),
        ({"concurrency": 3}, "closed loop has all arrivals at 0"),
        ({"warmup": 3}, "warmup"),
        ({"session": np.array([0, -2])}, "session"),
    ],
)
def test_every_law_of_requests_barks(change, message):
    assert len(good()) == 2
    with pytest.raises(LawBroken, match=message):
        good(**change)


def test_slices_and_totals():
    r = good(warmup=1)
    assert r.total_tokens == 17
    assert (r.distinct_blocks, r.blocks(1).tolist()) == (2, [0, 1])
    tail = r.slice(1, 2)
    assert (len(tail), tail.warmup, tail.blocks(0).tolist()) == (1, 0, [0, 1])
    assert tail.arrival_s.tolist() == [1.0]
    assert len(r.slice(5, 2)) == 0
    assert len(r.slice(0, -1)) == 1
    with pytest.raises(ValueError, match="read-only"):
        r.input_tokens[0] = 3


def test_both_ways_to_number_blocks_agree():
    keys = stream(0, "keys").integers(0, 50, 400)
    brute = {}
    expected = [brute.setdefault(key, len(brute)) for key in keys.tolist()]
    assert dense(keys).tolist() == expected
    assert dense_within(keys, 50).tolist() == expected


def test_arrays_of_the_caller_stay_writable():
    times = np.array([0.0, 1.0])
    good(arrival_s=times)
    times[0] = 0.5
