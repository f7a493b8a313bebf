"""Kineto traces: a real one of this machine's CPU, and hand-written ones in the form that CUDA runs have."""

import gzip
import importlib.util
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.calibrate.profiles import import_profile
from moesim.calibrate.profiles.kineto import _union, read_kineto
from moesim.errors import SpecError
from moesim.spec.base import load_spec
from moesim.spec.hardware import DeviceSpec

H100 = load_spec(DeviceSpec, "h100-sxm", "device")
BF16 = "c10::BFloat16"


class Trace:
    """Writes events with the fields and categories of torch.profiler's CUDA traces (PyTorch 2.5 to 2.13)."""

    def __init__(self, name="NVIDIA H100 80GB HBM3"):
        self.head = {"schemaVersion": 1, "record_shapes": 1, "deviceProperties": [{"id": 0, "name": name}]}
        self.events = [{"ph": "M", "name": "process_name", "pid": 7, "tid": 0, "args": {"name": "python"}}]
        self.clock, self.correlation, self.ids = 1000.0, 0, 0

    def op(
        self, name, dims=(), types=(), concrete=(), *, dur=50.0, at=None, external=None, strides=None, pid=7
    ):
        self.ids += 1
        external = self.ids if external is None else external
        args = {"External id": external, "Record function id": 0, "Input Dims": [list(d) for d in dims],
                "Input type": list(types), "Concrete Inputs": list(concrete), "Ev Idx": self.ids}  # fmt: skip
        if strides is not None:
            args["Input Strides"] = strides
        start = self.clock if at is None else at
        self.events.append(
            {
                "ph": "X",
                "cat": "cpu_op",
                "name": name,
                "pid": pid,
                "tid": 7,
                "ts": start,
                "dur": dur,
                "args": args,
            }
        )
        if at is None:
            self.clock += dur
        return external

    def launch(
        self, external, name, dur, *, cat="kernel", at=None, start=None, launcher="cudaLaunchKernel", **args
    ):
        """Add a launch on the host and the activity it starts, much later, on the device."""
        self.correlation += 1
        begin = self.clock - 10 if at is None else at
        runtime = {"External id": external, "cbid": 211, "correlation": self.correlation}
        self.events.append(
            {"ph": "X", "cat": "cuda_runtime", "name": launcher, "pid": 7, "tid": 7, "ts": begin, "dur": 3.0,
             "args": runtime}
        )  # fmt: skip
        self.activity(external, name, dur, cat=cat, start=start, **args)

    def activity(self, external, name, dur, *, cat="kernel", start=None, correlation=None, **args):
        begin = 1e6 + 1000.0 * self.correlation if start is None else start
        known = {"External id": external, "device": 0, "context": 1, "stream": 7,
                 "correlation": self.correlation if correlation is None else correlation}  # fmt: skip
        self.events.append(
            {
                "ph": "X",
                "cat": cat,
                "name": name,
                "pid": 0,
                "tid": 7,
                "ts": begin,
                "dur": dur,
                "args": known | args,
            }
        )

    def write(self, path, *, indent=None):
        text = json.dumps(self.head | {"traceEvents": self.events}, indent=indent)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
        return path


def rows(found, op):
    return found.frame[found.frame["op"] == op]


def only(found, op):
    part = rows(found, op)
    assert len(part) == 1, part
    return part.iloc[0]


def balanced(found):
    assert found.read == found.kept + sum(found.dropped.values())


def test_products_get_their_sizes_from_the_operator_and_their_time_from_the_kernel(tmp_path):
    trace = Trace()
    for dur in (12.0, 10.0, 11.0):
        outer = trace.op("aten::linear", [[512, 4096], [8192, 4096], []], [BF16, BF16, ""], dur=60)
        start = trace.clock - 58
        inner = trace.op(
            "aten::addmm", [[8192], [512, 4096], [4096, 8192], [], []], [BF16] * 3, dur=50, at=start
        )
        trace.launch(inner, "nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NTT", dur + 35, at=start + 5)
        assert outer != inner
    found = import_profile(trace.write(tmp_path / "t.json"))
    row = only(found, "gemm")
    assert (row["m"], row["n"], row["k"], row["dtype"], row["device"]) == (
        512,
        8192,
        4096,
        "bf16",
        "h100-sxm",
    )
    assert row["seconds"] == pytest.approx(46e-6)
    assert row["seconds_min"] == pytest.approx(45e-6)
    assert row["count"] == 3
    assert row["flop"] == 2 * 512 * 8192 * 4096
    assert row["bytes"] == 2 * (512 * 4096 + 4096 * 8192 + 512 * 8192)
    assert row["bound_s"] == pytest.approx(row["flop"] / H100.compute.peaks["bf16"])
    assert row["kernel"].startswith("nvjet")
    assert found.kept == 3
    balanced(found)


