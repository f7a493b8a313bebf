"""Shipped traffic files: they load, they are what the traces say, they reproduce the traces' laws."""

import importlib.util

import numpy as np
import pytest
from scipy import stats

from moesim.files import catalog_names, catalog_root, parse_yaml
from moesim.spec.base import load_spec, validate
from moesim.spec.traffic import TraceFile, TrafficSpec
from moesim.traffic import sample
from moesim.traffic.fit import fit_sessions
from moesim.traffic.readers import Trace, read_trace

FOLDER = catalog_root() / "workloads" / "traffic"
DERIVED = {
    "azure-conversation": ("AzureLLMInferenceTrace_conv.csv", "azure", None),
    "azure-conversation-10k": ("AzureLLMInferenceTrace_conv.csv", "azure", 10_000),
    "azure-code": ("AzureLLMInferenceTrace_code.csv", "azure", None),
    "mooncake-conversation": ("mooncake_conversation.jsonl.gz", "mooncake", None),
}


def load(name):
    return load_spec(TrafficSpec, name, "traffic")


def recorded(traces, name):
    file, style, limit = DERIVED[name]
    return read_trace(TraceFile(format=style, path=str(traces / file), limit=limit))


@pytest.mark.parametrize("name", catalog_names("traffic"))
def test_every_file_loads_samples_and_survives_a_round_trip(name):
    spec = load(name)
    assert spec.name == name
    r = sample(spec, 0, 1000)
    assert len(r) == 1000
    assert TrafficSpec.model_validate(spec.model_dump(mode="json")) == spec
    assert np.array_equal(sample(spec, 0, 300).input_tokens, r.input_tokens[:300])


@pytest.mark.parametrize("name", [n for n in catalog_names("traffic") if not n.startswith("poisson")])
def test_facts_carry_sources(name):
    assert all(source.cite and source.url for source in load(name).sources)
    assert load(name).sources


@pytest.mark.parametrize(
    ("name", "input_", "output"), [("1k1k", 1024, 1024), ("1k8k", 1024, 8192), ("8k1k", 8192, 1024)]
)
def test_inferencemax(name, input_, output):
    r = sample(load(f"inferencemax-{name}"), 0)
    assert (r.concurrency, r.warmup, len(r)) == (64, 128, 768)
    for tokens, nominal in ((r.input_tokens, input_), (r.output_tokens, output)):
        assert int(0.8 * nominal) <= tokens.min()
        assert tokens.max() <= nominal
        assert tokens.mean() == pytest.approx(0.9 * nominal, rel=0.01)


@pytest.mark.shared
def test_deriving_again_gives_the_shipped_files(traces):
    spec = importlib.util.spec_from_file_location("derive", FOLDER / "derive.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    texts = module.derive(traces)
    assert set(texts) == {f"{name}.yaml" for name in DERIVED}
    for name, text in texts.items():
        assert text == (FOLDER / name).read_text(encoding="utf-8"), name
        validate(TrafficSpec, parse_yaml(text, name))


@pytest.mark.shared
@pytest.mark.parametrize("name", ["azure-conversation", "azure-conversation-10k", "azure-code"])
def test_azure_lengths_are_the_traces(traces, name):
    trace, r = recorded(traces, name), sample(load(name), 0, 200_000)
    pairs = ((r.input_tokens, trace.input_tokens), (r.output_tokens, trace.output_tokens))
    for drawn, real in pairs:
        assert drawn.mean() == pytest.approx(real.mean(), rel=0.01)
        levels = [5, 10, 25, 50, 75, 90, 95, 99]
        assert np.percentile(drawn, levels) == pytest.approx(np.percentile(real, levels), rel=0.03, abs=1)
        # the two-sample distance that pure chance reaches once in a hundred, plus the table's own 0.5 %
        assert stats.ks_2samp(drawn, real).statistic < 1.63 / np.sqrt(len(real)) + 0.005
    dependence = [stats.spearmanr(i, o).statistic for i, o in zip(*pairs, strict=True)]
    assert dependence[0] == pytest.approx(dependence[1], abs=0.02)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "rule", "inputs", "outputs"),
    [
        ("azure-conversation", "shorten_input", 1140.3, 211.1),
        ("azure-conversation-10k", "shorten_input", 1231.1, 218.4),
        ("azure-conversation-10k", "proportional", 1231.3, 218.1),
    ],
)
def test_clip_at_4096_reproduces_the_known_means(traces, name, rule, inputs, outputs):
    """Mean 1,231 in and 218 out are those of the first 10,000 requests; the whole trace is shorter."""
    poisson = {"kind": "poisson", "rate": "6.45 request/s"}
    spec = load(name).model_dump(mode="json") | {"arrivals": poisson, "clip": {"total": 4096, "rule": rule}}
    file, _, limit = DERIVED[name]
    trace = {"format": "azure", "path": str(traces / file), "limit": limit}
    replay = sample(TrafficSpec.model_validate(spec | {"lengths": {"kind": "trace"}, "trace": trace}), 0,
                    limit or 19_366)  # fmt: skip
    assert replay.input_tokens.mean() == pytest.approx(inputs, abs=0.06)
    assert replay.output_tokens.mean() == pytest.approx(outputs, abs=0.06)
    drawn = sample(TrafficSpec.model_validate(spec), 0, 200_000)
    assert drawn.input_tokens.mean() == pytest.approx(inputs, rel=0.01)
    assert drawn.output_tokens.mean() == pytest.approx(outputs, rel=0.01)
    assert int((drawn.input_tokens + drawn.output_tokens).max()) <= 4096
    assert len(drawn) / drawn.arrival_s[-1] == pytest.approx(6.45, rel=0.01)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["azure-conversation", "azure-code"])
