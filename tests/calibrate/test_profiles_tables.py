"""Nsight CSV and tables of one's own: units, sizes, reasons, and one clear line for every mistake."""

import gzip
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moesim.calibrate.measure.record import Measurement, Point, write_measurements
from moesim.calibrate.profiles import COLUMNS, DIMS, import_profile
from moesim.calibrate.profiles.work import NEEDED, add_work
from moesim.cost.attention import AttentionShape, bound_term
from moesim.cost.fitted.features import moe_work
from moesim.errors import SpecError
from moesim.spec.base import load_spec
from moesim.spec.hardware import DeviceSpec

H100 = load_spec(DeviceSpec, "h100-sxm", "device")

# header, preamble and rows in the form of nsys 2024 to 2026 (`nsys stats --format csv`)
TRACE = """
NOTICE: Existing SQLite export found: run.sqlite
        It is assumed file was previously exported from: run.nsys-rep

Processing [run.sqlite] with [/opt/reports/cuda_gpu_trace.py]...
Start (ns),Duration (ns),CorrId,GrdX,GrdY,GrdZ,BlkX,BlkY,BlkZ,Reg/Trd,StcSMem (MB),DymSMem (MB),Bytes (MB),Throughput (MB/s),SrcMemKd,DstMemKd,Device,Ctx,GreenCtx,Strm,Name
1134711990,661398,123,,,,,,,,,,33.554,50732.0,Pinned,Device,NVIDIA H100 80GB HBM3 (0),1,,13,[CUDA memcpy Host-to-Device]
1135375308,60,124,,,,,,,,,,0.004,66.3,Pageable,Device,NVIDIA H100 80GB HBM3 (0),1,,13,[CUDA memcpy Host-to-Device]
1136125733,7072,128,4096,1,1,256,1,1,16,0.000,0.000,,,,,NVIDIA H100 80GB HBM3 (0),1,,13,"void flash::fwd_kernel<T, 1>(float, const float *)"
1136125999,9072,129,4096,1,1,256,1,1,16,0.000,0.000,,,,,NVIDIA H100 80GB HBM3 (0),1,,13,nvjet_hsh_128x256
1136151973,1000,130,,,,,,,,,,1.000,1.0,,,NVIDIA H100 80GB HBM3 (0),1,,13,[CUDA memset]
"""  # noqa: E501
SUMMARY = """Time (%),Total Time (us),Instances,Avg (us),Med (us),Min (us),Max (us),StdDev (us),Name
60.0,40,10,4.0,3.5,3.0,9.0,1.0,nvjet_hsh_128x256
40.0,30,5,6.0,6.0,5.5,7.0,0.5,"void flash::fwd_kernel<T, 1>(float, const float *)"
"""


def write(path, text):
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def balanced(found):
    assert found.read == found.kept + sum(found.dropped.values())


def test_nsight_trace(tmp_path):
    found = import_profile(write(tmp_path / "t.csv", TRACE))
    assert found.kind == "nsight"
    copies = found.frame[found.frame["op"] == "transfer"].iloc[0]
    assert (copies["variant"], copies["size"], copies["device"]) == ("h2d-pinned", 33_554_000, "h100-sxm")
    assert copies["seconds"] == pytest.approx(661398e-9)
    assert copies["bound_s"] == pytest.approx(33_554_000 / 64e9)
    kernels = found.frame.set_index("kernel")
    assert kernels.loc["flash::fwd_kernel<T, 1>", "op"] == "kernel:attention"
    assert kernels.loc["nvjet_hsh_128x256", "op"] == "kernel:product"
    assert kernels.loc["nvjet_hsh_128x256", "seconds"] == pytest.approx(9.072e-6)
    assert found.fittable["op"].tolist() == ["transfer"]
    assert found.dropped == {"a copy whose size is rounded away": 1, "memset": 1}
    assert any("2 rows state no sizes" in note for note in found.notes)
    balanced(found)


def test_nsight_summary_reads_the_unit_of_its_header(tmp_path):
    found = import_profile(write(tmp_path / "s.csv.gz", SUMMARY), device="h100-sxm")
    rows = found.frame.set_index("kernel")
    assert rows.loc["nvjet_hsh_128x256", ["seconds", "count"]].tolist() == pytest.approx([3.5e-6, 10])
    assert rows.loc["flash::fwd_kernel<T, 1>", ["seconds", "count"]].tolist() == pytest.approx([6e-6, 5])


