"""``moesim show``: the resolved scenario, where each value came from, and what memory it needs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.console import answers, emit_json, note, print_table, text
from moesim.cli.options import JsonFlag, Out, ScenarioName, Seed, Sets, Variants
from moesim.errors import NoResult, Problem, SpecError
from moesim.units import format_quantity, parse_quantity

if TYPE_CHECKING:
    from moesim.cost.memory import MemoryPlan
    from moesim.scenario import Loaded

__all__ = ["readable", "show"]

_QUANTITY = re.compile(r"(-?[0-9][0-9.e+-]*) (B|B/s|s|FLOP/s|W|J|Hz|USD|USD/h|request/s|USD/\(kW\*h\))")


@answers
def show(
    scenario: ScenarioName,
    key: Annotated[str | None, typer.Argument(help="Only this part, e.g. deployment.serve.", metavar="[KEY]")] = None,
    variant: Variants = None,
    set_: Sets = None,
    seed: Seed = None,
    origins: Annotated[bool, typer.Option("--origins", help="Say where each value was written.")] = False,
    out: Out = None,
    json_: JsonFlag = False,
) -> None:
    """Print a scenario with every reference resolved: itself a scenario file, ready to be saved and edited."""
    from moesim import api
    from moesim.files import write_atomic

    loaded = api.load(scenario, variant or (), set_ or (), seed)
    whole = loaded.scenario.model_dump(mode="json")
    part = _part(whole, key)
    plans, problem = _memory(loaded) if key is None else ({}, "")
    if json_:
        kept = {name: place for name, place in loaded.origins.items() if key is None or _inside(name, key)}
        emit_json({"scenario" if key is None else key: part, "origins": kept, "path": str(loaded.path),
                   "memory": {name: _bytes(plan) for name, plan in plans.items()}, "memory_problem": problem or None})
        return
    lines = _yaml(part, key, loaded if origins else None)
    if out is not None:
        write_atomic(out, lines)
        note(f"written: {out}")
        return
    text(lines.rstrip("\n"))
    if plans:
        _print_memory(plans)
    if problem:
        note(problem)


def readable(value: Any) -> Any:
    """Return data with quantities in the prefix people use (``3.35 TB/s``), where that loses no digit."""
    if isinstance(value, dict):
        return {name: readable(child) for name, child in value.items()}
    if isinstance(value, list):
        return [readable(child) for child in value]
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return value
    number, unit = float(match.group(1)), match.group(2)
    short = format_quantity(number, unit, 15)
    return short if parse_quantity(short, unit) == number else value


def _part(whole: dict[str, Any], key: str | None) -> Any:
    from moesim.files import nearest

    part: Any = whole
    for index, step in enumerate(key.split(".") if key else ()):
        if isinstance(part, list) and step.isdigit() and int(step) < len(part):
            part = part[int(step)]
        elif isinstance(part, dict) and step in part:
            part = part[step]
        else:
            known = part if isinstance(part, dict) else ()
            done = ".".join(str(key).split(".")[: index + 1])
            raise SpecError(Problem("show", 0, done, "", f"no such key{nearest(step, known)}"))
    return part


def _inside(name: str, key: str) -> bool:
    return name == key or name.startswith(f"{key}.")


def _yaml(part: Any, key: str | None, origins: Loaded | None) -> str:
    from moesim.files import dump_yaml

    shown = readable(part)
    if not isinstance(part, dict):
        shown = {str(key): shown}
        key = None
    lines = dump_yaml(shown)
    return lines if origins is None else _annotated(lines, key, origins)


def _annotated(lines: str, key: str | None, loaded: Loaded) -> str:
    """Append ``# origin`` to each line that holds a value."""
    from moesim.files import parse_yaml
    from moesim.scenario import origin_of

    places: dict[int, str] = {}
    document = parse_yaml(lines, "show")
    head = "" if key is None else f"{key}."
    for path, line in document.lines.items():
        value: Any = document.data
        for step in path:
            value = value[step]
        plain_list = isinstance(value, list) and not any(isinstance(child, dict) for child in value)
        if path and (plain_list or not isinstance(value, dict | list)) and line not in places:
            places[line] = origin_of(loaded.origins, head + ".".join(map(str, path)))
    texts = lines.splitlines()
    width = min(max((len(texts[line - 1]) for line in places), default=0), 60)
    return "\n".join(f"{row:<{width}}  # {places[index]}" if index in places else row
                     for index, row in enumerate(texts, 1)) + "\n"


def _memory(loaded: Loaded) -> tuple[dict[str, MemoryPlan], str]:
    from moesim import api

    try:
        return api.memory(loaded), ""
    except NoResult as error:
        return {}, str(error)


def _bytes(plan: MemoryPlan) -> dict[str, Any]:
    from dataclasses import asdict, is_dataclass

    return asdict(plan) if is_dataclass(plan) else dict(plan)


def _print_memory(plans: dict[str, MemoryPlan]) -> None:
    names: dict[str, None] = {}
    columns = {pool: _bytes(plan) for pool, plan in plans.items()}
    for values in columns.values():
        names |= dict.fromkeys(name for name, value in values.items() if isinstance(value, int | float))
    rows = [[name.replace("_bytes", "").replace("_", " "), *(_amount(name, values.get(name)) for values in columns.values())]
            for name in names]
    text("")
    print_table(["memory of one device", *columns], rows, right=range(1, 1 + len(columns)))


def _amount(name: str, value: Any) -> str:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "-" if value is None else str(value)
    return format_quantity(float(value), "B") if "bytes" in name else f"{value:,.6g}"
