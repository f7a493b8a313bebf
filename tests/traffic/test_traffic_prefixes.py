"""Prefix sharing: shared prompts, conversations, block ids against brute force."""

import numpy as np
import pytest

from moesim.traffic import sample

LENGTHS = "{kind: uniform_range, input: 200, output: 20, range_ratio: 0.1}"
SESSIONS = """
prefix:
  kind: sessions
  turns: [5, 3, 2]
  gap: {kind: lognormal, mean: 20 s, cv: 1}
  growth: {levels: [0, 1], tokens: [1, 100]}
  rewrite:
    {prompt: [0, 400], share: [0.2, 0.9], levels: [0, 1], kept: [0, 1],
     growth: {levels: [0, 1], tokens: [1, 50]}}
  common_tokens: 32
  block_tokens: 16
"""


def rows(requests):
    return [tuple(requests.blocks(i).tolist()) for i in range(len(requests))]


def test_equal_ids_always_mean_equal_prefixes(traffic):
    for rest in (
        SESSIONS,
        "prefix: {kind: shared, groups: 7, tokens: 90, zipf: 1.2, share: 0.7, block_tokens: 16}",
    ):
        r = sample(traffic(lengths=LENGTHS, rest=rest), 3, 3000)
        prefix_of = {}
        for blocks in rows(r):
            for place, block in enumerate(blocks):
                assert prefix_of.setdefault(block, blocks[: place + 1]) == blocks[: place + 1]
        assert np.array_equal(np.diff(r.block_offset), -(-r.input_tokens // 16))


def test_shared_prefix_popularity_and_depth(traffic):
    rest = "prefix: {kind: shared, groups: 3, tokens: 40, zipf: 1, share: 0.8, block_tokens: 16}"
    r = sample(traffic(lengths="{kind: fixed, input: 100, output: 1}", rest=rest), 0, 50_000)
    table = r.block_hash.reshape(-1, 7)
    first, counts = np.unique(table[:, 0], return_counts=True)
    popular = np.sort(counts)[::-1]
    weights = np.array([1, 1 / 2, 1 / 3])
    assert popular[:3] / len(r) == pytest.approx(0.8 * weights / weights.sum(), abs=0.01)
    assert popular[3] == 1
    for group in first[counts > 1]:
        members = table[table[:, 0] == group]
        assert len(np.unique(members[:, 1])) == 1  # 40 tokens are two whole blocks
        assert len(np.unique(members[:, 2])) == len(members)


def test_a_prefix_longer_than_the_prompt_is_shared_as_far_as_it_goes(traffic):
    rest = "prefix: {kind: shared, tokens: 64, block_tokens: 16}"
    r = sample(traffic(lengths="{kind: fixed, input: 40, output: 1}", rest=rest), 0, 10)
    assert len({blocks[:2] for blocks in rows(r)}) == 1
    assert len({blocks[2] for blocks in rows(r)}) == 10
    on_top = sample(
        traffic(lengths="{kind: fixed, input: 40, output: 1}", rest=rest[:-1] + ", on_top: true}"), 0, 10
    )
    assert set(on_top.input_tokens.tolist()) == {104}
    assert len({blocks[:4] for blocks in rows(on_top)}) == 1


def test_sessions_offer_the_stated_rate_from_the_start(traffic):
    spec = traffic(lengths=LENGTHS, rest=SESSIONS)
    counts = np.zeros(10)
    for seed in range(150):
        times = sample(spec, seed, horizon_s=50.0).arrival_s
        counts += np.histogram(times, 10, (0, 50))[0]
    # 5 request/s in 5 s bins over 150 seeds; rel 0.05 is three Poisson deviations
    assert counts / 150 == pytest.approx([25] * 10, rel=0.05)


def test_sessions_have_the_stated_turns(traffic):
    r = sample(traffic(lengths=LENGTHS, rest=SESSIONS), 0, 60_000)
    sizes = np.bincount(r.session)[1000:-1000]  # away from the two ends that cut sessions off
    sizes = sizes[: len(sizes) // 2]
    assert np.bincount(sizes)[1:] / len(sizes) == pytest.approx([0.5, 0.3, 0.2], abs=0.02)


def test_a_turn_starts_with_what_it_keeps(traffic):
    lines = SESSIONS.split("\n")
    plain = "\n".join(lines[:6] + lines[9:])
    assert "rewrite" not in plain
    r = sample(traffic(lengths=LENGTHS, rest=plain), 1, 5000)
    last = {}
    for i, (session, blocks) in enumerate(zip(r.session.tolist(), rows(r), strict=True)):
        if session in last:
            before = last[session]
            whole = int(r.input_tokens[before]) // 16
            assert blocks[:whole] == rows_of(r, before)[:whole]
            assert whole >= len(blocks) or blocks[whole] not in rows_of(r, before)
            assert 1 <= r.input_tokens[i] - r.input_tokens[before] <= 100
        last[session] = i
    assert len(last) < 4500


def rows_of(requests, index):
    return tuple(requests.blocks(index).tolist())


def test_rewritten_turns_keep_less(traffic):
    r = sample(traffic(lengths=LENGTHS, rest=SESSIONS), 1, 5000)
    order = np.lexsort((np.arange(len(r)), r.session))
    same = r.session[order][1:] == r.session[order][:-1]
    drop = np.diff(r.input_tokens[order])[same] <= 0
    assert 0.1 < drop.mean() < 0.7
    kept = [
        len(set(rows_of(r, a)) & set(rows_of(r, b)))
        for a, b in zip(order[:-1][same][:500], order[1:][same][:500], strict=True)
    ]
    assert min(kept) >= 1


def test_fewer_requests_are_a_prefix_of_more(traffic):
    for rest in (SESSIONS, "prefix: {kind: shared, groups: 7, tokens: 90, zipf: 1.2, block_tokens: 16}"):
        spec = traffic(lengths=LENGTHS, rest=rest)
        long, short = sample(spec, 3, 4000), sample(spec, 3, 300)
        for name in ("arrival_s", "input_tokens", "output_tokens", "session", "block_hash"):
            assert np.array_equal(getattr(short, name), getattr(long, name)[: len(getattr(short, name))]), (
                name
            )
        cut = long.slice(0, 300)
        assert np.array_equal(cut.block_hash, short.block_hash)


def test_bursts_do_not_break_the_prefix_property(traffic):
    # so bursty, with such late second turns, that the first guess of the number of sessions is often too low
    rest = (
        "prefix: {kind: sessions, turns: [1, 0, 0, 0, 0, 1], gap: {kind: lognormal, mean: 20 s, cv: 0.1},"
        " growth: {levels: [0, 1], tokens: [1, 100]}}"
    )
    spec = traffic("{kind: gamma, rate: 5 request/s, cv: 30}", rest=rest)
    for seed in range(20):
        short, long = sample(spec, seed, 300), sample(spec, seed, 3000)
        assert np.array_equal(short.arrival_s, long.arrival_s[:300])
        assert np.array_equal(short.block_hash, long.slice(0, 300).block_hash)


def test_clipped_conversations_stay_consistent(traffic):
    r = sample(traffic(lengths=LENGTHS, rest=SESSIONS + "clip: {total: 150}"), 2, 3000)
    assert int((r.input_tokens + r.output_tokens).max()) == 150
    assert np.array_equal(np.diff(r.block_offset), -(-r.input_tokens // 16))
