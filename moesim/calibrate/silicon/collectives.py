"""Collectives: tables of all-reduce, NCCL and expert exchange between devices.

Sizes in the tables are elements, not bytes. Times are milliseconds, except of expert exchanges: microseconds.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moesim.cost import collectives
from moesim.cost.collectives import Group
from moesim.cost.layout import group_on
from moesim.spec.topology import single_node_cluster

if TYPE_CHECKING:
    from moesim.cost.pricing import FloatArray
    from moesim.spec.hardware import DeviceSpec

__all__ = [
    "NODES",
    "OUTLIERS",
    "all_reduce_work",
    "exchange_work",
    "nccl_work",
    "read_all_reduce",
    "read_exchange",
    "read_nccl",
    "spikes",
]

_MS, _US = 1e-3, 1e-6
_VALUE_BYTES = {
    "bfloat16": 2.0,
    "float16": 2.0,
    "half": 2.0,
    "int8": 1.0,
    "fp8": 1.0,
    "default": 2.0,
    "nvfp4": 0.5625,
}
_PATTERNS = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "alltoall": "all_to_all",
}

NODES: dict[str, str] = {
    "a100-80-sxm": "dgx-a100",
    "h100-sxm": "dgx-h100",
    "h200-sxm": "dgx-h200",
    "b200-sxm": "dgx-b200",
    "b300-sxm": "dgx-b300",
    "gb200": "gb200-nvl72",
    "gb300": "gb300-nvl72",
    "l40s": "l40s-8",
}
"""Device -> the node of our catalog whose link the tables were measured on. Others state no link."""


@cache
def group_of(device: str, ranks: int) -> Group | None:
    """Return ``ranks`` neighbours on one node of ``device``; None where no such node is known."""
    if device not in NODES:
        return None
    topology = single_node_cluster(NODES[device])
    return group_on(topology, ranks) if ranks <= topology.devices_per_node else None


def read_all_reduce(raw: pd.DataFrame, _table: str) -> pd.DataFrame:
    """Return ``ranks``, ``size`` (bytes of the buffer), seconds (table: ms) of graph-captured all-reduces."""
    if "backend" in raw:
        raw = raw[~raw["backend"].astype(str).str.endswith("_eager")]
    value = raw["allreduce_dtype"].map(_VALUE_BYTES).astype(np.float64)
    return pd.DataFrame(
        {
            "dtype": "bf16",
            "kernel": "all_reduce",
            "ranks": raw["num_gpus"].astype(np.int64),
            "size": raw["message_size"].astype(np.float64) * value,
            "seconds": raw["latency"].astype(np.float64) * _MS,
        }
    )


def read_nccl(raw: pd.DataFrame, _table: str) -> pd.DataFrame:
    """Return pattern, ranks, ``size`` (whole buffer, bytes) and seconds (table: ms) of 16-bit collectives."""
    raw = raw[(raw["nccl_dtype"] == "half") & raw["op_name"].isin(list(_PATTERNS))]
    pattern = raw["op_name"].map(_PATTERNS)
    return pd.DataFrame(
        {
            "dtype": "bf16",
            "kernel": pattern,
            "pattern": pattern,
            "ranks": raw["num_gpus"].astype(np.int64),
            "size": raw["message_size"].astype(np.float64) * 2.0,
            "seconds": raw["latency"].astype(np.float64) * _MS,
        }
    )


def _bound(size: FloatArray, group: Group) -> FloatArray:
    """Return the least time physics allows: each device's own bytes over its link, no latency, no step twice.

    A switch that adds or multicasts on its own lets a device send every byte once; a ring sends it twice. So only
    the single pass is a bound.
    """
    share = (group.ranks - 1) / group.ranks
    # the all-reduce of n ranks: everyone must send all but what it already holds of the result
    return np.asarray(size * share / group.intra_bandwidth)


def _work(rows: pd.DataFrame, device: DeviceSpec, column: str) -> pd.DataFrame:
    parts = []
    for (pattern, ranks), part in rows.groupby([column, "ranks"], observed=True):
        group = group_of(device.name, int(str(ranks)))
        size = part["size"].to_numpy()
        bound = _bound(size, group) if group else np.full(len(part), np.nan)
        price = _price(str(pattern), size, group) if group else np.full(len(part), np.nan)
        parts.append(part.assign(flop=0.0, bytes=size, bound_s=bound, model_s=price))
    return pd.concat(parts)


def _price(pattern: str, size: FloatArray, group: Group) -> FloatArray:
    """Return what the cost model's formula says, seconds."""
    if pattern == "all_reduce":
        return collectives.all_reduce(size, group)
    if pattern == "all_to_all":
        return collectives.all_to_all_flat(size / group.ranks, group, float(group.ranks))
    return collectives.all_gather(size, group)


