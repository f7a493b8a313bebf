"""Words: what the report says in sentences and tables, as plain data."""

from __future__ import annotations

import math
import shlex
from typing import TYPE_CHECKING, Any

from moesim.results import DEFINITIONS, Verdict, verdicts
from moesim.results.latency import PERCENTILES
from moesim.results.metrics import prices
from moesim.units import format_quantity

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from moesim.results import Result

_MOSTLY = 0.5

__all__ = [
    "bound_warning",
    "cited_sources",
    "command",
    "key_numbers",
    "latency_rows",
    "notes",
    "quantity",
    "scenario_rows",
    "verdict_sentence",
    "what_was_run",
]

_METRICS = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "end-to-end latency"}
_MOST_ROWS = 3000
_MOST_LETTERS = 300


def quantity(value: float | None, unit: str = "", digits: int = 4) -> str:
    """Write a number with its unit and a readable prefix; ``not known`` for None.

    >>> quantity(0.0123, "s"), quantity(0.956, "%"), quantity(None, "J"), quantity(1234567, "")
    ('12.3 ms', '95.6 %', 'not known', '1,234,567')
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "not known"
    if unit == "%":
        return f"{100 * value:.{digits}g} %"
    if unit in {"s", "J", "B", "W"}:
        return format_quantity(float(value), unit, digits)
    whole = float(value).is_integer() or abs(value) >= 10**digits
    number = f"{value:,.0f}" if whole else f"{value:.{digits}g}"
    return f"{number} {unit}".strip()


def verdict_sentence(result: Result) -> tuple[str, str]:
    """Return (``met`` | ``missed`` | ``unknown`` | ``none``, the sentence that says so with its numbers)."""
    judged = verdicts(result)
    if not judged:
        return "none", "The scenario sets no targets, so there is nothing to meet or to miss."
    clauses = "; ".join(_clause(v) for v in judged)
    if any(v.met is False for v in judged):
        missed = sum(v.met is False for v in judged)
        count = "The target is" if len(judged) == 1 else f"{missed} of {len(judged)} targets {_are(missed)}"
        return "missed", f"{count} missed: {clauses}."
    if any(v.met is None for v in judged):
        return "unknown", f"Nothing was decided for some targets: {clauses}."
    return "met", f"{'The target is' if len(judged) == 1 else 'All targets are'} met: {clauses}."


def bound_warning(shares: Mapping[str, float]) -> str:
    """Return how far roofline bounds carry the result, in one paragraph; empty when none does."""
    bound = shares.get("bound", 0.0)
    if bound <= 0:
        return ""
    begun = (
        f"{quantity(bound, '%', 3)} of engine time is priced by the roofline bound: the least time that the "
        "datasheet's peak rates allow. Bounds are optimistic: real kernels take longer."
    )
    if bound < _MOSTLY:
        return f"{begun} The rest follows measured kernels."
    return (
        f"{begun} For scale, the pure roofline mode of AIConfigurator 0.12, against 2,851 measured serving points, is "
        "55 % low in TPOT on average. Read latencies as the least, and throughput as the most, that this hardware "
        "could give."
    )


def key_numbers(result: Result, found: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return rows of the summary ``found``: ``name``, ``value`` with its unit, ``definition``, ``source``."""
    rates, priced = found["throughput"], _priced_by(found["sources"])
    known = prices(result.manifest)
    window = found["window_s"]
    rows: list[tuple[str, str, str, str]] = [
        ("Requests", _requests(found["requests"]), "requests", "counted"),
        (
            "Measured window",
            "not known" if window is None else f"{window[0]:.4g} s to {window[1]:.4g} s",
            "window_s",
            "counted",
        ),
        ("Request rate served", quantity(rates["requests_per_s"], "request/s"), "throughput", priced),
        ("Output tokens", quantity(rates["output_tokens_per_s"], "token/s"), "throughput", priced),
        (
            "Output tokens per device",
            quantity(rates["output_tokens_per_s_per_device"], "token/s"),
            "throughput",
            priced,
        ),
        ("Prompt and output tokens", quantity(rates["total_tokens_per_s"], "token/s"), "throughput", priced),
    ]
    good = found["goodput"]
    if good is not None:
        text = f"{quantity(good['share'], '%')}, {quantity(good['requests_per_s'], 'request/s')}"
        rows.append(("Goodput", text, "goodput", priced))
    for pool, use in found["utilisation"].items():
        rows.append((f"Utilisation, {pool}", quantity(use["busy"], "%"), "utilisation", priced))
        text = f"mean {quantity(use['kv_mean'], '%')}, peak {quantity(use['kv_peak'], '%')}"
        rows.append((f"KV blocks held, {pool}", text, "kv_occupancy", "counted"))
    rental = f"rental price: {known['source']}"
    per_token = quantity(found["energy_J_per_output_token"], "J")
    rows += [
        ("Preemptions", quantity(found["preemptions"]), "preemptions", "counted"),
        (
            "Energy",
            f"{quantity(found['energy_J'], 'J')}, {per_token} per output token",
            "energy_J",
            "power of device and node, " + priced,
        ),
        ("Cost", quantity(found["cost_usd"], "USD"), "cost_usd", rental),
        (
            "Cost per million output tokens",
            quantity(found["usd_per_million_output_tokens"], "USD"),
            "usd_per_million_tokens",
            rental,
        ),
        (
            "Cost per million input tokens",
            quantity(found["usd_per_million_input_tokens"], "USD"),
            "usd_per_million_tokens",
            rental,
        ),
        (
            "Electricity",
            quantity(found["electricity_usd"], "USD"),
            "electricity_usd",
            "economics of the scenario",
        ),
    ]
    if found["carbon_g"] is not None:
        rows.append(
            ("Carbon", quantity(found["carbon_g"], "g CO2e"), "carbon_g", "economics of the scenario")
        )
    return [{"name": n, "value": v, "definition": DEFINITIONS[d], "source": s} for n, v, d, s in rows]


