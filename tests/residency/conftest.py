"""The shared recordings."""

import os
from pathlib import Path

import pytest

from moesim.routing.trace import read_trace

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def shared_data():
    folder = Path(os.environ.get("MOESIM_SHARED") or ROOT.parent / "shared") / "data"
    if not folder.is_dir():
        pytest.skip(f"SHARED DATA MISSING: {folder} (set MOESIM_SHARED)")
    return folder


@pytest.fixture(scope="session")
def gpt_oss(shared_data):
    return read_trace(shared_data / "routing" / "gpt-oss-20b-decode.npz")
