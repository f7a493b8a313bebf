"""Experts: the tables of fused routed-expert layers, one expert-parallel rank each.

``num_tokens`` is what enters the layer over all ranks; the kernel runs on rank 0. ``distribution`` says how tokens
choose experts: ``balanced`` deals them out evenly; ``power_law_a`` draws each expert's token count from a truncated
power law of density ``x^-a`` and puts the most loaded rank first. The draw is repeated here to get rows and
distinct experts of that rank, which is what the cost model knows of a step.
"""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moesim.calibrate.silicon.bounds import NAMES, TYPES, roofline
from moesim.cost.fitted.features import moe_work as fused_work

if TYPE_CHECKING:
    from moesim.cost.pricing import FloatArray
    from moesim.spec.hardware import DeviceSpec

__all__ = ["DEFECTS", "kernel_class", "moe_work", "rank_load", "read_moe"]

_MS = 1e-3
_DRAWS = 5
"""The tables average five draws too."""

_CLASSES = (
    ("situ", None),  # another activation stands in for the model's own
    ("nongated", "nongated"),
    ("min_latency", "min_latency"),
    ("marlin", "marlin"),
    ("trtllm", "trtllm"),
    ("cutlass", "cutlass"),
    ("deepgemm", "deepgemm"),
    ("triton", "triton"),
    ("vllm_fused_moe", "triton"),
    ("vllm_mxfp4_moe", "triton"),
    ("moe_torch_flow", "default"),
)


def kernel_class(source: str) -> str | None:
    """Return the class of a kernel from its name in the tables; None where no op of ours runs it.

    >>> kernel_class("vllm_fp8moe_flashinfer_trtllm_trtllmfp8expertsmodular"), kernel_class("sglang_fused_moe_triton")
    ('trtllm', 'triton')
    """
    name = source.lower()
    return next((kind for part, kind in _CLASSES if part in name), None)


def _skew(distribution: str) -> float:
    match = re.fullmatch(r"power_law_([\d.]+)", distribution)
    return float(match.group(1)) if match else (0.0 if distribution == "balanced" else float("nan"))


def read_moe(raw: pd.DataFrame, _table: str) -> pd.DataFrame:
    """Return tokens over all ranks, sizes, cut, ``skew`` (0: balanced) and seconds (table: ms)."""
    kinds = {source: kernel_class(source) for source in raw["kernel_source"].unique()}
    keep = raw["moe_dtype"].isin(list(TYPES)) & raw["kernel_source"].map(kinds).notna().to_numpy()
    raw = raw[keep]
    names = {
        "num_tokens": "tokens",
        "hidden_size": "hidden",
        "inter_size": "intermediate",
        "topk": "top_k",
        "num_experts": "experts",
        "moe_tp_size": "moe_tp",
        "moe_ep_size": "ep",
    }
    tidy = raw[list(names)].rename(columns=names).astype(np.int64)
    tidy["dtype"] = raw["moe_dtype"].map(NAMES)
    tidy["kernel"] = raw["kernel_source"].map(kinds)
    tidy["skew"] = raw["distribution"].map(_skew).astype(np.float64)
    tidy["seconds"] = raw["latency"].astype(np.float64) * _MS
    return tidy[np.isfinite(tidy["skew"]) & (tidy["experts"] % tidy["ep"] == 0)]


def rank_load(tokens: int, top_k: int, experts: int, ep: int, skew: float) -> tuple[float, float]:
    """Return (rows, distinct experts) of the rank the tables time.

    Balanced: rows are dealt round-robin. Power law: mean over five draws of the most loaded rank; the draw's seed
    derives from the arguments, since the tables do not state theirs.
    """
    held, rows = experts // ep, tokens * top_k
    if skew == 0.0:
        return rows / ep, min(held, rows / ep) if rows < experts else float(held)
    seed = zlib.crc32(f"{tokens} {top_k} {experts} {ep} {skew}".encode())
    uniform = np.random.default_rng(seed).random((_DRAWS, experts))
    low, high = (0.01, 2.0) if rows <= experts else (1.0, max(0.8 * tokens, 1.0 + 1e-9))
    power = 1.0 - skew
    weights = (low**power + uniform * (high**power - low**power)) ** (1 / power)
    counts = np.array([_dealt(w * (rows / w.sum()), rows, tokens) for w in weights])
    ranks = counts.reshape(_DRAWS, ep, held)
    busiest = ranks[np.arange(_DRAWS), ranks.sum(axis=2).argmax(axis=1)]
    return float(busiest.sum(axis=1).mean()), float((busiest > 0).sum(axis=1).mean())


def _dealt(share: FloatArray, rows: int, most: int) -> FloatArray:
    """Round shares to whole rows that add up, none above ``most``: the largest remainders are rounded up."""
    share = np.minimum(share, most)
    whole = np.floor(share)
    short = int(rows - whole.sum())
    order = np.argsort(-(share - whole), kind="stable")
    while short > 0:
        room = order[whole[order] < most][:short]
        if room.size == 0:
            break
        whole[room] += 1
        short -= room.size
    return np.asarray(whole, dtype=np.float64)


def moe_work(rows: pd.DataFrame, device: DeviceSpec) -> pd.DataFrame:
    """Add rows and distinct experts of the timed rank, work and the bound of the fused layer."""
    loads: dict[tuple[Any, ...], tuple[float, float]] = {}
    keys = list(
        rows[["tokens", "top_k", "experts", "ep", "skew"]].itertuples(index=False, name=None)
    )
    for key in set(keys):
        loads[key] = _LOADS.setdefault(key, rank_load(*key)) if key not in _LOADS else _LOADS[key]
    rows["rows"] = [loads[key][0] for key in keys]
    rows["touched"] = [loads[key][1] for key in keys]
    rows["inner"] = -(-rows["intermediate"] // rows["moe_tp"])
    rows["ups"] = np.where(rows["kernel"] == "nongated", 1, 2)
    parts = []
    for dtype, part in rows.groupby("dtype", observed=True):
        form = TYPES[str(dtype)]
        columns = (part[c].to_numpy(dtype=np.float64) for c in ("rows", "touched", "hidden", "inner", "ups"))
        flop, size = fused_work(*columns, form.value_bytes, form.input_bytes)
        parts.append(roofline(part, device, form.compute, flop, size))
    return pd.concat(parts)


_LOADS: dict[tuple[Any, ...], tuple[float, float]] = {}


def _slow_hopper(rows: pd.DataFrame) -> tuple[Any, str]:
    wrong = (
        rows["device"].isin(["h100-sxm", "h200-sxm"])
        & (rows["framework"] == "vllm")
        & (rows["version"] == "0.24.0")
        & (rows["dtype"] == "fp8")
        & (rows["kernel"] == "cutlass")
    )
    return wrong, "vLLM 0.24.0 fp8 experts on Hopper: 5 to 6 times slower than the 0.19.0 rows"


DEFECTS = (_slow_hopper,)
"""Rows known to time something else than the kernel an engine would pick."""
