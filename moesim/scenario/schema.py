"""JSON Schema of every file kind, for editors: completion and red underlines while a file is written."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from moesim.errors import SpecError
from moesim.files import Kind, nearest
from moesim.scenario.references import SLOTS
from moesim.spec.base import Spec
from moesim.spec.composition import CompositionSpec
from moesim.spec.hardware import ClusterSpec, DeviceSpec, NodeSpec
from moesim.spec.model import ModelSpec
from moesim.spec.placement import PlacementSpec
from moesim.spec.routing import RoutingSpec
from moesim.spec.scenario import ScenarioSpec
from moesim.spec.traffic import TrafficSpec

__all__ = ["KINDS", "json_schema"]

KINDS: dict[Kind, type[Spec]] = {
    "device": DeviceSpec,
    "node": NodeSpec,
    "cluster": ClusterSpec,
    "model": ModelSpec,
    "traffic": TrafficSpec,
    "routing": RoutingSpec,
    "placement": PlacementSpec,
    "composition": CompositionSpec,
    "scenario": ScenarioSpec,
}
"""The spec of each kind of file, by the value of its ``kind:`` key."""

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


@cache
def _schema(kind: Kind) -> dict[str, Any]:
    schema = KINDS[kind].model_json_schema(mode="validation")
    schema = _as_file(schema) if kind == "scenario" else schema
    return {
        "$schema": _DIALECT,
        "title": f"moesim {kind} file",
        **{k: v for k, v in schema.items() if k != "title"},
    }


def json_schema(kind: str) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of files of ``kind``.

    A scenario file may leave out whatever a base or the catalog states: only ``kind`` is required there.

    Raises
    ------
    SpecError : no such kind
    """
    if kind not in KINDS:
        raise SpecError(f"{kind}: no such kind of file{nearest(kind, KINDS)} (known: {', '.join(KINDS)})")
    return copy.deepcopy(_schema(kind))


def _as_file(resolved: dict[str, Any]) -> dict[str, Any]:
    """Turn the schema of a resolved scenario into that of what people write: partial, with references."""
    definitions = {name: _partial(part) for name, part in resolved.pop("$defs", {}).items()}
    fields = dict(resolved["properties"])
    for slot in SLOTS:
        name = {"traffic": "TrafficSpec", "routing": "RoutingSpec"}.get(slot, f"{slot.capitalize()}Spec")
        entry = copy.deepcopy(definitions[name])
        entry["properties"] = {
            "from": {"type": "string", "description": f"name or path of a {slot}"},
            **entry["properties"],
        }
        definitions[f"{name}Override"] = entry
        about = fields[slot].get("description", "")
        fields[slot] = {
            "anyOf": [
                {"type": "string", "description": f"name or path of a {slot}"},
                {"$ref": f"#/$defs/{name}Override"},
                {"type": "null"},
            ],
            "description": about,
        }
    pool = definitions["Pool"]["properties"]
    pool["placement"] = {
        "anyOf": [{"type": "string", "description": "path of a placement file"}, *pool["placement"]["anyOf"]],
        "description": pool["placement"].get("description", ""),
    }
    overrides = {name: field for name, field in fields.items() if name != "kind"}
    definitions["Variant"] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {"about": {"type": "string", "description": "what the variant asks"}, **overrides},
    }
    names = {"type": "string", "description": "name or path of a scenario"}
    fields["extends"] = {
        "anyOf": [names, {"type": "array", "items": names}],
        "description": "scenarios this one starts from, weakest first",
    }
    fields["variants"] = {
        "type": "object",
        "additionalProperties": {"anyOf": [{"$ref": "#/$defs/Variant"}, {"type": "null"}]},
        "description": "named overrides, chosen with --variant",
    }
    return {**resolved, "$defs": definitions, "properties": fields, "required": ["kind"]}


def _partial(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key != "required"}
