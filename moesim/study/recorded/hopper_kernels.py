"""Hopper kernels: InferSim's measurements on H20 and H800 as one table, each row with its physical bound.

Shapes stand in file names and columns, types not always: which peak a product's own utilisation figure was divided
by says whether it ran in FP8 or 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from moesim.cost.pricing import FloatArray
from moesim.errors import DataMissing, SpecError
from moesim.spec.base import load_spec
from moesim.spec.hardware import DeviceSpec, Dtype

__all__ = ["DEVICES", "drawn_rows", "read_kernels"]

DEVICES = {"h20": "h20", "h800": "h800-sxm"}
"""Folder -> device of the catalog."""
_MICRO = 1e-6
_VALUE = {"fp8": 1.0, "bf16": 2.0}
_BF16: Dtype = "bf16"
_SPARSE_KEYS, _SPARSE_BYTES, _INDEX_BYTES = 2048, 656.0, 132.0
"""Keys that sparse attention selects; bytes of an FP8 latent key (FlashMLA: 512 values, 4 fp32 scales, 64 bf16 of rope)
and of an indexer key (128 FP8 values and a fp32 scale)."""
_DECODE_COLUMNS = ["dtype", "kv_dtype", "batch_size", "kv_len", "latency_us", "mfu"]


def read_kernels(folder: Path) -> pd.DataFrame:
    """Read every kernel that has a bound of ours.

    Returns
    -------
    frame : ``family`` (gemm, grouped_gemm, mha, mla, dsa_attention, dsa_index), ``phase`` (any, decode, prefill),
        ``device``, ``shape`` (text), ``dtype``, ``flop``, ``bytes``, ``seconds``, ``bound_s``; and for products
        ``m, n, k``, for grouped ones ``experts``, else 0

    Raises
    ------
    DataMissing : no such folder
    SpecError : a column is missing
    """
    parts = []
    for family, phase, device, path in _files(folder):
        frame = _csv(path)
        spec = load_spec(DeviceSpec, device, "device")
        try:
            parts += [
                _bounded(p.assign(family=family, phase=phase), spec)
                for p in _READERS[family, phase](frame, path.stem, spec)
            ]
        except KeyError as error:
            raise SpecError(
                f"{path.parent.name}/{path.name}:1 {error.args[0]}: expected this column"
            ) from None
    return pd.concat(parts, ignore_index=True)


def _files(folder: Path) -> Iterator[tuple[str, str, str, Path]]:
    if not (folder / "gemm").is_dir():
        raise DataMissing(f"{folder}: no such folder; the H20 and H800 kernels are part of the shared data")
    for path in sorted(folder.glob("**/*.csv")):
        kind, *phase, name = path.parent.relative_to(folder).parts
        family = kind
        if kind == "dsa":
            family = "dsa_attention" if path.stem.startswith("attn") else "dsa_index"
        key = family, phase[0] if phase else "any"
        if key in _READERS:
            yield *key, DEVICES[name], path


def _csv(path: Path) -> pd.DataFrame:
    """Read one file; one of them (H20, 64-2-128) has lost its first line."""
    frame = pd.read_csv(path)
    if frame.columns[0] in _VALUE:
        frame = pd.read_csv(path, header=None, names=_DECODE_COLUMNS)
    return frame


def _bounded(rows: pd.DataFrame, device: DeviceSpec) -> pd.DataFrame:
    rate = rows["dtype"].map(lambda name: device.compute.peaks[name]).to_numpy(dtype=np.float64)
    bound = np.maximum(rows["flop"] / rate, rows["bytes"] / device.main.bandwidth)
    return rows.assign(device=device.name, bound_s=bound)


def _type_of(flop: FloatArray, seconds: FloatArray, mfu: FloatArray, device: DeviceSpec) -> list[str]:
    """Return the type whose peak lies nearest to ``flop / seconds / mfu``."""
    names: tuple[Dtype, ...] = ("bf16", "fp8")
    peaks = np.array([device.compute.peaks[name] for name in names])
    said = flop / seconds / np.maximum(mfu, 1e-9)
    return [names[i] for i in np.abs(np.log(said[:, None] / peaks)).argmin(axis=1)]


def _table(
    rows: pd.DataFrame,
    seconds: FloatArray,
    flop: FloatArray,
    size: FloatArray,
    dtype: list[str],
    shape: list[str],
) -> pd.DataFrame:
    zero = np.zeros(len(rows), dtype=np.int64)
    return pd.DataFrame(
        {
            "shape": shape, "dtype": dtype, "flop": flop, "bytes": size, "seconds": seconds,
            "m": zero, "n": zero, "k": zero, "experts": zero,
        }
    )  # fmt: skip


def _gemm(f: pd.DataFrame, _stem: str, device: DeviceSpec) -> list[pd.DataFrame]:
    m, n, k = (f[c].to_numpy(dtype=np.float64) for c in ("m", "n", "k"))
    seconds = f["latency_us"].to_numpy() * _MICRO
    flop = 2 * m * n * k
    dtype = _type_of(flop, seconds, f["mfu"].to_numpy(), device)
    value = np.array([_VALUE[d] for d in dtype])
    shape = [f"{int(b)}x{int(a)}" for a, b in zip(n, k, strict=True)]
    made = _table(f, seconds, flop, (m * k + n * k) * value + 2 * m * n, dtype, shape)
    return [made.assign(m=m.astype(int), n=n.astype(int), k=k.astype(int))]


def drawn_rows(expected: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return mean rows per expert and share of experts with any, of InferSim's draw ``int(expected * U(0.7, 1.3))``.

    Parameters
    ----------
    expected : [n] what the file calls ``tokens_per_expert``

    >>> [a.round(3).tolist() for a in drawn_rows(np.array([1.0, 10.0]))]
    [[0.5, 9.5], [0.5, 1.0]]
    """
    most = np.ceil(1.3 * expected.max()) + 1
    steps = np.arange(1, most)[:, None]
    least = np.clip((1.3 - steps / np.maximum(expected, 1e-12)) / 0.6, 0.0, 1.0)  # P(rows >= step)
    return least.sum(axis=0), least[0]


