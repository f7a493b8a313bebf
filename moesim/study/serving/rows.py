"""Rows: NVIDIA's measured serving runs, read from the installed extra, with what is wrong in them repaired.

The file ``silicon_sample.csv`` of aiconfigurator-core is merged from several dumps and is dirty. Every repair is
derived from the file itself and named on the row:

- R1 ``parallelism``: two dumps store TP x EP where TP (or attention DP) belongs, for every run with EP > 1. A run
  with EP n shows moe_tp = moe_ep = n and tp (or dp) = n * n; vLLM's data-parallel runs show tp = dp = n and
  moe_ep = n * n. Where the same measurement stands in the dump of 2026-03-25, it carries the repaired values.
- R2 ``disaggregated``: runs of 12 and more devices as one "agg" tensor-parallel group on GB200 are disaggregated
  runs without worker shapes; they are left out with that reason.
- R3 ``alias``: names that have no config, or (DeepSeek-V3 in the dump of 2026-04-27) name a run of another model.
- R4 ``zero``: 0 in a parallel degree means "not stated", which is 1.
- R5 ``checkpoint``: quantisation columns are labels of a dump; the checkpoint that the precision names decides.
- R6 ``arithmetic``: MXFP4 weights run with 8-bit activations on Blackwell, widened to bf16 elsewhere.
- R7 ``attention_dp``: a missing degree follows from tp * dp = moe_tp * moe_ep, which every engine demands.
- R8 ``batch``: requests per attention rank, where the dump divided by the wrong degree.

Duplicates are copies of one measurement in several dumps, two of them rounded to 0.01 ms.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from moesim.calibrate.silicon.tables import systems_folder
from moesim.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["CANONICAL", "DENSE", "ServingRow", "Shape", "distinct", "read_rows"]

_SWAPPED = ("2026-04-06.csv", "db-dump/")
"""Dumps whose rows with EP > 1 store TP * EP in place of TP or DP (R1)."""
_ROUNDED_MS = 0.0051
"""Copies rounded to two decimals differ from the original by half a unit of the last one."""
_GB200_NODE = 4
_COLUMNS = ("id", "silicon_data_source", "backend", "model_path", "system", "mode", "isl", "osl")

CANONICAL: dict[str, str] = {
    "meta-llama/Llama-3.1-70B": "meta-llama/Meta-Llama-3.1-70B",
    "meta-llama/Llama-3.1-8B-Instruct": "meta-llama/Meta-Llama-3.1-8B",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "meta-llama/Meta-Llama-3.1-8B",
    "nvidia/Qwen3-32B-NVFP4": "Qwen/Qwen3-32B",
    "nvidia/DeepSeek-R1-NVFP4": "deepseek-ai/DeepSeek-R1",
    "nvidia/DeepSeek-V3.1-NVFP4": "deepseek-ai/DeepSeek-V3.1",
    "deepseek-ai/DeepSeek-V3": "deepseek-ai/DeepSeek-R1",
    "zhipuai/GLM-5": "zai-org/GLM-5",
}
"""Name in the file -> the network that ran (R3)."""

DENSE = frozenset({"meta-llama/Meta-Llama-3.1-70B", "meta-llama/Meta-Llama-3.1-8B", "Qwen/Qwen3-32B"})
"""Networks without experts: the only ones that anything may be fitted on."""

Phase = Literal["serve", "prefill", "decode"]


@dataclass(frozen=True, slots=True)
class Shape:
    """How one replica is cut, and how many there are.

    Attributes
    ----------
    tp, pp, dp : tensor, pipeline and attention data parallel degrees
    moe_tp, ep : tensor parallel degree inside an expert, and expert parallel degree; their product is tp * dp
    replicas : workers of this shape
    batch : requests per attention rank, 0 where the file does not say
    """

    tp: int
    pp: int = 1
    dp: int = 1
    moe_tp: int = 1
    ep: int = 1
    replicas: int = 1
    batch: int = 0

    @property
    def devices(self) -> int:
        """Devices of one replica."""
        return self.tp * self.pp * self.dp


@dataclass(frozen=True, slots=True)
class ServingRow:
    """One measured run, repaired.

    Attributes
    ----------
    id, source : as in the file; the source says which dump
    backend, version : engine and its version, empty where not stated
    model : network, canonical name; ``named`` is what the file calls it
    system : package's name of the device, e.g. ``h200_sxm``
    precision : ``bf16``, ``fp8``, ``fp4``, ``int4``, or empty where the file does not say
    gemm, moe : the file's quantisation labels, kept for reference and for runs whose precision is not stated
    isl, osl : nominal prompt and output tokens
    concurrency : requests in flight at one replica (agg) or at the whole deployment (disagg)
    shape : of an aggregated run
    prefill, decode : of a disaggregated run that states them
    ttft_s, tpot_s : measured means, seconds
    client : which benchmark client sent the requests
    repairs : names of the repairs made
    left_out : why the run cannot be replayed, empty when it can
    duplicate_of : id of the row that is the same measurement, empty for the first of them
    """

    id: str
    source: str
    backend: str
    version: str
    model: str
    named: str
    system: str
    precision: str
    gemm: str
    moe: str
    mode: Literal["agg", "disagg"]
    isl: int
    osl: int
    concurrency: int
    shape: Shape | None
    prefill: Shape | None
    decode: Shape | None
    ttft_s: float
    tpot_s: float
    client: Literal["inferencemax", "aiperf"]
    repairs: tuple[str, ...] = ()
    left_out: str = ""
    duplicate_of: str = ""

    @property
    def dense(self) -> bool:
        """True for networks without experts."""
        return self.model in DENSE

    @property
    def group(self) -> tuple[str, str, str, str]:
        """(model, system, backend, precision): what one calibration factor may be shared over."""
        return self.model, self.system, self.backend, self.precision


def read_rows(path: Path | None = None) -> tuple[ServingRow, ...]:
    """Read every run of the file, in file order, repaired.

    Parameters
    ----------
    path : the CSV; by default the installed extra's

    Raises
    ------
    DataMissing : the extra ``silicon`` is not installed
    SpecError : the file lacks a column, or an id stands twice
    """
    return _read(path or systems_folder() / "silicon_sample.csv")


@cache
def _read(path: Path) -> tuple[ServingRow, ...]:
    import pandas as pd  # noqa: PLC0415 - 0.4 s, paid only when the file is read

    frame = pd.read_csv(path)
    missing = [name for name in _COLUMNS if name not in frame.columns]
    if missing:
        raise SpecError(f"{path.name}: expected the columns {', '.join(missing)}")
    if frame["id"].duplicated().any():
        twice = frame["id"][frame["id"].duplicated()].iloc[0]
        raise SpecError(f"{path.name}: id {twice!r} stands twice")
    rows = [_row(record) for record in frame.to_dict("records")]
    return tuple(_mark_duplicates(rows))


def distinct(rows: Iterable[ServingRow], mode: Literal["agg", "disagg"] = "agg") -> tuple[ServingRow, ...]:
    """Return one row per distinct measurement of ``mode``, the first of each, in file order."""
    return tuple(row for row in rows if row.mode == mode and not row.duplicate_of)


def _row(record: dict[Any, Any]) -> ServingRow:
    source, repairs = str(record["silicon_data_source"]), []
    named = str(record["model_path"])
    model = CANONICAL.get(named, named)
    if model != named:
        repairs.append("alias")
    precision = _text(record.get("precision"))
    if precision:
        repairs.append("checkpoint")
    if "gpt-oss" in model:
        repairs.append("arithmetic")
    mode: Literal["agg", "disagg"] = "disagg" if record["mode"] == "disagg" else "agg"
    total = _concurrency(source)
    shape = prefill = decode = None
    left_out = ""
    concurrency = total
    if mode == "agg":
        shape, fixes, left_out = _agg_shape(record, source, model, total)
        repairs += fixes
        concurrency = shape.batch * shape.dp if "attention_dp" not in fixes else total or shape.batch
    else:
        prefill, decode = (_worker(record, phase) for phase in ("prefill", "decode"))
        if prefill is None or decode is None:
            left_out = "the worker shapes of the disaggregated run are not stated"
        elif not concurrency:
            concurrency = decode.batch * decode.dp * decode.replicas
    return ServingRow(
        id=str(record["id"]),
        source=source,
        backend=str(record["backend"]),
        version=_text(record.get("backend_version")),
        model=model,
        named=named,
        system=str(record["system"]),
        precision=precision,
        gemm=_text(record.get("gemm_quant_mode")),
        moe=_text(record.get("moe_quant_mode")),
        mode=mode,
        isl=int(record["isl"]),
        osl=int(record["osl"]),
        concurrency=concurrency,
        shape=shape,
        prefill=prefill,
        decode=decode,
        ttft_s=float(record["silicon_ttft_ms"]) / 1e3,
        tpot_s=float(record["silicon_tpot_ms"]) / 1e3,
        client="aiperf" if "/data/" in source else "inferencemax",
        repairs=tuple(repairs),
        left_out=left_out,
    )


def _agg_shape(record: dict[Any, Any], source: str, model: str, total: int) -> tuple[Shape, list[str], str]:
    """Return the shape, the repairs made, and why the run is left out (or nothing)."""
    fixes: list[str] = []
    degrees = ("tp_size", "pp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")
    if any(record[name] == 0 for name in degrees):
        fixes.append("zero")
    tp, pp, dp, moe_tp, ep = (_degree(record[name]) for name in degrees)
    batch = _degree(record["batch_size"])
    if str(record["system"]) == "gb200" and tp * dp >= 3 * _GB200_NODE and ep * moe_tp == tp * dp:
        # agg runs on this rack never span nodes: they are all of one node's tp 1, 2, 4 or 8
        return (
            Shape(tp, pp, dp, moe_tp, ep, batch=batch),
            ["disaggregated"],
            ("a disaggregated run whose worker shapes are not stated, labelled as aggregated"),
        )
    if model in DENSE:
        return Shape(tp, pp, dp, tp * dp, 1, batch=batch), fixes, ""
    swapped = any(f"source_file={dump}" in source or source.startswith(dump) for dump in _SWAPPED)
    if swapped and ep > 1:
        tp, dp, moe_tp, ep = _unswapped(tp, moe_tp, ep)
        fixes.append("parallelism")
        if total and dp > 1 and batch * dp != total:
            batch = math.ceil(total / dp)
            fixes.append("batch")
    if moe_tp * ep > tp * dp and _missing(record["attention_dp_size"]) and (moe_tp * ep) % tp == 0:
        dp = moe_tp * ep // tp
        fixes.append("attention_dp")
    if moe_tp * ep != tp * dp:
        return Shape(tp, pp, dp, moe_tp, ep, batch=batch), fixes, "tp * dp is not moe_tp * moe_ep"
    return Shape(tp, pp, dp, moe_tp, ep, batch=batch), fixes, ""


def _unswapped(tp: int, moe_tp: int, ep: int) -> tuple[int, int, int, int]:
    """Return (tp, dp, moe_tp, ep) of R1.

    >>> _unswapped(64, 8, 8), _unswapped(1, 8, 8), _unswapped(4, 1, 16)
    ((8, 1, 1, 8), (1, 8, 1, 8), (1, 4, 1, 4))
    """
    if moe_tp == 1:
        n = math.isqrt(ep)
        return 1, n, 1, n
    return (ep, 1, 1, ep) if tp > 1 else (1, ep, 1, ep)


def _worker(record: dict[Any, Any], phase: str) -> Shape | None:
    names = (
        "tp_size",
        "pp_size",
        "attention_dp_size",
        "moe_tp_size",
        "moe_ep_size",
        "num_workers",
        "batch_size",
    )
    values = [record.get(f"{phase}_{name}") for name in names]
    if any(_missing(values[index]) for index in (0, 5, 6)):
        return None
    tp, pp, dp, moe_tp, ep, workers, batch = (_degree(value) for value in values)
    return Shape(tp, pp, dp, moe_tp, ep, workers, batch)


def _mark_duplicates(rows: list[ServingRow]) -> list[ServingRow]:
    """Mark copies: same run by its key, TTFT and TPOT equal to the rounding of the rounded dumps."""
    first: dict[tuple[Any, ...], list[ServingRow]] = defaultdict(list)
    marked = []
    for row in rows:
        key = (row.model, row.system, row.backend, row.mode, row.isl, row.osl, _total(row))
        for other in first[key]:
            close = abs(row.ttft_s - other.ttft_s) <= _ROUNDED_MS / 1e3
            if close and abs(row.tpot_s - other.tpot_s) <= _ROUNDED_MS / 1e3:
                marked.append(replace(row, duplicate_of=other.id))
                break
        else:
            first[key].append(row)
            marked.append(row)
    return marked


def _total(row: ServingRow) -> int:
    return _concurrency(row.source) or row.concurrency


def _concurrency(source: str) -> int:
    found = re.search(r"silicon_concurrency=(\d+)", source)
    return int(found.group(1)) if found else 0


def _degree(value: Any) -> int:
    return 1 if _missing(value) or int(value) == 0 else int(value)


def _missing(value: Any) -> bool:
    """Return whether a cell of the file is empty."""
    return value is None or value != value  # noqa: PLR0124 - only NaN differs from itself


def _text(value: Any) -> str:
    return "" if value is None or _missing(value) else str(value)
