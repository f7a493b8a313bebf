"""Lengths: distributions, dependence, clipping."""

import numpy as np
import pytest
from scipy import stats

from moesim.errors import SpecError
from moesim.spec.traffic import Clip
from moesim.traffic import sample
from moesim.traffic.fit import fit_joint, fit_quantiles
from moesim.traffic.lengths import clip_lengths, within

LOGNORMAL = (
    "{kind: lognormal, input: {mean: 800, cv: 1.5}, output: {mean: 200, cv: 0.7}, rank_correlation: 0.4}"
)


def test_uniform_range_is_inferencemax(traffic):
    r = sample(
        traffic(lengths="{kind: uniform_range, input: 1024, output: 10, range_ratio: 0.8}"), 0, 400_000
    )
    assert (r.input_tokens.min(), r.input_tokens.max()) == (819, 1024)
    counts = np.bincount(r.output_tokens)[8:]
    assert len(counts) == 3
    assert counts == pytest.approx([400_000 / 3] * 3, rel=0.01)
    assert abs(np.corrcoef(r.input_tokens, r.output_tokens)[0, 1]) < 0.01


def test_lognormal_mean_cv_and_rank_correlation(traffic):
    r = sample(traffic(lengths=LOGNORMAL), 1, 400_000)
    assert r.input_tokens.mean() == pytest.approx(800, rel=0.02)
    assert r.input_tokens.std() / r.input_tokens.mean() == pytest.approx(1.5, rel=0.05)
    assert r.output_tokens.mean() == pytest.approx(200, rel=0.01)
    assert stats.spearmanr(r.input_tokens, r.output_tokens).statistic == pytest.approx(0.4, abs=0.01)


def test_quantile_table_gives_the_piecewise_linear_distribution(traffic):
    table = "{levels: [0, 0.5, 0.75, 1], tokens: [10, 10, 30, 90]}"
    r = sample(traffic(lengths=f"{{kind: empirical, input: {table}, output: {table}}}"), 0, 400_000)
    assert (r.input_tokens == 10).mean() == pytest.approx(0.5, abs=0.01)
    assert r.input_tokens.mean() == pytest.approx(0.5 * 10 + 0.25 * 20 + 0.25 * 60, rel=0.01)
    assert np.percentile(r.input_tokens, 87.5) == pytest.approx(60, abs=1)


def test_joint_histogram_keeps_dependence_and_marginals(traffic):
    table = "{levels: [0, 1], tokens: [1, 100001]}"
    joint = "[[8, 2], [2, 8]]"
    spec = traffic(lengths=f"{{kind: empirical, input: {table}, output: {table}, joint: {joint}}}")
    r = sample(spec, 0, 200_000)
    low_in, low_out = r.input_tokens <= 50_000, r.output_tokens <= 50_000
    assert (low_in & low_out).mean() == pytest.approx(0.4, abs=0.005)
    assert stats.kstest(r.input_tokens, stats.uniform(1, 100_000).cdf).pvalue > 0.01


def test_joint_must_keep_the_marginals(traffic):
    table = "{levels: [0, 1], tokens: [1, 9]}"
    with pytest.raises(SpecError, match="equal sums"):
        traffic(lengths=f"{{kind: empirical, input: {table}, output: {table}, joint: [[80, 20], [20, 10]]}}")


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("shorten_input", ([5, 60, 1], [5, 40, 99])),
        ("proportional", ([5, 71, 9], [5, 28, 90])),
        ("shorten_output", ([5, 99, 20], [5, 1, 80])),
    ],
)
def test_clip_rules(rule, expected):
    inputs, outputs = np.array([5, 100, 20]), np.array([5, 40, 200])
    got = clip_lengths(inputs, outputs, Clip(total=100, rule=rule))
    assert (got[0].tolist(), got[1].tolist()) == expected
    assert (got[0] + got[1] <= 100).all()


def test_clip_of_each_side_and_drop(traffic):
    inputs, outputs = np.array([5, 100]), np.array([50, 40])
    got = clip_lengths(inputs, outputs, Clip(input=20, output=45))
    assert (got[0].tolist(), got[1].tolist()) == ([5, 20], [45, 40])
    assert within(inputs, outputs, Clip(total=100, rule="drop")).tolist() == [True, False]
    spec = traffic(lengths=LOGNORMAL, rest="clip: {total: 500, rule: drop}")
    r = sample(spec, 0, 20_000)
    assert len(r) == 20_000
    assert int((r.input_tokens + r.output_tokens).max()) <= 500
    assert np.array_equal(sample(spec, 0, 50).input_tokens, r.input_tokens[:50])
    everything = sample(traffic(lengths=LOGNORMAL), 0, 100_000)
    fits = within(everything.input_tokens, everything.output_tokens, spec.clip)
    assert np.array_equal(everything.input_tokens[fits][:20_000], r.input_tokens)


def test_clip_that_drops_all_says_so(traffic):
    with pytest.raises(SpecError, match="drops more than 98 %"):
        sample(traffic(rest="clip: {total: 2, rule: drop}"), 0, 10)


def test_input_stream_does_not_move_when_output_changes(traffic):
    a = sample(traffic(lengths=LOGNORMAL.replace("mean: 200", "mean: 900")), 4, 1000)
    b = sample(traffic(lengths=LOGNORMAL, arrivals="{kind: gamma, rate: 1 request/s, cv: 2}"), 4, 1000)
    assert np.array_equal(a.input_tokens, b.input_tokens)
    assert not np.array_equal(a.output_tokens, b.output_tokens)


def test_fit_quantiles_recovers_atoms_and_tails():
    rng = np.random.default_rng(0)
    values = np.concatenate([np.full(4000, 7), np.floor(np.exp(rng.normal(6, 1.5, 6000))).astype(int) + 8])
    levels, points = fit_quantiles(values, 65)
    assert (len(levels), levels[0], levels[-1]) == (65, 0, 1)
    assert (points[-1], np.interp(0.399, levels, points)) == (values.max(), 7)
    mean = np.trapezoid(points, levels)
    assert mean == pytest.approx(values.mean(), rel=0.005)
    coarse = fit_quantiles(values, 5)
    exact = np.sort(values)
    at = (np.arange(len(exact)) + 0.5) / len(exact)
    error = [np.abs(np.interp(at, *table) - exact).mean() for table in (coarse, (levels, points))]
    assert error[1] < error[0] / 20


def test_fit_joint_against_brute_force():
    rng = np.random.default_rng(1)
    x, y = rng.permutation(100), rng.permutation(100)
    brute = [[int(((x // 25 == i) & (y // 25 == j)).sum()) for j in range(4)] for i in range(4)]
    assert fit_joint(x, y, 4).tolist() == brute
