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

__all__ = [
    "DEFECTS",
    "OUTLIERS",
    "contradictions",
    "kernel_class",
    "mistuned",
    "moe_work",
    "rank_load",
    "read_moe",
]

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
    known: pd.DataFrame = tidy[np.isfinite(tidy["skew"]) & (tidy["experts"] % tidy["ep"] == 0)]
    return known


def rank_load(tokens: int, top_k: int, experts: int, ep: int, skew: float) -> tuple[float, float]:
    """Return (rows, distinct experts) of the rank the tables time.

    Balanced: rows are dealt round-robin. Power law: mean over five draws of the most loaded rank; the draw's seed
    derives from the arguments, since the tables do not state theirs.
    """
    held, rows = experts // ep, tokens * top_k
    if skew == 0.0:  # a rank is timed with work: at least one row
        mean = max(1.0, rows / ep)
        return mean, float(min(held, mean))
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
    keys = list(rows[["tokens", "top_k", "experts", "ep", "skew"]].itertuples(index=False, name=None))
    for key in set(keys) - _LOADS.keys():
        _LOADS[key] = rank_load(*key)
    rows["rows"] = [_LOADS[key][0] for key in keys]
    rows["touched"] = [_LOADS[key][1] for key in keys]
    rows["inner"] = -(-rows["intermediate"] // rows["moe_tp"])
    rows["ups"] = np.where(_non_gated(rows), 1, 2)
    parts = []
    for dtype, part in rows.groupby("dtype", observed=True):
        form = TYPES[str(dtype)]
        count, touched, hidden, inner, ups = (
            part[c].to_numpy(dtype=np.float64) for c in ("rows", "touched", "hidden", "inner", "ups")
        )
        flop, size = fused_work(count, touched, hidden, inner, ups, form.value_bytes, form.input_bytes)
        parts.append(roofline(part, device, form.compute, flop, size))
    return pd.concat(parts)


_NEMOTRON = ((1024, 2688, 512, 22), (2048, 5120, 512, 22), (2688, 1856, 128, 6), (4096, 2688, 512, 22),
             (8192, 5120, 512, 22))  # fmt: skip
_UNGATED = {"sglang": _NEMOTRON, "vllm": _NEMOTRON[:3]}
"""Shapes without a gate. TRT-LLM's table names its kernel so; the others' times are 0.7 of what reading a gate's
weights takes, and vLLM's of the last two shapes are not."""


def _is_shape(rows: pd.DataFrame, shape: tuple[int, int, int, int]) -> Any:
    hidden, inner, experts, top_k = shape
    return (
        (rows["hidden"] == hidden)
        & (rows["intermediate"] == inner)
        & (rows["experts"] == experts)
        & (rows["top_k"] == top_k)
    )


def _non_gated(rows: pd.DataFrame) -> Any:
    found = np.asarray(rows["kernel"] == "nongated")
    for framework, shapes in _UNGATED.items():
        for shape in shapes:
            found = found | np.asarray((rows["framework"] == framework) & _is_shape(rows, shape))
    return found


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


def _group_limited(rows: pd.DataFrame) -> tuple[Any, str]:
    wrong = (
        rows["framework"].isin(["vllm", "sglang"])
        & (rows["skew"] == 0)
        & _is_shape(rows, (7168, 2048, 256, 8))
    )
    return wrong, "balanced load of a router that picks groups of experts first: half the experts stay idle"


DEFECTS = (_slow_hopper, _group_limited)
"""Rows known to time something else than the kernel an engine would pick, or another load than they say."""

_CONTRADICTION, _MISTUNED = 1.6, 2.0


def contradictions(rows: pd.DataFrame) -> tuple[Any, str]:
    """Return balanced curves slower than the skewed ones of the same rank, whose load is heavier.

    Their router cannot have dealt experts evenly. Compared are the medians of time over bound.
    """
    cut = [
        "device",
        "framework",
        "version",
        "dtype",
        "kernel",
        "hidden",
        "intermediate",
        "experts",
        "top_k",
        "moe_tp",
        "ep",
    ]
    curve = rows.groupby(cut, observed=True).ngroup().to_numpy()
    ratio = np.log(rows["seconds"].to_numpy() / rows["bound_s"].to_numpy())
    even = rows["skew"].to_numpy() == 0
    apart = (
        pd.Series(ratio[even]).groupby(curve[even]).median()
        - pd.Series(ratio[~even]).groupby(curve[~even]).median()
    )
    wrong = apart.index[apart > np.log(_CONTRADICTION)]
    return even & np.isin(
        curve, wrong
    ), "balanced load slower than a skewed one: experts were not dealt evenly"


def mistuned(rows: pd.DataFrame) -> tuple[Any, str]:
    """Return curves (one cut of one shape) at least twice as slow as the same shape's similar cuts.

    Autotuners of some engines fall back to a default kernel for single cuts. A curve's level is the median of its time
    over what launching, weights, arithmetic and the traffic of all rows take; its peers are the cuts within a
    factor of four in both degrees, and their lower quartile is the measure.
    """
    cut = [
        "device",
        "framework",
        "version",
        "dtype",
        "kernel",
        "hidden",
        "intermediate",
        "experts",
        "top_k",
        "moe_tp",
        "ep",
    ]
    whole = rows["tokens"] * rows["top_k"] * (4 * rows["hidden"] + (2 * rows["ups"] + 4) * rows["inner"])
    # bytes over bound give the effective bandwidth of the row's device or less
    rate = (rows["bytes"] / rows["bound_s"]).groupby(rows["device"], observed=True).transform("max")
    level = pd.Series(np.log(rows["seconds"] / (2e-5 + rows["bound_s"] + whole / rate)), index=rows.index)
    curves = level.groupby([rows[c] for c in cut], observed=True).median().reset_index(name="level")
    wrong = np.zeros(len(curves), dtype=bool)
    for index in curves.groupby(cut[:-2], observed=True).indices.values():
        part = curves.iloc[index]
        tp, ep = np.log2(part["moe_tp"].to_numpy()), np.log2(part["ep"].to_numpy())
        near = (np.abs(tp[:, None] - tp) <= 2) & (np.abs(ep[:, None] - ep) <= 2)
        levels = np.where(near, part["level"].to_numpy()[None, :], np.nan)
        wrong[index] = part["level"].to_numpy() - np.nanquantile(levels, 0.25, axis=1) > np.log(_MISTUNED)
    bad = curves[wrong][cut].assign(bad=True)
    hit = rows[cut].merge(bad, on=cut, how="left")["bad"].notna().to_numpy()
    return hit, "one cut twice as slow as its neighbours: the engine's autotuner fell back"


OUTLIERS = (contradictions, mistuned)
"""Curves that contradict their neighbours; found from the measurements alone, before any fit."""
