"""Online rebalancing: what the policy may see, what is charged, and what it buys on drifting loads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import SpecError
from moesim.routing.placed import imbalance, rank_loads
from moesim.routing.trace import RoutingTrace
from moesim.study.plans.online import Migration, loads_by_step, replay, step_of_token

FREE = Migration(0.0, 1.0)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(1, 6))
def test_seats_are_taken_in_order(length: list[int], seats: int) -> None:
    steps = step_of_token(length, seats)
    assert len(steps) == sum(length)
    busy = np.bincount(steps)
    assert busy.max() <= seats
    assert busy.min() >= 1  # no step without a token
    ends = np.cumsum(length)
    starts = [steps[e - n] for e, n in zip(ends, length, strict=True)]
    assert starts == sorted(starts)  # nobody overtakes
    for e, n in zip(ends, length, strict=True):
        assert np.array_equal(steps[e - n : e], np.arange(steps[e - n], steps[e - n] + n))
    # a seat is never empty while somebody waits
    for step in range(max(starts)):
        assert busy[step] == seats


def test_loads_by_step_count_every_choice() -> None:
    rng = np.random.default_rng(0)
    chosen = np.argsort(rng.random((30, 2, 5)), axis=2)[:, :, :2].astype(np.int16)
    length = np.array([10, 15, 5])
    trace = RoutingTrace(chosen, np.full(chosen.shape, 0.5, dtype=np.float32), np.cumsum(length) - length, length,
                         np.array(["", "", ""]), 5)  # fmt: skip
    loads = loads_by_step(trace, 2)
    assert loads.sum() == 30 * 2 * 2
    steps = step_of_token(length, 2)
    for step in range(len(loads)):
        for layer in range(2):
            want = np.bincount(chosen[steps == step, layer].ravel(), minlength=5)
            assert loads[step, layer].tolist() == want.tolist()


def drifting(steps: int = 60) -> np.ndarray:
    """One hot expert that changes every 20 steps; 4 experts, 2 ranks."""
    loads = np.ones((steps, 1, 4))
    for step in range(steps):
        hot = (step // 20) % 2
        loads[step, 0, hot * 2 : hot * 2 + 2] = (
            5.0  # both hot ones lie on one rank of the contiguous placement
        )
    return loads


def apart(seen: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Hottest and coldest together."""
    order = np.argsort(-seen[0], kind="stable")
    return order[[0, 3, 1, 2]][None]


def test_the_policy_sees_the_window_and_no_future() -> None:
    loads, seen_at = drifting(), []

    def choose(seen: np.ndarray, present: np.ndarray) -> np.ndarray:
        seen_at.append(seen.copy())
        return present

    replay(loads, np.arange(4)[None], 2, FREE, every=15, window=10, choose=choose)
    assert len(seen_at) == 3
    for index, step in enumerate((15, 30, 45)):
        assert np.array_equal(seen_at[index], loads[step - 10 : step].sum(axis=0))


def test_imbalance_is_that_of_the_placement_in_force() -> None:
    loads, start = drifting(), np.arange(4)[None]
    static = replay(loads, start, 2, FREE)
    assert static.imbalance[:, 0] == pytest.approx(10 / 6)
    assert static.mean == static.charged
    online = replay(loads, start, 2, FREE, every=10, window=10, choose=apart)
    assert online.imbalance[:10, 0] == pytest.approx(10 / 6)  # nothing known yet
    assert online.imbalance[10:, 0] == pytest.approx(1.0)
    for step in (0, 15, 45):
        rows = start if step < 10 else apart(loads[(step // 10 - 1) * 10 :][:10].sum(axis=0), start)
        assert online.imbalance[step] == pytest.approx(imbalance(rank_loads(loads[step], rows, 2)))


def test_migration_is_charged() -> None:
    loads, start = drifting(), np.arange(4)[None]
    migration = Migration(bytes_per_expert=10.0, bandwidth=5.0, hidden=0.25)
    run = replay(loads, start, 2, migration, every=10, window=10, choose=apart, expert_s=2.0)
    first = run.changes[0]  # 0 1 | 2 3 -> 0 3 | 1 2: one expert to each rank
    assert (first.step, first.moved_bytes, first.worst_device_bytes) == (10, 20.0, 10.0)
    assert first.seconds == pytest.approx(0.75 * 10.0 / 5.0)
    waited = sum(change.seconds for change in run.changes)
    assert run.charged == pytest.approx(run.mean + waited / (60 * 2.0))
    assert run.charged > run.mean
    told = run.summary()
    assert told["rebalancings"] == 5
    assert np.mean(told["course"]) == pytest.approx(run.mean)


def test_mistakes() -> None:
    with pytest.raises(SpecError, match="expected at least 1"):
        step_of_token([1], 0)
    with pytest.raises(SpecError, match="expected at least 1 step each"):
        replay(drifting(), np.arange(4)[None], 2, FREE, every=0, window=1, choose=apart)
