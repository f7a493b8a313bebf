"""Record: one measured point, its columns, and the folder that keeps points while a suite runs."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from moesim.errors import Problem, SpecError
from moesim.files import write_atomic

__all__ = [
    "COLUMNS",
    "DIMS",
    "Measurement",
    "Point",
    "Status",
    "read_measurements",
    "read_point",
    "write_measurements",
    "write_point",
]

Status = Literal["ok", "wrong_result", "failed"]

DIMS: dict[str, str] = {
    "m": "rows of a product, or rows of a row-wise op",
    "n": "output width of a product",
    "k": "inner width of a product",
    "hidden": "model width",
    "inner": "width of one expert",
    "experts": "experts of the layer",
    "top_k": "experts per token",
    "tokens": "tokens routed",
    "distinct": "experts that got at least one token",
    "max_rows": "tokens of the busiest expert",
    "batch": "sequences",
    "length": "tokens in the cache, or of a prompt",
    "heads": "query heads",
    "kv_heads": "key and value heads",
    "head_dim": "width of a head",
    "page": "tokens per page of the cache",
    "group": "weights that share a scale",
    "size": "bytes copied, moved or read by one call",
    "ranks": "processes of a collective",
    "launches": "kernels started by one call",
}
"""Columns of sizes (integers, empty where an op has no such size)."""

_TEXT = ("op", "kernel", "device", "dtype", "variant", "timing", "status", "detail")
_FLOAT = (
    "seconds_median",
    "seconds_p10",
    "seconds_p90",
    "seconds_min",
    "flop",
    "bytes",
    "verified_max_error",
    "tolerance",
    "bound_s",
)
COLUMNS: dict[str, str] = {
    "op": "what was done: gemm, moe_ffn, decode_attention, copy, ...",
    "kernel": "by whom: torch, sdpa, triton, loop, gloo, nccl, os",
    "device": "cpu or cuda",
    "dtype": "type of the operands",
    "variant": "pinned or pageable, direction, kind of routing; empty where there is no choice",
    **DIMS,
    "seconds_median": "per call, over the repeats [s]",
    "seconds_p10": "10th percentile [s]",
    "seconds_p90": "90th percentile [s]",
    "seconds_min": "least [s]",
    "repeats": "timed blocks of calls",
    "flop": "operations of a call; a multiply-add is two",
    "bytes": "bytes that a call must read and write [B]",
    "verified_max_error": "largest error against float64, over the largest reference value; NaN: nothing to verify",
    "tolerance": "what rounding explains",
    "bound_s": "least time by the datasheet of a known device [s]; NaN: device unknown",
    "faster_than_bound": "the median is below bound_s: the point is wrong and no fit may use it",
    "timing": "monotonic, thread_cpu, events or graph",
    "status": "ok, wrong_result (not timed), failed (see detail)",
    "detail": "why a point failed",
}
"""Columns of ``measurements.parquet`` and what they mean."""

_TYPES = {
    **dict.fromkeys(_TEXT, pa.string()),
    **dict.fromkeys(_FLOAT, pa.float64()),
    **dict.fromkeys(DIMS, pa.int64()),
    "repeats": pa.int64(),
    "faster_than_bound": pa.bool_(),
}


@dataclass(frozen=True, slots=True)
class Point:
    """What to measure.

    Attributes
    ----------
    op, kernel, device, dtype, variant : as in ``COLUMNS``
    dims : sizes by name, each a key of ``DIMS``
    """

    op: str
    kernel: str
    device: str
    dtype: str
    dims: tuple[tuple[str, int], ...]
    variant: str = ""

    def __getitem__(self, dim: str) -> int:
        """Return one size."""
        return dict(self.dims)[dim]

    @property
    def key(self) -> str:
        """A name that equal points share, in any process."""
        text = json.dumps([self.op, self.kernel, self.device, self.dtype, sorted(self.dims), self.variant])
        return f"{self.op}-{self.kernel}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def __str__(self) -> str:
        sizes = " ".join(f"{name}={value}" for name, value in self.dims)
        return " ".join(part for part in (self.op, self.kernel, self.dtype, self.variant, sizes) if part)


@dataclass(frozen=True, slots=True)
class Measurement:
    """A measured point: one row of ``measurements.parquet``, columns as in ``COLUMNS``."""

    point: Point
    seconds_median: float
    seconds_p10: float
    seconds_p90: float
    seconds_min: float
    repeats: int
    flop: float
    bytes: float
    verified_max_error: float
    tolerance: float
    timing: str
    bound_s: float = math.nan
    status: Status = "ok"
    detail: str = ""

    @property
    def faster_than_bound(self) -> bool:
        """Whether the median beats what the datasheet allows."""
        return self.seconds_median < self.bound_s

    @classmethod
    def untimed(cls, point: Point, status: Status, detail: str, error: float = math.nan) -> Measurement:
        """Return the record of a point that has no time: a wrong result, or a failure."""
        lost = math.nan
        return cls(
            point, lost, lost, lost, lost, 0, lost, lost, error, lost, "", status=status, detail=detail
        )


def _row(measurement: Measurement) -> dict[str, Any]:
    fields = asdict(measurement)
    point = fields.pop("point")
    dims = dict(point.pop("dims"))
    flat = {**point, **fields, "faster_than_bound": measurement.faster_than_bound}
    return {name: dims.get(name) if name in DIMS else flat[name] for name in COLUMNS}


def _measurement(row: dict[str, Any]) -> Measurement:
    row = {name: math.nan if name in _FLOAT and value is None else value for name, value in row.items()}
    dims = tuple((name, int(row[name])) for name in DIMS if row[name] is not None)
    point = Point(row["op"], row["kernel"], row["device"], row["dtype"], dims, row["variant"])
    skip = {"op", "kernel", "device", "dtype", "variant", "faster_than_bound", *DIMS}
    return Measurement(point, **{name: row[name] for name in COLUMNS if name not in skip})


def write_measurements(path: Path, measurements: Sequence[Measurement]) -> None:
    """Write rows to parquet, whole or not at all; column order and types are those of ``COLUMNS``."""
    rows = [_row(m) for m in measurements]
    schema = pa.schema(
        [pa.field(name, _TYPES[name], metadata={"meaning": COLUMNS[name]}) for name in COLUMNS]
    )
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema), sink, compression="zstd")
    write_atomic(path, sink.getvalue().to_pybytes())


def read_measurements(path: Path) -> tuple[Measurement, ...]:
    """Read what ``write_measurements`` wrote.

    Raises
    ------
    SpecError : no such file, no parquet, or a column is missing
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise SpecError(Problem(str(path), 0, "", "", f"expected a parquet file: {reason}")) from None
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise SpecError(Problem(str(path), 0, missing[0], "", "expected this column of measurements"))
    return tuple(_measurement(row) for row in table.select(list(COLUMNS)).to_pylist())


def write_point(folder: Path, point: Point, measurement: Measurement) -> None:
    """Keep one finished point, so that an interrupted suite resumes after it.

    The file is named by the point as it was asked for; the record may know more sizes (distinct experts).
    """
    row = {name: None if value != value else value for name, value in _row(measurement).items()}  # noqa: PLR0124 - NaN
    write_atomic(folder / f"{point.key}.json", json.dumps(row))


def read_point(folder: Path, point: Point) -> Measurement | None:
    """Return the kept record of ``point``, or None when it has to be measured (again)."""
    try:
        row = json.loads((folder / f"{point.key}.json").read_text(encoding="utf-8"))
        return _measurement(row) if isinstance(row, dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
