"""Store: an import as one parquet file whose columns say what they mean, and its report inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from moesim.calibrate.profiles.frame import COLUMNS, ProfileImport
from moesim.calibrate.profiles.serving import RUN_COLUMNS
from moesim.errors import Problem, SpecError
from moesim.files import write_atomic
from moesim.version import __version__

__all__ = ["read_import", "write_import"]

_KEY = b"moesim_import"


def write_import(path: Path, imported: ProfileImport) -> None:
    """Write the rows (flags included) with ``ProfileImport.as_dict`` and moesim's version in the file's metadata.

    Raises
    ------
    SpecError : the file cannot be written
    """
    meanings = RUN_COLUMNS if imported.kind == "serving" else COLUMNS
    table = pa.Table.from_pandas(imported.frame, preserve_index=False)
    fields = [field.with_metadata({"meaning": meanings[field.name]}) for field in table.schema]
    report = json.dumps({**imported.as_dict(), "version": __version__})
    schema = pa.schema(fields, metadata={**(table.schema.metadata or {}), _KEY: report.encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(table.cast(schema), sink, compression="zstd")
    write_atomic(path, sink.getvalue().to_pybytes())


def read_import(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the rows and the report of a file that ``write_import`` wrote.

    Raises
    ------
    SpecError : no such file, no parquet, or not written by ``write_import``
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise SpecError(Problem(str(path), 0, "", "", f"expected a parquet file: {reason}")) from None
    report = (table.schema.metadata or {}).get(_KEY)
    if report is None:
        raise SpecError(Problem(str(path), 0, "", "", "expected a file that moesim calibrate import wrote"))
    return table.to_pandas(), json.loads(report)
