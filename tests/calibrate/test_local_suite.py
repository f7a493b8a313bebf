"""Suites of this machine: figures, bands and recorded passes; no PyTorch needed."""

import math
from types import SimpleNamespace

import pytest

from moesim.calibrate.local import suite
from moesim.calibrate.local.model import Architecture
from moesim.calibrate.local.store import RECORDED, read_comparisons
from moesim.calibrate.local.validate import Comparison, Target
from moesim.calibrate.measure.timing import spread
from moesim.cli.validate import SUITES
from moesim.errors import DataMissing, SpecError
from moesim.files import catalog_root
from moesim.study.serving.score import load_bands

NARROW, WIDE = Architecture(128, 48, 6, 2, vocabulary=64), Architecture(256, 96, 4, 1, vocabulary=64)


def passes(*errors, bound=0.5, uniform=1.5):
    """One pass per error: measured 2 s, predicted 2 s times (1 + error)."""
    found = []
    for index, error in enumerate(errors):
        part, sizes = ("forward", "moe_layer")[index % 2], (NARROW, WIDE)[index % 3 > 0]
        timed = spread([1.9 + index / 1e3, 2.0 + index / 1e3, 2.1 + index / 1e3])
        found.append(Comparison(Target(part, sizes, 1 + index, 7), timed, timed,
                                timed.median * (1 + error), timed.median * uniform, timed.median * bound))  # fmt: skip
    return found


def test_figures_are_those_of_the_errors():
    answer = suite.answer("local-cpu", passes(0.1, -0.2, 0.4, 0.0))
    assert answer["rows"] == answer["covered"] == 4
    assert answer["metrics"]["all"] == pytest.approx(
        {"n": 4, "mape": 0.175, "median_ape": 0.15, "p90_ape": 0.34, "bias": 0.075, "within_30": 0.75,
         "spearman": answer["metrics"]["all"]["spearman"]})  # fmt: skip
    assert answer["metrics"]["forward"]["mape"] == pytest.approx(0.25)
    assert answer["metrics"]["moe_layer"]["mape"] == pytest.approx(0.1)
    assert answer["metrics"]["routing_unknown"]["median_ape"] == pytest.approx(0.5)
    assert [side["error"] for side in answer["side_by_side"]] == pytest.approx([0.1, -0.2, 0.4, 0.0])
    assert [g["experts"] for g in answer["groups"]] == [4, 6]  # worst first: 0.2 before 0.05
    assert sum(g["n"] for g in answer["groups"]) == 4


def test_the_bound_alone_is_judged_where_asked():
    answer = suite.answer("local-cpu", passes(0.0, 0.0), bound=True)
    assert answer["metrics"]["all"]["bias"] == pytest.approx(-0.5)
    assert "routing_unknown" not in answer["metrics"]


def test_a_band_fails_and_a_missing_figure_is_no_success():
    band = [SimpleNamespace(name=name, limit=0.1, least=False) for name in ("all.median_ape", "nothing.mape")]
    right, missing = suite.answer("local-cpu", passes(0.05, 0.05), band)["bands"]
    assert right["ok"]
    assert not missing["ok"]
    assert not suite.answer("local-cpu", passes(0.2, 0.2), band)["bands"][0]["ok"]


def test_bands_name_figures_that_exist():
    bands = load_bands(catalog_root() / "validation" / "bands.yaml").suites
    for name in ("local-cpu", "local-gpu"):
        assert name in SUITES
        checked = suite.answer(name, passes(0.0, 0.0, 0.0, 0.0, uniform=1.0), bands[name])["bands"]
        assert checked
        assert all(not math.isnan(band["value"]) and band["ok"] for band in checked)


def recorded(folder, *errors):
    from moesim.calibrate.local import store

    lines = [",".join(store._TARGET)]
    for c in passes(*errors):
        t, s = c.target, c.target.sizes
        cells = [t.part, t.batch, t.length, s.hidden, s.heads, s.inner, s.experts, s.top_k, s.layers, s.vocabulary,
                 c.measured.median, c.measured.p10, c.measured.p90, c.wall.median, c.predicted_s, "+0.0",
                 c.uniform_s, c.bound_s]  # fmt: skip
        lines.append(",".join(map(str, cells)))
    path = folder / RECORDED
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def test_without_a_gpu_recorded_passes_are_replayed(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "_cuda", lambda: False)
    recorded(tmp_path / "h100-sxm", 0.1, -0.3)
    recorded(tmp_path / "l40s", 0.2, 0.2)
    answer = suite.run_gpu(cache=tmp_path)
    assert answer["recorded"]
    assert answer["device"] == "h100-sxm, l40s"
    assert answer["rows"] == 4
    assert answer["metrics"]["all"]["mape"] == pytest.approx(0.2)


def test_nothing_recorded_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "_cuda", lambda: False)
    with pytest.raises(DataMissing, match="none is recorded yet") as caught:
        suite.run_gpu(cache=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_damaged_record_is_named(tmp_path):
    path = recorded(tmp_path, 0.1, 0.1)
    path.write_text(path.read_text().replace("1,7,128", "1,seven,128"))
    with pytest.raises(SpecError, match=r"comparison.csv:2 .*seven"):
        read_comparisons(path)