def latency_rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return rows of the summary ``found``: ``name``, ``values`` (mean, percentiles), ``definition``."""
    names = {"ttft_s": "TTFT", "tpot_s": "TPOT", "itl_s": "ITL", "e2e_s": "End to end", "queue_s": "Queue"}
    columns = ("mean", *(f"p{p}" for p in PERCENTILES))
    return [
        {
            "name": name,
            "values": [quantity(found[key][c], "s") for c in columns],
            "definition": DEFINITIONS[key],
        }
        for key, name in names.items()
    ]


def what_was_run(result: Result) -> list[tuple[str, str]]:
    """Return (noun, description) of hardware, model, traffic and pools, from the resolved scenario."""
    scenario = result.manifest["scenario"]
    cluster, node, device, model = (scenario.get(k) or {} for k in ("cluster", "node", "device", "model"))
    rows = [
        ("Question", str(scenario.get("question") or "")),
        (
            "Cluster",
            _joined(
                cluster.get("name"),
                _count(cluster.get("nodes"), "node"),
                _count(node.get("devices"), "device", " each"),
            ),
        ),
        ("Device", _joined(device.get("name"), device.get("vendor"))),
        ("Model", _joined(model.get("name"), model.get("architecture"))),
    ]
    traffic = scenario.get("traffic") or {}
    if traffic.get("name"):
        rows.append(("Traffic", str(traffic["name"])))
    rows += [(f"Traffic, {key}", _short(traffic[key])) for key in ("arrivals", "lengths") if traffic.get(key)]
    for name, pool in (scenario.get("deployment") or {}).items():
        if isinstance(pool, dict) and "replicas" in pool:
            spread = pool.get("parallelism") or {}
            text = " ".join(f"{k}={spread[k]}" for k in ("tp", "pp", "dp", "ep") if k in spread)
            flavor = (pool.get("engine") or {}).get("flavor")
            rows.append((f"Pool {name}", _joined(_count(pool["replicas"], "replica"), text, flavor)))
    end = quantity(result.manifest["simulated_s"], "s")
    rows.append(("Simulated", _joined(end, f"seed {result.manifest.get('seed')}", _counted(result.manifest))))
    return [(name, text) for name, text in rows if text]


def scenario_rows(result: Result) -> tuple[list[tuple[str, str, str]], int]:
    """Return (dotted key, value, origin) of every value of the scenario, and how many rows were left out."""
    origins: dict[str, str] = result.manifest.get("origins") or {}
    rows = [
        (key, _shortened(value), _origin(origins, key)) for key, value in _leaves(result.manifest["scenario"])
    ]
    return rows[:_MOST_ROWS], max(len(rows) - _MOST_ROWS, 0)


def cited_sources(result: Result) -> list[dict[str, str]]:
    """Return every source cited in the scenario: ``part``, ``fields``, ``cite``, ``url``, ``note``."""
    found = []
    for part, source in _sources(result.manifest["scenario"], ""):
        url = str(source.get("url") or "")
        found.append(
            {
                "part": part or "scenario",
                "fields": ", ".join(map(str, source.get("fields") or ())),
                "cite": str(source["cite"]),
                "url": url if url.startswith(("https://", "http://")) else "",
                "note": str(source.get("note") or ""),
            }
        )
    return found


def notes(manifest: Mapping[str, Any], key: str) -> list[tuple[str, str]]:
    """Return (pool or path, text) of ``pricing_notes`` or ``memory``: a list, or a mapping by pool."""
    return [(path, text) for path, text in _leaves(manifest.get(key) or {}) if text]


def command(result: Result) -> tuple[str, bool]:
    """Return the command line that repeats the run, and whether the run recorded it itself."""
    recorded = result.manifest.get("command")
    if recorded:
        return recorded if isinstance(recorded, str) else shlex.join(map(str, recorded)), True
    name, *variants = str(result.manifest["scenario"].get("name", "scenario.yaml")).split("+")
    words = ["moesim", "run", name, *(["--variant", ",".join(variants)] if variants else [])]
    return shlex.join([*words, "--set", f"run.seed={result.manifest.get('seed', 0)}"]), False


def _clause(v: Verdict) -> str:
    name = f"{_METRICS[v.metric]} p{v.percentile:g}"
    limit = quantity(v.limit_s, "s")
    if v.met is None:
        return f"{name} is not known (limit {limit}, no measured request was decided)"
    if v.value_s is None:
        within = quantity(v.share, "%")
        return f"{name} is beyond the limit of {limit} (rejected or still waiting; {within} within it)"
    return f"{name} is {quantity(v.value_s, 's')}, {'within' if v.met else 'over'} the limit of {limit}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _requests(counted: Mapping[str, int]) -> str:
    names = ("arrived", "finished", "rejected", "in_flight", "measured")
    return ", ".join(f"{counted[name]:,} {name.replace('_', ' ')}" for name in names)


def _priced_by(shares: Mapping[str, float]) -> str:
    if not shares:
        return "simulated"
    return "simulated; step prices " + ", ".join(f"{quantity(v, '%', 3)} {k}" for k, v in shares.items())


def _counted(manifest: Mapping[str, Any]) -> str:
    return ", ".join(f"{manifest[k]:,} {k}" for k in ("steps", "events") if isinstance(manifest.get(k), int))


def _count(number: Any, noun: str, tail: str = "") -> str:
    return "" if number is None else f"{number} {noun}{'' if number == 1 else 's'}{tail}"


def _joined(*parts: Any) -> str:
    return ", ".join(str(p) for p in parts if p)


def _short(value: Any) -> str:
    return _shortened(", ".join(f"{key} {leaf}" for key, leaf in _leaves(value, most=3)))


def _shortened(text: str) -> str:
    return text if len(text) <= _MOST_LETTERS else text[: _MOST_LETTERS - 1] + "…"


def _origin(origins: Mapping[str, str], key: str) -> str:
    """Return the origin of ``key`` or of the nearest list or mapping around it."""
    while key not in origins and "." in key:
        key = key.rpartition(".")[0]
    return origins.get(key, "default")


def _leaves(value: Any, path: str = "", most: int = 50) -> Iterator[tuple[str, str]]:
    """Yield (dotted path, text) of every scalar, and of every list of scalars as one, ``most`` of them shown."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _leaves(part, f"{path}.{key}" if path else str(key), most)
    elif isinstance(value, list | tuple) and any(isinstance(v, dict | list | tuple) for v in value):
        for index, part in enumerate(value):
            yield from _leaves(part, f"{path}.{index}", most)
    elif isinstance(value, list | tuple):
        shown = ", ".join(map(str, value[:most]))
        yield path, shown if len(value) <= most else f"{shown}, … ({len(value)} values)"
    elif value is not None:
        yield path, f"{value:.6g}" if isinstance(value, float) else str(value)


def _sources(value: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(value, dict):
        for key, part in value.items():
            if key == "sources" and isinstance(part, list | tuple):
                yield from ((path, s) for s in part if isinstance(s, dict) and "cite" in s)
            else:
                yield from _sources(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _sources(part, path)
