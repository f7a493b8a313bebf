"""Plan page: a decision as one HTML file: how good it provably is, beside what, and what it looks like."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesim.files import write_atomic
from moesim.report.embed import embed, parts, rounded, template
from moesim.report.plan_figures import before, plan_figures
from moesim.report.words import quantity
from moesim.study.plans.answer import summary
from moesim.version import __version__

if TYPE_CHECKING:
    from moesim.spec.scenario import ScenarioSpec
    from moesim.study.plans.answer import Planned

__all__ = ["plan_report", "render_plan"]


def plan_report(
    scenario: ScenarioSpec, planned: Planned, path: Path, verified: dict[str, Any] | None = None
) -> Path:
    """Write the report of a plan to ``path``; self-contained, it loads nothing from anywhere.

    Raises
    ------
    SpecError : the file cannot be written
    """
    write_atomic(path, render_plan(scenario, planned, verified))
    return path


def render_plan(scenario: ScenarioSpec, planned: Planned, verified: dict[str, Any] | None = None) -> str:
    """Return the report of a plan as HTML text; see ``plan_report``."""
    drawn = plan_figures(planned, scenario.model)
    figures = {key: {"id": key, "label": label, "figure": figure} for key, (label, figure) in drawn.items()}
    old = before(planned)
    return template("plan.html.jinja").render(
        name=scenario.name,
        title=f"{planned.problem.capitalize()}: {scenario.title or scenario.name}",
        question=scenario.question,
        description=scenario.description,
        version=__version__,
        sentence=_sentence(planned),
        proven=planned.sol_status == "optimal",
        facts=_facts(scenario, planned),
        baselines=_baselines(planned),
        measure=planned.measure,
        scenarios=planned.scenarios,
        answer=_leaves(planned.answer),
        tables=_tables(planned.answer),
        figures=figures,
        before_name="" if old is None else old.placement.name,
        online=planned.answer.get("online"),
        runs=_runs(verified),
        agree=None if verified is None else verified["counts_agree"],
        notes=planned.notes,
        command=_command(scenario, planned),
        quantity=quantity,
        figures_json=embed(rounded({key: f["figure"] for key, f in figures.items()})),
        summary_json=embed(_finite(summary(planned, None, verified))),
        **parts(),
    )


def _sentence(planned: Planned) -> str:
    what = f"{quantity(planned.objective, '', 6)}, {planned.measure}"
    if planned.sol_status == "optimal":
        return f"{what}: proven, no decision is better."
    if not math.isfinite(planned.bound):
        return f"{what}; nothing is proven about what would be best."
    least, gap = quantity(planned.bound, "", 6), quantity(planned.gap, "%", 3)
    return f"{what}; no decision can be below {least}, a gap of {gap}."


def _facts(scenario: ScenarioSpec, planned: Planned) -> list[tuple[str, str]]:
    rows = [
        ("Method", planned.method),
        ("Search", quantity(planned.seconds, "s")),
        ("Model", scenario.model.name),
        ("Cluster", f"{scenario.cluster.name}, {scenario.device.name}"),
        ("Routing", "uniform choice" if scenario.routing is None else scenario.routing.name),
    ]
    if planned.plan is not None:
        placed = planned.plan.placement
        slots = ", ".join(f"{placed.slots_per_rank(n)} of {n}" for n in placed.ffns)
        rows.append(("Slots per rank and layer", f"{slots}, {placed.ranks} ranks, pool {planned.pool}"))
    if planned.moved_bytes is not None:
        rows.append(("Weights to move", quantity(planned.moved_bytes, "B")))
    return rows


def _baselines(planned: Planned) -> list[dict[str, str]]:
    """Return plan, baselines and bound, best first, each with its distance from the plan."""
    rows = [("plan", planned.objective), *planned.baselines.items()]
    rows = sorted(((n, v) for n, v in rows), key=lambda row: row[1])
    return [
        {
            "name": name,
            "value": quantity(value, "", 6),
            "over": ""
            if name == "plan" or not planned.objective or not math.isfinite(value)
            else f"{100 * (value / planned.objective - 1):+.2f} %",
        }
        for name, value in [*rows, ("proven bound", planned.bound)]
    ]


def _runs(verified: dict[str, Any] | None) -> list[dict[str, str]]:
    if verified is None:
        return []
    return [
        {
            "name": name,
            "imbalance counted": quantity(run["imbalance"], "", 6),
            "step": quantity(run["step_s"], "s"),
            "first token": quantity(run["ttft_s"], "s"),
            "per token": quantity(run["tpot_s"], "s"),
            "output tokens": quantity(run["output_tokens_per_s"], "token/s"),
            "plan's gain": "" if name == "plan" else f"{100 * verified['speedup'].get(name, 0.0):+.2f} %",
        }
        for name, run in verified["runs"].items()
    ]


def _leaves(answer: Any) -> list[tuple[str, str]]:
    return [
        (
            key.replace("_", " "),
            quantity(v, "", 6) if isinstance(v, float | int) and not isinstance(v, bool) else str(v),
        )
        for key, v in answer.items()
        if isinstance(v, str | int | float)
    ]


def _tables(answer: Any) -> list[dict[str, Any]]:
    """Return every list of rows in the answer as a table: title, columns, cells."""
    found = []
    for key, rows in answer.items():
        if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
            columns = list(dict.fromkeys(c for row in rows for c in row))
            cells = [[_cell(row.get(c)) for c in columns] for row in rows[:500]]
            titles = [c.replace("_", " ") for c in columns]
            found.append(
                {
                    "title": key.replace("_", " "),
                    "columns": titles,
                    "rows": cells,
                    "left": len(rows) - len(cells),
                }
            )
    return found


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return quantity(value, "", 5)
    if isinstance(value, dict | list | tuple):
        parts_ = value.items() if isinstance(value, dict) else enumerate(value)
        return ", ".join(f"{k} {_cell(v)}" if isinstance(value, dict) else _cell(v) for k, v in parts_)
    return str(value)


def _command(scenario: ScenarioSpec, planned: Planned) -> str:
    name, *variants = scenario.name.split("+")
    words = ["moesim", "plan", name, *(["--variant", ",".join(variants)] if variants else [])]
    return shlex.join([*words, "--problem", planned.problem, "--seed", str(scenario.run.seed)])


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if hasattr(value, "item"):
        return _finite(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value
