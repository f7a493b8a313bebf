"""The fitted model: sampling, likelihood against known tables, calibration, files."""

from dataclasses import replace

import numpy as np
import pytest
from routing_traces import independent_trace, make_trace

from moesim.errors import SpecError
from moesim.routing import statistics as s
from moesim.routing.calibrate import match_moments
from moesim.routing.describe import describe
from moesim.routing.expected import expected_distinct, plackett_luce_inclusion
from moesim.routing.fit import _memories, _solve, fit_likelihood
from moesim.routing.model import MEMORIES, RoutingModel, pack, unpack
from moesim.routing.produce import fit_routing
from moesim.routing.sample import _Memory, distinct_curve, sample_sequences
from moesim.routing.store import load_model
from moesim.spec.base import Source, load_spec
from moesim.spec.routing import RoutingSpec


def plain_model(weights, layers=2, k=2, **changes):
    """Independent tokens and layers: Plackett-Luce with these weights."""
    experts = len(weights)
    log = np.tile(np.log(weights), (layers, 1)).astype(np.float32)
    q = np.tile(plackett_luce_inclusion(weights, k), (layers, 1)).astype(np.float32)
    square = np.zeros((layers, experts, experts), np.float32)
    memory = np.zeros((layers, MEMORIES), np.float32)
    model = RoutingModel(q, log, log, square, square, square, square, square, memory, memory, k)
    return replace(model, **changes)


WEIGHTS = np.arange(1.0, 9.0)


def test_samples_of_a_plain_model_are_plackett_luce():
    trace = sample_sequences(plain_model(WEIGHTS, k=3), np.full(40, 250))
    assert s.popularity(trace) == pytest.approx(
        np.tile(plackett_luce_inclusion(WEIGHTS, 3), (2, 1)), abs=0.02
    )
    first = np.bincount(trace.experts[:, 0, 0], minlength=8) / 10000
    assert first == pytest.approx(WEIGHTS / WEIGHTS.sum(), abs=0.015)
    assert np.all(s.top1_information(trace) < 0.01)
    assert s.previous_overlap(trace) == pytest.approx(s.independent_overlap(trace), rel=0.02)
    assert len({tuple(sorted(row)) for row in trace.experts[:, 0].tolist()} & {(0, 0, 0)}) == 0
    assert np.all(np.diff(np.sort(trace.experts, axis=2), axis=2) > 0)


def test_affinity_copies_the_layer_below():
    strong = np.zeros((2, 8, 8), np.float32)
    strong[1] = 30 * np.eye(8)
    trace = sample_sequences(plain_model(WEIGHTS, top_from_top=strong), np.full(20, 100))
    assert np.array_equal(trace.experts[:, 0, 0], trace.experts[:, 1, 0])
    share = np.bincount(trace.experts[:, 0, 0], minlength=8) / 2000
    entropy = -(share * np.log2(share)).sum()
    assert s.top1_information(trace, corrected=False) == pytest.approx([entropy])


def test_memory_makes_neighbours_alike_and_prefill_touch_fewer():
    memory = np.zeros((2, MEMORIES), np.float32)
    memory[:, 0] = 2.0
    sticky = plain_model(np.ones(16), k=3, top_memory=memory, rest_memory=memory)
    trace = sample_sequences(sticky, np.full(30, 100))
    assert np.all(s.previous_overlap(trace) > 1.8 * s.independent_overlap(trace))
    batches = (1, 4, 16)
    consecutive, mixed = distinct_curve(sticky, batches), distinct_curve(sticky, batches, mixed=True)
    assert consecutive[0] == mixed[0] == 3
    assert np.all(consecutive[1:] < mixed[1:] - 0.5)
    assert mixed == pytest.approx(expected_distinct(np.ones(16), 3, batches), rel=0.03)


def test_sampling_is_reproducible_and_streams_differ_by_name():
    model = plain_model(WEIGHTS)
    lengths = [3, 7, 1]
    one = sample_sequences(model, lengths, seed=4)
    assert np.array_equal(one.experts, sample_sequences(model, lengths, seed=4).experts)
    assert not np.array_equal(one.experts, sample_sequences(model, lengths, seed=4, name="other").experts)
    assert one.length.tolist() == lengths
    assert one.offset.tolist() == [0, 3, 10]
    for wrong in ([], [0], [[1]]):
        with pytest.raises(SpecError, match="lengths"):
            sample_sequences(model, wrong)


def test_sampler_and_fit_build_the_same_memories():
    generator = np.random.default_rng(0)
    model = plain_model(WEIGHTS, top_memory=generator.normal(size=(2, MEMORIES)).astype(np.float32))
    trace = independent_trace(30, 2, 2, 8)
    memory = _Memory(model, 1)
    recorded = [_memories(trace, layer, model.popularity[layer]) for layer in range(2)]
    for token in range(30):
        terms, _ = memory.terms(1)
        for layer in range(2):
            wanted = np.tensordot(model.top_memory[layer], recorded[layer][:, token], axes=1)
            got = terms[layer, 0]
            assert got - got.mean() == pytest.approx(wanted - wanted.mean(), abs=2e-4)
        memory.add(np.moveaxis(trace.experts[token : token + 1], 1, 0))