def _grouped(f: pd.DataFrame, _stem: str, _device: DeviceSpec) -> list[pd.DataFrame]:
    expected = f["tokens_per_expert"].to_numpy(dtype=np.float64)
    local = f["num_local_experts"].to_numpy(dtype=np.float64)
    each, some = drawn_rows(expected)
    rows, touched = each * local, some * local
    hidden, inner = (f[c].to_numpy(dtype=np.float64) for c in ("hidden_size", "intermediate_size"))
    parts = []
    for name, n, k in (("up", 2 * inner, hidden), ("down", hidden, inner)):
        seconds = f[f"{name}_proj_us"].to_numpy() * _MICRO
        dtype = ["fp8"] * len(f)  # all that InferSim's two scripts run (DeepGEMM m_grouped_fp8_gemm_nt_*)
        size = rows * k + touched * n * k + 2 * rows * n
        shape = [f"{int(a)}x{int(b)} e{int(e)}" for a, b, e in zip(k, n, local, strict=True)]
        made = _table(f, seconds, 2 * rows * n * k, size, dtype, shape)
        parts.append(
            made.assign(m=rows.astype(int), n=n.astype(int), k=k.astype(int), experts=local.astype(int))
        )
    return parts


def _heads(stem: str) -> tuple[int, ...]:
    return tuple(int(part) for part in stem.removeprefix("attn-").removeprefix("logits-").split("-"))


def _decode(f: pd.DataFrame) -> tuple[FloatArray, FloatArray, FloatArray]:
    return (f[c].to_numpy(dtype=np.float64) for c in ("batch_size", "kv_len", "latency_us"))  # type: ignore[return-value]


def _mha_decode(f: pd.DataFrame, stem: str, _device: DeviceSpec) -> list[pd.DataFrame]:
    heads, kv, dim = _heads(stem)
    batch, keys, time = _decode(f)
    value = f["kv_dtype"].map(_VALUE).to_numpy(dtype=np.float64)
    size = 2 * batch * keys * kv * dim * value + 4 * batch * heads * dim
    return [_table(f, time * _MICRO, 4 * batch * keys * heads * dim, size, [_BF16] * len(f), [stem] * len(f))]


def _mha_prefill(f: pd.DataFrame, stem: str, _device: DeviceSpec) -> list[pd.DataFrame]:
    heads, kv, dim = _heads(stem)
    s, time = (f[c].to_numpy(dtype=np.float64) for c in ("seq_len", "latency_us"))
    size = 4 * s * (heads + kv) * dim
    return [_table(f, time * _MICRO, 2 * heads * dim * s * (s + 1), size, [_BF16] * len(f), [stem] * len(f))]


