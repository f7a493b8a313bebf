"""Tables: measurements of your own in CSV, TSV or parquet, with a mapping of columns and units.

A mapping names, for each of our columns, theirs: ``{"m": "M", "seconds": "latency [ms]"}``. The unit of a time stands
in the header (``time (us)``, ``time [us]``, ``time_us``) or behind the name in the mapping; a time without a unit is
refused. Columns that already carry our names need no mapping. What holds for every row is a constant:
``{"op": "gemm", "dtype": "bf16"}``.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from moesim.calibrate.profiles.events import opened_text, shorten
from moesim.calibrate.profiles.frame import DIMS, Call, ProfileImport, Samples
from moesim.calibrate.profiles.torch_ops import value_type
from moesim.calibrate.profiles.work import NEEDED
from moesim.errors import Problem, SpecError
from moesim.files import nearest
from moesim.units import parse_quantity

__all__ = ["TEXTS", "read_table"]

TEXTS = ("op", "kernel", "dtype", "variant", "device")
_NAMES = (*TEXTS, *DIMS, "seconds", "count")
_OURS = {"fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "fp8_block", "int8", "bytes"}
_IN_NAME = re.compile(
    r"^(?P<name>.*?)\s*[\[(]\s*(?P<unit>[A-Za-zµ]+)\s*[\])]$|^(?P<n2>.*)_(?P<u2>ns|us|ms|s)$"
)
_TIMES = {"time", "latency", "duration", "seconds"}
_MAX_ROWS = 10_000_000
_LINE = 2**20

Row = tuple[int, Sequence[Any]]


@dataclass(frozen=True, slots=True)
class _Column:
    """Where one of our columns stands: index in the row, header, factor to SI."""

    index: int
    header: str
    factor: float = 1.0


def read_table(
    path: Path,
    *,
    device: str | None = None,
    columns: Mapping[str, str] | None = None,
    constants: Mapping[str, str] | None = None,
) -> ProfileImport:
    """Read one table.

    Parameters
    ----------
    path : ``.csv``, ``.tsv`` (``.gz`` allowed) or ``.parquet``
    device : catalog name for rows without a device
    columns : our column -> theirs, with a unit behind it where their header has none
    constants : our text column -> the value of every row

    Raises
    ------
    SpecError : unknown names in the mapping, a missing column or unit, a cell that is no number, two units that
        contradict each other, or no usable row
    """
    where = str(path)
    mapping, fixed = dict(columns or {}), dict(constants or {})
    for what, given, allowed in (("columns", mapping, _NAMES), ("constants", fixed, TEXTS)):
        for name in given:
            if name not in allowed:
                hint = f"expected one of {', '.join(allowed)}{nearest(name, allowed)}"
                raise SpecError(Problem(where, 0, f"{what}.{name}", "", hint))
    parquet = path.suffix.lower() in {".parquet", ".pq"}
    header, rows = _parquet(path, where) if parquet else _csv(path, where)
    places = _places(header, mapping, fixed, where)
    samples = Samples(where)
    for count, (line, cells) in enumerate(rows, 1):
        if count > _MAX_ROWS:
            raise SpecError(Problem(where, line, "", "", f"expected at most {_MAX_ROWS} rows"))
        _take(_Cells(where, line, cells, places, fixed), device, samples)
    return samples.finish("table")


def _take(row: _Cells, device: str | None, samples: Samples) -> None:
    op, seconds = row.text("op"), row.seconds()
    needed = NEEDED.get(op)
    if needed is None:
        samples.drop(f"op {shorten(op, 30)!r} is no op of ours{nearest(op, NEEDED)}")
        return
    dtype = _dtype(row.text("dtype"), op)
    dims = tuple((name, size) for name in DIMS if (size := row.whole(name)) is not None)
    missing = [name for name in needed if name not in dict(dims)]
    if dtype is None:
        samples.drop(f"dtype {shorten(row.text('dtype'), 30)!r} is no type of ours")
    elif missing:
        samples.drop(f"{op} without {missing[0]}")
    elif seconds is None:
        samples.drop("no positive time")
    else:
        calls = row.whole("count")
        place = row.text("device") or device or ""
        call = Call(op, dtype, dims, row.text("variant"))
        samples.add(call, row.text("kernel"), place, seconds, calls=1 if calls is None else calls)


def _dtype(text: str, op: str) -> str | None:
    if not text and op in {"copy", "transfer", "all_reduce", "all_gather", "reduce_scatter", "all_to_all"}:
        return "bytes"
    if text in _OURS:
        return text
    found = value_type(text.removeprefix("torch."))
    return found[0] if found and found[0] in _OURS else None


class _Cells:
    """One row by our names."""

    def __init__(
        self,
        where: str,
        line: int,
        cells: Sequence[Any],
        places: Mapping[str, _Column],
        fixed: Mapping[str, str],
    ) -> None:
        self.where, self.line, self.cells, self.places, self.fixed = where, line, cells, places, fixed

    def _raw(self, name: str) -> Any:
        place = self.places.get(name)
        value = None if place is None else self.cells[place.index]
        return None if value is None or (isinstance(value, str) and not value.strip()) else value

    def text(self, name: str) -> str:
        value = self._raw(name)
        return self.fixed.get(name, "") if value is None else str(value).strip()

    def _float(self, name: str) -> float | None:
        value = self._raw(name)
        if value is None:
            return None
        try:
            return (
                float(value) if not isinstance(value, bool) else self._bad(name, value, "expected a number")
            )
        except (TypeError, ValueError):
            self._bad(name, value, "expected a number")

    def whole(self, name: str) -> int | None:
        number = self._float(name)
        if number is None or math.isnan(number):
            return None
        number *= self.places[name].factor
        if not number.is_integer() or number < 1:
            self._bad(name, self._raw(name), "expected a whole number, at least 1")
        return int(number)

    def seconds(self) -> float | None:
        """Return the time, None where there is none that is positive."""
        number = self._float("seconds")
        if number is None or not 0 < number < math.inf:
            return None
        return number * self.places["seconds"].factor

    def _bad(self, name: str, value: object, expected: str) -> NoReturn:
        raise SpecError(Problem(self.where, self.line, self.places[name].header, shorten(value), expected))


def _split(header: str) -> tuple[str, str]:
    """Return (name, unit) of a header, unit empty where there is none.

    >>> _split("latency (ms)"), _split("time_us"), _split("m")
    (('latency', 'ms'), ('time', 'us'), ('m', ''))
    """
    match = _IN_NAME.match(header)
    if match is None:
        return header, ""
    return (match["name"] or match["n2"] or "").strip(), match["unit"] or match["u2"]


def _places(
    header: Sequence[str], mapping: Mapping[str, str], fixed: Mapping[str, str], where: str
) -> dict[str, _Column]:
    found: dict[str, _Column] = {}
    for name in _NAMES:
        wanted = mapping.get(name)
        if wanted is not None:
            found[name] = _mapped(header, name, wanted, where)
        elif name in header and not (name == "seconds" and "seconds_median" in header):
            found[name] = _Column(header.index(name), name)
        elif name == "seconds":
            found[name] = _time(header, where)
    if "op" not in found and "op" not in fixed:
        have = shorten(", ".join(header))
        what = f"expected a column or a constant that names the op ({', '.join(NEEDED)})"
        raise SpecError(Problem(where, 1, "op", have, what))
    return found


def _time(header: Sequence[str], where: str) -> _Column:
    if "seconds_median" in header:
        return _Column(header.index("seconds_median"), "seconds_median")
    candidates = [h for h in header if _split(h)[0].lower() in _TIMES and _split(h)[1]]
    if len(candidates) == 1:
        return _Column(
            header.index(candidates[0]), candidates[0], _factor(_split(candidates[0])[1], "s", where)
        )
    have = shorten(", ".join(header))
    what = "expected one column of times with a unit, such as 'time_us', or a mapping such as seconds='latency [ms]'"
    raise SpecError(Problem(where, 1, "seconds", have, what))


def _mapped(header: Sequence[str], name: str, wanted: str, where: str) -> _Column:
    bare, unit = (wanted, "") if wanted in header else _split(wanted)
    if bare not in header:
        have = shorten(", ".join(header))
        raise SpecError(Problem(where, 1, name, shorten(wanted), f"no such column, the file has: {have}"))
    target = {"seconds": "s", "size": "B"}.get(name)
    own = _split(bare)[1] if target else ""
    if unit and own and unit != own:
        raise SpecError(Problem(where, 1, name, wanted, f"expected one unit, the header says {own}"))
    if target is None and unit:
        raise SpecError(Problem(where, 1, name, wanted, "expected no unit: this is a count or a word"))
    chosen = unit or own or ("s" if name == "seconds" and bare == "seconds" else "")
    if name == "seconds" and not chosen:
        what = f"expected a unit of time, such as '{bare} [us]'"
        raise SpecError(Problem(where, 1, name, wanted, what))
    factor = _factor(chosen, target, where) if target and chosen else 1.0
    return _Column(header.index(bare), bare, factor)


def _factor(unit: str, target: str, where: str) -> float:
    try:
        return parse_quantity(f"1 {unit}", target)
    except ValueError:
        what = {"s": "a unit of time, such as us", "B": "a unit of bytes, such as KiB"}[target]
        raise SpecError(Problem(where, 1, "", unit, f"expected {what}")) from None


def _csv(path: Path, where: str) -> tuple[list[str], Iterator[Row]]:
    rows = _csv_rows(path, where)
    first = next(rows, None)
    if first is None:
        raise SpecError(Problem(where, 0, "", "", "expected a header line, the file is empty"))
    header = [str(name).strip() for name in first[1]]
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise SpecError(Problem(where, 1, twice, "", "expected each column once"))
    return header, _same_width(rows, len(header), where)


def _same_width(rows: Iterator[Row], width: int, where: str) -> Iterator[Row]:
    for line, cells in rows:
        if len(cells) != width:
            what = f"expected {width} fields as in the header, found {len(cells)}"
            raise SpecError(Problem(where, line, "", shorten(",".join(cells)), what))
        yield line, cells


def _csv_rows(path: Path, where: str) -> Iterator[Row]:
    name = path.name.lower().removesuffix(".gz")
    separator = "\t" if name.endswith(".tsv") else ","
    with opened_text(path, where) as file:
        number = 0
        while text := file.readline(_LINE):
            number += 1
            if len(text) >= _LINE:
                raise SpecError(Problem(where, number, "", "", "expected lines of at most 1 MiB"))
            if text.strip() and not text.startswith("#"):
                yield number, next(csv.reader([text.rstrip("\r\n")], delimiter=separator))


def _parquet(path: Path, where: str) -> tuple[list[str], Iterator[Row]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
    except FileNotFoundError:
        raise SpecError(Problem(where, 0, "", "", "no such file")) from None
    except (ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise SpecError(Problem(where, 0, "", "", f"expected parquet: {reason}")) from None

    def rows() -> Iterator[Row]:
        number = 0
        for batch in file.iter_batches():
            for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                number += 1
                yield number, cells

    return list(file.schema_arrow.names), rows()