def test_gradient_of_the_likelihood_is_exact(monkeypatch):
    trace = independent_trace(40, 1, 3, 6)
    terms = _memories(trace, 0, np.full(6, 0.5, np.float32))
    design = np.random.default_rng(1).normal(size=(40, 2)).astype(np.float32)
    caught = {}

    def keep(function, start, **_):
        caught.update(function=function, start=start)
        return type("Found", (), {"x": start})

    monkeypatch.setattr("moesim.routing.fit.minimize", keep)
    chosen = trace.experts[:, 0].astype(np.int64)
    _solve(design, terms, chosen[:, 1:], chosen[:, 0], np.zeros(6, np.float32), 1, 1.0)
    x = np.random.default_rng(2).normal(size=len(caught["start"])) * 0.3
    _, gradient = caught["function"](x)
    for index in range(0, len(x), 3):
        step = np.zeros(len(x))
        step[index] = 0.02
        slope = (caught["function"](x + step)[0] - caught["function"](x - step)[0]) / 0.04
        assert gradient[index] == pytest.approx(slope, rel=0.02, abs=0.05)


def test_likelihood_recovers_the_model_that_made_the_trace():
    generator = np.random.default_rng(3)
    affinity = np.zeros((2, 8, 8), np.float32)
    affinity[1] = generator.normal(size=(8, 8))
    memory = np.zeros((2, MEMORIES), np.float32)
    memory[:, 0] = 1.2
    truth = plain_model(np.ones(8), top_from_top=affinity, top_memory=memory, rest_memory=memory)
    trace = sample_sequences(truth, np.full(100, 80))
    fitted = fit_likelihood(trace)
    assert fitted.top_memory[:, 0] == pytest.approx([1.2, 1.2], abs=0.25)
    # row and column means are not identified: a choice ignores the first, the bias holds the second
    found, true = (
        m - m.mean(axis=1, keepdims=True) - m.mean(axis=0) + m.mean()
        for m in (fitted.top_from_top[1], affinity[1])
    )
    assert np.corrcoef(found.ravel(), true.ravel())[0, 1] > 0.97
    assert np.polyfit(true.ravel(), found.ravel(), 1)[0] == pytest.approx(1.0, abs=0.15)


def test_calibration_reaches_moments_the_start_misses():
    generator = np.random.default_rng(4)
    affinity = np.zeros((2, 8, 8), np.float32)
    affinity[1] = 2 * generator.normal(size=(8, 8))
    memory = np.zeros((2, MEMORIES), np.float32)
    memory[:, 0] = 1.0
    truth = plain_model(WEIGHTS, top_from_top=affinity, top_memory=memory, rest_memory=memory)
    goal = sample_sequences(truth, np.full(60, 60), seed=1)
    start = replace(truth, top_from_top=affinity * 0.4, top_memory=memory * 0.2, rest_memory=memory * 0.2)
    before, after = (
        sample_sequences(m, goal.length, seed=2) for m in (start, match_moments(start, goal, rounds=25))
    )
    for statistic in (s.previous_overlap, s.top1_information):
        wanted = statistic(goal).mean()
        assert abs(statistic(before).mean() / wanted - 1) > 0.15
        assert abs(statistic(after).mean() / wanted - 1) < 0.05
    assert s.popularity(after) == pytest.approx(s.popularity(goal), abs=0.05)


def test_files_round_trip_and_changes_are_noticed(tmp_path):
    trace = independent_trace(600, 2, 2, 8, weights=WEIGHTS, sequences=12)
    np.savez(
        tmp_path / "t.npz",
        experts=trace.experts,
        sequence_offset=trace.offset,
        sequence_length=trace.length,
    )
    out = tmp_path / "toy.yaml"
    source = Source(fields=("*",), cite="made by this test")
    spec = fit_routing(tmp_path / "t.npz", out, source=source, rounds=3, seed=1)
    first = (out.read_bytes(), (tmp_path / "toy.npz").read_bytes())
    assert load_spec(RoutingSpec, str(out), "routing") == spec
    model = load_model(spec, out)
    assert (model.layers, model.experts, model.top_k) == (2, 8, 2)
    assert pack(model) == pack(unpack(tmp_path / "toy.npz"))
    table = describe(spec).set_index("statistic")
    assert table.loc["distinct_mixed_64", "sampled"] == pytest.approx(8, abs=0.2)
    fit_routing(tmp_path / "t.npz", out, source=source, rounds=3, seed=1)
    assert (out.read_bytes(), (tmp_path / "toy.npz").read_bytes()) == first
    (tmp_path / "toy.npz").write_bytes(first[1] + b" ")
    with pytest.raises(SpecError, match="the tables were changed"):
        load_model(spec, out)
    np.savez(tmp_path / "toy.npz", a=1)
    with pytest.raises(SpecError, match="expected fitted routing tables"):
        unpack(tmp_path / "toy.npz")


def test_describe_needs_matching_dimensions():
    trace = independent_trace(60, 2, 2, 8)
    assert "sampled" not in describe(trace)
    with pytest.raises(SpecError, match="the trace has 2, 8 and 2"):
        describe(trace, plain_model(WEIGHTS, layers=3))


def test_fit_needs_sequences_to_hold_out(tmp_path):
    trace = independent_trace(20, 1, 2, 8)
    np.savez(tmp_path / "t.npz", experts=trace.experts, sequence_offset=[0], sequence_length=[20])
    source = Source(fields=("*",), cite="made by this test")
    with pytest.raises(SpecError, match="at least two sequences"):
        fit_routing(tmp_path / "t.npz", tmp_path / "o.yaml", source=source)
    with pytest.raises(SpecError, match=r"expected a \.yaml file"):
        fit_routing(tmp_path / "t.npz", tmp_path / "o.txt", source=source)
    with pytest.raises(SpecError, match="at least two tokens"):
        fit_likelihood(make_trace([[[0, 1]]], [1], 3))