def test_two_reports_in_one_output(tmp_path):
    text = TRACE + "\nProcessing [run.sqlite] with [cuda_gpu_kern_sum.py]...\n" + SUMMARY
    found = import_profile(write(tmp_path / "t.csv", text))
    assert found.kept == 3 + 2
    balanced(found)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("33.554", "much", r"t\.csv:7  Bytes  much: expected a number"),
        ("661398", "x", r"t\.csv:7  Duration  x: expected a number"),
        ("Duration (ns)", "Duration (h)", r"t\.csv:7  Duration  h: expected a time unit"),
        ("1136125999,9072,129,", "1136125999,9072", r"t\.csv:10  1136125999.*: expected 21 cells"),
    ],
)
def test_nsight_mistakes(tmp_path, old, new, message):
    with pytest.raises(SpecError, match=message):
        import_profile(write(tmp_path / "t.csv", TRACE.replace(old, new)), "nsight")


def test_a_report_of_another_kind(tmp_path):
    with pytest.raises(SpecError, match="expected the header of cuda_gpu_trace or cuda_gpu_kern_sum"):
        import_profile(write(tmp_path / "t.csv", "Time (%),Total Time (ns),Num Calls,Name\n"), "nsight")


def test_a_table_with_a_mapping(tmp_path):
    text = "M,N,K,lat,note\n16,4096,4096,25,a\n16,4096,4096,27,b\n32,4096,4096,40,c\n"
    columns = {"m": "M", "n": "N", "k": "K", "seconds": "lat [us]"}
    constants = {"op": "gemm", "dtype": "bf16", "kernel": "mine"}
    found = import_profile(
        write(tmp_path / "t.csv", text), device="h100-sxm", columns=columns, constants=constants
    )
    assert found.frame["m"].tolist() == [16, 32]
    assert found.frame["seconds"].tolist() == pytest.approx([26e-6, 40e-6])
    assert found.frame["count"].tolist() == [2, 1]
    assert (found.read, found.kept) == (3, 3)
    assert list(found.frame.columns) == list(COLUMNS)


@pytest.mark.parametrize("header", ["time_us", "time (us)", "latency [us]", "duration_us"])
def test_units_in_the_header(tmp_path, header):
    text = f"op,dtype,m,hidden,{header}\nrmsnorm,torch.bfloat16,8,4096,5\n"
    found = import_profile(write(tmp_path / "t.csv", text))
    assert found.frame["seconds"].tolist() == pytest.approx([5e-6])
    assert found.frame["dtype"].tolist() == ["bf16"]


def test_sizes_with_a_unit(tmp_path):
    text = "op,size,seconds\ncopy,2,1\n"
    found = import_profile(write(tmp_path / "t.csv", text), columns={"size": "size [MiB]"})
    assert found.frame["size"].tolist() == [2 * 2**20]


def test_csv_and_parquet_say_the_same(tmp_path):
    table = pd.DataFrame({"op": ["gemm", "gemm"], "dtype": "bf16", "m": [1, 2], "n": [64, 64], "k": [64, None],
                          "seconds": [1e-5, 2e-5], "count": [3, 1]})  # fmt: skip
    table.to_parquet(tmp_path / "t.parquet")
    table.to_csv(tmp_path / "t.csv", index=False)
    one, two = (import_profile(tmp_path / f"t.{kind}") for kind in ("parquet", "csv"))
    assert one.frame.drop(columns="source").equals(two.frame.drop(columns="source"))
    assert one.frame["count"].tolist() == [3]
    assert one.dropped == two.dropped == {"gemm without k": 1}


def test_own_measurements_are_a_table(tmp_path):
    point = Point("gemm", "torch", "cuda", "bf16", (("m", 16), ("n", 64), ("k", 32)))
    timed = Measurement(point, 3e-6, 2e-6, 4e-6, 1e-6, 5, 1.0, 1.0, 0.0, 0.1, "events")
    broken = Measurement.untimed(point, "failed", "out of memory")
    write_measurements(tmp_path / "measurements.parquet", [timed, broken])
    found = import_profile(tmp_path / "measurements.parquet")
    assert found.frame[["m", "n", "k", "seconds"]].iloc[0].tolist() == [16, 64, 32, 3e-6]
    assert (found.kind, found.dropped) == ("measured", {"failed": 1})


