"""``import moesim`` and ``moesim --help`` cost next to nothing: heavy parts are imported when they are used."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

HEAVY = {"pandas", "numba", "plotly", "pint", "numpy", "pydantic", "scipy", "simpy", "pulp", "pyarrow", "ruamel.yaml",
         "rich", "jinja2"}  # fmt: skip


def imported(*args: str) -> tuple[set[str], float]:
    """Return the modules that a fresh interpreter imports for ``args``, and its processor seconds (best of 3)."""
    best, names = float("inf"), set()
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-X", "importtime", *args], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        names = {
            line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import")
        }
    return names, best


def test_import_moesim_is_light() -> None:
    names, seconds = imported("-c", "import moesim")
    assert "moesim.version" in names
    assert not names & HEAVY
    assert seconds < 0.5


def test_help_is_light() -> None:
    names, seconds = imported("-m", "moesim", "--help")
    assert not names & (HEAVY - {"rich"})
    assert seconds < 0.5


def test_the_check_itself_can_fail() -> None:
    names, _ = imported("-c", "import moesim; moesim.load")
    assert "pydantic" in names


def test_loading_a_scenario_does_not_import_the_simulator() -> None:
    names, _ = imported("-c", "import moesim; moesim.load('quickstart')")
    assert not names & {"pandas", "numba", "plotly", "simpy", "rich"}


def test_every_public_name_is_there() -> None:
    import moesim

    assert dir(moesim) == sorted(moesim.__all__)
    for name in moesim.__all__:
        assert getattr(moesim, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = moesim.nothing
