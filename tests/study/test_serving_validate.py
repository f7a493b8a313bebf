"""``moesim validate silicon-serving``: the answer's shape, its bands, and mistakes in one line."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from moesim.cli import app
from moesim.cli.validate import SUITES
from moesim.files import catalog_root
from moesim.study.serving import suite as serving
from moesim.study.serving.score import load_bands

pytestmark = pytest.mark.silicon
pytest.importorskip("aiconfigurator_core", reason="needs the extra `silicon`")


def call(*args: str):
    return CliRunner().invoke(app, ["validate", *args])


def test_the_answer_is_json_on_stdout_and_nothing_else(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("MOESIM_SHARED", raising=False)
    result = call("silicon-serving", "--json", "--quick", "700", "--bound", "--cache", str(tmp_path))
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert {"suite", "rows", "covered", "metrics", "groups", "bands"} <= set(answer)
    assert answer["suite"] == "silicon-serving"
    assert answer["covered"] == answer["rows"] == len(list(tmp_path.rglob("*.json")))
    figures = {"n", "mape", "median_ape", "p90_ape", "within_30", "bias", "spearman"}
    assert set(answer["metrics"]["all_tpot"]) == figures
    assert answer["metrics"]["all_tpot"]["n"] == answer["covered"]
    # a bound is below what was measured, nearly always
    assert answer["metrics"]["all_tpot"]["bias"] < 0


def test_a_second_run_reads_its_answers(tmp_path) -> None:
    args = ("silicon-serving", "--json", "--quick", "900", "--bound", "--cache", str(tmp_path))
    first, again = call(*args), call(*args)
    assert first.stdout == again.stdout


def test_a_figure_outside_its_band_fails_with_its_name(tmp_path, monkeypatch) -> None:
    bands = tmp_path / "bands.yaml"
    bands.write_text(
        "kind: bands\nsuites:\n  silicon-serving:\n    - {name: all_tpot.mape, limit: 0.2}\n"
        "    - {name: coverage.value, limit: 0.5, least: true}\n"
    )
    figures = {"all_tpot": {"mape": 0.4}, "coverage": {"value": 0.9}}

    def fake(*, bands, **_):
        from moesim.study.serving.score import check_bands

        return {"suite": "silicon-serving", "rows": 1, "covered": 1, "metrics": {}, "groups": [],
                "bands": check_bands(bands, figures)}  # fmt: skip

    monkeypatch.setattr(serving, "run", fake)
    result = call("silicon-serving", "--bands", str(bands))
    assert result.exit_code == 3
    assert "all_tpot.mape: 0.4 is outside its limit 0.2" in result.stderr
    assert "coverage" not in result.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("silicon-servin",), "unknown suite 'silicon-servin', expected one of"),
        (("silicon-serving", "--shared", "/nowhere"), "no such file"),
        (("silicon-serving", "--bands", "/nowhere.yaml"), "/nowhere.yaml"),
    ],
)
def test_mistakes_are_told_in_one_line(args, message) -> None:
    result = call(*args)
    assert result.exit_code in {2, 4}
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_the_shipped_bands_are_of_suites_that_exist() -> None:
    bands = load_bands(catalog_root() / "validation" / "bands.yaml")
    assert set(bands.suites) <= set(SUITES)
    assert bands.suites["silicon-serving"]