def test_every_reason_is_counted(tmp_path):
    lines = ["op,dtype,m,n,k,seconds", "gemm,bf16,1,2,3,1e-5", "gem,bf16,1,2,3,1e-5", "gemm,float12,1,2,3,1e-5",
             "gemm,bf16,1,,3,1e-5", "gemm,bf16,1,2,3,0", "gemm,bf16,1,2,3,nan", "gemm,bf16,1,2,3,"]  # fmt: skip
    found = import_profile(write(tmp_path / "t.csv", "\n".join(lines)))
    assert found.dropped == {
        "no positive time": 3,
        "op 'gem' is no op of ours, did you mean 'gemm'?": 1,
        "dtype 'float12' is no type of ours": 1,
        "gemm without n": 1,
    }
    balanced(found)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("op,m,time\ngemm,1,2\n", {}, r"t\.csv:1  seconds  .*expected one column of times with a unit"),
        (
            "op,m,time\ngemm,1,2\n",
            {"columns": {"seconds": "time"}},
            r"expected a unit of time, such as 'time \[us\]'",
        ),
        (
            "op,time_us\ngemm,2\n",
            {"columns": {"seconds": "time_us [ms]"}},
            "expected one unit, the header says us",
        ),
        ("op,time\ngemm,2\n", {"columns": {"seconds": "time [MB]"}}, "expected a unit of time"),
        (
            "op,time_us\ngemm,2\n",
            {"columns": {"m": "rows"}},
            r"  m  rows: no such column, the file has: op, time_us",
        ),
        ("op,time_us\ngemm,2\n", {"columns": {"rows": "op"}}, r"columns\.rows: expected one of"),
        ("op,time_us\ngemm,2\n", {"constants": {"m": "1"}}, r"constants\.m: expected one of"),
        ("m,time_us\n1,2\n", {}, "expected a column or a constant that names the op"),
        ("op,m,time_us\ngemm,1.5,2\n", {}, r"t\.csv:2  m  1\.5: expected a whole number"),
        ("op,m,time_us\ngemm,-1,2\n", {}, r"t\.csv:2  m  -1: expected a whole number, at least 1"),
        ("op,m,time_us\n\n# c\ngemm,1,fast\n", {}, r"t\.csv:4  time_us  fast: expected a number"),
        ("op,m,time_us\ngemm,1\n", {}, r"t\.csv:2  gemm,1: expected 3 fields"),
        ("op,op,time_us\ngemm,1,2\n", {}, r"t\.csv:1  op: expected each column once"),
        ("", {}, "expected a header line"),
        ("op,m,time_us\n", {}, "expected at least one measurement"),
    ],
)
def test_table_mistakes(tmp_path, text, options, message):
    with pytest.raises(SpecError, match=message) as caught:
        import_profile(write(tmp_path / "t.csv", text), "table", **options)
    assert len(str(caught.value).splitlines()) == 1


def test_importer_mistakes(tmp_path):
    path = write(tmp_path / "t.csv", "op,m,time_us\ngemm,1,2\n")
    with pytest.raises(SpecError, match=r"kind 'kinetto': expected auto or one of .*did you mean 'kineto'"):
        import_profile(path, "kinetto")
    with pytest.raises(SpecError, match=r"h100-sxn: no device of that name.*did you mean 'h100-sxm'"):
        import_profile(path, device="h100-sxn")
    with pytest.raises(SpecError, match="no such file"):
        import_profile(tmp_path / "missing.json")
    with pytest.raises(SpecError, match="columns and constants are for tables, this is nsight"):
        import_profile(write(tmp_path / "n.csv", SUMMARY), columns={"m": "M"})
    with pytest.raises(SpecError, match="expected a Kineto trace"):
        import_profile(write(tmp_path / "t.json", '{"a": 1}'))
    (tmp_path / "broken.json.gz").write_bytes(b"\x1f\x8bnot really")
    with pytest.raises(SpecError, match="cannot be read"):
        import_profile(tmp_path / "broken.json.gz")


