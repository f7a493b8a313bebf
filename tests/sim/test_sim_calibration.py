"""Calibration of a simulation: who prices steps, what is said of it, and what a scenario may state itself."""

from __future__ import annotations

import pytest

import moesim as ms
from moesim.cost.overheads import Overhead, OverheadTable, load_overheads
from moesim.cost.roofline import Roofline
from moesim.errors import DataMissing
from moesim.sim.calibration import calibrated
from moesim.sim.setup import pool_parts
from moesim.spec.base import load_spec
from moesim.spec.deployment import Engine
from moesim.spec.hardware import DeviceSpec

H100, SN40L = (load_spec(DeviceSpec, name, "device") for name in ("h100-sxm", "sn40l"))


def parts(**sets: str):
    scenario = ms.load("quickstart", sets=[f"{key}={value}" for key, value in sets.items()]).scenario
    return pool_parts(scenario, "serve", scenario.deployment.pools["serve"])


def test_cuda_devices_are_priced_by_fits_and_others_by_the_bound() -> None:
    known = calibrated("shipped", Engine(), H100)
    assert known.chain is not None
    assert known.chain.estimators[0].origin == "fitted"
    assert known.host.step_s > 0
    assert known.host.request_s == 0  # a client's, not the engine's
    assert calibrated("shipped", Engine(), SN40L).chain is None
    assert calibrated("none", Engine(), H100).chain is None
    assert calibrated("none", Engine(), H100).host == Overhead()


def test_a_stated_step_overhead_takes_the_place_of_the_fitted_one() -> None:
    stated = calibrated("shipped", Engine(step_overhead="2 ms"), H100).host
    fitted = calibrated("shipped", Engine(), H100).host
    assert stated.step_s == 0
    assert stated.sequence_s == fitted.sequence_s > 0
    setup = parts(**{"deployment.serve.engine.step_overhead": "2 ms"}).setup
    assert setup.pricing.overhead_s == pytest.approx(2e-3)


def test_versions_and_bands_are_told() -> None:
    plain = calibrated("shipped", Engine(), H100)
    assert any("fitted to vllm" in note and "0.24.0" in note for note in plain.notes)
    assert any("Nine of ten measured runs" in note for note in plain.notes)
    assert not any("not 0.9.9" in note for note in plain.notes)
    other = calibrated("shipped", Engine(version="0.9.9"), H100)
    assert any("not 0.9.9" in note for note in other.notes)
    assert any("this run is 0.9.9" in note for note in other.notes)
    for low, high in plain.intervals.values():
        assert 0.3 < low < 1 < high < 4


def test_an_unmeasured_device_says_so() -> None:
    rtx = load_spec(DeviceSpec, "rtx-4090", "device")
    assert any(
        "No kernel of vllm was measured on rtx-4090" in n for n in calibrated("shipped", Engine(), rtx).notes
    )


def test_a_missing_artifact_is_named() -> None:
    with pytest.raises(DataMissing, match="nowhere"):
        calibrated("nowhere/fit", Engine(), H100)


def test_fits_are_slower_than_the_bound_at_every_batch() -> None:
    fitted, bound = parts().setup.pricing, parts(**{"deployment.calibration": "none"}).setup.pricing
    for batch in (1, 32, 256, 2048):
        now = fitted.lane_s[:, batch].sum() + fitted.group_s[:, batch].sum()
        assert now > bound.lane_s[:, batch].sum() + bound.group_s[:, batch].sum()


def test_the_table_of_overheads_finds_the_nearest_generation() -> None:
    table = load_overheads()
    assert isinstance(table, OverheadTable)
    assert table.of("vllm", architecture="ampere") == table.of("vllm", architecture="hopper")
    assert table.of("vllm", architecture="blackwell") != table.of("vllm", architecture="hopper")
    assert table.of("vllm", "aiperf", "hopper") != table.of("vllm", "inferencemax", "hopper")


def test_tables_answer_first_and_are_missed_when_they_are_not_there() -> None:
    with pytest.raises(DataMissing, match="need the extra"):
        calibrated("tables", Engine(), H100)
    flavors: list[str] = []

    def tables(flavor: str):
        flavors.append(flavor)
        return Roofline()

    known = calibrated("tables", Engine(flavor="sglang"), H100, tables=tables)
    assert flavors == ["sglang"]
    assert known.chain.estimators[0] == Roofline()
    assert [e.origin for e in known.chain.estimators] == ["bound", "fitted", "bound"]
    assert known.intervals == calibrated("shipped", Engine(flavor="sglang"), H100).intervals


@pytest.mark.silicon
def test_a_pool_priced_with_tables_takes_measured_products_as_they_are() -> None:
    pytest.importorskip("aiconfigurator_core", reason="needs the extra `silicon`")
    from moesim.calibrate.silicon.measured import Measured

    scenario = ms.load("quickstart", sets=["deployment.calibration=tables"]).scenario
    pool = scenario.deployment.pools["serve"]
    exact, fitted = (
        pool_parts(s, "serve", pool, tables=Measured).setup.pricing
        for s in (scenario, ms.load("quickstart").scenario)
    )
    apart = [int((a != b).sum()) for a, b in zip(exact.lane_s, fitted.lane_s, strict=True)]
    assert 0 < max(apart) < 200  # the measured sizes alone
    with pytest.raises(DataMissing, match="need the extra"):
        pool_parts(scenario, "serve", pool)
    assert ms.simulate(ms.load("quickstart", sets=["deployment.calibration=tables", "run.requests=500"]))


def test_asynchronous_scheduling_hides_the_host_but_not_what_prefill_costs() -> None:
    known = calibrated("shipped", Engine(async_scheduling=True), H100)
    assert known.host.step_s == known.host.sequence_s == 0
    assert known.host.prefill == calibrated("shipped", Engine(), H100).host.prefill > 1
    assert any("hidden by asynchronous scheduling" in note for note in known.notes)
