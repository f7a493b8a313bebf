"""Tables: find the measured kernel tables of the package ``aiconfigurator-core`` and read them raw.

Only the data files are read; none of the package's code runs.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from moesim.errors import DataMissing

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

__all__ = [
    "DEVICES",
    "FRAMEWORKS",
    "RawTable",
    "package_version",
    "raw_tables",
    "systems_folder",
    "version_key",
]

_PACKAGE = "aiconfigurator_core"

DEVICES: dict[str, str] = {
    "a100_sxm": "a100-80-sxm",
    "b200_sxm": "b200-sxm",
    "b300_sxm": "b300-sxm",
    "gb200": "gb200",
    "gb300": "gb300",
    "h100_sxm": "h100-sxm",
    "h200_sxm": "h200-sxm",
    "l40s": "l40s",
    "rtx_pro_6000_server": "rtx-pro-6000",
}
"""Folder of the tables -> device of our catalog. A folder that is missing here has no device spec."""

FRAMEWORKS: dict[str, str] = {"trtllm": "trtllm", "vllm": "vllm", "sglang": "sglang", "nccl": "nccl"}


class RawTable(NamedTuple):
    """One parquet file with what its path says.

    Attributes
    ----------
    folder : the package's name of the device
    framework, version : of the engine (or of NCCL)
    frame : the file's columns, units untouched
    """

    folder: str
    framework: str
    version: str
    frame: pd.DataFrame


def systems_folder() -> Path:
    """Return the folder ``systems`` of the installed package.

    Raises
    ------
    DataMissing : the extra ``silicon`` is not installed
    """
    spec = importlib.util.find_spec(_PACKAGE)
    places = list(spec.submodule_search_locations or []) if spec else []
    for place in places:
        folder = Path(place) / "systems"
        if (folder / "data").is_dir():
            return folder
    raise DataMissing("the measured kernel tables are not installed: pip install 'moesim[silicon]'")


def package_version() -> str:
    """Return the version of the package that holds the tables, for the artifact's stamp."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("aiconfigurator-core")
    except PackageNotFoundError:
        return "unknown"


def raw_tables(name: str, folder: str = "*", framework: str = "*") -> Iterator[RawTable]:
    """Yield every file of the table ``name`` (``gemm``, ``moe``, ...), sorted by path.

    Parameters
    ----------
    folder, framework : only those of one device's folder, of one engine

    Raises
    ------
    DataMissing : the extra is not installed, or it has no such table
    """
    import pyarrow.parquet as pq

    root = systems_folder() / "data"
    paths = sorted(root.glob(f"{folder}/*/{framework}/*/{name}_perf.parquet"))
    if not paths:
        raise DataMissing(f"the installed kernel tables hold no table {name!r} of {folder} and {framework}")
    for path in paths:
        folder, _, framework, version, _ = path.relative_to(root).parts
        yield RawTable(
            folder,
            FRAMEWORKS.get(framework, framework),
            version,
            pq.read_table(path).to_pandas(strings_to_categorical=True),
        )


def version_key(version: str) -> tuple[int, ...]:
    """Return a key that sorts versions: numbers in order; a release candidate comes before its release.

    >>> sorted(["1.3.0rc20", "1.3.0", "1.3.0rc3", "0.24.0"], key=version_key)
    ['0.24.0', '1.3.0rc3', '1.3.0rc20', '1.3.0']
    """
    head, _, candidate = re.sub(r"(?:\.dev|\+|\.post).*$", "", version).partition("rc")
    numbers = [int(part) for part in re.findall(r"\d+", head)]
    numbers += [0] * (4 - len(numbers))
    return (*numbers[:4], int(candidate) if candidate.isdigit() else 1_000_000)
