"""Fixtures of the traffic tests: specs from YAML text, the shared traces."""

import os
from pathlib import Path

import pytest

from moesim.files import parse_yaml
from moesim.spec.base import validate
from moesim.spec.traffic import TrafficSpec

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def traffic():
    def make(
        arrivals="{kind: poisson, rate: 5 request/s}", lengths="{kind: fixed, input: 8, output: 4}", rest=""
    ):
        text = f"kind: traffic\nname: t\narrivals: {arrivals}\nlengths: {lengths}\n{rest}\n"
        return validate(TrafficSpec, parse_yaml(text, "t.yaml"))

    return make


@pytest.fixture(scope="session")
def traces():
    folder = Path(os.environ.get("MOESIM_SHARED") or ROOT.parent / "shared") / "data" / "traces"
    if not folder.is_dir():
        pytest.skip(f"the shared traces are not at {folder}: set MOESIM_SHARED")
    return folder
