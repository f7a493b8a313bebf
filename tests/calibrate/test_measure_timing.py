"""Timing: blocks, rotation and spread, on a clock that the test moves."""

import gc

import numpy as np
import pytest

from moesim.calibrate.measure import timing


class Clock:
    """Stands still until a call moves it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def takes(self, seconds, name="", log=None):
        def call():
            self.now += seconds
            if log is not None:
                log.append(name)

        return call


def test_a_block_is_the_mean_and_buffers_take_turns():
    clock, log = Clock(), []
    calls = [clock.takes(1.0, "a", log), clock.takes(3.0, "b", log), clock.takes(5.0, "c", log)]
    assert timing.block_seconds(calls, 4, 1, clock) == pytest.approx((3 + 5 + 1 + 3) / 4)
    assert log == ["b", "c", "a", "b"]


def test_calls_fill_a_block_and_every_buffer_is_warmed_up():
    clock, log = Clock(), []
    calls = [clock.takes(2e-3, name, log) for name in "abcde"]
    assert timing.calls_per_block(calls, 1e-2, clock) == 5
    assert log == list("abcde")
    assert timing.calls_per_block([clock.takes(1.0)], 1e-2, clock) == 1
    assert timing.calls_per_block([clock.takes(0.0)], 1e-2, clock) == 10_000


def test_samples_go_on_with_the_next_buffer():
    clock, log = Clock(), []
    calls = [clock.takes(1e-3, name, log) for name in "abc"]
    samples = timing.sample(calls, 5, 2e-3, 60.0, clock)
    assert samples == pytest.approx([1e-3] * 5)
    assert log[3:] == list("abcabcabca")


def test_slow_work_stops_after_its_budget_but_has_three_blocks():
    clock = Clock()
    assert len(timing.sample([clock.takes(1e-3)], 50, 1e-3, 0.0, clock)) == 3


def test_spread_is_that_of_numpy():
    values = [5.0, 1.0, 4.0, 2.0, 3.0, 9.0]
    found = timing.spread(values)
    assert (found.median, found.least, found.repeats) == (3.5, 1.0, 6)
    assert [found.p10, found.p90] == pytest.approx(np.percentile(values, [10, 90]).tolist())


@pytest.mark.parametrize("on", [True, False])
def test_the_collector_rests_and_comes_back_as_it_was(on):
    before = gc.isenabled()
    (gc.enable if on else gc.disable)()
    try:
        with pytest.raises(ZeroDivisionError), timing.quiet():
            1 / gc.isenabled()
        assert gc.isenabled() == on
    finally:
        (gc.enable if before else gc.disable)()
