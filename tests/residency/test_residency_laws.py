"""Every law of residency barks at its mutant."""

from __future__ import annotations

from dataclasses import replace as changed

import numpy as np
import pytest
from routing_made import independent

from moesim.errors import LawBroken
from moesim.policies.eviction import Belady, Lru
from moesim.residency.accesses import token_accesses
from moesim.residency.cache import layer_cache
from moesim.residency.laws import (
    LAWS,
    belady_is_never_beaten,
    bytes_are_conserved,
    capacity_is_kept,
    check,
    lru_includes,
    nothing_absent_is_used,
)
from moesim.residency.link import Link
from moesim.residency.manager import ResidencyManager, Tier
from moesim.residency.replay import replay


@pytest.fixture(scope="module")
def lawful():
    got = replay(token_accesses(independent(40, 2, 2, 8)), layer_cache(2, 8, 3), Lru(), log=True)
    check(got)
    return got


def altered(array, index, value):
    copy = array.copy()
    copy[index] = value
    return copy


MUTANTS = {
    "capacity_is_kept": [
        lambda r: changed(r, resident=r.resident + 1),
        lambda r: changed(r, held=np.full_like(r.held, 2)),
        lambda r: changed(r, events=r.events[r.events[:, 2] > 0]),  # nothing ever leaves
        lambda r: changed(r, cache=changed(r.cache, capacity=np.array([2.0, 4.0]))),  # the sum alone would do
    ],
    "bytes_are_conserved": [
        lambda r: changed(r, fetched=altered(r.fetched, 9, r.fetched[9] + 1)),
        lambda r: changed(r, dropped=r.dropped * 0),
        lambda r: changed(r, before=1.0),
        lambda r: changed(r, held=altered(r.held, int(np.argmax(r.held)), 0)),
    ],
    "nothing_absent_is_used": [
        lambda r: changed(r, outcome=altered(r.outcome, int(np.argmax(r.outcome)), 0)),
        lambda r: changed(r, outcome=altered(r.outcome, int(np.argmax(r.outcome[20:] == 0)) + 20, 1)),
        lambda r: changed(r, events=r.events[1:]),
        lambda r: changed(r, events=r.events[:0]),
    ],
}
FUNCTIONS = {
    "capacity_is_kept": capacity_is_kept,
    "bytes_are_conserved": bytes_are_conserved,
    "nothing_absent_is_used": nothing_absent_is_used,
}


def test_every_law_has_a_mutant():
    assert set(MUTANTS) == set(LAWS) == set(FUNCTIONS)


@pytest.mark.parametrize(
    ("law", "index"), [(law, i) for law, found in MUTANTS.items() for i in range(len(found))]
)
def test_laws_bark(lawful, law, index):
    with pytest.raises(LawBroken, match=law):
        FUNCTIONS[law](MUTANTS[law][index](lawful))


def test_comparisons_bark(lawful):
    bound = replay(lawful.accesses, lawful.cache, Belady(admission="better"))
    belady_is_never_beaten(lawful, bound)
    with pytest.raises(LawBroken, match="the bound says"):
        belady_is_never_beaten(bound, lawful)
    with pytest.raises(LawBroken, match="equal sizes only"):
        belady_is_never_beaten(changed(lawful, prefetched=lawful.prefetched + 1), bound)
    lru_includes({2: 10, 4: 10, 8: 3})
    with pytest.raises(LawBroken, match="11 misses with capacity 4"):
        lru_includes({2: 10, 4: 11})


def test_the_manager_checks_itself():
    def fresh():
        manager = ResidencyManager([1.0] * 3, [Tier("a", 2.0), Tier("b", 9.0)], [Link(1.0)], Lru())
        manager.place(0)
        manager.request(1)
        manager.check()
        return manager

    manager = fresh()
    manager.used[0] = 3.0
    with pytest.raises(LawBroken, match="capacity_is_kept"):
        manager.check()
    manager = fresh()
    manager.cached[0, 2] = True
    with pytest.raises(LawBroken, match="bytes_are_conserved"):
        manager.check()
    manager = fresh()
    manager.left[0] = 1.0
    with pytest.raises(LawBroken, match="bytes_are_conserved"):
        manager.check()
    with pytest.raises(LawBroken, match="nothing_absent_is_used"):
        manager.use(1)
    with pytest.raises(LawBroken, match="nothing_absent_is_used"):
        manager.release(0)
