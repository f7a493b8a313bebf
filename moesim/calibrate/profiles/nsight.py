"""Nsight: CSV that ``nsys stats`` writes for the reports ``cuda_gpu_trace`` and ``cuda_gpu_kern_sum``.

Columns of Nsight Systems 2022 to 2026: ``Start (ns)``, ``Duration (ns)``, ``Bytes (MB)``, ``SrcMemKd``, ``DstMemKd``,
``Device``, ``Name`` of the trace (one row per kernel or copy), and ``Total Time (ns)``, ``Instances``, ``Avg (ns)``,
``Med (ns)``, ``Min (ns)``, ``Name`` of the summary. Time units are read from the header (``--timeunit``). Lines that
the tool prints before and between reports are skipped.

Nsight knows no shapes. Copies have sizes and can be fitted; kernels become rows of class ``kernel:CLASS`` that show
where time goes.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from moesim.calibrate.measure.device import known_device
from moesim.calibrate.profiles.events import opened_text, shorten
from moesim.calibrate.profiles.frame import Call, ProfileImport, Samples
from moesim.calibrate.profiles.torch_ops import kernel_class, short_kernel
from moesim.errors import Problem, SpecError
from moesim.units import parse_quantity

__all__ = ["is_nsight_header", "read_nsight"]

_UNIT = re.compile(r"^(?P<name>[^(]*?)\s*\((?P<unit>[^)]*)\)$")
_UNITS = {"ns", "us", "ms", "s", "nsec", "usec", "msec", "sec"}
_LINE = 2**20
_ROUNDED = 0.1
"""Sizes have three decimals: below this many units the last one is more than half a percent."""
_DIRECTIONS = {
    ("Pinned", "Device"): ("transfer", "h2d-pinned"),
    ("Pageable", "Device"): ("transfer", "h2d-pageable"),
    ("Device", "Pinned"): ("transfer", "d2h-pinned"),
    ("Device", "Pageable"): ("transfer", "d2h-pageable"),
    ("Device", "Device"): ("copy", ""),
}


def is_nsight_header(line: str) -> bool:
    """Tell whether a line is the header of a report that can be read."""
    return _report(_names(line)) is not None


def _names(line: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line]), [])]


def _report(names: list[str]) -> str | None:
    bare = {_UNIT.sub(r"\g<name>", name) for name in names}
    if {"Start", "Duration", "CorrId", "Name"} <= bare:
        return "trace"
    if {"Total Time", "Instances", "Name"} <= bare:
        return "summary"
    return None


def read_nsight(path: Path, *, device: str | None = None) -> ProfileImport:
    """Read ``nsys stats --format csv`` output.

    Parameters
    ----------
    path : the file, ``.gz`` allowed
    device : catalog name; else the trace report's own device name is looked up

    Raises
    ------
    SpecError : no header of the two reports, a cell that is no number, or no record at all
    """
    where = str(path)
    samples = Samples(where)
    report = None
    header: list[str] = []
    with opened_text(path, where) as file:
        for line, text in _lines(file, where):
            found = _report(_names(text)) if "Name" in text else None
            if found:
                report, header = found, _names(text)
                continue
            if report is None:
                continue
            cells = next(csv.reader([text]))
            if len(cells) != len(header):
                if cells[0][:1].isdigit():
                    what = (
                        f"expected {len(header)} cells as in the header, found {len(cells)} (was it cut off?)"
                    )
                    raise SpecError(Problem(where, line, "", shorten(text), what))
                report = None  # the tool talks between two reports
                continue
            row = _Row(where, line, header, cells)
            (_trace_row if report == "trace" else _summary_row)(row, device, samples)
    if not header:
        what = "expected the header of cuda_gpu_trace or cuda_gpu_kern_sum (nsys stats --format csv)"
        raise SpecError(Problem(where, 0, "", "", what))
    return samples.finish("nsight", ("Nsight states no shapes: only copies have sizes",))


def _lines(file: Any, where: str) -> Iterator[tuple[int, str]]:
    number = 0
    while text := file.readline(_LINE):
        number += 1
        if len(text) >= _LINE:
            raise SpecError(Problem(where, number, "", "", "expected lines of at most 1 MiB"))
        if text := text.strip():
            yield number, text


class _Row:
    """One line, cells by the name of their column without its unit."""

    def __init__(self, where: str, line: int, header: list[str], cells: list[str]) -> None:
        self.where, self.line = where, line
        self.cells: dict[str, str] = {}
        self.units: dict[str, str] = {}
        for name, cell in zip(header, cells, strict=True):
            match = _UNIT.match(name)
            bare = match["name"] if match else name
            self.cells[bare], self.units[bare] = cell.strip(), match["unit"] if match else ""

    def number(self, name: str) -> float:
        try:
            return float(self.cells[name].replace(",", ""))
        except (KeyError, ValueError):
            self.bad(name, self.cells.get(name), "expected a number")

    def seconds(self, name: str) -> float:
        unit = self.units.get(name, "")
        if unit not in _UNITS:
            self.bad(name, unit, "expected a time unit in the header, such as 'Duration (ns)'")
        return self.number(name) * parse_quantity(f"1 {unit.replace('sec', 's')}", "s")

    def bad(self, name: str, value: str | None, expected: str) -> NoReturn:
        raise SpecError(Problem(self.where, self.line, name, shorten(value or "missing"), expected))


def _trace_row(row: _Row, device: str | None, samples: Samples) -> None:
    seconds, name = row.seconds("Duration"), row.cells["Name"]
    reported = re.sub(r"\s*\(\d+\)$", "", row.cells.get("Device", ""))
    spec = known_device(reported)
    place = device or (spec.name if spec else reported)
    if seconds <= 0:
        samples.drop("no positive time")
    elif "memset" in name.lower():
        samples.drop("memset")
    elif "memcpy" in name.lower():
        kinds = (row.cells.get("SrcMemKd", ""), row.cells.get("DstMemKd", ""))
        found = _DIRECTIONS.get(kinds)
        unit = row.units.get("Bytes", "")
        if unit not in {"B", "KB", "MB", "GB"}:
            row.bad("Bytes", unit, "expected a unit in the header, such as 'Bytes (MB)'")
        stated = row.number("Bytes")
        size = stated * parse_quantity(f"1 {unit.replace('K', 'k')}", "B")
        if found is None:
            samples.drop("a copy of another kind")
        elif unit != "B" and stated < _ROUNDED:
            samples.drop("a copy whose size is rounded away")
        else:
            call = Call(found[0], "bytes", (("size", round(size)),), found[1])
            samples.add(call, "memcpy", place, seconds)
    else:
        samples.add(Call(f"kernel:{kernel_class(name)}", "", ()), short_kernel(name), place, seconds)


def _summary_row(row: _Row, device: str | None, samples: Samples) -> None:
    column = "Med" if row.cells.get("Med") else "Avg"
    seconds, calls, name = row.seconds(column), row.number("Instances"), row.cells["Name"]
    if calls < 1 or calls != int(calls):
        row.bad("Instances", row.cells["Instances"], "expected a whole number, at least 1")
    if seconds <= 0:
        samples.drop("no positive time")
        return
    call = Call(f"kernel:{kernel_class(name)}", "", ())
    samples.add(call, short_kernel(name), device or "", seconds, calls=int(calls))