def test_a_kernel_beside_the_inner_product_is_not_taken_for_a_product(tmp_path):
    trace = Trace()
    outer = trace.op("aten::linear", [[64, 128], [256, 128]], [BF16, BF16], dur=90)
    inner = trace.op("aten::mm", [[64, 128], [128, 256]], [BF16, BF16], dur=30, at=trace.clock - 80)
    trace.launch(inner, "gemm_kernel", 9.0)
    trace.launch(outer, "bias_elementwise_kernel", 1.0)
    found = import_profile(trace.write(tmp_path / "t.json"))
    assert only(found, "gemm")["seconds"] == pytest.approx(9e-6)
    assert found.dropped == {"beside an operator that is counted": 1}
    balanced(found)


def test_several_kernels_of_one_call_are_one_row_and_overlap_counts_once(tmp_path):
    trace = Trace()
    dims = [[16, 2048], [64, 2816, 2048], [64, 2048, 1408], [16, 6], [16, 6]]
    op = trace.op("vllm::inplace_fused_experts", dims, [BF16, BF16, BF16, "float", "int"], dur=80)
    for start, name in (
        (0.0, "moe_align"),
        (10.0, "fused_moe_kernel"),
        (35.0, "act"),
        (40.0, "fused_moe_kernel"),
    ):
        trace.launch(op, name, 30.0 if "fused" in name else 5.0, start=2e6 + start)
    found = import_profile(trace.write(tmp_path / "t.json"), device="h100-sxm")
    row = only(found, "moe_ffn")
    # 0-5, 10-40 with 35-40 inside, 40-70
    assert row["seconds"] == pytest.approx(65e-6)
    assert row["activities"] == 4
    assert (row["tokens"], row["hidden"], row["inner"], row["experts"], row["top_k"]) == (
        16,
        2048,
        1408,
        64,
        6,
    )
    assert row["kernel"] == "moe_align + fused_moe_kernel + act"
    assert row["flop"] == 2 * 16 * 6 * 3 * 2048 * 1408
    assert found.kept == 4


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), min_size=1, max_size=12))
def test_union_of_intervals_against_a_grid(parts):
    parts.sort()
    covered = np.zeros(100, dtype=bool)
    for start, length in parts:
        covered[start : start + length] = True
    starts = np.array([s for s, _ in parts], dtype=float)
    ends = np.array([s + d for s, d in parts], dtype=float)
    assert _union(starts, ends) == covered.sum()


def test_experts_behind_an_expert_map_are_left_out(tmp_path):
    trace = Trace()
    dims = [[16, 2048], [8, 2816, 2048], [8, 2048, 1408], [16, 6], [16, 6], [64]]
    op = trace.op("vllm::outplace_fused_experts", dims, [BF16, BF16, BF16, "float", "int", "int"])
    trace.launch(op, "fused_moe_kernel", 30.0)
    mm = trace.op("aten::mm", [[8, 8], [8, 8]], [BF16, BF16])
    trace.launch(mm, "g", 5.0)
    found = import_profile(trace.write(tmp_path / "t.json"))
    assert rows(found, "moe_ffn").empty
    assert any("spread over ranks" in reason for reason in found.dropped)
    balanced(found)


