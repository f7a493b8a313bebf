"""Measured: what ``moesim calibrate measure`` wrote, as an import like any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moesim.calibrate.measure.device import known_device
from moesim.calibrate.measure.record import Measurement, read_measurements
from moesim.calibrate.profiles.frame import DIMS, Call, ProfileImport, Samples
from moesim.calibrate.profiles.work import NEEDED
from moesim.errors import Problem, SpecError

__all__ = ["MEASUREMENTS", "is_measured", "read_measured"]

MEASUREMENTS, _META = "measurements.parquet", "meta.json"


def is_measured(path: Path) -> bool:
    """Tell whether ``path`` is a folder of ``calibrate measure``, or the table in one."""
    table = path / MEASUREMENTS if path.is_dir() else path
    return table.name == MEASUREMENTS and table.is_file()


def read_measured(path: Path, *, device: str | None = None) -> ProfileImport:
    """Read one run of ``calibrate measure``.

    Parameters
    ----------
    path : its folder, or the table in it
    device : catalog name; else the name that the driver or processor reported is looked up

    Raises
    ------
    SpecError : no such run, a run that was interrupted, or not one usable row
    """
    table = path / MEASUREMENTS if path.is_dir() else path
    where = str(path)
    if not table.is_file():
        expected = f"expected a folder that moesim calibrate measure wrote ({MEASUREMENTS} in it)"
        raise SpecError(Problem(where, 0, "", "", expected))
    meta = _meta(table.parent / _META)
    reported = str(meta.get("device_name", ""))
    spec = known_device(reported)
    place = device or (spec.name if spec else reported)
    samples = Samples(where)
    for found in read_measurements(table):
        _take(found, place, samples)
    notes = (
        [] if spec or device else [f"{reported or 'its device'} is no device of the catalog: say --device"]
    )
    libraries = meta.get("libraries", {})
    software = f"torch {libraries['torch']}" if isinstance(libraries, dict) and "torch" in libraries else ""
    return samples.finish("measured", tuple(notes), software)


def _meta(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SpecError(Problem(str(path), 0, "", "", f"expected JSON: {error}")) from None
    if not isinstance(meta, dict):
        raise SpecError(Problem(str(path), 0, "", "", "expected a JSON object"))
    if meta.get("complete") is False:
        expected = "expected a run that ended: repeat the command to go on with it"
        raise SpecError(Problem(str(path), 0, "complete", "false", expected))
    return meta


def _take(found: Measurement, place: str, samples: Samples) -> None:
    point = found.point
    if found.status != "ok":
        samples.drop({"wrong_result": "wrong result", "failed": "failed"}[found.status])
        return
    if point.op not in NEEDED:
        samples.drop(f"{point.op}: no op that the cost model fits")
        return
    dims = tuple((name, size) for name, size in point.dims if name in DIMS)
    call = Call(point.op, "bytes" if point.op in {"copy", "transfer"} else point.dtype, dims, point.variant)
    samples.add(call, point.kernel, place, found.seconds_median, calls=max(1, found.repeats))