def test_azure_arrivals_have_the_traces_rate_and_burstiness(traces, name):
    trace, spec = recorded(traces, name), load(name)
    gaps = np.diff(trace.arrival_s)
    drawn = np.diff(sample(spec, 0, 200_000).arrival_s)
    assert 1 / drawn.mean() == pytest.approx(1 / gaps.mean(), rel=0.03)
    assert drawn.std() / drawn.mean() == pytest.approx(gaps.std() / gaps.mean(), rel=0.06)


@pytest.mark.shared
def test_mooncake_conversations_are_the_traces(traces):
    trace = recorded(traces, "mooncake-conversation")
    real = fit_sessions(trace)
    assert real.common_blocks == 1
    assert real.reuse == pytest.approx(0.36641, abs=1e-5)
    spec = load("mooncake-conversation")
    seen = []
    for seed in range(4):
        r = sample(spec, seed, len(trace))
        longs = [a.astype(np.int64) for a in (r.input_tokens, r.output_tokens, r.session, r.priority)]
        again = fit_sessions(Trace(r.arrival_s, *longs, r.block_offset, r.block_hash, 512, len(r), {}))
        seen.append((again.reuse, (again.parent >= 0).mean(), r.input_tokens.mean(), r.output_tokens.mean(),
                     len(r) / r.arrival_s[-1]))  # fmt: skip
    reuse, continued, inputs, outputs, rate = np.mean(seen, axis=0)
    assert reuse == pytest.approx(real.reuse, rel=0.04)
    assert continued == pytest.approx((real.parent >= 0).mean(), rel=0.03)
    assert inputs == pytest.approx(trace.input_tokens.mean(), rel=0.05)
    assert outputs == pytest.approx(trace.output_tokens.mean(), rel=0.01)
    assert rate == pytest.approx(len(trace) / trace.arrival_s[-1], rel=0.03)


def test_sessions_fit_recovers_known_conversations():
    rows = [[0, 1, 2], [0, 3], [0, 1, 2, 4], [0, 3, 5], [0, 1, 6], [0, 7]]
    flat = np.array([b for row in rows for b in row])
    counts = np.array([len(row) for row in rows])
    n = len(rows)
    trace = Trace(np.arange(n) * 1.0, counts * 10 - 3, np.ones(n, int), np.full(n, -1), np.zeros(n, int),
                  np.concatenate([[0], np.cumsum(counts)]), flat, 10, n, {})  # fmt: skip
    fit = fit_sessions(trace)
    assert fit.common_blocks == 1
    assert fit.parent.tolist() == [-1, -1, 0, 1, 2, -1]
    assert fit.turn.tolist() == [0, 0, 1, 1, 2, 0]
    assert fit.session.tolist() == [0, 1, 0, 1, 0, 2]
    assert fit.reuse == pytest.approx((0 + 1 + 3 + 2 + 2 + 1) / 17)
    assert fit.kept_tokens.tolist() == [0, 0, 27, 17, 20, 0]
