"""What the fits say about themselves: metrics, bands, tables, the page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from moesim.calibrate.validate_kernels import kernel_errors, kernel_metrics, markdown, run, write_section
from moesim.cli import app
from moesim.cost.fitted.artifact import Artifact, DeviceFit, Group, save_artifact
from moesim.cost.fitted.trees import Forest
from moesim.errors import DataMissing
from moesim.study.serving.score import Band

NO_TREES = Forest.quantised(
    np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8), np.zeros((1, 2), np.float32)
)


def errors(mape: float, n: int) -> dict[str, float]:
    return {"n": n, "mape": mape, "median_ape": mape / 2, "p90_ape": 2 * mape, "bias": -mape / 3}


def artifact() -> Artifact:
    shapes = {"h100-sxm": 0.04, "l40s": 0.06}
    devices = {
        name: DeviceFit(
            NO_TREES, 5000.0, 100, ("1.0",), ((0.9, 1.1),), {"shapes": {**errors(mape, 100), "coverage": 0.9}}
        )
        for name, mape in shapes.items()
    }
    group = Group(
        (np.zeros(1, np.float32),),
        NO_TREES,
        5000.0,
        ((0.8, 1.2),),
        (),
        {"h100-sxm": errors(0.08, 300)},
        devices,
    )
    meta = {
        "source": "somewhere <1.0>",
        "imports": {
            "gemm": {
                "read": 1000, "kept": 900,
                "dropped": [{"device": "b60", "framework": "vllm", "reason": "none", "rows": 90}],
                "faster_than_bound": [{"device": "l40s", "framework": "vllm", "dtype": "bf16", "rows": 10}],
            }
        },
    }  # fmt: skip
    return Artifact({("gemm", "vllm", "bf16", "any"): group}, {}, meta)


def test_metrics_are_means_over_rows_with_the_worst_group_beside() -> None:
    metrics = kernel_metrics(kernel_errors(artifact()))
    assert metrics["gemm_shapes"]["n"] == 200
    assert metrics["gemm_shapes"]["mape"] == pytest.approx(0.05)
    assert metrics["gemm_shapes"]["worst_mape"] == 0.06
    assert metrics["gemm_bf16_device"]["mape"] == pytest.approx(0.08)
    assert metrics["interval_coverage"]["coverage"] == pytest.approx(0.9)
    assert "moe_shapes_hopper" not in metrics


def test_rows_weigh_groups() -> None:
    heavy = artifact()
    group = heavy.groups["gemm", "vllm", "bf16", "any"]
    fit = group.devices["l40s"]
    group.devices["l40s"] = replace(fit, errors={"shapes": errors(0.06, 300)})
    assert kernel_metrics(kernel_errors(heavy))["gemm_shapes"]["mape"] == pytest.approx(0.055)


def test_bands_fail_what_is_outside_or_missing(tmp_path: Path) -> None:
    save_artifact(artifact(), tmp_path / "fits")
    bands = [
        Band(name="gemm_shapes.mape", limit=0.051),
        Band(name="gemm_shapes.mape", limit=0.049),
        Band(name="moe_device.mape", limit=1.0),
        Band(name="interval_coverage.coverage", limit=0.85, least=True),
    ]
    answer = run(cache=tmp_path / "fits", bands=bands)
    assert [band["ok"] for band in answer["bands"]] == [True, False, False, True]
    assert (answer["rows"], answer["covered"]) == (1000, 900)


def test_the_tables_name_every_reason_and_the_worst_groups() -> None:
    groups = kernel_errors(artifact())
    found = markdown(
        {
            "source": "s",
            "rows": 1,
            "covered": 1,
            "metrics": kernel_metrics(groups),
            "groups": groups,
            "imports": artifact().meta["imports"],
            "terms": ["moe"],
            "by_shape": [],
        }
    )
    assert "Physical terms below the trees: moe." in found
    assert "Intervals that weigh each shape the same: none; elsewhere each row." in found
    assert "| gemm_shapes | 200 | 5.0 | 2.5 | 10.0 | -1.7 | 6.0 |" in found
    assert "| gemm | vllm | - / 4.0 / 8.0 | - / 6.0 / - |" in found
    assert "| gemm | none | 90 |" in found
    assert "faster than the physical bound" in found


def test_a_section_is_replaced_and_its_neighbours_stay(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("# Validation\n\nabove\n", encoding="utf-8")
    write_section(path, "one\n")
    path.write_text(path.read_text(encoding="utf-8") + "below\n", encoding="utf-8")
    write_section(path, "two\n")
    text = path.read_text(encoding="utf-8")
    assert "above" in text
    assert "below" in text
    assert "two" in text
    assert "one\n" not in text


class TestVerbs:
    def test_report_prints_and_writes_an_escaped_page(self, tmp_path: Path) -> None:
        save_artifact(artifact(), tmp_path / "fits")
        shown = CliRunner().invoke(app, ["calibrate", "report", str(tmp_path / "fits")])
        assert shown.exit_code == 0
        assert "gemm_shapes" in shown.stdout
        assert "90.0 %" in shown.stdout
        page = tmp_path / "page.html"
        assert (
            CliRunner()
            .invoke(app, ["calibrate", "report", str(tmp_path / "fits"), "-o", str(page)])
            .exit_code
            == 0
        )
        text = page.read_text(encoding="utf-8")
        assert "somewhere &lt;1.0&gt;" in text
        assert text.count("<table>") == text.count("</table>") > 2

    def test_a_missing_artifact_is_missing_data(self, tmp_path: Path) -> None:
        with pytest.raises(DataMissing):
            run(cache=tmp_path / "none")
        assert CliRunner().invoke(app, ["calibrate", "report", str(tmp_path / "none")]).exit_code == 4

    def test_an_unknown_family_is_a_mistake(self, tmp_path: Path) -> None:
        called = CliRunner().invoke(app, ["calibrate", "fit", "-o", str(tmp_path / "x"), "--families", "gem"])
        assert called.exit_code == 2
        assert "did you mean 'gemm'" in called.stderr
