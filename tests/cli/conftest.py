from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scenario"))  # the toy world is shared

from toy_world import build


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy world's folder, and we are in it."""
    build(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
