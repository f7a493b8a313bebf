"""Python's way in: load, simulate, sum up, write and read runs. The command line calls these too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesim.scenario import LintReport, Loaded, content_hash, lint, load

if TYPE_CHECKING:
    import pandas as pd

    from moesim.cost.memory import MemoryPlan
    from moesim.plan.solution import Point
    from moesim.results import Result
    from moesim.spec.planning import PlanSpec
    from moesim.spec.scenario import ScenarioSpec
    from moesim.study.plans.answer import Planned

__all__ = [
    "LintReport",
    "Loaded",
    "Result",
    "compare",
    "export_placement",
    "fits",
    "lint",
    "load",
    "memory",
    "plan",
    "plan_section",
    "plan_summary",
    "read",
    "run_folder",
    "simulate",
    "summary",
    "verify_plan",
    "write",
    "write_placement",
    "write_plan_report",
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
    result = run(spec, check=check, progress=progress, measured=_tables(spec))
    return replace(result, manifest={**result.manifest, "origins": origins}) if origins else result


def _tables(spec: ScenarioSpec) -> Any:
    """Return who reads the measured tables, where a scenario asks for them and the extra is there."""
    if spec.deployment.calibration != "tables" or find_spec("aiconfigurator_core") is None:
        return None
    from moesim.calibrate.silicon.measured import Measured  # noqa: PLC0415 - an extra

    return Measured


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


def plan_section(scenario: Loaded | ScenarioSpec, problem: str | None = None) -> PlanSpec:
    """Return the scenario's plan section, or another problem with its default options.

    Raises
    ------
    SpecError : neither is there, no such problem, or one that needs options
    """
    from moesim.study.plans.registry import asked  # noqa: PLC0415 - solvers are loaded when they are needed

    return asked(_spec(scenario), problem)


def plan(
    scenario: Loaded | ScenarioSpec,
    section: PlanSpec | None = None,
    *,
    time_limit: float | None = None,
    gap: float | None = None,
    on_progress: Callable[[Point], None] | None = None,
) -> Planned:
    """Decide what a plan section asks, with a certified bound.

    Parameters
    ----------
    section : what to decide; none: the scenario's plan section
    time_limit, gap : seconds of search, and relative gap that is good enough; none: the section's
    on_progress : called with incumbents and bounds

    Raises
    ------
    SpecError : the question is wrong
    NoResult : no decision meets the constraints; the message names the one that is short, and by how much
    """
    from moesim.plan.solution import Limits  # noqa: PLC0415
    from moesim.study.plans.registry import asked  # noqa: PLC0415
    from moesim.study.plans.registry import plan as decide  # noqa: PLC0415

    spec = _spec(scenario)
    section = asked(spec) if section is None else section
    limits = Limits(
        section.time_limit if time_limit is None else time_limit,
        section.gap if gap is None else gap,
        spec.run.seed,
    )
    return decide(spec.model_copy(update={"plan": section}), section, limits, on_progress)


def verify_plan(
    scenario: Loaded | ScenarioSpec, planned: Planned, progress: Progress | None = None
) -> dict[str, Any]:
    """Simulate a plan beside its baselines; see ``moesim.study.plans.verify``."""
    from moesim.study.plans.verify import verify  # noqa: PLC0415

    return verify(_spec(scenario), planned, progress)


def plan_summary(
    planned: Planned, placement_file: Path | None = None, verified: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return a decision as ``moesim plan --json`` prints it."""
    from moesim.study.plans.answer import summary as numbers  # noqa: PLC0415

    return numbers(planned, None if placement_file is None else str(placement_file), verified)


def write_placement(scenario: Loaded | ScenarioSpec, planned: Planned, path: str | Path) -> Path | None:
    """Write the placement of a plan as a file that scenarios can name; None where the decision is none."""
    from moesim.files import write_atomic  # noqa: PLC0415
    from moesim.study.plans.answer import placement_text, record_of  # noqa: PLC0415

    if planned.plan is None:
        return None
    spec = _spec(scenario)
    named = planned.plan.placement.model_copy(update={"plan": record_of(spec, planned)})
    write_atomic(Path(path), placement_text(named))
    return Path(path)


def export_placement(scenario: Loaded | ScenarioSpec, planned: Planned, folder: str | Path) -> dict[str, str]:
    """Write the maps that serving engines read, and return engine -> file; an engine that cannot read it is left out.

    Raises
    ------
    NoResult : the decision is no placement, or no engine can read it
    """
    from moesim.errors import NoResult  # noqa: PLC0415
    from moesim.files import write_atomic  # noqa: PLC0415
    from moesim.study.plans.engines import ENGINES, FILE_NAMES, to_engine  # noqa: PLC0415

    if planned.plan is None:
        raise NoResult(f"{planned.problem}: no map to export, the decision is no placement")
    written: dict[str, str] = {}
    refused: list[str] = []
    for engine in ENGINES:
        try:
            content = to_engine(planned.plan.placement, _spec(scenario).model, engine)
        except NoResult as error:
            refused.append(str(error))
            continue
        path = Path(folder) / FILE_NAMES[engine]
        write_atomic(path, content)
        written[engine] = str(path)
    if not written:
        raise NoResult("; ".join(dict.fromkeys(refused)))
    return written


def write_plan_report(
    scenario: Loaded | ScenarioSpec,
    planned: Planned,
    path: str | Path,
    verified: dict[str, Any] | None = None,
) -> Path:
    """Write the HTML report of a plan; one file that opens offline."""
    from moesim.report import plan_report  # noqa: PLC0415

    return plan_report(_spec(scenario), planned, Path(path), verified)


def _spec(scenario: Loaded | ScenarioSpec) -> ScenarioSpec:
    return scenario.scenario if isinstance(scenario, Loaded) else scenario
