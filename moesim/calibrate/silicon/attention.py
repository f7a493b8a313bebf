"""Attention: tables of prefill and decode attention kernels, plain and latent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import pandas as pd

from moesim.cost.attention import AttentionShape, bound_term
from moesim.errors import NoResult

if TYPE_CHECKING:
    from moesim.cost.pricing import FloatArray
    from moesim.spec.hardware import DeviceSpec, Dtype

__all__ = [
    "context_mla_work",
    "context_work",
    "generation_mla_work",
    "generation_work",
    "pairs",
    "read_context",
    "read_context_mla",
    "read_generation",
    "read_generation_mla",
]

_MS = 1e-3
_TYPES: dict[str, Dtype] = {"bfloat16": "bf16", "fp8": "fp8"}
_KV_BYTES = {"bf16": 2.0, "fp8": 1.0}
_LATENT, _ROPE, _NOPE, _VALUE = 512, 64, 128, 128
"""DeepSeek-V3's latent attention (arXiv:2412.19437), the only one in these tables."""

_KERNELS = (
    ("xpu", None),
    ("triton", "triton"),
    ("fa4", "fa4"),
    ("fa3", "fa3"),
    ("fa2", "fa2"),
    ("trtllm", "trtllm"),
    ("flashinfer", "flashinfer"),
    ("flash_att", "fa2"),
    ("torch_flow", "default"),
    ("default", "default"),
)


def _kernel(source: str) -> str | None:
    return next((kind for part, kind in _KERNELS if part in source.lower()), None)


def _tidy(raw: pd.DataFrame, context: Any, arithmetic: str) -> pd.DataFrame:
    keep = raw[arithmetic].isin(list(_TYPES)) & raw["kv_cache_dtype"].isin(list(_TYPES))
    raw, context = raw[keep], context[keep]
    kv = raw["kv_cache_dtype"].map(_TYPES)
    tidy = pd.DataFrame(
        {
            "dtype": raw[arithmetic].map(_TYPES).astype(str) + "_kv_" + kv.astype(str),
            "kernel": raw["kernel_source"].map(_kernel),
            "sequences": raw["batch_size"].astype(np.int64),
            "context": context.astype(np.int64),
            "heads": raw["num_heads"].astype(np.int64),
            "seconds": raw["latency"].astype(np.float64) * _MS,
        }
    )
    return tidy[tidy["kernel"].notna()]


def _grouped(tidy: pd.DataFrame, raw: pd.DataFrame) -> pd.DataFrame:
    raw = raw.loc[tidy.index]
    tidy["kv_heads"] = np.where(
        raw["num_key_value_heads"] > 0, raw["num_key_value_heads"], raw["num_heads"]
    ).astype(np.int64)
    tidy["head_dim"] = raw["head_dim"].astype(np.int64)
    window = raw["window_size"] if "window_size" in raw else pd.Series(0, index=raw.index)
    tidy["window"] = window.fillna(0).astype(np.int64)
    return tidy


def read_context(raw: pd.DataFrame, _table: str) -> pd.DataFrame:
    """Return prefill rows: ``context`` is the prompt of each of ``sequences``; seconds (table: ms)."""
    return _grouped(_tidy(raw, raw["isl"], "attn_dtype"), raw)


def read_generation(raw: pd.DataFrame, _table: str) -> pd.DataFrame:
    """Return decode rows: ``context`` keys are read, those cached and the new one; seconds (table: ms)."""
    return _grouped(_tidy(raw, raw["step"] + 1, "attn_dtype"), raw)


def read_context_mla(raw: pd.DataFrame, _table: str) -> pd.DataFrame:
    """Return prefill rows of latent attention's core; seconds (table: ms)."""
    return _tidy(raw, raw["isl"], "mla_dtype")


def read_generation_mla(raw: pd.DataFrame, _table: str) -> pd.DataFrame:
    """Return decode rows of latent attention's core; seconds (table: ms)."""
    return _tidy(raw, raw["step"] + 1, "mla_dtype")


class _Sizes(NamedTuple):
    """Per row, the numbers of ``AttentionShape`` of the same name; keys of a prompt are in its tokens."""

    decode_pair_flop: FloatArray
    prefill_pair_flop: FloatArray
    decode_key_bytes: FloatArray
    sequence_bytes: FloatArray
    token_bytes: FloatArray


