"""Every law holds for a lawful run and barks at its mutant."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import make_result

from moesim.errors import LawBroken
from moesim.results import LAWS, Result, Tables, check


def corrupt(result, table, row, column, value):
    """Return ``result`` with one cell changed; a callable gets the old value."""
    frame = getattr(result.tables, table).copy()
    at = frame.columns.get_loc(column)
    frame.iat[row, at] = value(frame.iat[row, at]) if callable(value) else value
    return replace(result, tables=replace(result.tables, **{table: frame}))


def finished(result):
    return int(np.flatnonzero(result.tables.requests["status"] == "finished")[5])


MUTANTS = {
    "request_conservation": [
        lambda r: replace(r, manifest={**r.manifest, "arrived": r.manifest["arrived"] + 1}),
        lambda r: corrupt(r, "requests", 3, "status", "forgotten"),
        lambda r: corrupt(r, "requests", 3, "request", 4),
    ],
    "token_conservation": [
        lambda r: corrupt(r, "replicas", 0, "decode_tokens", lambda v: v + 1),
        lambda r: corrupt(r, "requests", finished(r), "output_tokens", lambda v: v + 1),
        lambda r: corrupt(r, "requests", 0, "generated_tokens", 1),  # row 0 is rejected
        lambda r: replace(r, manifest={**r.manifest, "lost_tokens": 2}),
    ],
    "causality": [
        lambda r: corrupt(r, "requests", finished(r), "arrival_s", lambda v: v + 100.0),
        lambda r: corrupt(r, "requests", finished(r), "scheduled_s", lambda v: v - 10.0),
        lambda r: corrupt(r, "requests", finished(r), "first_token_s", lambda v: v + 100.0),
        lambda r: corrupt(r, "requests", finished(r), "first_token_s", np.nan),
        lambda r: corrupt(r, "requests", finished(r), "finish_s", np.nan),
        lambda r: corrupt(r, "requests", finished(r), "finish_s", lambda v: v + 1000.0),
        lambda r: corrupt(r, "requests", 0, "finish_s", 1.0),
        lambda r: corrupt(r, "requests", finished(r), "generated_tokens", 0),
    ],
    "little": [
        lambda r: corrupt(r, "replicas", 0, "requests_s", lambda v: v * (1 + 1e-7)),
        lambda r: corrupt(r, "requests", finished(r), "finish_s", lambda v: v + 0.001),
        lambda r: replace(r, manifest={**r.manifest, "outside_s": 0.001}),
    ],
    "busy_within_service": [
        lambda r: corrupt(r, "replicas", 1, "busy_s", lambda v: v * 2),
        lambda r: corrupt(r, "replicas", 1, "alive_s", lambda v: v + 1.0),
        lambda r: corrupt(r, "replicas", 1, "busy_s", -1.0),
    ],
    "kv_within_memory": [
        lambda r: corrupt(r, "replicas", 0, "kv_peak", 1.01),
        lambda r: corrupt(r, "replicas", 0, "kv_peak", np.nan),
    ],
    "gaps_between_tokens": [lambda r: corrupt(r, "itl", 40, "tokens", lambda v: v + 1)],
    "ops_are_busy_time": [
        lambda r: corrupt(r, "ops", 2, "seconds", lambda v: v * (1 + 1e-7)),
        lambda r: corrupt(r, "ops", 0, "pool", "decode"),
        lambda r: corrupt(r, "replicas", 1, "step_s", lambda v: v + 1e-3),
        lambda r: corrupt(
            corrupt(r, "ops", 0, "seconds", -1.0),
            "ops",
            1,
            "seconds",
            r.tables.ops["seconds"].iloc[:2].sum() + 1.0,
        ),
    ],
    "timeline_bounds": [
        lambda r: corrupt(r, "timeline", 9, "kv_used", 1.5),
        lambda r: corrupt(r, "timeline", 9, "kv_used", np.nan),
        lambda r: corrupt(r, "timeline", 9, "kv_used", 0.9),  # above the replica's stated peak
        lambda r: corrupt(r, "timeline", 9, "waiting", -1),
        lambda r: corrupt(r, "timeline", 9, "time_s", 1e9),
        lambda r: corrupt(r, "timeline", 9, "time_s", lambda v: v + 5.0),
        lambda r: corrupt(r, "timeline", 0, "step_s", 50.0),
        lambda r: corrupt(r, "timeline", 9, "replica", 77),
    ],
    "percentiles_in_order": [
        lambda r: corrupt(r, "itl", 40, "tokens", -3),
        lambda r: corrupt(r, "itl", 40, "high_s", 0.0),
        lambda r: corrupt(r, "requests", finished(r), "scheduled_s", -1e6),
    ],
    "preemptions_agree": [lambda r: corrupt(r, "requests", finished(r), "preemptions", 1)],
    "prompts_are_read": [lambda r: corrupt(r, "replicas", 0, "prefill_tokens", lambda v: v - 1)],
    "expert_load": [
        lambda r: corrupt(r, "experts", 3, "load", lambda v: v + 1e-3),
        lambda r: corrupt(
            corrupt(r, "experts", 3, "load", -0.5),
            "experts",
            4,
            "load",
            r.tables.experts["load"].iloc[3:5].sum() + 0.5,
        ),
    ],
}


def test_every_law_has_a_mutant():
    assert set(MUTANTS) == set(LAWS)


def test_laws_hold(run, cut_run):
    assert set(check(run).values()) == {"holds"}
    assert set(check(cut_run).values()) == {"holds"}


@pytest.mark.parametrize(
    ("law", "index"), [(law, i) for law, many in MUTANTS.items() for i in range(len(many))]
)
def test_a_mutant_makes_its_law_bark(run, law, index):
    with pytest.raises(LawBroken, match=rf"^{law}: .*scenario synthetic, seed 7") as caught:
        LAWS[law][0](MUTANTS[law][index](run))
    assert "\n" not in str(caught.value)
    with pytest.raises(LawBroken):
        check(MUTANTS[law][index](run))


def test_last_percentile_below_the_first_barks(run, monkeypatch):
    monkeypatch.setattr(
        "moesim.results.laws.spread", lambda _: {"p50": 2.0, "p90": 3.0, "p95": 2.5, "p99": 4.0}
    )
    with pytest.raises(LawBroken, match="percentiles_in_order: ttft"):
        check(run)


def test_tables_that_were_not_recorded_are_not_checked(run):
    found = check(Result(run.manifest, Tables(requests=run.tables.requests)))
    assert found["causality"] == found["request_conservation"] == "holds"
    assert found["little"] == found["timeline_bounds"] == found["expert_load"] == "not checked"


def test_kv_transfers_are_time_outside_the_pools(run):
    """Moving 0.5 s of one request from its pool into the transfer keeps Little's law."""
    moved = corrupt(run, "requests", finished(run), "kv_transfer_s", 0.5)
    with pytest.raises(LawBroken, match="little"):
        check(moved)
    assert check(corrupt(moved, "replicas", 0, "requests_s", lambda v: v - 0.5))["little"] == "holds"


def test_lost_tokens_balance_a_failure(run):
    failed = corrupt(run, "replicas", 0, "decode_tokens", lambda v: v + 9)
    failed = corrupt(failed, "requests", finished(run), "restarts", 1)
    assert check(failed)["token_conservation"] == "holds"  # noqa: S105 - a law, no password
    known = replace(failed, manifest={**failed.manifest, "lost_tokens": 9})
    assert check(known)["token_conservation"] == "holds"  # noqa: S105
    with pytest.raises(LawBroken, match="token_conservation"):
        check(replace(failed, manifest={**failed.manifest, "lost_tokens": 8}))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**16),
    rate=st.floats(1, 80),
    replicas=st.integers(1, 3),
    batch=st.integers(1, 20),
    horizon=st.none() | st.floats(0.5, 5),
)
def test_laws_hold_for_any_lawful_run(seed, rate, replicas, batch, horizon):
    result = make_result(60, replicas, rate, batch, seed, horizon, warmup=5)
    assert set(check(result).values()) <= {"holds", "not checked"}
