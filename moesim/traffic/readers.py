"""Readers: recorded traces (Azure, Mooncake, generic CSV, JSON lines and parquet) to arrays."""

from __future__ import annotations

import csv
import gzip
import json
import os
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
import numpy.typing as npt
import pandas as pd

from moesim.errors import DataMissing, Problem, SpecError
from moesim.spec.traffic import TraceColumns, TraceFile

__all__ = ["MAX_LINE_BYTES", "Trace", "read_trace"]

Row = tuple[int, Mapping[str, Any]]

MAX_LINE_BYTES = 2**20
_MAX_TOKENS = 2**31 - 1
_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_AZURE = TraceColumns(arrival="TIMESTAMP", input="ContextTokens", output="GeneratedTokens")
_MOONCAKE = TraceColumns(arrival="timestamp", input="input_length", output="output_length", blocks="hash_ids")


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """A trace in memory, in the file's order.

    Attributes
    ----------
    arrival_s : [n] float64, seconds since the first kept row, not falling
    input_tokens, output_tokens : [n] int64, at least 1
    session : [n] int64, -1 for none
    priority : [n] int64, 0 without the column
    block_offset : [n + 1] int64
    block_hash : [total] int64 ids 0..U-1 by first appearance; empty without the column
    block_tokens : tokens per block, 0 without blocks
    read : rows in the file (up to the limit), blank lines not counted
    dropped : reason -> rows left out
    """

    arrival_s: npt.NDArray[np.float64]
    input_tokens: npt.NDArray[np.int64]
    output_tokens: npt.NDArray[np.int64]
    session: npt.NDArray[np.int64]
    priority: npt.NDArray[np.int64]
    block_offset: npt.NDArray[np.int64]
    block_hash: npt.NDArray[np.int64]
    block_tokens: int
    read: int
    dropped: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def summary(self) -> str:
        """Return one line with the counts of rows read, kept and dropped."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items())
        return f"{self.read} rows read, {len(self)} kept" + (f", dropped: {reasons}" if reasons else "")


def read_trace(trace: TraceFile, beside: Path | None = None) -> Trace:
    """Read a recorded trace.

    Rows without work (0 input or 0 output tokens: failed or cancelled requests) are left out and counted.
    Every other oddity is refused with its file, line, column and value: nothing is repaired. The last few
    traces are kept in memory while their files do not change.

    Parameters
    ----------
    trace : format, path, columns, limit
    beside : the file that named the trace; a relative path is looked up there first

    Raises
    ------
    DataMissing : there is no such file
    SpecError : a missing column, a value that is no whole number of tokens or no time, times that go back, a
        line longer than 1 MiB, more blocks than the prompt fills, or no usable row at all
    """
    path = _locate(trace.path, beside)
    state = path.stat()
    return _read(trace, path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=4)
def _read(trace: TraceFile, path: Path, modified: int, size: int) -> Trace:  # noqa: ARG001 - cache key
    columns = {"azure": _AZURE, "mooncake": _MOONCAKE}.get(trace.format) or trace.columns or TraceColumns()
    block_tokens = (trace.block_tokens or 512) if trace.format == "mooncake" else trace.block_tokens or 0
    unit = {"azure": "iso", "mooncake": "ms"}.get(trace.format, trace.arrival_unit)
    sink = _Sink(str(path), columns, unit, block_tokens)
    for line, row in _rows(path, trace, columns):
        sink.add(line, row)
        if sink.read == trace.limit:
            break
    return sink.finish()


def _locate(text: str, beside: Path | None) -> Path:
    path = Path(os.path.expandvars(text)).expanduser()
    folders = ([beside.parent] if beside is not None else []) + [Path.cwd()]
    for folder in folders:
        if (folder / path).is_file():
            return folder / path
    raise DataMissing(f"{text}: no such trace file (looked in {', '.join(str(f) for f in folders)})")


def _rows(path: Path, trace: TraceFile, columns: TraceColumns) -> Iterator[Row]:
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if trace.format == "mooncake" or suffix in {".jsonl", ".ndjson", ".json"}:
        return _json_rows(path)
    if trace.format == "azure" or suffix in {".csv", ".tsv", ".txt"}:
        return _csv_rows(path, columns, "\t" if suffix == ".tsv" else ",")
    if suffix in {".parquet", ".pq"}:
        return _parquet_rows(path, columns)
    raise SpecError(Problem(str(path), 0, "", "", "expected .csv, .tsv, .jsonl or .parquet (.gz allowed)"))


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file  # type: ignore[misc]
    except (OSError, EOFError, zlib.error) as error:
        raise SpecError(Problem(str(path), 0, "", "", f"cannot be read: {error}")) from None


def _lines(path: Path, file: IO[bytes]) -> Iterator[tuple[int, str]]:
    """Yield (line number, text), never holding more than one bounded line."""
    number = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > MAX_LINE_BYTES:
            raise SpecError(Problem(str(path), number, "", "", "expected lines of at most 1 MiB"))
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise SpecError(
                Problem(str(path), number, "", "", f"expected UTF-8 text ({error.reason})")
            ) from None
        if text:
            yield number, text


def _csv_rows(path: Path, columns: TraceColumns, separator: str) -> Iterator[Row]:
    if columns.blocks is not None:
        raise SpecError(f"{path}: block hashes are read from JSON lines or parquet, not from CSV")
    with _opened(path) as file:
        lines = _lines(path, file)
        header = next(lines, None)
        if header is None:
            raise SpecError(Problem(str(path), 0, "", "", "expected a header line, the file is empty"))
        names = [name.strip() for name in next(csv.reader([header[1]], delimiter=separator))]
        _check_columns(path, header[0], names, columns)
        for number, text in lines:
            values = text.split(separator) if '"' not in text else _unquoted(path, number, text, separator)
            if len(values) != len(names):
                what = f"expected {len(names)} fields as in the header, found {len(values)}"
                raise SpecError(Problem(str(path), number, "", _short(text), what))
            yield number, dict(zip(names, values, strict=True))


def _unquoted(path: Path, number: int, text: str, separator: str) -> list[str]:
    try:
        return next(csv.reader([text], delimiter=separator, strict=True))
    except csv.Error as error:
        raise SpecError(Problem(str(path), number, "", _short(text), f"expected CSV: {error}")) from None


def _json_rows(path: Path) -> Iterator[Row]:
    with _opened(path) as file:
        for number, text in _lines(path, file):
            try:
                row = json.loads(text)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                what = "expected one JSON object per line"
                raise SpecError(Problem(str(path), number, "", _short(text), what))
            yield number, row


def _parquet_rows(path: Path, columns: TraceColumns) -> Iterator[Row]:
    from pyarrow import ArrowException  # noqa: PLC0415 - 0.2 s, paid only for parquet
    from pyarrow.parquet import ParquetFile  # noqa: PLC0415

    try:
        file = ParquetFile(path)
        _check_columns(path, 0, file.schema_arrow.names, columns)
        number = 0
        for batch in file.iter_batches(columns=_wanted(columns)):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (ArrowException, OSError) as error:
        raise SpecError(
            Problem(str(path), 0, "", "", f"expected parquet: {str(error).splitlines()[0]}")
        ) from None


def _wanted(columns: TraceColumns) -> list[str]:
    names = (
        columns.arrival,
        columns.input,
        columns.output,
        columns.session,
        columns.priority,
        columns.blocks,
    )
    return [name for name in names if name is not None]


def _check_columns(path: Path, line: int, names: Sequence[str], columns: TraceColumns) -> None:
    for name in _wanted(columns):
        if name not in names:
            have = _short(", ".join(names))
            raise SpecError(Problem(str(path), line, name, "", f"no such column, the file has: {have}"))


def _short(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _integer(value: Any) -> int | None:
    """Return ``value`` as an integer if it is one, also as text (``'12'``, ``'12.0'``), else None."""
    if type(value) is int:
        return value
    try:
        number = float(value) if not isinstance(value, bool) else float("nan")
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() else None


@dataclass(slots=True)
class _Sink:
    """Checks rows one by one and keeps them in compact arrays."""

    where: str
    columns: TraceColumns
    unit: str
    block_tokens: int
    read: int = 0
    last: float = 0.0
    origin: datetime | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    times: array[float] = field(default_factory=lambda: array("d"))
    tokens: array[int] = field(default_factory=lambda: array("q"))
    labels: array[int] = field(default_factory=lambda: array("q"))
    counts: array[int] = field(default_factory=lambda: array("q"))
    blocks: array[int] = field(default_factory=lambda: array("q"))

    def add(self, line: int, row: Mapping[str, Any]) -> None:
        names = self.columns
        when = self._time(line, row)
        if self.read and when < self.last:
            what = f"expected times in order, the row before is {self.last - when:g} s later (sort the file)"
            self._bad(line, names.arrival, row[names.arrival], what)
        self.read += 1
        self.last = when
        inputs = self._whole(line, row, names.input, 0, _MAX_TOKENS, "tokens")
        outputs = self._whole(line, row, names.output, 0, _MAX_TOKENS, "tokens")
        session = (
            -1 if names.session is None else self._whole(line, row, names.session, -1, _MAX_TOKENS, "an id")
        )
        priority = (
            0
            if names.priority is None
            else self._whole(line, row, names.priority, -(2**15), 2**15 - 1, "a class")
        )
        blocks = self._hashes(line, row, inputs)
        if inputs == 0 or outputs == 0:
            reason = f"without {'input' if inputs == 0 else 'output'} tokens"
            self.dropped[reason] = self.dropped.get(reason, 0) + 1
            return
        self.times.append(when)
        self.tokens.extend((inputs, outputs))
        self.labels.extend((session, priority))
        self.counts.append(len(blocks))
        self.blocks.extend(blocks)

    def finish(self) -> Trace:
        """Return the arrays; a trace without a usable row is an error, not an empty run."""
        if not self.times:
            raise SpecError(
                Problem(
                    self.where,
                    0,
                    "",
                    "",
                    f"expected at least one request, {self.read} rows read"
                    f", dropped: {self.dropped or 'none'}",
                )
            )
        times = np.array(self.times)
        tokens = np.array(self.tokens).reshape(-1, 2)
        labels = np.array(self.labels).reshape(-1, 2)
        hashes = pd.factorize(np.array(self.blocks))[0].astype(np.int64)
        offset = np.concatenate([[0], np.cumsum(np.array(self.counts))])
        return Trace(
            times - times[0], tokens[:, 0], tokens[:, 1], labels[:, 0], labels[:, 1], offset, hashes,
            self.block_tokens if self.columns.blocks is not None else 0, self.read, self.dropped,
        )  # fmt: skip

    def _time(self, line: int, row: Mapping[str, Any]) -> float:
        name = self.columns.arrival
        value = row.get(name)
        if self.unit == "iso":
            return self._date(line, name, value)
        try:
            number = float(value) if not isinstance(value, bool) else np.nan  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = np.nan
        if not np.isfinite(number) or number < 0:
            self._bad(line, name, value, f"expected a time in {self.unit}, not negative")
        return number * _UNITS[self.unit]

    def _date(self, line: int, name: str, value: Any) -> float:
        try:
            moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        except (TypeError, ValueError):
            self._bad(line, name, value, "expected a date and time such as 2023-11-16 18:15:46.68")
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        self.origin = self.origin or moment
        return (moment - self.origin).total_seconds()

    def _whole(self, line: int, row: Mapping[str, Any], name: str, low: int, high: int, noun: str) -> int:
        value = row.get(name)
        number = _integer(value)
        if number is None or not low <= number <= high:
            bounds = f"at least {low}" if number is None or number < low else f"at most {high}"
            self._bad(line, name, value, f"expected {noun} as a whole number, {bounds}")
        return number

    def _hashes(self, line: int, row: Mapping[str, Any], inputs: int) -> Sequence[int]:
        name = self.columns.blocks
        if name is None:
            return ()
        value = row.get(name)
        if not isinstance(value, list) or not all(type(x) is int and 0 <= x < 2**63 for x in value):
            self._bad(line, name, value, "expected a list of whole numbers, not negative")
        filled = -(-inputs // self.block_tokens)
        if len(value) > filled:
            what = f"{len(value)} blocks of {self.block_tokens} tokens are more than {inputs} tokens fill"
            self._bad(line, name, None, what)
        return value

    def _bad(self, line: int, name: str, value: Any, expected: str) -> NoReturn:
        shown = "missing" if value is None else _short(repr(value))
        raise SpecError(Problem(self.where, line, name, shown, expected))
