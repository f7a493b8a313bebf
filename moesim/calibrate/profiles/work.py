"""Work: flop, bytes and the physical bound of imported rows, by the cost model's own formulas.

A bound must never be too high, or true measurements are called impossible. So where a profile does not say how much
was moved, the least that is possible counts: routed experts touch at least ``top_k`` distinct experts, operands are
read once, an fp32 product may have run in TF32 where the device has it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, cast, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from moesim.calibrate.silicon.bounds import roofline
from moesim.calibrate.silicon.collectives import NODES, nccl_work
from moesim.cost.fitted.features import moe_work
from moesim.cost.ops import gemm
from moesim.cost.precision import Format
from moesim.files import catalog_names
from moesim.spec.base import load_spec
from moesim.spec.hardware import DeviceSpec, Dtype
from moesim.spec.topology import single_node_cluster

__all__ = ["NEEDED", "TOLERANCE", "add_work"]

TOLERANCE = 0.98
"""Rows this close below the bound are timer noise, as for the shipped tables."""

_VALUE_BYTES = {
    "fp64": 8.0,
    "fp32": 4.0,
    "tf32": 4.0,
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "fp8_block": 1.0 + 4.0 / 128**2,
    "int8": 1.0,
    "bytes": 1.0,
}
_HEADS = ("batch", "length", "heads", "kv_heads", "head_dim")
_COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
NEEDED: dict[str, tuple[str, ...]] = {
    "gemm": ("m", "n", "k"),
    "batched_gemm": ("batch", "m", "n", "k"),
    "grouped_gemm": ("m", "n", "k", "experts"),
    "moe_ffn": ("tokens", "hidden", "inner", "experts", "top_k"),
    "prefill_attention": _HEADS,
    "decode_attention": _HEADS,
    "attention": (*_HEADS, "queries"),
    "rmsnorm": ("m", "hidden"),
    "rmsnorm_residual": ("m", "hidden"),
    "layernorm": ("m", "hidden"),
    "topk_routing": ("tokens", "experts", "top_k"),
    "copy": ("size",),
    "transfer": ("size",),
    **dict.fromkeys(_COLLECTIVES, ("ranks", "size")),
}
"""Op -> sizes without which its work is not known."""

Array = npt.NDArray[np.float64]
Work = Callable[[dict[str, Array], pd.DataFrame, float], tuple[Array, Array]]


def _gemm(d: dict[str, Array], _rows: pd.DataFrame, size: float) -> tuple[Array, Array]:
    form = Format(cast("Any", "bf16"), size, "bf16", size)  # only the bytes per value are read
    op = gemm("gemm", "lane", cast("Any", d["m"]), cast("Any", d["n"]), cast("Any", d["k"]), form, 1,
              output_bytes=max(size, 2.0))  # fmt: skip
    return op.flop, op.bytes


def _batched(d: dict[str, Array], rows: pd.DataFrame, size: float) -> tuple[Array, Array]:
    flop, moved = _gemm(d, rows, size)
    return flop * d["batch"], moved * d["batch"]


def _moe(d: dict[str, Array], rows: pd.DataFrame, size: float) -> tuple[Array, Array]:
    ups = np.where(rows["variant"].to_numpy() == "nongated", 1.0, 2.0)
    least = np.minimum(d["top_k"], d["experts"])
    touched = np.where(np.isnan(d["distinct"]), least, d["distinct"])
    return moe_work(d["tokens"] * d["top_k"], touched, d["hidden"], d["inner"], ups, size, min(size, 2.0))


def _attention(d: dict[str, Array], rows: pd.DataFrame, size: float) -> tuple[Array, Array]:
    op, variant = rows["op"].to_numpy(), rows["variant"].to_numpy()
    length = d["length"]
    queries = np.where(
        op == "prefill_attention", length, np.where(op == "decode_attention", 1.0, d["queries"])
    )
    causal = (op == "prefill_attention") | (variant == "causal")
    # query i sees keys 0..i, as PyTorch counts when there are more keys than queries
    seen = np.minimum(queries, length)
    masked = seen * (seen + 1) / 2 + (queries - seen) * length
    pairs = np.where(causal & (queries > 1), masked, queries * length)
    width = d["head_dim"] + np.where(np.isnan(d["value_dim"]), d["head_dim"], d["value_dim"])
    flop = 2 * d["batch"] * d["heads"] * pairs * width
    return flop, d["batch"] * width * size * (queries * d["heads"] + length * d["kv_heads"])


def _rows_of(passes: float) -> Work:
    """Return the work of a row-wise op that reads or writes its rows ``passes`` times."""

    def work(d: dict[str, Array], _rows: pd.DataFrame, size: float) -> tuple[Array, Array]:
        moved = d["m"] * d["hidden"] * size * passes
        return np.zeros_like(moved), moved

    return work


def _topk(d: dict[str, Array], _rows: pd.DataFrame, size: float) -> tuple[Array, Array]:
    moved = d["tokens"] * (d["experts"] * size + d["top_k"] * 8.0)
    return np.zeros_like(moved), moved


def _copy(d: dict[str, Array], _rows: pd.DataFrame, _size: float) -> tuple[Array, Array]:
    return np.zeros_like(d["size"]), 2.0 * d["size"]


def _sent(d: dict[str, Array], _rows: pd.DataFrame, _size: float) -> tuple[Array, Array]:
    return np.zeros_like(d["size"]), d["size"]


def _grouped(d: dict[str, Array], rows: pd.DataFrame, size: float) -> tuple[Array, Array]:
    return _gemm(d, rows, size)  # at least one group's weights are read


_WORK: dict[str, Work] = {
    "gemm": _gemm,
    "batched_gemm": _batched,
    "grouped_gemm": _grouped,
    "moe_ffn": _moe,
    "prefill_attention": _attention,
    "decode_attention": _attention,
    "attention": _attention,
    "rmsnorm": _rows_of(2.0),
    "layernorm": _rows_of(2.0),
    "rmsnorm_residual": _rows_of(4.0),
    "topk_routing": _topk,
    "copy": _copy,
    "transfer": _sent,
    **dict.fromkeys(_COLLECTIVES, _sent),
}


@cache
def _device(name: str) -> DeviceSpec | None:
    return load_spec(DeviceSpec, name, "device") if name in catalog_names("device") else None


def _compute(device: DeviceSpec, dtype: str) -> Dtype | None:
    """Return the arithmetic whose peak bounds ``dtype``: the fastest it may have run in."""
    if dtype == "fp32" and "tf32" in device.compute.peaks:
        return "tf32"
    plain = {"fp8_block": "fp8"}.get(dtype, dtype)
    return cast("Dtype", plain) if plain in get_args(Dtype) else None


def _host_link(device: str) -> float:
    if device not in NODES:
        return float("nan")
    return single_node_cluster(NODES[device]).node.host.link_bandwidth or float("nan")


def _bound(part: pd.DataFrame, op: str, dtype: str, device: str, flop: Array, moved: Array) -> Array:
    unknown = np.full(len(part), np.nan)
    spec = _device(device)
    if spec is None:
        return unknown
    if op in _COLLECTIVES:
        sized = part.assign(pattern=op, size=part["size"].astype(np.float64))
        return nccl_work(sized, spec)["bound_s"].reindex(part.index).to_numpy(dtype=np.float64)
    if op == "transfer":
        return moved / _host_link(device)
    compute = _compute(spec, dtype)
    if compute is None:
        return moved / spec.main.bandwidth if not np.any(flop) else unknown
    return roofline(part, spec, compute, flop, moved)["bound_s"].to_numpy(dtype=np.float64)


def add_work(frame: pd.DataFrame) -> pd.DataFrame:
    """Return ``frame`` with ``flop``, ``bytes``, ``bound_s``, ``sized`` and ``possible``.

    Parameters
    ----------
    frame : rows of one import, the columns before ``flop``

    Returns
    -------
    the same rows; NaN where a size, a peak or a link is not known, which counts as possible
    """
    flop, moved, bound = (np.full(len(frame), np.nan) for _ in range(3))
    sized = np.zeros(len(frame), dtype=bool)
    frame = frame.reset_index(drop=True)
    for (op, dtype, device), part in frame.groupby(["op", "dtype", "device"], sort=False):
        needed = NEEDED.get(str(op))
        if needed is None:
            continue
        full = part[part[list(needed)].notna().all(axis=1)]
        if full.empty or str(dtype) not in _VALUE_BYTES:
            continue
        dims = {
            name: full[name].to_numpy(dtype=np.float64, na_value=np.nan)
            for name in {*needed, "queries", "value_dim", "distinct"}
        }
        at = full.index.to_numpy()
        work, size = _WORK[str(op)](dims, full, _VALUE_BYTES[str(dtype)])
        flop[at], moved[at], sized[at] = work, size, True
        bound[at] = _bound(full, str(op), str(dtype), str(device), work, size)
    frame = frame.assign(flop=flop, bytes=moved, bound_s=bound, sized=sized)
    return frame.assign(possible=~(frame["seconds"].to_numpy() < TOLERANCE * bound))
