"""Exact table hits: what was measured comes back as measured, and nothing else."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from moesim.calibrate.silicon import read_family
from moesim.calibrate.silicon.measured import Measured
from moesim.cost.ops import gemm, memory_op
from moesim.cost.precision import Format
from moesim.cost.roofline import Chain, Launch, Place, Roofline
from moesim.spec.base import load_spec
from moesim.spec.hardware import DeviceSpec

pytestmark = [
    pytest.mark.silicon,
    pytest.mark.skipif(
        importlib.util.find_spec("aiconfigurator_core") is None,
        reason="NEEDS the extra `silicon`: no tables here",
    ),
]

A100 = load_spec(DeviceSpec, "a100-80-sxm", "device")
PLACE = Place(A100, Launch(4e-6, 1e-6, 100_000))
BF16 = Format("bf16", 2.0, "bf16", 2.0)


def test_measured_sizes_return_the_table_and_others_nothing() -> None:
    rows = read_family("gemm", device="a100-80-sxm", framework="vllm").rows
    rows = rows[(rows["n"] == 4096) & (rows["k"] == 4096) & rows["possible"]].sort_values("m")
    m = rows["m"].to_numpy()
    op = gemm("x", "lane", np.r_[m, 100_003], 4096, 4096, BF16, 3)
    seconds = Measured("vllm").seconds(op, PLACE)
    assert m.size > 20
    assert np.allclose(seconds[:-1], 3 * rows["seconds"], rtol=1e-12)
    assert np.isnan(seconds[-1])


def test_other_shapes_devices_and_kinds_are_unknown() -> None:
    known = Measured("vllm")
    tokens = np.array([16])
    assert np.isnan(known.seconds(gemm("x", "lane", tokens, 4095, 4096, BF16, 1), PLACE)).all()
    assert np.isnan(known.seconds(memory_op("n", "lane", tokens, 8.0, "bf16", 1), PLACE)).all()
    laptop = load_spec(DeviceSpec, "rtx-4090", "device")
    op = gemm("x", "lane", tokens, 4096, 4096, BF16, 1)
    assert np.isnan(known.seconds(op, Place(laptop, PLACE.launch))).all()


def test_a_chain_says_which_points_were_measured() -> None:
    op = gemm("x", "lane", np.array([16, 16, 100_003]), 4096, 4096, BF16, 1)
    costs = Chain((Measured("vllm"), Roofline())).cost(op, PLACE)
    assert [dict(c.sources).keys() for c in costs] == [{"measured"}, {"measured"}, {"bound"}]