def _mla_decode(f: pd.DataFrame, stem: str, _device: DeviceSpec) -> list[pd.DataFrame]:
    heads, latent, rope = _heads(stem)
    batch, keys, time = _decode(f)
    width = 2 * latent + rope
    value = f["kv_dtype"].map(_VALUE).to_numpy(dtype=np.float64)
    size = batch * keys * (latent + rope) * value + 2 * batch * heads * width
    return [
        _table(f, time * _MICRO, 2 * batch * keys * heads * width, size, [_BF16] * len(f), [stem] * len(f))
    ]


def _mla_prefill(f: pd.DataFrame, stem: str, _device: DeviceSpec) -> list[pd.DataFrame]:
    heads, nope, rope = _heads(stem)
    s, time = (f[c].to_numpy(dtype=np.float64) for c in ("seq_len", "latency_us"))
    width = 2 * nope + rope  # keys of nope + rope, values as wide as nope
    size = 4 * s * heads * width
    return [_table(f, time * _MICRO, heads * width * s * (s + 1), size, [_BF16] * len(f), [stem] * len(f))]


def _causal(queries: FloatArray, keys: FloatArray, most: float) -> FloatArray:
    """Return pairs of ``queries`` last positions of ``keys``, each seeing at most ``most`` earlier ones."""
    first = keys - queries + 1
    free = np.clip(most - first + 1, 0, queries)  # queries that see fewer than ``most``
    return free * (first + first + free - 1) / 2 + (queries - free) * np.minimum(most, keys)


def _dsa_decode(f: pd.DataFrame, stem: str, _device: DeviceSpec) -> list[pd.DataFrame]:
    heads, width, _ = _heads(stem)
    batch, keys, time = _decode(f)
    chosen = np.minimum(keys, _SPARSE_KEYS)
    flop = 2 * batch * chosen * heads * (width + 512)
    size = batch * chosen * _SPARSE_BYTES + 2 * batch * heads * (width + 512)
    return [_table(f, time * _MICRO, flop, size, [_BF16] * len(f), [stem] * len(f))]


def _dsa_prefill(f: pd.DataFrame, stem: str, _device: DeviceSpec) -> list[pd.DataFrame]:
    heads, width, _ = _heads(stem)
    queries, keys, time = (f[c].to_numpy(dtype=np.float64) for c in ("s_q", "s_kv", "latency_us"))
    flop = 2 * _causal(queries, keys, _SPARSE_KEYS) * heads * (width + 512)
    size = 2 * (keys * width + queries * heads * (width + 512))
    return [_table(f, time * _MICRO, flop, size, [_BF16] * len(f), [stem] * len(f))]


def _index_decode(f: pd.DataFrame, stem: str, _device: DeviceSpec) -> list[pd.DataFrame]:
    heads, dim = _heads(stem)
    batch, queries, keys, time = (
        f[c].to_numpy(dtype=np.float64) for c in ("batchsize", "next_n", "s_kv", "latency_us")
    )
    size = batch * keys * (_INDEX_BYTES + 4 * queries)
    return [
        _table(
            f,
            time * _MICRO,
            2 * batch * queries * keys * heads * dim,
            size,
            ["fp8"] * len(f),
            [stem] * len(f),
        )
    ]


def _index_prefill(f: pd.DataFrame, stem: str, _device: DeviceSpec) -> list[pd.DataFrame]:
    heads, dim = _heads(stem)
    queries, keys, time = (f[c].to_numpy(dtype=np.float64) for c in ("s_q", "s_kv", "latency_us"))
    pairs = _causal(queries, keys, np.inf) if len(f) else queries
    size = keys * _INDEX_BYTES + queries * heads * dim + 4 * pairs
    return [_table(f, time * _MICRO, 2 * pairs * heads * dim, size, ["fp8"] * len(f), [stem] * len(f))]


_READERS: dict[tuple[str, str], Callable[[pd.DataFrame, str, DeviceSpec], list[pd.DataFrame]]] = {
    ("gemm", "any"): _gemm,
    ("grouped_gemm", "decode"): _grouped,
    ("grouped_gemm", "prefill"): _grouped,
    ("mha", "decode"): _mha_decode,
    ("mha", "prefill"): _mha_prefill,
    ("mla", "decode"): _mla_decode,
    ("mla", "prefill"): _mla_prefill,
    ("dsa_attention", "decode"): _dsa_decode,
    ("dsa_attention", "prefill"): _dsa_prefill,
    ("dsa_index", "decode"): _index_decode,
    ("dsa_index", "prefill"): _index_prefill,
}
