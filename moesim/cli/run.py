"""``moesim run``: simulate a scenario, write the run, print what it achieved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.console import answers, emit_json, note, print_table, progress_bar, text
from moesim.cli.options import Force, JsonFlag, Out, ScenarioName, Seed, Sets, Variants
from moesim.errors import NoResult, SpecError

if TYPE_CHECKING:
    from moesim.results import Result

__all__ = ["run"]


@answers
def run(
    scenario: ScenarioName,
    variant: Variants = None,
    set_: Sets = None,
    seed: Seed = None,
    out: Out = None,
    check: Annotated[bool, typer.Option("--check", help="Check every law on the result.")] = False,
    trace: Annotated[bool, typer.Option("--trace", help="Write trace.json.gz for ui.perfetto.dev.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 when a target is missed.")] = False,
    html: Annotated[bool, typer.Option("--report/--no-report", help="Write report.html.")] = True,
    force: Force = False,
    json_: JsonFlag = False,
) -> None:
    """Simulate a scenario; write tables, manifest and report to runs/NAME-HASH (or --out)."""
    from moesim import api

    loaded = api.load(scenario, variant or (), set_ or (), seed)
    folder = out if out is not None else api.run_folder(loaded.scenario)
    if out is not None and folder.exists() and not force and (not folder.is_dir() or any(folder.iterdir())):
        raise SpecError(f"{folder}: already there; --force replaces it")
    with progress_bar(f"simulating {loaded.scenario.name}", quiet=json_) as progress:
        result = api.simulate(loaded, check=check, progress=progress)
    api.write(result, folder)
    page = api.write_report(result, folder / "report.html") if html else None
    if trace:
        from moesim.results import write_trace

        note(f"trace: {write_trace(result, folder / 'trace.json.gz')}")
    numbers = api.summary(result, page)
    if json_:
        emit_json(numbers)
    else:
        print_summary(numbers, folder, page)
    if strict:
        _strict(result)


def _strict(result: Result) -> None:
    """Exit with 3 when a target is missed; the answer has been printed already."""
    from moesim.results import verdicts

    missed = [v for v in verdicts(result) if not v.met]
    for v in missed:
        value = f"{v.value_s:.4g} s" if v.value_s is not None else "not reached"
        note(f"target missed: {v.metric} p{v.percentile:g} {value}, limit {v.limit_s:.4g} s")
    if missed:
        raise SystemExit(NoResult.exit_code)


def print_summary(numbers: dict[str, Any], folder: Path, page: Path | None) -> None:
    """Print the numbers of one run as people want to read them."""
    requests = numbers["requests"]
    text(
        f"{numbers['scenario']}: {requests['finished']} of {requests['arrived']} requests finished"
        + "".join(
            f", {requests[key]} {key.replace('_', ' ')}" for key in ("rejected", "in_flight") if requests[key]
        )
    )
    spreads = [(name, numbers[key]) for name, key in _LATENCIES if numbers.get(key)]
    columns = list(dict.fromkeys(key for _, spread in spreads for key in spread))
    print_table(
        ["latency", *columns],
        [[name, *(_seconds(spread.get(key)) for key in columns)] for name, spread in spreads],
        right=range(1, 9),
    )
    print_table(
        ["", "value", "unit"], [[name, value, unit] for name, value, unit in _rows(numbers)], right=(1,)
    )
    for metric, (low, high) in numbers.get("intervals", {}).items():
        text(
            f"mean {metric} is measured at {low:.2f} to {high:.2f} times the simulated one, nine times of ten"
        )
    for metric, verdict in numbers["verdict"].items():
        met = {True: "met", False: "MISSED", None: "undecided"}[verdict["met"]]
        text(
            f"target {metric} p{verdict['percentile']:g} <= {verdict['limit_s']:g} s: {met} "
            f"({_seconds(verdict['value_s'])})"
        )
    text(f"run: {folder}")
    if page is not None:
        text(f"report: {page}")


_LATENCIES = (
    ("time to first token", "ttft_s"),
    ("time per output token", "tpot_s"),
    ("between tokens", "itl_s"),
    ("end to end", "e2e_s"),
    ("queue", "queue_s"),
)


def _rows(numbers: dict[str, Any]) -> list[tuple[str, str, str]]:
    rates, good = numbers["throughput"], numbers.get("goodput")
    rows: list[tuple[str, Any, str]] = [
        ("requests", rates["requests_per_s"], "request/s"),
        ("output tokens", rates["output_tokens_per_s"], "token/s"),
        ("output tokens per device", rates["output_tokens_per_s_per_device"], "token/s"),
        (
            "all targets met",
            None if good is None or good["share"] is None else 100 * good["share"],
            "% of requests",
        ),
        ("energy", numbers["energy_J"], "J"),
        ("cost", numbers["cost_usd"], "USD"),
        ("per million output tokens", numbers["usd_per_million_output_tokens"], "USD"),
    ]
    rows += [
        (f"{pool} busy", None if use["busy"] is None else 100 * use["busy"], "% of time")
        for pool, use in numbers["utilisation"].items()
    ]
    rows += [
        (f"priced by {source}", 100 * share, "% of seconds") for source, share in numbers["sources"].items()
    ]
    rows += [("engine steps", numbers["steps"], ""), ("computed in", numbers["wall_s"], "s")]
    return [
        (name, f"{value:,.4g}" if isinstance(value, float) else f"{value:,}", unit)
        for name, value, unit in rows
        if value is not None
    ]


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1e3:.4g} ms" if value < 1 else f"{value:.4g} s"
