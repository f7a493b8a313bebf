"""The Python way in does what the command line does."""

from __future__ import annotations

from pathlib import Path

import pytest

import moesim as ms


def test_load_simulate_look(toy: Path) -> None:
    loaded = ms.load("toy.yaml", variants=["busy"])
    result = ms.simulate(loaded, check=True)
    assert len(result.tables.requests) == 50
    assert result.manifest["origins"] == loaded.origins
    assert ms.summary(result)["scenario"] == "toy+busy"
    # a resolved scenario and a name are accepted too, and mean the same
    for same in (ms.simulate(loaded.scenario), ms.simulate(ms.load("toy.yaml", ["busy"]))):
        assert same.tables.requests.equals(result.tables.requests)
    assert len(ms.simulate("toy.yaml").tables.requests) == 50


def test_write_read_report_compare(toy: Path) -> None:
    result = ms.simulate("toy.yaml")
    folder = ms.write(result, "run")
    assert ms.read(folder).tables.requests.equals(result.tables.requests)
    assert ms.write_report(result, "page.html").stat().st_size > 10_000
    frame = ms.compare("run", result)
    assert (frame["difference"].dropna() == 0).all()


def test_memory(toy: Path) -> None:
    plan = ms.memory(ms.load("toy.yaml"))["serve"]
    assert 0 < plan.weight_bytes < plan.budget_bytes
    with pytest.raises(ms.NoResult, match=r"deepseek-v3 does not fit on toy: .* short per device"):
        ms.memory(ms.load("toy.yaml", sets=["model=deepseek-v3"]))


def test_progress_is_told(toy: Path) -> None:
    seen: list[float] = []
    ms.simulate("toy.yaml", progress=lambda share, _: seen.append(share))
    assert seen == sorted(seen)
    assert all(0 <= share <= 1 for share in seen)


def test_errors_are_caught_by_their_root(toy: Path) -> None:
    with pytest.raises(ms.MoesimError) as caught:
        ms.load("toy.yaml", sets=["run.request=1"])
    assert isinstance(caught.value, ms.SpecError)
    assert caught.value.problems[0].field == "run.request"
