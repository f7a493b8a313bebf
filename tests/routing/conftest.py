"""The shared recordings."""

import os
from pathlib import Path

import pytest

from moesim.routing.trace import read_trace


@pytest.fixture(scope="session")
def shared_routing():
    root = Path(__file__).resolve().parents[2]
    folder = Path(os.environ.get("MOESIM_SHARED") or root.parent / "shared") / "data" / "routing"
    if not folder.is_dir():
        pytest.skip(f"SHARED DATA MISSING: {folder} (set MOESIM_SHARED)")
    return folder


@pytest.fixture(scope="session")
def held_out(shared_routing):
    """Return the half of a recording that its shipped model was not fitted on."""

    def half(name):
        if name == "gpt-oss-20b":
            trace = read_trace(shared_routing / "gpt-oss-20b-decode.npz")
        else:
            trace = read_trace(shared_routing / "deepseek-v2-lite-prefill.npz").skip(17)
        return trace.split(0)[1]

    return half
