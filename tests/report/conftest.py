from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "results"))


@pytest.fixture(scope="session")
def run():
    from synthetic import make_result

    return make_result()


@pytest.fixture(scope="session")
def cut_run():
    from synthetic import make_result

    return make_result(requests=200, rate=60.0, replicas=1, horizon=4.0, max_batch=8)