def _unit(compute: Dtype) -> AttentionShape:
    """Return one operation and one byte of each kind: its bound is the price of each, whatever the sizes."""
    return AttentionShape(
        "unit", "gqa", 1, 0, compute, 1, 1, 1,
        decode_pair_flop=1.0, prefill_pair_flop=1.0, decode_key_bytes=1.0, sequence_bytes=1.0, token_bytes=1.0,
    )  # fmt: skip


def _parts(dtype: str) -> tuple[Dtype, float]:
    arithmetic, kv = dtype.split("_kv_")
    return cast("Dtype", arithmetic), _KV_BYTES[kv]


def _plain(part: pd.DataFrame, kv_bytes: float) -> _Sizes:
    heads, kv, width = (part[c].to_numpy(dtype=np.float64) for c in ("heads", "kv_heads", "head_dim"))
    key = kv * 2 * width * kv_bytes
    token, pair = heads * 2 * width * 2.0 + key, 2.0 * heads * 2 * width
    return _Sizes(pair, pair, key, token, token)


def _latent(part: pd.DataFrame, kv_bytes: float) -> _Sizes:
    heads = part["heads"].to_numpy(dtype=np.float64)
    cached = np.full(heads.shape, (_LATENT + _ROPE) * kv_bytes)
    return _Sizes(
        2.0 * heads * (2 * _LATENT + _ROPE),
        2.0 * heads * (_NOPE + _ROPE + _VALUE),
        cached,
        heads * (2 * _LATENT + _ROPE) * 2.0 + cached,
        heads * (_NOPE + _ROPE + _VALUE) * 2.0 + cached,
    )


def pairs(context: FloatArray, window: FloatArray) -> FloatArray:
    """Return causal (query, key) pairs of a prompt of ``context`` tokens; ``window`` 0 is full attention."""
    reach = np.where(window > 0, np.minimum(window, context), context)
    return np.asarray(reach * (reach + 1) / 2 + (context - reach) * reach)


def _work(rows: pd.DataFrame, device: DeviceSpec, sizes_of: Any, *, decode: bool) -> pd.DataFrame:
    parts = []
    for dtype, part in rows.groupby("dtype", observed=True):
        compute, kv_bytes = _parts(str(dtype))
        sizes = sizes_of(part, kv_bytes)
        n, context = (part[c].to_numpy(dtype=np.float64) for c in ("sequences", "context"))
        window = part["window"].to_numpy(dtype=np.float64) if "window" in part else np.zeros(len(part))
        try:
            price = bound_term(_unit(compute), device, 0.0)
        except NoResult:
            parts.append(part.assign(flop=np.nan, bytes=np.nan, bound_s=np.nan))
            continue
        if decode:
            keys = n * np.where(window > 0, np.minimum(window, context), context)
            flop, read, own = (
                keys * sizes.decode_pair_flop,
                keys * sizes.decode_key_bytes,
                n * sizes.sequence_bytes,
            )
            arithmetic = flop * price.decode_flop_s
            memory = read * price.decode_kv_s + own * price.decode_seq_s
        else:
            # a prompt without a cached prefix: its own keys are in the token bytes
            flop, read, own = (
                n * pairs(context, window) * sizes.prefill_pair_flop,
                0.0,
                n * context * sizes.token_bytes,
            )
            arithmetic, memory = flop * price.prefill_flop_s, own * price.prefill_token_s
        bound = np.maximum(arithmetic, memory)
        parts.append(part.assign(flop=flop, bytes=read + own, bound_s=bound))
    return pd.concat(parts)


def context_work(rows: pd.DataFrame, device: DeviceSpec) -> pd.DataFrame:
    """Add work and the cost model's own bound of prefill attention."""
    return _work(rows, device, _plain, decode=False)


def generation_work(rows: pd.DataFrame, device: DeviceSpec) -> pd.DataFrame:
    """Add work and the cost model's own bound of decode attention."""
    return _work(rows, device, _plain, decode=True)


def context_mla_work(rows: pd.DataFrame, device: DeviceSpec) -> pd.DataFrame:
    """Add work and the bound of latent attention's prefill."""
    return _work(rows, device, _latent, decode=False)


def generation_mla_work(rows: pd.DataFrame, device: DeviceSpec) -> pd.DataFrame:
    """Add work and the bound of latent attention's decode."""
    return _work(rows, device, _latent, decode=True)
