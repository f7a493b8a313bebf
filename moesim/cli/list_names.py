"""``moesim list``: what the catalog holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.console import answers, emit_json, print_table
from moesim.cli.options import JsonFlag
from moesim.errors import SpecError

if TYPE_CHECKING:
    from moesim.files import Kind

__all__ = ["list_names"]

_PLURALS: dict[str, Kind] = {
    "devices": "device",
    "nodes": "node",
    "clusters": "cluster",
    "models": "model",
    "traffic": "traffic",
    "routing": "routing",
    "compositions": "composition",
    "scenarios": "scenario",
}


_UNITS = (
    ("_FLOP_per_s", "FLOP/s"),
    ("_bytes_per_s", "B/s"),
    ("_bytes", "B"),
    ("_W", "W"),
    ("_request_per_s", "request/s"),
)


def _complete(incomplete: str) -> list[str]:
    return [name for name in _PLURALS if name.startswith(incomplete)]


@answers
def list_names(
    what: Annotated[
        str, typer.Argument(help=", ".join(_PLURALS) + ".", metavar="KIND", autocompletion=_complete)
    ],
    json_: JsonFlag = False,
) -> None:
    """List the entries of one kind, with the facts that tell them apart."""
    from moesim.files import catalog_names, nearest

    kind = _PLURALS.get(what) or next((k for k in _PLURALS.values() if k == what), None)
    if kind is None:
        raise SpecError(f"{what}: expected one of {', '.join(_PLURALS)}{nearest(what, _PLURALS)}")
    rows = [{"name": name, **_FACTS[kind](name)} for name in catalog_names(kind)]
    if json_:
        emit_json({kind: rows})
        return
    columns = list(rows[0]) if rows else ["name"]
    print_table(
        [_heading(column) for column in columns],
        [[_cell(c, row[c]) for c in columns] for row in rows],
        right=[i for i, c in enumerate(columns) if rows and any(isinstance(r[c], int | float) for r in rows)],
    )


def _heading(column: str) -> str:
    """Return the column without the unit that its cells carry."""
    return next((column.removesuffix(s) for s, _ in _UNITS if column.endswith(s)), column).replace("_", " ")


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "-"
    from moesim.units import format_quantity

    for suffix, unit in _UNITS:
        if column.endswith(suffix):
            return format_quantity(float(value), unit)
    return (
        f"{value:,.4g}"
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else str(value)
    )


def _device(name: str) -> dict[str, Any]:
    from moesim.spec.base import load_spec
    from moesim.spec.hardware import DeviceSpec

    device = load_spec(DeviceSpec, name, "device")
    peaks = device.compute.peaks
    return {
        "vendor": device.vendor,
        "architecture": device.architecture,
        "bf16_FLOP_per_s": peaks.get("bf16"),
        "fp8_FLOP_per_s": peaks.get("fp8"),
        "memory_bytes": device.main.capacity,
        "bandwidth_bytes_per_s": device.main.bandwidth,
        "power_W": None if device.power is None else device.power.peak,
    }


def _node(name: str) -> dict[str, Any]:
    from moesim.spec.base import load_spec
    from moesim.spec.hardware import NodeSpec

    node = load_spec(NodeSpec, name, "node")
    return {
        "device": node.device,
        "devices": node.devices,
        "link": node.link.kind,
        "link_bytes_per_s": node.link.bandwidth,
        "network": node.network.kind if node.network else None,
    }


def _cluster(name: str) -> dict[str, Any]:
    from moesim.spec.topology import resolve_cluster

    found = resolve_cluster(name)
    return {
        "node": found.cluster.node,
        "nodes": found.cluster.nodes,
        "devices": found.devices,
        "fabric": found.cluster.fabric.kind,
    }


def _model(name: str) -> dict[str, Any]:
    from moesim.spec.base import load_spec
    from moesim.spec.model import ModelSpec, MoeFfn
    from moesim.spec.parameters import parameter_count

    model = load_spec(ModelSpec, name, "model")
    count = parameter_count(model)
    experts = next((f for f in model.ffns.values() if isinstance(f, MoeFfn)), None)
    return {
        "total_billion": count.total / 1e9,
        "active_billion": count.active / 1e9,
        "layers": len(model.blocks()),
        "experts": experts.experts if experts else None,
        "top_k": experts.top_k if experts else None,
        "weights": model.weights.experts or model.weights.default,
        "context": model.context,
    }


def _traffic(name: str) -> dict[str, Any]:
    from moesim.spec.base import load_spec
    from moesim.spec.traffic import TrafficSpec

    traffic = load_spec(TrafficSpec, name, "traffic")
    return {
        "arrivals": traffic.arrivals.kind,
        "rate_request_per_s": traffic.mean_rate,
        "lengths": traffic.lengths.kind,
        "prefix": traffic.prefix.kind,
    }


def _routing(name: str) -> dict[str, Any]:
    from moesim.spec.base import load_spec
    from moesim.spec.routing import RoutingSpec

    routing = load_spec(RoutingSpec, name, "routing")
    return {
        "router": routing.router.kind,
        "model": routing.model or "any",
        "experts": routing.experts,
        "top_k": routing.top_k,
    }


def _composition(name: str) -> dict[str, Any]:
    from moesim.spec.base import load_spec
    from moesim.spec.composition import CompositionSpec

    found = load_spec(CompositionSpec, name, "composition")
    return {
        "experts": found.count,
        "models": ", ".join(found.models()) or "by size",
        "categories": len(found.categories),
        "router": found.router.model if found.router else None,
    }


def _scenario(name: str) -> dict[str, Any]:
    from moesim.scenario import load, variant_names

    scenario = load(name).scenario
    return {
        "title": scenario.title,
        "model": scenario.model.name,
        "cluster": scenario.cluster.name,
        "variants": ", ".join(variant_names(name)),
    }


_FACTS: dict[Kind, Callable[[str], dict[str, Any]]] = {
    "device": _device,
    "node": _node,
    "cluster": _cluster,
    "model": _model,
    "traffic": _traffic,
    "routing": _routing,
    "composition": _composition,
    "scenario": _scenario,
}
