"""``moesim plan``: decide placement, tiers, parallelism or fleet, and say how good the decision provably is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.console import answers, emit_json, note, print_table, progress_bar, text
from moesim.cli.options import Force, JsonFlag, ScenarioName, Seed, Sets, Variants
from moesim.errors import SpecError

if TYPE_CHECKING:
    from moesim.plan.solution import Point
    from moesim.study.plans.answer import Planned

__all__ = ["plan"]

_TELL_S = 1.0
_PROBLEMS = ("balance", "affinity", "joint", "tiering", "composition", "parallelism", "fleet")


@answers
def plan(
    scenario: ScenarioName,
    variant: Variants = None,
    set_: Sets = None,
    problem: Annotated[
        str | None,
        typer.Option(
            "--problem",
            "-p",
            help=f"What to decide, where not the scenario's plan section: {', '.join(_PROBLEMS)}.",
            autocompletion=lambda incomplete: [p for p in _PROBLEMS if p.startswith(incomplete)],
            metavar="PROBLEM",
        ),
    ] = None,
    time_limit: Annotated[
        float | None, typer.Option("--time-limit", help="Seconds of search.", min=0.0, metavar="S")
    ] = None,
    gap: Annotated[
        float | None,
        typer.Option("--gap", help="Relative gap to the bound that is good enough, e.g. 0.01.", min=0.0),
    ] = None,
    seed: Seed = None,
    verify: Annotated[bool, typer.Option("--verify", help="Simulate the plan beside its baselines.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Placement file (default plans/SCENARIO-PROBLEM.yaml).", metavar="X.yaml"
        ),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export", help="Write the maps that SGLang, vLLM and vllm-ascend read.", metavar="DIR"
        ),
    ] = None,
    html: Annotated[
        bool, typer.Option("--report/--no-report", help="Write a report beside the placement file.")
    ] = True,
    force: Force = False,
    json_: JsonFlag = False,
) -> None:
    """Plan a scenario; write the placement and its report, print objective, proven bound and baselines.

    Interrupting (Ctrl-C) ends the search and keeps the best plan found so far.
    """
    from moesim import api

    loaded = api.load(scenario, variant or (), set_ or (), seed)
    section = api.plan_section(loaded, problem)
    path = out if out is not None else Path("plans") / f"{loaded.scenario.name}-{section.problem}.yaml"
    if path.suffix not in {".yaml", ".yml"}:
        raise SpecError(f"{path}: expected a name ending in .yaml")
    if out is not None and path.exists() and not force:
        raise SpecError(f"{path}: already there; --force replaces it")
    planned = api.plan(loaded, section, time_limit=time_limit, gap=gap, on_progress=_teller(quiet=json_))
    written = api.write_placement(loaded, planned, path)
    verified = None
    if verify:
        with progress_bar("simulating the plan", quiet=json_) as progress:
            verified = api.verify_plan(loaded, planned, progress)
    maps = api.export_placement(loaded, planned, export) if export is not None else {}
    page = api.write_plan_report(loaded, planned, path.with_suffix(".html"), verified) if html else None
    numbers = api.plan_summary(planned, written, verified)
    if json_:
        emit_json(numbers | {"maps": maps, "report": None if page is None else str(page)})
        return
    _print(planned, numbers)
    for engine, where in maps.items():
        text(f"map for {engine}: {where}")
    if written is not None:
        text(f"placement: {written}")
    if page is not None:
        text(f"report: {page}")


def _teller(*, quiet: bool) -> Callable[[Point], None] | None:
    """Return what prints incumbents and bounds on stderr, at most once a second."""
    if quiet:
        return None
    last = [-math.inf]

    def tell(point: Point) -> None:
        now = time.monotonic()
        if now - last[0] < _TELL_S:
            return
        last[0] = now
        note(
            f"{point.seconds:8.1f} s  objective {_number(point.objective)}  bound {_number(point.bound)}  {_gap(point)}"
        )

    return tell


def _gap(point: Point) -> str:
    if not (math.isfinite(point.objective) and math.isfinite(point.bound)) or not point.objective:
        return "gap unknown"
    return f"gap {100 * (point.objective - point.bound) / abs(point.objective):.2f} %"


def _print(planned: Planned, numbers: dict[str, Any]) -> None:
    proof = (
        "proven optimal"
        if planned.sol_status == "optimal"
        else f"at most {100 * planned.gap:.3g} % from optimal"
    )
    text(f"{planned.problem}: {_number(planned.objective)} ({planned.measure}), {proof}")
    rows = [("plan", _number(planned.objective), "")]
    rows += [
        (name, _number(value), f"{100 * (value / planned.objective - 1):+.2f} %" if planned.objective else "")
        for name, value in planned.baselines.items()
    ]
    rows.append(("bound", _number(planned.bound), ""))
    print_table(["", "objective", "over the plan"], rows, right=(1, 2))
    facts = [f"{planned.method}", f"{planned.seconds:.3g} s"]
    if planned.moved_bytes is not None:
        from moesim.units import format_quantity

        facts.append(f"{format_quantity(planned.moved_bytes, 'B')} of weights to move")
    text(", ".join(facts))
    _print_answer(planned.answer)
    if numbers["verify"] is not None:
        _print_runs(numbers["verify"])


_MOST_ROWS = 8


def _print_answer(answer: Mapping[str, Any]) -> None:
    """Print what is short: words and numbers, commands, the first rows of tables that are no listing of everything."""
    for key, value in answer.items():
        name = key.replace("_", " ")
        if isinstance(value, str | int | float):
            text(f"{name}: {_number(value) if isinstance(value, float) else value}")
        elif key in {"launch", "counts", "migration"}:
            for inner, told in value.items():
                text(
                    f"{name}, {inner.replace('_', ' ')}: {_number(told) if isinstance(told, float) else told}"
                )
        elif isinstance(value, list) and value and isinstance(value[0], dict) and key != "options":
            columns = list(value[0])
            cells = [[_cell(row[c]) for c in columns] for row in value[:_MOST_ROWS]]
            print_table([c.replace("_", " ") for c in columns], cells, title=name)
            if len(value) > _MOST_ROWS:
                text(f"{len(value) - _MOST_ROWS} more rows are in the report and in --json")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, dict):
        return ", ".join(f"{k} {_cell(v)}" for k, v in value.items())
    return (
        " ".join(_cell(v) for v in value) if isinstance(value, list) else "" if value is None else str(value)
    )


def _print_runs(verified: dict[str, Any]) -> None:
    columns = ("imbalance", "step_s", "ttft_s", "tpot_s", "output_tokens_per_s")
    print_table(
        [
            "simulated",
            "imbalance",
            "step (ms)",
            "first token (ms)",
            "per token (ms)",
            "output tokens/s",
            "plan's gain",
        ],
        [
            [
                name,
                *(
                    _number(run[c] * 1e3 if c.endswith("_s") and not c.endswith("per_s") else run[c])
                    for c in columns
                ),
                "" if name == "plan" else f"{100 * verified['speedup'].get(name, math.nan):+.2f} %",
            ]
            for name, run in verified["runs"].items()
        ],
        right=range(1, 7),
    )


def _number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:,.5g}"
