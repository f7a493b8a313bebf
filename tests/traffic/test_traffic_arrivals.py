"""Arrival processes: mean rates, CVs, exact inversions, prefixes."""

import numpy as np
import pytest
from scipy import stats

from moesim.errors import SpecError
from moesim.spec.arrivals import ClosedLoop, Profile
from moesim.traffic import sample
from moesim.traffic.arrivals import arrival_times, periodic_warp, unit_epochs

PROCESSES = {
    "poisson": "{kind: poisson, rate: 6.45 request/s}",
    "gamma": "{kind: gamma, rate: 5 request/s, cv: 3}",
    "smooth": "{kind: gamma, rate: 5 request/s, cv: 0.3}",
    "constant": "{kind: constant, rate: 4 request/s}",
    "on_off": "{kind: on_off, rate_on: 10 request/s, rate_off: 1 request/s, mean_on: 3 s, mean_off: 6 s}",
    "off_silent": "{kind: on_off, rate_on: 10 request/s, mean_on: 1 s, mean_off: 4 s}",
    "diurnal": "{kind: diurnal, rate: 10 request/s, peak_to_mean: 1.8, period: 60 s, start: 7 s}",
    "hourly": "{kind: diurnal, rate: 10 request/s, hourly: [1, 0, 3, 2], period: 60 s}",
    "profile": "{kind: profile, rate: 3 request/s, bin: 5 s, weights: [1, 0, 3, 4], cv: 2}",
}


@pytest.mark.parametrize("name", PROCESSES)
def test_long_run_rate_is_the_stated_one(traffic, name):
    spec = traffic(PROCESSES[name])
    times = sample(spec, 3, 200_000).arrival_s
    # modulated processes need whole cycles; 200k arrivals hold hundreds of them
    assert len(times) / times[-1] == pytest.approx(spec.mean_rate, rel=0.03)


@pytest.mark.parametrize("name", PROCESSES)
def test_fewer_requests_are_a_prefix_of_more(traffic, name):
    spec = traffic(PROCESSES[name])
    long = sample(spec, 3, 5000).arrival_s
    assert np.array_equal(sample(spec, 3, 700).arrival_s, long[:700])
    cut = sample(spec, 3, horizon_s=50.0).arrival_s
    assert len(cut) > 50
    assert np.array_equal(cut, long[long < 50.0])


@pytest.mark.parametrize(("name", "cv"), [("poisson", 1), ("gamma", 3), ("smooth", 0.3), ("constant", 0)])
def test_gaps_have_the_stated_cv(traffic, name, cv):
    gaps = np.diff(sample(traffic(PROCESSES[name]), 0, 200_000).arrival_s)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03, abs=1e-9)


def test_poisson_gaps_are_exponential(traffic):
    gaps = np.diff(sample(traffic(), 0, 20_000).arrival_s)
    assert stats.kstest(gaps, stats.expon(scale=0.2).cdf).pvalue > 0.01


def test_on_off_has_the_index_of_dispersion_of_theory(traffic):
    # the on-off indicator has the autocovariance p q exp(-(a + b) t), a = 1 / on, b = 1 / off, so the counts
    # of long windows have a variance over their mean of 1 + 2 rate q / (a + b), q the share of time off
    on, off, rate = 1.0, 4.0, 10.0
    times = sample(traffic(PROCESSES["off_silent"]), 5, 400_000).arrival_s
    window = 200.0
    counts = np.bincount((times / window).astype(int))[:-1]
    expected = 1 + 2 * rate * (off / (on + off)) / (1 / on + 1 / off)
    assert counts.var() / counts.mean() == pytest.approx(expected, rel=0.15)


def test_periodic_warp_inverts_the_cumulative_rate():
    rates = np.array([2.0, 0.0, 5.0])
    # 2 in [0, 1), nothing in [1, 2), 5 in [2, 3), then again
    epochs = np.array([1.0, 2.0, 4.5, 7.0, 8.0, 9.5])
    assert periodic_warp(epochs, rates, 1.0) == pytest.approx([0.5, 1.0, 2.5, 3.0, 3.5, 5.1])


def test_periodic_warp_starts_inside_the_period():
    rates = np.array([2.0, 4.0])
    assert periodic_warp(np.array([1.0, 4.0, 5.0]), rates, 1.0, start=1.5) == pytest.approx([0.25, 1.5, 1.75])
    assert periodic_warp(np.array([1.0]), rates, 1.0, start=3.5) == pytest.approx([0.25])


def test_sinusoid_peaks_in_the_middle_of_the_period(traffic):
    spec = traffic("{kind: diurnal, rate: 100 request/s, peak_to_mean: 2, period: 10 s}")
    phase = sample(spec, 0, 200_000).arrival_s % 10
    share = np.histogram(phase, 10, (0, 10))[0] / len(phase)
    edges = np.linspace(0, 1, 11)
    exact = np.diff(edges - np.sin(2 * np.pi * edges) / (2 * np.pi))
    assert share == pytest.approx(exact, abs=0.005)


def test_silent_bins_stay_silent(traffic):
    times = sample(traffic(PROCESSES["profile"]), 0, 50_000).arrival_s
    assert not ((times % 20 > 5 + 1e-9) & (times % 20 < 10 - 1e-9)).any()


def test_profile_with_cv_one_is_the_poisson_stream():
    flat = Profile(rate="2 request/s", bin="3 s", weights=(1.0,))
    assert arrival_times(flat, 1000, 7) == pytest.approx(unit_epochs(7, 1000) / 2)


def test_a_closed_loop_is_no_process():
    with pytest.raises(SpecError, match="closed_loop are not a random process"):
        arrival_times(ClosedLoop(concurrency=2), 5, 0)


def test_at_rate_keeps_the_shape(traffic):
    spec = traffic(PROCESSES["on_off"])
    faster = spec.at_rate(2 * spec.mean_rate)
    assert faster.mean_rate == pytest.approx(8.0)
    assert faster.arrivals.rate_off == pytest.approx(2.0)
    poisson = traffic()
    assert sample(poisson.at_rate(50.0), 0, 100).arrival_s == pytest.approx(
        sample(poisson, 0, 100).arrival_s / 10
    )
    with pytest.raises(SpecError, match="closed_loop have no rate"):
        traffic("{kind: closed_loop, concurrency: 2}").at_rate(1.0)
    with pytest.raises(SpecError, match="positive rate"):
        poisson.at_rate(-1.0)