@pytest.mark.parametrize(
    ("name", "query", "keys", "concrete", "op", "pairs"),
    [
        ("aten::_scaled_dot_product_flash_attention", [2, 8, 64, 128], [2, 2, 64, 128],
         ["", "", "", "0.", "True", "False", ""], "prefill_attention", 64 * 65 / 2),
        ("aten::_scaled_dot_product_flash_attention", [2, 8, 1, 128], [2, 2, 900, 128],
         ["", "", "", "0.", "False", "False", ""], "decode_attention", 900),
        ("aten::_scaled_dot_product_efficient_attention", [2, 8, 64, 128], [2, 2, 100, 128],
         ["", "", "", "", "False", "0.", "True"], "attention", 64 * 65 / 2),
        ("aten::_scaled_dot_product_efficient_attention", [2, 8, 64, 128], [2, 2, 100, 128],
         ["", "", "", "", "False", "0.", "False"], "attention", 64 * 100),
    ],
)  # fmt: skip
def test_attention_work_by_counting_pairs(tmp_path, name, query, keys, concrete, op, pairs):
    trace = Trace()
    outer = trace.op(name, [query, keys, keys, [], [], [], []], [BF16] * 3, concrete)
    inner = trace.op("aten::_flash_attention_forward", [[1]], [BF16], dur=20, at=trace.clock - 40)
    assert outer != inner
    trace.launch(inner, "void pytorch_flash::flash_fwd_kernel<Traits>(Params)", 500.0)
    found = import_profile(trace.write(tmp_path / "t.json"))
    row = only(found, op)
    assert row["flop"] == 2 * 2 * 8 * pairs * 256
    assert row["bytes"] == 2 * 2 * 256 * (query[2] * 8 + keys[2] * 2)
    assert (row["heads"], row["kv_heads"], row["length"]) == (8, 2, keys[2])
    assert row["kernel"] == "pytorch_flash::flash_fwd_kernel<Traits>"


def test_copies_speak_for_themselves(tmp_path):
    trace = Trace()
    op = trace.op("aten::copy_", [[1024, 1024], [1024, 1024]], [BF16, BF16], strides=[[1024, 1], [1024, 1]])
    for name, size in (
        ("HtoD (Pinned -> Device)", 4096),
        ("DtoH (Device -> Pageable)", 8192),
        ("DtoD (Device -> Device)", 2**20),
    ):
        trace.launch(op, f"Memcpy {name}", 100.0, cat="gpu_memcpy", launcher="cudaMemcpyAsync", bytes=size)
    trace.launch(op, "Memset (Device)", 2.0, cat="gpu_memset", bytes=64)
    found = import_profile(trace.write(tmp_path / "t.json"))
    moved = {row["variant"]: (row["op"], row["size"], row["bound_s"]) for _, row in found.frame.iterrows()}
    assert moved["h2d-pinned"] == ("transfer", 4096, 4096 / 64e9)  # PCIe 5 x16 of the DGX H100
    assert moved["d2h-pageable"][:2] == ("transfer", 8192)
    assert moved[""][:2] == ("copy", 2**20)
    assert moved[""][2] == pytest.approx(2 * 2**20 / H100.main.bandwidth)
    assert found.dropped == {"memset": 1}


def test_a_copy_inside_a_product_is_part_of_it(tmp_path):
    trace = Trace()
    op = trace.op("aten::addmm", [[64], [8, 16], [16, 64]], [BF16] * 3, dur=90)
    copy = trace.op("aten::copy_", [[8, 64], [8, 64]], [BF16] * 2, dur=10, at=trace.clock - 80)
    trace.launch(copy, "Memcpy DtoD (Device -> Device)", 3.0, cat="gpu_memcpy", bytes=1024, start=5e6)
    trace.launch(op, "gemm", 9.0, start=5e6 + 3)
    found = import_profile(trace.write(tmp_path / "t.json"))
    assert only(found, "gemm")["seconds"] == pytest.approx(12e-6)
    assert rows(found, "copy").empty


@pytest.mark.parametrize(
    ("name", "inside", "outside", "op", "size"),
    [
        ("allreduce", 2**20, 2**20, "all_reduce", 2**21),
        ("_allgather_base", 2**18, 2**21, "all_gather", 2**22),
        ("_reduce_scatter_base", 2**21, 2**18, "reduce_scatter", 2**22),
        ("all_to_allv", 2**20, 2**20, "all_to_all", 2**21),
    ],
)
def test_collectives_carry_their_size(tmp_path, name, inside, outside, op, size):
    trace = Trace()
    args = {"Collective name": name, "In msg nelems": inside, "Out msg nelems": outside, "Group size": 8,
            "dtype": "BFloat16", "Process Group Name": "0"}  # fmt: skip
    trace.launch(
        trace.op("c10d::work"), "ncclDevKernel_Generic(ncclDevKernelArgsStorage<4096ul>)", 400.0, **args
    )
    found = import_profile(trace.write(tmp_path / "t.json"))
    row = only(found, op)
    assert (row["size"], row["ranks"], row["kernel"]) == (size, 8, "ncclDevKernel_Generic")
    assert row["bound_s"] == pytest.approx(size * 7 / 8 / 450e9)
    assert any("slowest rank" in note for note in found.notes)


