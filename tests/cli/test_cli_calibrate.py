"""``moesim calibrate``: from a file of one's own to fitted kernels, and what is said on the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from call import command

from moesim.calibrate.profiles import read_import
from moesim.cost.fitted import load_artifact

HEAD = "op,dtype,m,n,k,time_us"


def rows(count: int = 66) -> str:
    """Products whose time follows the bytes: 6 shapes, many m."""
    lines = [HEAD]
    for index in range(count):
        m, n, k = 1 << index // 6, 1024 * (1 + index % 6), 2048
        lines.append(f"gemm,bf16,{m},{n},{k},{5 + n * k * 2 / 2e6 + m * n * k / 3e8:.4f}")
    return "\n".join(lines) + "\n"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    extra = "gem,bf16,1,2,3,5\ngemm,bf16,4096,8192,8192,1\n"
    (tmp_path / "own.csv").write_text(rows() + extra)
    return tmp_path


def test_rows_are_kept_dropped_and_named(own: Path) -> None:
    said = command("calibrate", "import", "own.csv", "--device", "h100-sxm", "--out", "imports")
    assert said.code == 0
    assert "own.csv: 1 dropped: op 'gem' is no op of ours, did you mean 'gemm'?" in said.out
    assert "faster than physics, kept out of fits: gemm bf16 m=4096 n=8192 k=8192 on h100-sxm" in said.out
    frame, report = read_import(own / "imports" / "own.parquet")
    assert (report["read"], report["kept"], len(frame)) == (68, 67, 67)
    again = command("calibrate", "import", "own.csv", "--device", "h100-sxm", "--out", "imports")
    assert (again.code, again.err) == (2, "imports/own.parquet: exists (--force overwrites)\n")


def test_json_has_the_same(own: Path) -> None:
    said = command("calibrate", "import", "own.csv", "--device", "h100-sxm", "--json")
    (report,) = json.loads(said.out)["imports"]
    assert report["kind"] == "table"
    assert report["read"] == report["kept"] + sum(report["dropped"].values())
    assert report["faster_than_bound_rows"] == 1
    assert len(report["faster_than_bound"]) == 1


def test_columns_and_constants(own: Path) -> None:
    (own / "theirs.csv").write_text("M,lat\n16,7\n")
    said = command(
        "calibrate", "import", "theirs.csv", "--column", "m=M", "--column", "seconds=lat [us]",
        "--constant", "op=rmsnorm",
        "--constant", "dtype=bf16", "--constant", "kernel=ours", "--json",
    )  # fmt: skip
    assert said.code == 2
    assert "rmsnorm without hidden" in said.err
    (own / "theirs.csv").write_text("M,hidden,lat\n16,64,7\n")
    said = command(
        "calibrate", "import", "theirs.csv", "--column", "m=M", "--column", "seconds=lat [us]",
        "--constant", "op=rmsnorm",
        "--constant", "dtype=bf16", "--out", "i",
    )  # fmt: skip
    assert said.code == 0
    assert read_import(own / "i" / "theirs.parquet")[0]["seconds"].tolist() == pytest.approx([7e-6])


def test_files_of_one_name_are_numbered(own: Path) -> None:
    (own / "b").mkdir()
    (own / "b" / "own.csv").write_text(rows(3))
    said = command("calibrate", "import", "own.csv", "b/own.csv", "--out", "i")
    assert said.code == 0
    assert {p.name for p in (own / "i").iterdir()} == {"own.parquet", "own-2.parquet"}


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("nope.csv",), "nope.csv: no such file"),
        (("--format", "kineto"), "--format kineto: expected a file to read"),
        (("--device", "h100-sxm"), "--device: expected a file to read"),
        (("own.csv", "--device", "h100"), "h100: no device of that name in the catalog, did you mean "),
        (("own.csv", "--format", "silicon"), "own.csv: expected no file: "),
        (("own.csv", "--column", "m"), "--column 'm': expected NAME=VALUE"),
        (("own.csv", "--format", "kineto"), "own.csv:1  op,dtype,m"),
        (
            ("own.csv", "--scenario", "x.yaml"),
            "--scenario: expected one serving result, --cluster and --model",
        ),
    ],
)
def test_mistakes_are_one_line(own: Path, args: tuple[str, ...], line: str) -> None:
    said = command("calibrate", "import", *args)
    assert said.code == 2
    assert said.err.startswith(line), said.err
    assert said.err.count("\n") == 1


def test_a_serving_result_becomes_a_scenario(own: Path) -> None:
    run = {"completed": 20, "num_prompts": 20, "duration": 3.0, "request_rate": "inf", "max_concurrency": 4,
           "total_input_tokens": 20480, "total_output_tokens": 2560, "mean_ttft_ms": 50.0, "mean_tpot_ms": 9.0,
           "model_id": "m"}  # fmt: skip
    (own / "bench.json").write_text(json.dumps(run))
    where = ("--scenario", "replay.yaml", "--cluster", "dgx-h100-x1", "--model", "olmoe-1b-7b")
    said = command("calibrate", "import", "bench.json", *where)
    assert said.code == 0, said.err
    text = (own / "replay.yaml").read_text()
    assert "closed_loop" in text
    assert "1024" in text


def test_own_fits_are_made_and_reported(own: Path) -> None:
    assert command("calibrate", "import", "own.csv", "--device", "h100-sxm", "--out", "imports").code == 0
    said = command("calibrate", "fit", "imports", "--out", "fits", "--framework", "vllm", "--json")
    assert said.code == 0, said.err
    answer = json.loads(said.out)
    assert answer["read"] == answer["used"] + sum(answer["left_out"].values())
    assert {fit["holdout"] for fit in answer["fits"]} == {"points", "shapes"}
    assert set(load_artifact(own / "fits").groups) == {("gemm", "vllm", "bf16", "any")}
    assert command("calibrate", "fit", "imports", "--out", "fits.npz").err.startswith("fits.json: exists")
    page = command("calibrate", "report", "fits", "--out", "fits.html")
    assert page.code == 0
    assert "own measurements: imports" in (own / "fits.html").read_text()


def test_fitting_nothing_says_so(own: Path) -> None:
    (own / "few").mkdir()
    (own / "few.csv").write_text(rows(5))
    assert command("calibrate", "import", "few.csv", "--device", "h100-sxm", "--out", "few").code == 0
    said = command("calibrate", "fit", "few", "--out", "fits")
    assert said.code == 4
    assert "5 rows, at least 60 are needed" in said.err


def test_a_suite_without_a_gpu_or_a_record_says_so(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moesim.calibrate.local import suite

    monkeypatch.setattr(suite, "_cuda", lambda: False)
    said = command("validate", "local-gpu", "--cache", str(own))
    assert (said.code, said.err.count("\n")) == (4, 1)
    assert "none is recorded yet" in said.err
