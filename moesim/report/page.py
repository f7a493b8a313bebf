"""Page: one run as one HTML file that opens offline, on a phone, in light and dark, and prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moesim.files import write_atomic
from moesim.report import draw, figures, words
from moesim.report.embed import embed, parts, rounded, template
from moesim.results import LAWS, check, summary
from moesim.results.latency import PERCENTILES
from moesim.results.tables import rows

if TYPE_CHECKING:
    from pathlib import Path

    from moesim.results import Result

__all__ = ["render", "report"]

_MOST_REPLICAS = 200


def report(result: Result, path: Path) -> Path:
    """Write the report of a run to ``path``.

    Equal runs give equal bytes, apart from the wall time. The file carries its drawing library (plotly.js,
    about 4.8 MB) and loads nothing from anywhere.

    Returns
    -------
    path

    Raises
    ------
    SpecError : the file cannot be written, or a target or price of the scenario is not readable
    LawBroken : the tables break a law, so their numbers must not be shown
    """
    write_atomic(path, render(result))
    return path


def render(result: Result) -> str:
    """Return the report of a run as HTML text; see ``report``."""
    found = summary(result)
    verdict, sentence = words.verdict_sentence(result)
    command, recorded = words.command(result)
    scenario = result.manifest["scenario"]
    scenario_values, left_out = words.scenario_rows(result)
    laws = check(result)
    drawn = _figures(result)
    return template("page.html.jinja").render(
        name=str(scenario.get("name", "unnamed")),
        title=str(scenario.get("title") or scenario.get("name", "unnamed")),
        description=str(scenario.get("description") or ""),
        version=result.manifest.get("version"),
        verdict=verdict,
        sentence=sentence,
        warning=words.bound_warning(found["sources"]),
        run=words.what_was_run(result),
        numbers=words.key_numbers(result, found),
        latency=words.latency_rows(found),
        latency_columns=["mean", *(f"p{p}" for p in PERCENTILES)],
        percentiles=found["definitions"]["percentiles"],
        figures=drawn,
        kinds=figures.time_by(result, "kind"),
        ops=figures.time_by(result, "op"),
        sources=found["sources"],
        source_names=figures.SOURCES,
        experts=figures.expert_load(result),
        replicas=_replicas(result),
        replicas_left_out=max(len(result.tables.replicas) - _MOST_REPLICAS, 0),
        laws=[(name, laws[name], _first_line(law.__doc__)) for name, (law, _) in LAWS.items()],
        notes=words.notes(result.manifest, "pricing_notes"),
        memory=words.notes(result.manifest, "memory"),
        cited=words.cited_sources(result),
        scenario_rows=scenario_values,
        scenario_left_out=left_out,
        command=command,
        recorded=recorded,
        seed=result.manifest.get("seed"),
        definitions=found["definitions"],
        quantity=words.quantity,
        **parts(),
        figures_json=embed(rounded({f["id"]: f["figure"] for f in drawn.values()})),
        summary_json=embed(found),
    )


def _figures(result: Result) -> dict[str, dict[str, Any]]:
    """Return the figures that have data: id -> id, label for readers who do not see it, plotly figure."""
    drawn: dict[str, tuple[str, draw.Figure]] = {}
    for data in figures.latency_cdfs(result):
        if data["value"]:
            label = f"Distribution of {data['metric'].upper()} over {data['requests']} measured requests"
            drawn[f"cdf-{data['metric']}"] = (label, draw.draw_cdf(data))
    if len(result.tables.requests):
        label = "Requests waiting, prefilling and decoding over time"
        drawn["presence"] = (label, draw.draw_presence(figures.presence(result)))
    pools = figures.samples(result)
    if pools:
        drawn["samples"] = ("Queue, batch and KV cache over time", draw.draw_samples(pools))
    for column in ("kind", "op"):
        data_rows = figures.time_by(result, column)
        if data_rows:
            drawn[f"time-{column}"] = (f"Engine time by {column} and source", draw.draw_time(data_rows))
    load = figures.expert_load(result)
    if load is not None:
        drawn["experts"] = ("Expert load by layer, over an even share", draw.draw_experts(load))
    return {key: {"id": key, "label": label, "figure": figure} for key, (label, figure) in drawn.items()}


def _replicas(result: Result) -> list[dict[str, str]]:
    show = words.quantity
    return [
        {
            "replica": f"{row.pool} {row.replica}",
            "devices": show(row.devices),
            "steps": show(row.steps),
            "in service": show(row.alive_s, "s"),
            "busy": show(row.busy_s / row.alive_s if row.alive_s > 0 else None, "%"),
            "prompt tokens": show(row.prefill_tokens),
            "from cache": show(row.cached_tokens),
            "output tokens": show(row.decode_tokens),
            "requests present": show(row.requests_s / row.alive_s if row.alive_s > 0 else None),
            "KV peak": show(row.kv_peak, "%"),
            "preemptions": show(row.preemptions),
            "energy": show(row.energy_J, "J"),
        }
        for row in rows(result.tables.replicas.head(_MOST_REPLICAS))
    ]


def _first_line(text: str | None) -> str:
    return (text or "").strip().splitlines()[0].replace("``", "")
