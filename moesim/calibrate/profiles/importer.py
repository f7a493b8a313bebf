"""Importer: one function for every kind of profile; the kind is told from the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from moesim.calibrate.profiles.events import opened_text
from moesim.calibrate.profiles.frame import ProfileImport
from moesim.calibrate.profiles.kineto import read_kineto
from moesim.calibrate.profiles.measured import is_measured, read_measured
from moesim.calibrate.profiles.nsight import is_nsight_header, read_nsight
from moesim.calibrate.profiles.serving import looks_like_serving, read_serving
from moesim.calibrate.profiles.tables import read_table
from moesim.errors import Problem, SpecError
from moesim.files import find, nearest

__all__ = ["KINDS", "Kind", "import_profile"]

Kind = Literal["measured", "kineto", "nsight", "table", "serving"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_SNIFFED = 2**18


def import_profile(
    path: str | Path,
    kind: Kind | Literal["auto"] = "auto",
    *,
    device: str | None = None,
    columns: Mapping[str, str] | None = None,
    constants: Mapping[str, str] | None = None,
) -> ProfileImport:
    """Read one file of measurements; see the package for the schema.

    Parameters
    ----------
    path : the file; ``.gz`` is unpacked on the way. What ``calibrate measure`` wrote is a folder
    kind : one of ``KINDS``, or ``auto``: told from the name and the first lines
    device : device of the catalog that was measured: its datasheet bounds the rows. Traces that name a device of the
        catalog need none
    columns, constants : for tables: our column -> theirs (with a unit), our column -> value of every row

    Raises
    ------
    SpecError : the file, its kind, the device or a value in it is wrong: file, line, field, value, expectation
    """
    path = Path(path)
    if kind != "auto" and kind not in KINDS:
        raise SpecError(f"kind {kind!r}: expected auto or one of {', '.join(KINDS)}{nearest(kind, KINDS)}")
    if device is not None:
        find(device, "device")
        if device.endswith((".yaml", ".yml")):
            raise SpecError(f"device {device}: expected a name of the catalog (moesim list devices)")
    chosen = _kind(path) if kind == "auto" else kind
    if chosen != "table" and (columns or constants):
        raise SpecError(f"{path}: columns and constants are for tables, this is {chosen}")
    if chosen == "kineto":
        return read_kineto(path, device=device)
    if chosen == "nsight":
        return read_nsight(path, device=device)
    if chosen == "serving":
        return read_serving(path)
    if chosen == "measured":
        return read_measured(path, device=device)
    return read_table(path, device=device, columns=columns, constants=constants)


def _kind(path: Path) -> Kind:
    where = str(path)
    if path.is_dir() or is_measured(path):
        return "measured"
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if suffix in {".parquet", ".pq"}:
        return "table"
    with opened_text(path, where) as file:
        head = file.read(_SNIFFED)
    if suffix in {".csv", ".tsv", ".txt"}:
        lines = head.splitlines()[:200]
        return "nsight" if any("Name" in line and is_nsight_header(line) for line in lines) else "table"
    if suffix in {".json", ".jsonl", ".ndjson", ".trace"}:
        if '"traceEvents"' in head or '"ph"' in head:
            return "kineto"
        if looks_like_serving(head):
            return "serving"
    what = (
        "expected a Kineto trace, Nsight CSV, a table (.csv, .parquet) or a serving result; or say --format"
    )
    raise SpecError(Problem(where, 0, "", "", what))