def test_kernels_of_a_graph_are_counted_and_left_out(tmp_path):
    trace = Trace()
    op = trace.op("aten::mm", [[8, 8], [8, 8]], [BF16, BF16])
    trace.launch(op, "gemm", 9.0)
    trace.launch(op, "gemm", 9.0, launcher="cudaGraphLaunch")
    trace.activity(op, "norm", 5.0)
    found = import_profile(trace.write(tmp_path / "t.json"))
    assert only(found, "gemm")["count"] == 1
    assert found.dropped == {"inside a CUDA graph: no shapes": 2}
    assert any("CUDA graphs" in note for note in found.notes)


def test_without_ids_the_launch_finds_the_operator_around_it(tmp_path):
    trace = Trace()
    trace.op("aten::mm", [[8, 16], [16, 32]], [BF16, BF16], dur=40)
    trace.launch(0, "gemm", 9.0, launcher="cuLaunchKernelEx", at=trace.clock - 20)
    trace.op("aten::mm", [[1, 16], [16, 32]], [BF16, BF16], dur=40)
    trace.launch(0, "gemm", 3.0, launcher="cuLaunchKernelEx", at=trace.clock - 20)
    trace.launch(0, "stray", 3.0, at=trace.clock + 500)
    found = import_profile(trace.write(tmp_path / "t.json"))
    assert dict(zip(rows(found, "gemm")["m"], rows(found, "gemm")["seconds"], strict=True)) == {
        8: 9e-6,
        1: 3e-6,
    }
    assert found.dropped == {"no launching operator: other": 1}


def test_faster_than_physics_is_named_and_kept_out_of_fits(tmp_path):
    trace = Trace()
    for dur in (10.0, 10_000.0):
        size = 4096 if dur < 100 else 8192
        op = trace.op("aten::mm", [[size, size], [size, size]], [BF16, BF16])
        trace.launch(op, "gemm", dur)
    found = import_profile(trace.write(tmp_path / "t.json"))
    assert found.frame["possible"].tolist() == [False, True]
    assert found.fittable["m"].tolist() == [8192]
    assert len(found.impossible) == 1
    assert "gemm bf16 m=4096 n=4096 k=4096 on h100-sxm" in found.impossible[0]
    assert found.as_dict()["faster_than_bound_rows"] == 1


def test_an_fp32_product_may_have_run_in_tf32(tmp_path):
    trace = Trace()
    for kernel in ("sm80_xmma_gemm_f32f32_tf32f32", "ampere_sgemm_128x64_nn"):
        op = trace.op("aten::mm", [[4096, 4096], [4096, 4096]], ["float", "float"])
        trace.launch(op, kernel, 400.0)
    found = import_profile(trace.write(tmp_path / "t.json"))
    assert set(rows(found, "gemm")["dtype"]) == {"fp32", "tf32"}
    assert found.frame["possible"].all()  # 343 TFLOP/s: above the fp32 peak, below TF32's
    assert found.frame["bound_s"].tolist() == pytest.approx([2 * 4096**3 / H100.compute.peaks["tf32"]] * 2)


def test_a_device_that_is_not_in_the_catalog_is_said_so(tmp_path):
    trace = Trace("Some New Card")
    trace.launch(trace.op("aten::mm", [[8, 8], [8, 8]], [BF16, BF16]), "g", 9.0)
    path = trace.write(tmp_path / "t.json")
    found = import_profile(path)
    assert found.frame["device"].tolist() == ["Some New Card"]
    assert np.isnan(found.frame["bound_s"].iloc[0])
    assert any("could not be checked" in note for note in found.notes)
    assert import_profile(path, device="h100-sxm").frame["bound_s"].iloc[0] > 0


def test_operators_without_shapes_say_what_to_do(tmp_path):
    trace = Trace()
    trace.launch(trace.op("aten::mm"), "gemm", 9.0)
    with pytest.raises(SpecError, match="record_shapes=True"):
        import_profile(trace.write(tmp_path / "t.json"))


