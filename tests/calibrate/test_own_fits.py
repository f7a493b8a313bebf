"""Own fits: measurements of a user's device become an artifact, with its errors, that prices a scenario."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moesim.calibrate.measure import Measurement, Point, write_measurements
from moesim.calibrate.profiles import import_profile, write_import
from moesim.calibrate.profiles.families import own_families
from moesim.calibrate.profiles.fit import LEAST_ROWS, fit_own, read_sources
from moesim.cost.fitted import Artifact, Fitted, load_artifact, save_artifact
from moesim.cost.fitted.own import ANY, devices_of, own_artifact, with_own
from moesim.errors import DataMissing, SpecError
from moesim.spec.base import load_spec
from moesim.spec.hardware import DeviceSpec

DEVICE = "h100-pcie"  # no shipped table has it
SHAPES = ((2048, 2048), (4096, 4096), (8192, 4096), (4096, 14336), (1024, 8192), (6144, 4096))
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


def seconds(m, n, k, slow=1.0):
    """The law of a made-up kernel on DEVICE: launch, then 70 % of arithmetic or 80 % of memory."""
    spec = load_spec(DeviceSpec, DEVICE, "device")
    work = max(
        2 * m * n * k / spec.compute.peaks["bf16"] / 0.7,
        2 * (m * k + n * k + m * n) / spec.main.bandwidth / 0.8,
    )
    return slow * (3e-6 + work)


def table(folder, slow=1.0, extra=()):
    rows = [
        {"op": "gemm", "dtype": "bf16", "m": m, "n": n, "k": k, "time_us": 1e6 * seconds(m, n, k, slow)}
        for n, k in SHAPES
        for m in ROWS
    ]
    path = folder / "own.csv"
    pd.DataFrame([*rows, *extra]).to_csv(path, index=False)
    return path


@pytest.fixture
def imported(tmp_path):
    extra = [
        {"op": "gemm", "dtype": "fp32", "m": 4, "n": 64, "k": 64, "time_us": 5},
        {"op": "rmsnorm", "dtype": "bf16", "m": 4, "hidden": 64, "time_us": 5},
        {"op": "gemm", "dtype": "bf16", "m": 4096, "n": 8192, "k": 8192, "time_us": 1},
        {"op": "gemm", "dtype": "bf16", "m": 16, "n": 4096, "k": 4096, "kernel": "slow", "time_us": 900},
    ]
    found = import_profile(table(tmp_path, extra=extra), device=DEVICE)
    write_import(tmp_path / "imports" / "own.parquet", found)
    return tmp_path / "imports"


def test_a_fit_predicts_its_device_and_states_its_errors(imported):
    own = fit_own([imported])
    (key,) = own.artifact.groups
    assert key == ("gemm", ANY, "bf16", "any")
    fit = own.artifact.groups[key].devices[DEVICE]
    assert fit.rows == len(SHAPES) * len(ROWS)
    assert fit.errors["shapes"]["n"] == fit.rows  # each shape was left out once
    assert fit.errors["points"]["mape"] < 0.1
    assert fit.errors["shapes"]["mape"] < 0.15
    assert own.read == own.used + sum(own.left_out.values())
    reasons = " ".join(own.left_out)
    for word in ("fp32", "rmsnorm", "faster than the physical bound", "slower kernel"):
        assert word in reasons
    rows = next(own_families(read_sources([imported])[0], Counter(), framework=ANY, software="")).rows
    point = rows[(rows["m"] == 16) & (rows["n"] == 4096) & (rows["k"] == 4096)]
    assert point["seconds"].tolist() == pytest.approx([seconds(16, 4096, 4096)])  # the quicker of two kernels


def test_without_holdouts_no_error_is_claimed(imported):
    own = fit_own([imported], holdouts=False)
    (group,) = own.artifact.groups.values()
    assert group.devices[DEVICE].errors == {}


def test_few_rows_are_no_fit(tmp_path):
    rows = [
        {"op": "gemm", "dtype": "bf16", "m": m, "n": 64, "k": 64, "seconds": 1.0}
        for m in range(1, LEAST_ROWS)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "few.csv", index=False)
    write_import(tmp_path / "few.parquet", import_profile(tmp_path / "few.csv", device=DEVICE))
    with pytest.raises(DataMissing, match=f"59 rows, at least {LEAST_ROWS} are needed"):
        fit_own([tmp_path / "few.parquet"])


def test_rows_of_an_unknown_device_are_no_fit(tmp_path):
    write_import(tmp_path / "own.parquet", import_profile(table(tmp_path)))
    with pytest.raises(DataMissing, match="not in the catalog"):
        fit_own([tmp_path / "own.parquet"])


def test_wrong_sources_are_named(tmp_path):
    with pytest.raises(SpecError, match="expected a file or folder of moesim calibrate import"):
        read_sources([tmp_path])
    with pytest.raises(SpecError, match=r"framework 'vlm'.*did you mean 'vllm'"):
        fit_own([tmp_path], framework="vlm")
    run = {"completed": 2, "duration": 3.0, "request_rate": 1.0, "num_prompts": 2, "mean_ttft_ms": 5.0}
    (tmp_path / "bench.json").write_text(json.dumps(run))
    write_import(tmp_path / "bench.parquet", import_profile(tmp_path / "bench.json"))
    with pytest.raises(SpecError, match="end-to-end results replay as scenarios"):
        read_sources([tmp_path / "bench.parquet"])


def expert_rows(variant="uniform", distinct=5):
    dims = (("hidden", 64), ("inner", 32), ("experts", 8), ("top_k", 2), ("tokens", 6))
    more = (("distinct", distinct), ("max_rows", 4)) if distinct else ()
    return Point("moe_ffn", "triton", "cuda", "bf16", (*dims, *more), variant)


def measured(folder, points, meta):
    folder.mkdir()
    times = [Measurement(p, 1e-3, 1e-3, 1e-3, 1e-3, 9, 1.0, 1.0, 0.0, 0.1, "graph") for p in points]
    write_measurements(folder / "measurements.parquet", times)
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def test_a_folder_of_measure_is_an_import(tmp_path):
    points = [expert_rows(), Point("launch", "torch", "cuda", "fp32", (("launches", 100),), "eager")]
    meta = {"device_name": "NVIDIA H100 PCIe", "libraries": {"torch": "2.13.0"}, "complete": True}
    found = import_profile(measured(tmp_path / "run", points, meta))
    assert found.kind == "measured"
    assert found.software == "torch 2.13.0"
    assert found.frame["device"].tolist() == [DEVICE]
    assert found.frame["distinct"].tolist() == [5]
    assert found.dropped == {"launch: no op that the cost model fits": 1}
    # five experts of three matrices are read, not the two that are certain
    weights = 5 * 3 * 64 * 32 * 2
    assert found.frame["bytes"].item() == weights + 6 * 2 * 64 * (2 + 2)
    assert np.isfinite(found.frame["bound_s"]).all()


def test_an_interrupted_run_is_refused(tmp_path):
    meta = {"device_name": "NVIDIA H100 PCIe", "complete": False}
    with pytest.raises(SpecError, match="expected a run that ended"):
        import_profile(measured(tmp_path / "run", [expert_rows()], meta))


@pytest.mark.parametrize(("variant", "distinct", "skew", "touched"), [
    ("uniform", 5, 0.0, 5.0), ("skewed", 5, 1.2, 5.0), ("", None, 1.2, 8 * (1 - (1 - 2 / 8) ** 6)),
])  # fmt: skip
def test_expert_rows_keep_their_load(tmp_path, variant, distinct, skew, touched):
    meta = {"device_name": "NVIDIA H100 PCIe"}
    found = import_profile(measured(tmp_path / "run", [expert_rows(variant, distinct)], meta))
    (moe,) = own_families(found.frame, Counter(), framework=ANY, software="x")
    row = moe.rows.iloc[0]
    assert (row["rows"], row["ups"], row["ep"], row["skew"]) == (12, 2, 1, skew)
    assert row["touched"] == pytest.approx(touched)
    assert row["flop"] == 2 * 12 * 64 * 32 * 3


def test_own_fits_come_before_shipped_ones_on_their_device_alone(imported):
    own = fit_own([imported]).artifact
    base_group = next(iter(own.groups.values()))
    keys = [("gemm", "vllm", "bf16", "any"), ("gemm", "sglang", "bf16", "any"), ("gemm", "vllm", "fp8", "any"),
            ("moe", "vllm", "bf16", "triton")]  # fmt: skip
    base = Artifact(dict.fromkeys(keys, base_group), {}, {"source": "base"})
    both = with_own(base, own, "vllm", DEVICE)
    assert set(both.groups) == {keys[0], keys[2], keys[3]}  # another engine's kernels of the type stand back
    assert both.groups[keys[0]] is own.groups["gemm", ANY, "bf16", "any"]
    assert with_own(base, own, "vllm", "h200-sxm").groups == base.groups
    assert base.groups.keys() == set(keys)
    assert devices_of(own) == (DEVICE,)


def test_a_path_of_other_devices_is_refused(imported, tmp_path):
    save_artifact(fit_own([imported]).artifact, tmp_path / "fits")
    assert ("gemm", "sglang", "bf16", "any") in own_artifact(tmp_path / "fits.json", "sglang", DEVICE).groups
    with pytest.raises(SpecError, match=f"expected fits of h200-sxm, it has {DEVICE}"):
        own_artifact(tmp_path / "fits", "vllm", "h200-sxm")
    with pytest.raises(DataMissing, match="no fitted kernels there"):
        own_artifact(tmp_path / "nothing", "vllm", DEVICE)


def test_a_scenario_is_priced_by_own_fits(tmp_path):
    """A device twice as slow in all products makes decode steps slower by its products' share."""
    import moesim as ms
    from moesim.sim.setup import pool_parts

    spent = {}
    for slow in (1.0, 4.0):
        folder = tmp_path / f"x{slow}"
        folder.mkdir()
        write_import(folder / "i" / "own.parquet", import_profile(table(folder, slow), device="h100-sxm"))
        save_artifact(fit_own([folder / "i"], holdouts=False).artifact, folder / "fits")
        spec = ms.load("quickstart", sets=[f"deployment.calibration={folder / 'fits'}"]).scenario
        (name, pool), *_ = spec.deployment.pools.items()
        pricing = pool_parts(spec, name, pool).setup.pricing
        row = next(i for i, op in enumerate(pricing.lane_ops) if op.name.startswith("qkv"))
        assert pricing.lane_ops[row].source == "fitted"
        spent[slow] = pricing.lane_s[row, 64]
    assert spent[4.0] / spent[1.0] == pytest.approx(4.0, rel=0.1)


def test_stored_fits_answer_as_before(imported, tmp_path):
    own = fit_own([imported]).artifact
    save_artifact(own, tmp_path / "fits")
    again = load_artifact(Path(tmp_path / "fits"))
    assert devices_of(again) == devices_of(own)
    assert again.meta["imports"]["gemm"]["kept"] == len(SHAPES) * len(ROWS)
    both = with_own(Artifact({}, {}, {}), again, "vllm", DEVICE)
    assert Fitted("vllm", both).versions(DEVICE) == {"gemm": ("not stated",)}
