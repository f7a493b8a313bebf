"""The manager under any order of calls, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from moesim.errors import LawBroken, SpecError
from moesim.policies.eviction import Belady, Lfru, Lru, NeverEvict, Weighted
from moesim.residency.link import Link, Priority
from moesim.residency.manager import ResidencyManager, Tier

KEYS = 8


class Residency(RuleBasedStateMachine):
    """Fetches, withdrawals, uses, pins and changed weights, while time passes."""

    @initialize(
        eviction=st.sampled_from(
            [Lru(), Lfru(), NeverEvict(), Weighted(recency=0.4, frequency=0.3, precision=0.1, nearness=0.2)]
        ),
        chunk=st.sampled_from([0.5, 1.0, math.inf]),
        tiers=st.integers(2, 3),
        quota=st.booleans(),
    )
    def build(self, eviction, chunk, tiers, quota):
        self.size = np.array([1.0, 1.0, 2.0, 1.0, 1.5, 1.0, 1.0, 2.0])
        chain = [Tier("fast", 4.0), Tier("host", 6.0), Tier("disk", math.inf)][3 - tiers :]
        links = [Link(2.0, 0.1, chunk), Link(1.0, 0.3, chunk)][: tiers - 1]
        self.m = ResidencyManager(self.size, chain, links, eviction, 2, 3.0 if quota else None)
        self.using = []
        self.changed = set()  # keys whose newest weights are not at home

    @rule(key=st.integers(0, KEYS - 1), priority=st.sampled_from(list(Priority)))
    def ask(self, key, priority):
        there = self.m.request(key, priority)
        assert there == bool(self.m.cached[0, key])
        assert there or self.m.in_flight(key)

    @rule(key=st.integers(0, KEYS - 1))
    def withdraw(self, key):
        self.m.cancel(key)
        assert not self.m.in_flight(key)

    @rule(step=st.floats(0.01, 3.0))
    def wait(self, step):
        self.m.advance(self.m.now + step)

    @rule()
    def wait_for_an_event(self):
        if math.isfinite(self.m.next_event()):
            self.m.advance(self.m.next_event())

    @rule(key=st.integers(0, KEYS - 1))
    def compute(self, key):
        self.m.clock += 1
        if self.m.cached[0, key]:
            self.m.use(key)
            self.m.touch(key)
            self.using.append(key)
        else:
            with pytest.raises(LawBroken, match="not there"):
                self.m.use(key)

    @precondition(lambda self: self.using)
    @rule(dirty=st.booleans())
    def finish(self, dirty):
        key = self.using.pop()
        self.m.release(key, dirty=dirty)
        if dirty:
            self.changed.add(key)

    @rule(key=st.integers(0, KEYS - 1), pinned=st.booleans())
    def pin(self, key, pinned):
        self.m.pin(key, pinned=pinned)

    @invariant()
    def laws(self):
        if not hasattr(self, "m"):
            return
        self.m.check()
        assert all(self.m.cached[0, key] for key in self.using)
        assert not np.any(self.m.dirty & ~self.m.cached)
        by_layer = (self.size * self.m.cached[0]).reshape(2, -1).sum(axis=1)
        assert self.m.quota is None or np.all(by_layer <= 3.0 + 1e-9)
        # changed weights are never lost: some tier still knows that they are newer than at home, or home has them
        for key in list(self.changed):
            if not self.m.dirty[:, key].any():
                self.changed.discard(key)
                assert any(link.moved >= self.size[key] for link in self.m.links)


TestResidency = Residency.TestCase
TestResidency.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


def two_tiers(capacity, size=1.0, keys=6, chunk=math.inf, setup=0.0, eviction=None, layers=1):
    return ResidencyManager(
        np.full(keys, size), [Tier("fast", capacity), Tier("home", math.inf)], [Link(1.0, setup, chunk)],
        eviction or Lru(), layers,
    )  # fmt: skip


def arrivals(manager, until=100.0):
    """Time of arrival by expert."""
    found, before = {}, manager.cached[0].copy()
    while (event := manager.next_event()) <= until:
        manager.advance(event)
        for key in np.flatnonzero(manager.cached[0] & ~before):
            found[int(key)] = event
        before = manager.cached[0].copy()
    return found


def test_a_free_link_is_setup_plus_bytes_and_a_busy_one_queues():
    m = two_tiers(6.0, setup=0.5)
    for key in range(3):
        m.request(key)
    assert arrivals(m) == {0: 1.5, 1: 3.0, 2: 4.5}
    assert m.links[0].seconds(1.0) == 1.5
    assert m.links[0].busy_s == 4.5


def test_a_demand_waits_for_the_chunk_and_not_for_the_prefetch():
    for chunk, expected in ((math.inf, {0: 4.0, 1: 8.0}), (1.0, {1: 6.0, 0: 8.0}), (0.25, {1: 5.5, 0: 8.0})):
        m = two_tiers(20.0, 4.0, chunk=chunk)
        m.request(0, Priority.PREFETCH)
        m.advance(1.4)
        m.request(1)
        assert arrivals(m) == pytest.approx(expected)


def test_a_prefetch_that_is_needed_becomes_a_demand():
    m = two_tiers(20.0, chunk=0.5)
    for key in (0, 1, 2):
        m.request(key, Priority.PREFETCH)
    m.advance(0.1)
    m.request(2)
    assert arrivals(m) == pytest.approx({2: 1.5, 0: 2.0, 1: 3.0})


def test_a_withdrawn_prefetch_stops_at_its_chunk_and_gives_its_room_back():
    m = two_tiers(2.0, 2.0, chunk=0.5)
    m.request(0, Priority.PREFETCH)
    m.request(1, Priority.PREFETCH)
    m.advance(0.7)
    m.cancel(0)
    assert arrivals(m) == pytest.approx({1: 3.0})
    assert m.links[0].moved == pytest.approx(3.0)  # a chunk and its end for nothing
    m.check()


def test_dirty_experts_are_written_back_before_they_leave():
    m = two_tiers(1.0)
    m.place(0)
    m.use(0)
    m.release(0, dirty=True)
    m.request(1)
    m.advance(0.5)
    assert m.cached[0, 0]
    assert arrivals(m) == {1: 2.0}
    assert not m.cached[0, 0]
    assert not m.dirty.any()


def test_an_expert_changed_while_it_is_written_is_written_again():
    m = two_tiers(1.0)
    m.place(0)
    m.use(0)
    m.release(0, dirty=True)
    m.request(1)
    m.advance(0.5)
    m.use(0)
    m.release(0, dirty=True)
    assert arrivals(m) == {1: 3.0}


def test_a_copy_that_is_read_from_stays():
    m = ResidencyManager(
        [1.0] * 2, [Tier("hbm", 2.0), Tier("ddr", 1.0), Tier("nvme", math.inf)], [Link(0.5), Link(1.0)], Lru()
    )
    m.request(0)
    m.request(1)
    assert arrivals(m) == {0: 3.0, 1: 6.0}  # 1 must wait for the room of 0 in the second tier until 3


def test_an_interrupted_transfer_pays_its_setup_once():
    m = two_tiers(20.0, 4.0, chunk=1.0, setup=0.5)
    m.request(0, Priority.PREFETCH)
    m.advance(1.4)
    m.request(1)
    assert arrivals(m) == pytest.approx({1: 6.0, 0: 9.0})


def test_three_tiers_are_crossed_one_after_another():
    m = ResidencyManager(
        [1.0] * 3, [Tier("hbm", 1.0), Tier("ddr", 2.0), Tier("nvme", math.inf)], [Link(4.0), Link(1.0)], Lru()
    )
    m.request(0)
    assert arrivals(m) == pytest.approx({0: 1.25})  # a second from disk, a quarter more
    m.request(1)
    assert arrivals(m) == pytest.approx(
        {}
    )  # it waits in the second tier: what was asked for has not been used
    assert m.cached[1, :2].all()
    m.use(0)
    m.release(0)
    assert arrivals(m) == pytest.approx({1: 2.5})
    m.cancel(1)
    m.request(0)
    assert arrivals(m) == pytest.approx({0: 2.75})  # it is still in the second tier


def test_pinned_experts_and_experts_in_use_stay():
    m = two_tiers(2.0)
    m.place(0, pinned=True)
    m.place(1)
    m.use(1)
    m.request(2)
    assert math.isinf(m.next_event())  # no room yet
    m.release(1)
    assert arrivals(m) == {2: 1.0}
    assert m.cached[0].tolist() == [True, False, True, False, False, False]


def test_belady_uses_the_future_that_the_driver_tells():
    m = two_tiers(2.0, eviction=Belady())
    m.place(0)
    m.place(1)
    m.upcoming[:2] = [9, 3]
    m.request(2)
    assert not m.cached[0, 0]
    assert m.cached[0, 1]


def test_mistakes_are_named():
    with pytest.raises(SpecError, match="two tiers"):
        ResidencyManager([1.0], [Tier("a", 1.0)], [], Lru())
    with pytest.raises(SpecError, match="room for all"):
        ResidencyManager([1.0, 1.0], [Tier("a", 1.0), Tier("b", 1.0)], [Link(1.0)], Lru())
    m = two_tiers(1.0)
    m.place(0)
    with pytest.raises(SpecError, match="no room for expert 1"):
        m.place(1)
    with pytest.raises(SpecError, match="runs forward"):
        m.advance(-1.0)
    with pytest.raises(SpecError, match="link: expected"):
        Link(0.0)