def all_reduce_work(rows: pd.DataFrame, device: DeviceSpec) -> pd.DataFrame:
    """Add bytes and the link bound of all-reduces."""
    return _work(rows, device, "kernel")


def nccl_work(rows: pd.DataFrame, device: DeviceSpec) -> pd.DataFrame:
    """Add bytes and the link bound of NCCL's collectives."""
    return _work(rows, device, "pattern")


def spikes(rows: pd.DataFrame) -> tuple[Any, str]:
    """Return single points twice as slow as the next smaller and the next larger message both."""
    ordered = rows.sort_values(["device", "framework", "kernel", "ranks", "size"])
    curve = ordered.groupby(["device", "framework", "kernel", "ranks"], observed=True)["seconds"]
    around = np.fmax(curve.shift(1), curve.shift(-1))
    both = curve.shift(1).notna() & curve.shift(-1).notna()
    hit = (both & (ordered["seconds"] > 2 * around)).reindex(rows.index)
    return hit.to_numpy(), "a spike: twice as slow as both neighbouring sizes"


OUTLIERS = (spikes,)
"""Points that contradict their neighbours."""


def read_exchange(raw: pd.DataFrame, table: str) -> pd.DataFrame:
    """Return one row per phase of an expert exchange; ``tokens`` are one rank's own; seconds (table: us)."""
    if table == "moe_a2a":
        tidy = raw[raw["phase"].isin(["dispatch", "combine"])]
        return pd.DataFrame(
            {
                "dtype": tidy["comm_dtype"].map(
                    {"bfloat16": "bf16", "fp8": "fp8", "nvfp4": "nvfp4", "default": "bf16"}
                ),
                "kernel": tidy["comm_backend"].astype(str),
                "phase": tidy["phase"],
                "ranks": tidy["ep_size"].astype(np.int64),
                "nodes": tidy["node_num"].astype(np.int64),
                "hidden": tidy["hidden_size"].astype(np.int64),
                "top_k": tidy["topk"].astype(np.int64),
                "experts": tidy["num_experts"].astype(np.int64),
                "tokens": tidy["num_tokens"].astype(np.int64),
                "sms": tidy["sms"].astype(np.int64),
                "seconds": tidy["latency"].astype(np.float64) * _US,
            }
        )
    normal = table.endswith("normal")
    parts = []
    for phase in ("dispatch", "combine"):
        column = [f"{phase}_transmit_us", f"{phase}_notify_us"] if normal else [f"{phase}_avg_t_us"]
        parts.append(
            pd.DataFrame(
                {
                    "dtype": "fp8" if phase == "dispatch" else "bf16",
                    "kernel": "deepep_normal" if normal else "deepep_ll",
                    "phase": phase,
                    # 8 ranks a node: how DeepEP's own tests are run; NVLink domains of 4 are not in the tables
                    "ranks": 8 * raw["node_num"].astype(np.int64),
                    "nodes": raw["node_num"].astype(np.int64),
                    "hidden": raw["hidden_size"].astype(np.int64),
                    "top_k": raw["num_topk"].astype(np.int64),
                    "experts": raw["num_experts"].astype(np.int64),
                    "tokens": raw["num_token"].astype(np.int64),
                    "sms": raw[f"{phase}_sms"].astype(np.int64) if normal else 0,
                    "seconds": raw[column].astype(np.float64).sum(axis=1) * _US,
                }
            )
        )
    return pd.concat(parts)


def exchange_work(rows: pd.DataFrame, device: DeviceSpec) -> pd.DataFrame:
    """Add bytes that one device sends to distinct ranks, and the bound over its link.

    Experts are chosen at random: a token reaches ``R (1 - (1 - 1/R)^k)`` of R ranks, less itself.
    """
    group = group_of(device.name, 4)
    if group is None:
        return rows.assign(flop=0.0, bytes=np.nan, bound_s=np.nan)
    value = (
        rows["dtype"].map({"bf16": 2.0, "fp8": 1.0 + 4.0 / 128, "nvfp4": 0.5625}).to_numpy(dtype=np.float64)
    )
    ranks, top_k = rows["ranks"].to_numpy(dtype=np.float64), rows["top_k"].to_numpy(dtype=np.float64)
    targets = (ranks - 1) * (1 - (1 - 1 / ranks) ** top_k)
    size = rows["tokens"].to_numpy() * rows["hidden"].to_numpy() * value
    one_node = rows["nodes"].to_numpy() == 1
    # between nodes the link inside the node is no bound; one copy over it is
    bound = np.where(one_node, size * targets, 0.0) / group.intra_bandwidth
    return rows.assign(flop=0.0, bytes=size * targets, bound_s=bound)
