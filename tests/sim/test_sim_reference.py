"""Differential test: the simulator against the plain-Python reference, on random worlds."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import simulate
from worlds import World, one_by_one, worlds

from moesim.sim.kernel import Status

QUICK = settings(
    max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)


def agree(world: World, fast: bool) -> None:
    rows = world.reference()
    homes = world.homes.tolist()
    replicas = simulate(rows, homes, world.settings, world.prices)
    pool = one_by_one(world.pool(fast=fast), world.requests, world.homes)
    rec, rep = pool.state.req, pool.state.rep
    names = {Status.FINISHED: "finished", Status.REJECTED: "rejected"}
    assert [names.get(s, "left behind") for s in rec["status"]] == [r.status for r in rows]
    for name in ("scheduled", "first", "finish"):
        theirs = np.array([np.nan if getattr(r, name) is None else getattr(r, name) for r in rows])
        np.testing.assert_allclose(rec[name], theirs, rtol=1e-9, atol=1e-12, err_msg=name)
    for name in ("generated", "preemptions", "cached"):
        assert rec[name].tolist() == [getattr(r, name) for r in rows], name
    for name in ("steps", "prefill_tokens", "decode_tokens", "cached_tokens", "preemptions"):
        assert rep[name].tolist() == [getattr(r, name) for r in replicas], name
    np.testing.assert_allclose(rep["step_s"], [r.step_s for r in replicas], rtol=1e-9)
    np.testing.assert_allclose(rep["busy"], [r.step_s for r in replicas], rtol=1e-9)
    np.testing.assert_allclose(rep["peak"], [r.peak for r in replicas], rtol=1e-9)
    gaps = np.concatenate([r.gaps for r in replicas])
    assert pool.state.hist[3].sum() == len(gaps)
    # every gap lies in a bin whose edges hold it: the histogram's edges bound the quantiles
    counts = pool.state.hist[3]
    low = np.where(np.arange(len(counts)) == 0, 0.0, 1e-5 * 1.02 ** (np.arange(len(counts)) - 1.0))
    recorded = np.repeat(np.arange(len(counts)), counts)
    ranked = np.sort(gaps)
    assert (ranked >= low[recorded] * (1 - 1e-9)).all()
    assert (ranked < low[recorded + 1] * (1 + 1e-9)).all()
    for lane in pool.state.lane:
        assert lane["waiting"] == lane["running"] == 0
        assert lane["free"] + lane["idle"] * pool.state.cfg[0]["hash_blocks"] == lane["total"]
    assert not rep["present"].any()
    assert not rep["tokens"].any()


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "step-by-step"])
@QUICK
@given(world=worlds())
def test_simulator_is_the_reference(fast, world):
    agree(world, fast)


@QUICK
@given(world=worlds(drafts=0, swap=False, chunked=True, prefill_first=False, watermark=0.0, admission="vllm"))
def test_vllm_defaults_are_the_reference(world):
    agree(world, fast=True)


@QUICK
@given(world=worlds(prefill_first=True, drafts=0), fast=st.booleans())
def test_prefill_first_is_the_reference(world, fast):
    agree(world, fast)
