"""``moesim show``: the resolved scenario, where each value came from, and what memory it needs."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.console import answers, emit_json, note, text
from moesim.cli.options import JsonFlag, Out, ScenarioName, Seed, Sets, Variants
from moesim.errors import NoResult, Problem, SpecError

if TYPE_CHECKING:
    from moesim.cost.memory import MemoryPlan
    from moesim.scenario import Loaded

__all__ = ["readable", "show"]

_QUANTITY = re.compile(r"(-?[0-9][0-9.e+-]*) (B|B/s|s|FLOP/s|W|J|Hz|USD|USD/h|request/s|USD/\(kW\*h\))")

_EXACT = 2.0**53


@answers
def show(
    scenario: ScenarioName,
    key: Annotated[
        str | None, typer.Argument(help="Only this part, e.g. deployment.serve.", metavar="[KEY]")
    ] = None,
    variant: Variants = None,
    set_: Sets = None,
    seed: Seed = None,
    origins: Annotated[bool, typer.Option("--origins", help="Say where each value was written.")] = False,
    out: Out = None,
    json_: JsonFlag = False,
) -> None:
    """Print a scenario with every reference resolved: itself a scenario file, to save and edit."""
    from moesim import api
    from moesim.files import write_atomic

    loaded = api.load(scenario, variant or (), set_ or (), seed)
    whole = loaded.scenario.model_dump(mode="json")
    part = _part(whole, key)
    plans, problem = _memory(loaded) if key is None else ({}, "")
    if json_:
        kept = {name: place for name, place in loaded.origins.items() if key is None or _inside(name, key)}
        emit_json(
            {
                "scenario" if key is None else key: part,
                "origins": kept,
                "path": str(loaded.path),
                "memory": {name: asdict(plan) for name, plan in plans.items()},
                "memory_problem": problem or None,
            }
        )
        return
    lines = _yaml(part, key, loaded if origins else None)
    if out is not None:
        write_atomic(out, lines)
        note(f"written: {out}")
        return
    text(lines.rstrip("\n"))
    for pool, plan in plans.items():
        # as a comment, so that what is printed stays a scenario file
        text(f"# memory of one device of pool {pool}: {_memory_line(plan)}")
    if problem:
        note(problem)


def readable(value: Any) -> Any:
    """Return data with quantities in the prefix people use (``3.35 TB/s``), where that loses no digit."""
    if isinstance(value, dict):
        return {name: readable(child) for name, child in value.items()}
    if isinstance(value, list):
        return [readable(child) for child in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return int(value)
    from moesim.units import format_quantity, parse_quantity

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
    return (
        "\n".join(
            f"{row:<{width}}  # {places[index]}" if index in places else row
            for index, row in enumerate(texts, 1)
        )
        + "\n"
    )


def _memory(loaded: Loaded) -> tuple[dict[str, MemoryPlan], str]:
    from moesim import api

    try:
        return api.memory(loaded), ""
    except NoResult as error:
        return {}, str(error)


def _memory_line(plan: MemoryPlan) -> str:
    from moesim.units import format_quantity

    parts = [
        f"{what} {format_quantity(size, 'B')}"
        for what, size in (
            ("weights", plan.weight_bytes),
            ("activations", plan.activation_bytes),
            ("graphs", plan.graph_bytes),
            ("reserve", plan.reserve_bytes),
            ("KV cache", plan.kv_bytes),
            ("of", plan.device_bytes),
        )
    ]
    blocks = f"{plan.max_tokens:,} tokens in {plan.kv_blocks_per_lane:,} blocks per attention rank"
    return f"{', '.join(parts)}; {blocks}"
