"""Python's way in: load, simulate, sum up, write and read runs. The command line calls these too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesim.scenario import LintReport, Loaded, content_hash, lint, load

if TYPE_CHECKING:
    import pandas as pd

    from moesim.cost.memory import MemoryPlan
    from moesim.results import Result
    from moesim.spec.scenario import ScenarioSpec

__all__ = [
    "LintReport",
    "Loaded",
    "Result",
    "compare",
    "fits",
    "lint",
    "load",
    "memory",
    "read",
    "run_folder",
    "simulate",
    "summary",
    "write",
    "write_report",
]

Progress = Callable[[float, str], None]


def __getattr__(name: str) -> Any:
    if name == "Result":  # pandas takes half a second
        from moesim.results import Result  # noqa: PLC0415

        return Result
    raise AttributeError(f"module 'moesim.api' has no attribute {name!r}")


def simulate(
    scenario: Loaded | ScenarioSpec | str | Path, *, check: bool = False, progress: Progress | None = None
) -> Result:
    """Simulate a scenario.

    Parameters
    ----------
    scenario : what ``load`` returned, a resolved scenario, or a name or path
    check : check every law on the result (``LawBroken`` when one does not hold)
    progress : called now and then with the share of the run that is done, 0..1, and a short text

    Returns
    -------
    result : tables (see ``moesim.results.TABLES``) and manifest; equal scenarios give equal tables

    Raises
    ------
    SpecError : the scenario is wrong
    NoResult : the model does not fit, or a dtype has no peak on the device
    DataMissing : a trace or a measurement is not there
    """
    from moesim.sim.run import simulate as run  # noqa: PLC0415 - compiled code is loaded when it is needed

    if isinstance(scenario, str | Path):
        scenario = load(scenario)
    origins = scenario.origins if isinstance(scenario, Loaded) else {}
    spec = scenario.scenario if isinstance(scenario, Loaded) else scenario
    result = run(spec, check=check, progress=progress)
    return replace(result, manifest={**result.manifest, "origins": origins}) if origins else result


def memory(scenario: Loaded | ScenarioSpec) -> dict[str, MemoryPlan]:
    """Return the memory plan of one device per pool.

    Raises
    ------
    NoResult : the model does not fit, with the bytes that are short
    """
    from moesim.cost.memory import memory_plan  # noqa: PLC0415 - keeps `import moesim` light

    spec = scenario.scenario if isinstance(scenario, Loaded) else scenario
    how = spec.deployment
    return {
        name: memory_plan(spec.model, spec.topology(), pool, how.precision, how.speculation)
        for name, pool in how.pools.items()
    }


def fits(scenario: ScenarioSpec) -> None:
    """Raise ``NoResult`` when the model does not fit the devices of some pool."""
    memory(scenario)


def summary(result: Result, report: Path | None = None) -> dict[str, Any]:
    """Return the numbers of a run, as ``moesim run --json`` prints them; see ``moesim.results.summary``."""
    from moesim.results import summary as numbers  # noqa: PLC0415

    return numbers(result, None if report is None else str(report))


def write(result: Result, folder: str | Path) -> Path:
    """Write a run as a folder of parquet tables and a manifest; an earlier run there is replaced."""
    from moesim.results import write_result  # noqa: PLC0415

    return write_result(result, Path(folder))


def read(folder: str | Path) -> Result:
    """Read a run that ``write`` wrote."""
    from moesim.results import read_result  # noqa: PLC0415

    return read_result(Path(folder))


def write_report(result: Result, path: str | Path) -> Path:
    """Write the HTML report of a run; one file that opens offline."""
    from moesim.report import report as page  # noqa: PLC0415

    return page(result, Path(path))


def compare(a: Result | str | Path, b: Result | str | Path) -> pd.DataFrame:
    """Return the numbers of two runs side by side; see ``moesim.results.compare``."""
    from moesim.results import compare as side_by_side  # noqa: PLC0415

    return side_by_side(*(read(run) if isinstance(run, str | Path) else run for run in (a, b)))


def run_folder(scenario: ScenarioSpec, parent: Path | None = None) -> Path:
    """Return the default folder of a run: ``runs/NAME-HASH``, hash of the resolved scenario with its seed."""
    return (Path("runs") if parent is None else parent) / f"{scenario.name}-{content_hash(scenario)}"
