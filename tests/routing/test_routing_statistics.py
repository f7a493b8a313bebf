"""Statistics of traces: closed forms, brute force, laws."""

from collections import OrderedDict

import numpy as np
import pytest
from routing_traces import independent_trace, make_trace

from moesim.errors import SpecError
from moesim.routing import statistics as s


def lru_by_hand(trace, slots):
    hits = total = 0
    for start, length in zip(trace.offset, trace.length, strict=True):
        for layer in range(trace.layers):
            cache = OrderedDict()
            for token in range(start, start + length):
                for expert in trace.experts[token, layer].tolist():
                    total += 1
                    if expert in cache:
                        hits += 1
                        cache.move_to_end(expert)
                    else:
                        cache[expert] = None
                        if len(cache) > slots:
                            cache.popitem(last=False)
    return hits / total


def test_lru_hit_rate_equals_a_cache_by_hand():
    trace = independent_trace(120, 3, 2, 9, weights=np.arange(1, 10.0), sequences=4)
    slots = [1, 2, 3, 5, 9]
    assert s.lru_hit_rate(trace, slots) == pytest.approx([lru_by_hand(trace, n) for n in slots], abs=1e-12)


def test_lru_inclusion_more_slots_never_hit_less():
    rates = s.lru_hit_rate(independent_trace(300, 2, 3, 12), range(13))
    assert rates[0] == 0
    assert np.all(np.diff(rates) >= 0)
    assert rates[-1] < 1  # first uses miss


def test_overlap_by_hand():
    trace = make_trace([[[0, 1]], [[1, 2]], [[1, 2]], [[3, 0]], [[0, 3]]], [3, 2], 4)
    assert s.previous_overlap(trace) == pytest.approx([(1 + 2 + 2) / 3 / 2])
    assert s.lagged_overlap(trace, 2) == pytest.approx([1 / 2])
    assert np.isnan(s.lagged_overlap(trace, 3)).all()
    with pytest.raises(SpecError, match="at least two tokens"):
        s.previous_overlap(make_trace([[[0, 1]]], [1], 4))


def test_overlap_of_independent_tokens_is_its_baseline():
    trace = independent_trace(20000, 2, 3, 16, weights=np.arange(1, 17.0))
    assert s.previous_overlap(trace) == pytest.approx(s.independent_overlap(trace), rel=0.02)


def test_popularity_and_hottest():
    trace = make_trace([[[0, 1]], [[0, 2]]], [2], 4)
    assert s.popularity(trace).tolist() == [[1.0, 0.5, 0.5, 0.0]]
    assert s.hottest_over_mean(trace) == pytest.approx([2.0])


def test_information_of_independent_layers_is_near_zero_and_correction_removes_bias():
    trace = independent_trace(4000, 4, 2, 16)
    plain, corrected = s.top1_information(trace, corrected=False), s.top1_information(trace)
    assert plain == pytest.approx(225 / (2 * 4000 * np.log(2)), rel=0.3)  # (E-1)^2 / 2 N ln 2
    assert np.all(np.abs(corrected) < 0.012)
    assert np.all(plain > 2 * np.abs(corrected))


def test_information_of_equal_layers_is_the_entropy():
    first = independent_trace(4000, 1, 2, 8).experts
    trace = make_trace(np.concatenate([first, first[:, :, ::-1], first], axis=1), [4000], 8)
    share = np.bincount(first[:, 0, 0], minlength=8) / 4000
    entropy = -(share * np.log2(share)).sum()
    same = make_trace(np.concatenate([first, first], axis=1), [4000], 8)
    assert s.top1_information(same, corrected=False) == pytest.approx([entropy])
    assert np.all(s.top1_information(trace) < 0.5)  # the second choice says little about the first


def test_transitions_count_every_pair():
    trace = independent_trace(50, 3, 2, 6)
    joint = s.transitions(trace)
    assert joint.shape == (2, 6, 6)
    assert joint.sum() == 50 * 2 * 4
    by_hand = np.zeros((6, 6))
    for token in trace.experts[:, :2]:
        by_hand[np.ix_(token[0], token[1])] += 1
    assert joint[0].tolist() == by_hand.tolist()
    assert s.transitions(trace, top1=True).sum() == 100


def test_distinct_curves():
    trace = independent_trace(6000, 2, 3, 20, sequences=10)
    batches = (1, 2, 8, 32)
    expected = [20 * (1 - (17 / 20) ** b) for b in batches]
    assert s.distinct_consecutive(trace, batches) == pytest.approx(expected, rel=0.02)
    assert s.distinct_mixed(trace, batches) == pytest.approx(expected, rel=0.02)
    sticky = make_trace(np.repeat(trace.experts, 4, axis=0), np.full(10, 2400), 20)
    assert s.distinct_consecutive(sticky, (4,)) == pytest.approx([3.0])
    assert s.distinct_mixed(sticky, (4,)) > 8
    assert np.isnan(s.distinct_consecutive(trace, (601,))).all()
    assert np.isnan(s.distinct_mixed(trace, (6001,))).all()