def test_order_of_events_and_packing_do_not_matter(tmp_path):
    trace = Trace()
    for m in (1, 8, 64):
        outer = trace.op("aten::linear", [[m, 128], [256, 128]], [BF16, BF16], dur=90)
        inner = trace.op("aten::mm", [[m, 128], [128, 256]], [BF16, BF16], dur=30, at=trace.clock - 80)
        trace.launch(inner, "gemm", 9.0 + m)
        trace.launch(outer, "bias", 1.0)
    one = import_profile(trace.write(tmp_path / "t.json"))
    trace.events.reverse()
    two = import_profile(trace.write(tmp_path / "u.json.gz", indent=1))
    assert one.frame.drop(columns="source").equals(two.frame.drop(columns="source"))
    assert one.dropped == two.dropped
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps(trace.events))
    assert import_profile(bare, device="h100-sxm").frame["m"].tolist() == [1, 8, 64]


def test_ranks_in_one_file_are_refused(tmp_path):
    trace = Trace()
    trace.op("aten::mm", [[8, 8], [8, 8]], [BF16, BF16], external=5)
    trace.op("aten::mm", [[9, 8], [8, 8]], [BF16, BF16], external=5, pid=8)
    with pytest.raises(SpecError, match=r"t\.json  pid  7, 8: expected the trace of one process"):
        import_profile(trace.write(tmp_path / "t.json"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("ts", "soon", r":\d+  ts  soon: expected microseconds"),
        ("dur", None, r":\d+  dur  missing: expected microseconds"),
        ("dur", float("nan"), r":\d+  dur  nan: expected microseconds"),
    ],
)
def test_a_bad_number_is_named_with_its_line(tmp_path, field, value, message):
    trace = Trace()
    trace.op("aten::mm", [[8, 8], [8, 8]], [BF16, BF16])
    trace.events[-1][field] = value
    path = trace.write(tmp_path / "t.json", indent=1)
    with pytest.raises(SpecError, match=message) as caught:
        import_profile(path, "kineto")
    line = int(str(caught.value).split(":")[1].split()[0])
    assert '"ph": "X"' in "".join(path.read_text().splitlines()[line - 1 : line + 1])


def test_a_trace_above_the_limit_is_refused(tmp_path):
    trace = Trace()
    trace.op("aten::mm", [[8, 8], [8, 8]], [BF16, BF16])
    path = trace.write(tmp_path / "t.json")
    with pytest.raises(SpecError, match="expected a smaller trace"):
        read_kineto(path, limit=100)


def test_a_real_cpu_trace(tmp_path):
    if importlib.util.find_spec("torch") is None:
        pytest.skip("needs the extra `torch`: no real profiler trace was made")
    import torch
    from torch.nn import functional
    from torch.profiler import ProfilerActivity, profile

    x, q = torch.randn(96, 128), torch.randn(2, 4, 48, 16)
    layer = torch.nn.Linear(128, 320)
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        for _ in range(3):
            layer(x)
            x @ x.T
            torch.bmm(q[0], q[0].transpose(1, 2))
            functional.scaled_dot_product_attention(q, q, q, is_causal=True)
            functional.layer_norm(x, (128,))
            functional.rms_norm(x, (128,))
    path = tmp_path / "cpu.json"
    recorded.export_chrome_trace(str(path))
    found = import_profile(path)
    balanced(found)
    assert found.kind == "kineto"
    products = rows(found, "gemm").set_index("n")
    assert set(products.index) == {320, 96}
    assert products.loc[320, ["m", "k", "count"]].tolist() == [96, 128, 3]
    assert products.loc[320, "kernel"] == "aten::addmm"
    batched = only(found, "batched_gemm")
    assert (batched["batch"], batched["m"], batched["n"], batched["k"]) == (4, 48, 48, 16)
    attention = only(found, "prefill_attention")
    assert (attention["batch"], attention["heads"], attention["length"], attention["count"]) == (2, 4, 48, 3)
    for op in ("layernorm", "rmsnorm"):
        assert (only(found, op)["m"], only(found, op)["hidden"]) == (96, 128)
    events = {
        e["args"]["External id"]: e
        for e in json.loads(path.read_text())["traceEvents"]
        if e.get("cat") == "cpu_op"
    }
    spent = sorted(e["dur"] for e in events.values() if e["name"] == "aten::addmm")
    assert products.loc[320, "seconds"] == pytest.approx(spent[1] * 1e-6)
    assert any("on the host" in note for note in found.notes)
