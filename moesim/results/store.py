"""Store: a run as a folder. ``manifest.json``, ``timing.json`` and one parquet file per table."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moesim.errors import SpecError
from moesim.results.tables import TABLES, Result, Tables, conform

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FORMAT", "read_result", "write_result"]

FORMAT = 1
_CLOCK = ("wall_s", "timing")
_ARROW = {"int64": pa.int64(), "float64": pa.float64(), "object": pa.string(), "bool": pa.bool_()}


def write_result(result: Result, folder: Path) -> Path:
    """Write a run to ``folder``: whole or not at all. An earlier run in the same place is replaced.

    Equal results give equal bytes in every file but ``timing.json``, which holds what the wall clock said.

    Returns
    -------
    folder

    Raises
    ------
    SpecError : the folder holds something that is no run, cannot be written, or a table is not as declared
    """
    if folder.exists() and not _is_run(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise SpecError(f"{folder}: holds something that is not a run; name another folder")
    manifest = {"format": FORMAT, **{k: v for k, v in result.manifest.items() if k not in _CLOCK}}
    timing = {k: v for k, v in result.manifest.items() if k in _CLOCK}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as work:
            fresh = Path(work) / "run"
            fresh.mkdir()
            for name in TABLES:
                _write_table(name, getattr(result.tables, name), fresh / f"{name}.parquet")
            (fresh / "timing.json").write_text(_json(timing), encoding="utf-8")
            (fresh / "manifest.json").write_text(_json(manifest), encoding="utf-8")
            if folder.exists():
                folder.rename(Path(work) / "old")
            fresh.rename(folder)
    except OSError as error:
        raise SpecError(f"{folder}: cannot be written: {error.strerror or error}") from None
    return folder


def read_result(folder: Path) -> Result:
    """Read a run that ``write_result`` wrote.

    Raises
    ------
    SpecError : no such folder, a file is missing or damaged, a column is not as declared, or the format is
        another
    """
    if not folder.is_dir():
        raise SpecError(f"{folder}: no such run folder")
    manifest = _read_json(folder / "manifest.json")
    found = manifest.pop("format", None)
    if found != FORMAT:
        raise SpecError(f"{folder / 'manifest.json'}  format  {found!r}: expected {FORMAT}")
    if not isinstance(manifest.get("scenario"), dict):
        raise SpecError(f"{folder / 'manifest.json'}  scenario: expected a mapping")
    if (folder / "timing.json").is_file():
        manifest |= _read_json(folder / "timing.json")
    tables = {}
    for name in TABLES:
        path = folder / f"{name}.parquet"
        if not path.is_file():
            raise SpecError(f"{path}: expected a table of the run, the file is missing")
        try:
            frame = pq.read_table(path).to_pandas()
        except (pa.ArrowException, OSError) as error:
            raise SpecError(f"{path}: expected a parquet file: {str(error).splitlines()[0]}") from None
        try:
            tables[name] = conform(name, frame)
        except SpecError as error:
            raise SpecError(f"{path}: {error}") from None
    return Result(manifest, Tables(**tables))


def _write_table(name: str, frame: pd.DataFrame, path: Path) -> None:
    table = conform(name, frame)
    schema = pa.schema(
        [pa.field(c.name, _ARROW[c.dtype], metadata={"meaning": c.meaning}) for c in TABLES[name]]
    )
    # column by column: pandas metadata would tie the bytes to the pandas release
    arrays = [pa.array(table[c.name].to_numpy(), type=_ARROW[c.dtype]) for c in TABLES[name]]
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), path, compression="zstd")


def _is_run(folder: Path) -> bool:
    return (folder / "manifest.json").is_file()


def _json(data: dict[str, Any]) -> str:
    return json.dumps(_plain(data, ""), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any, path: str) -> Any:
    """Return ``value`` as JSON data; what is not JSON is an error with its path."""
    if isinstance(value, dict):
        return {str(k): _plain(v, f"{path}.{k}" if path else str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, f"{path}.{i}") for i, v in enumerate(value)]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise SpecError(f"manifest  {path}  {value}: expected a finite number")
        return value
    raise SpecError(f"manifest  {path}: expected JSON data, found {type(value).__name__}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"{path}: expected a file of the run, it is missing") from None
    except json.JSONDecodeError as error:
        raise SpecError(f"{path}:{error.lineno}: expected JSON: {error.msg}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise SpecError(f"{path}: expected a mapping")
    return data
