"""The shared measurements, or a loud skip."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared():
    named = os.environ.get("MOESIM_SHARED")
    folder = Path(named) if named else Path(__file__).resolve().parents[2].parent / "shared"
    if not (folder / "data" / "measured").is_dir():
        pytest.skip(f"NO SHARED DATA at {folder}: set MOESIM_SHARED")
    return folder