def frame_of(op, dtype="bf16", variant="", **dims):
    columns = {name: pd.array([dims.get(name)], dtype="Int64") for name in DIMS}
    return pd.DataFrame({"device": ["h100-sxm"], "op": op, "dtype": dtype, "variant": variant, **columns,
                         "seconds": [1.0]})  # fmt: skip


def test_attention_bounds_are_the_cost_models():
    """One formula: the roofline coefficients of the simulator, at the same sizes."""
    b, n, h, kv, d = 4, 1000, 32, 8, 128
    shape = AttentionShape("a", "gqa", 1, 0, "bf16", h, kv, d, decode_pair_flop=4.0 * h * d,
                           prefill_pair_flop=4.0 * h * d, decode_key_bytes=4.0 * kv * d,
                           sequence_bytes=4.0 * h * d, token_bytes=4.0 * (h + kv) * d)  # fmt: skip
    term = bound_term(shape, H100, 0.0)
    dims = {"batch": b, "length": n, "heads": h, "kv_heads": kv, "head_dim": d}
    decode = add_work(frame_of("decode_attention", **dims)).iloc[0]
    memory = b * (n * term.decode_kv_s + term.decode_seq_s)
    assert decode["bound_s"] == pytest.approx(max(memory, b * n * term.decode_flop_s))
    prefill = add_work(frame_of("prefill_attention", **dims)).iloc[0]
    pairs = n * (n + 1) / 2
    assert prefill["bound_s"] == pytest.approx(b * max(pairs * term.prefill_flop_s, n * term.prefill_token_s))


def test_expert_bounds_are_the_cost_models_with_the_fewest_experts():
    dims = {"tokens": 64, "hidden": 2048, "inner": 768, "experts": 128, "top_k": 8}
    row = add_work(frame_of("moe_ffn", **dims)).iloc[0]
    flop, moved = moe_work(*(np.array([x], float) for x in (512, 8, 2048, 768, 2)), 2.0, 2.0)
    assert (row["flop"], row["bytes"]) == (flop[0], moved[0])
    plain = add_work(frame_of("moe_ffn", variant="nongated", **dims)).iloc[0]
    assert plain["flop"] == pytest.approx(row["flop"] * 2 / 3)


def test_every_op_with_sizes_has_work():
    for op, needed in NEEDED.items():
        row = add_work(frame_of(op, **dict.fromkeys(needed, 8))).iloc[0]
        assert row["sized"], op
        assert row["bytes"] > 0, op
        assert row["bound_s"] > 0, op
        for name in needed:
            lacking = add_work(frame_of(op, **{n: 8 for n in needed if n != name})).iloc[0]
            assert not lacking["sized"], (op, name)


def test_a_type_without_a_peak_has_no_bound():
    frame = frame_of("gemm", dtype="fp8", m=8, n=8, k=8).assign(device="a100-80-sxm")
    row = add_work(frame).iloc[0]
    assert row["sized"]
    assert np.isnan(row["bound_s"])
    assert row["possible"]


@pytest.mark.shared
@pytest.mark.parametrize(("folder", "device", "rows"), [("h20", "h20", 402), ("h800", "h800-sxm", 110)])
def test_published_products_import_with_the_utilisation_their_authors_state(folder, device, rows):
    """FP8 products of H20 and H800, measured by others: their own MFU column checks our work and peaks."""
    root = Path(os.environ.get("MOESIM_SHARED") or Path(__file__).parents[2].parent / "shared")
    path = root / "data" / "measured" / "h20_h800" / "gemm" / folder / "data.csv"
    if not path.is_file():
        pytest.skip(f"SHARED DATA MISSING: {path} (set MOESIM_SHARED)")
    found = import_profile(path, device=device, constants={"op": "gemm", "dtype": "fp8"})
    assert found.read == rows
    balanced(found)
    raw = pd.read_csv(path).groupby(["m", "n", "k"], as_index=False)[["mfu", "latency_us"]].median()
    both = found.frame.merge(raw, on=["m", "n", "k"])
    assert len(both) == len(found.frame)
    np.testing.assert_allclose(both["seconds"], both["latency_us"] * 1e-6, rtol=1e-12)
    peak = load_spec(DeviceSpec, device, "device").compute.peaks["fp8"]
    assert (both["flop"] / both["seconds"] / peak / both["mfu"]).median() == pytest.approx(1.0, abs=0.01)
    assert found.frame["possible"].mean() > 0.95
