"""References: ``model: mixtral-8x7b`` becomes the whole entry, with the scenario's overrides laid over it.

A slot holds a name or path, a mapping ``{from: NAME, ...overrides}``, or the whole entry. ``node`` and
``device`` are named by the cluster; what a scenario writes there is laid over them.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from moesim.errors import Problem, SpecError
from moesim.files import Kind, catalog_names, find, nearest, read_yaml
from moesim.scenario.layers import Origin, Value, merge, shown, tree
from moesim.spec.topology import resolve_cluster

__all__ = ["SLOTS", "expand", "normalise", "read_layer"]

Slot = Literal["cluster", "node", "device", "model", "traffic", "routing"]
SLOTS: tuple[Slot, ...] = ("cluster", "node", "device", "model", "traffic", "routing")

POOLS = ("serve", "prefill", "decode")

_SEVERAL = re.compile(r"\d+\s*x\s+\S+", re.IGNORECASE)
_FILES: dict[str, tuple[tuple[str, ...], ...]] = {
    "traffic": (("trace", "path"),),
    "routing": (("router", "path"), ("router", "tables", "path")),
}
"""Keys that name a file beside the one they are written in."""


def normalise(layer: Value) -> Value:
    """Write every plain reference of a layer as ``{from: NAME}``, so that overrides can be laid over it."""
    if not layer.is_mapping:
        return layer
    changed = {}
    for slot in SLOTS:
        value = layer.data.get(slot)
        if value is not None and isinstance(value.data, str):
            changed[slot] = Value({"from": value}, value.origin)
    return replace(layer, data={**layer.data, **changed})


def read_layer(path: Path) -> Value:
    """Read a YAML file as a layer; messages name it as the user would."""
    label, where = shown(path)
    try:
        modified = path.stat().st_mtime_ns
    except OSError:
        modified = 0  # reading it says what is wrong
    return _read_layer(path, where, label, modified)


@lru_cache(maxsize=256)
def _read_layer(path: Path, where: str, label: str, modified: int) -> Value:  # noqa: ARG001 - cache key
    return tree(read_yaml(path, where), label)


def expand(root: Value) -> tuple[Value, list[Problem], set[str]]:
    """Put the entry that each slot names in its place.

    Returns
    -------
    root : with no ``from`` left in any slot
    problems : references that lead nowhere
    open_slots : slots that could not be filled because of them
    """
    slots: dict[str, Value] = {}
    problems: list[Problem] = []
    missing: set[str] = set()
    for slot in SLOTS:
        value = root.data.get(slot)
        try:
            if slot == "node":
                slots |= _named_by(slots.get("cluster"), "cluster", "node", value)
            elif slot == "device":
                slots |= _named_by(slots.get("node"), "node", "device", value)
            elif value is not None:
                slots[slot] = _entry(slot, value)
        except SpecError as error:
            problems += error.problems
            missing.add(slot)
    if "cluster" in missing or "node" in missing:
        missing |= {"node", "device"}
    rest = {name: child for name, child in root.data.items() if name not in SLOTS}
    if "plan" in rest:
        rest["plan"] = _plan_files(rest["plan"])
    if "deployment" in rest:
        rest["deployment"], found = _placements(rest["deployment"])
        problems += found
    return replace(root, data={**rest, **slots}), problems, missing


def _plan_files(plan: Value) -> Value:
    """Make the paths of recorded loads and traces in a plan section independent of their file's folder."""
    plan = _absolute(plan, ("trace",))
    loads = plan.data.get("loads") if plan.is_mapping else None
    if loads is None or not isinstance(loads.data, list):
        return plan
    files = replace(loads, data=[_absolute(child, ("path",)) for child in loads.data])
    return replace(plan, data={**plan.data, "loads": files})


def _placements(deployment: Value) -> tuple[Value, list[Problem]]:
    """Put the file that ``deployment.POOL.placement`` names in its place; one that leads nowhere becomes null."""
    if not deployment.is_mapping:
        return deployment, []
    pools = dict(deployment.data)
    problems: list[Problem] = []
    for pool in POOLS:
        value = pools.get(pool)
        named = value.data.get("placement") if value is not None and value.is_mapping else None
        if value is None or named is None or not isinstance(named.data, str):
            continue
        try:
            entry = _placement(pool, named)
        except SpecError as error:
            problems += error.problems
            entry = Value(None, named.origin)
        pools[pool] = replace(value, data={**value.data, "placement": entry})
    return replace(deployment, data=pools), problems


def _placement(pool: str, name: Value) -> Value:
    text, field = name.data.strip(), f"deployment.{pool}.placement"
    if not text.endswith((".yaml", ".yml")):
        raise SpecError(
            _bad(name.origin, field, repr(text), "expected the path of a placement file, ending in .yaml")
        )
    try:
        entry = read_layer(find(text, "placement", name.origin.path))
    except SpecError as error:
        if any(p.line for p in error.problems):
            raise
        raise SpecError(_bad(name.origin, field, repr(text), "no such file")) from None
    kind = entry.data.get("kind") if entry.is_mapping else None
    if kind is None or kind.data != "placement":
        origin, value = (entry.origin, "") if kind is None else (kind.origin, repr(kind.data))
        expected = f"expected kind: placement, as {_place(name.origin)} names it for {field}"
        raise SpecError(_bad(origin, "kind", value, expected))
    return entry


def _named_by(owner: Value | None, owner_slot: str, slot: Slot, override: Value | None) -> dict[str, Value]:
    """Return the entry of ``slot`` that ``owner`` names, under the override; the owner too if renamed."""
    if override is not None and override.is_mapping and ("from" in override.data or "kind" in override.data):
        entry = _entry(slot, override)
        name = override.data.get("from")
        if owner is None or name is None:
            return {slot: entry}
        return {slot: entry, owner_slot: replace(owner, data={**owner.data, slot: name})}
    if owner is None or not owner.is_mapping or slot not in owner.data:
        return {} if override is None else {slot: override}
    reference = owner.data[slot]
    if not isinstance(reference.data, str):
        return {}
    entry = _read(slot, reference)
    return {slot: entry if override is None else merge(entry, override, (slot,))}


def _entry(slot: Slot, value: Value) -> Value:
    if not value.is_mapping or "from" not in value.data:
        return _beside(slot, value)
    name = value.data["from"]
    if not isinstance(name.data, str):
        raise SpecError(_bad(name.origin, f"{slot}.from", repr(name.data), "expected a name or a path"))
    entry = _cluster(name) if slot == "cluster" else _read(slot, name)
    rest = {key: child for key, child in value.data.items() if key != "from"}
    return merge(entry, _beside(slot, replace(value, data=rest)), (slot,)) if rest else entry


def _read(slot: Slot, name: Value) -> Value:
    path = _find(slot, slot, name)
    entry = read_layer(path)
    kind = entry.data.get("kind") if entry.is_mapping else None
    if kind is None or kind.data != slot:
        origin = kind.origin if kind is not None else entry.origin
        raise SpecError(
            _bad(
                origin,
                "kind",
                repr(kind.data) if kind is not None else "",
                f"expected kind: {slot}, as {_place(name.origin)} names it for {slot}",
            )
        )
    return _beside(slot, entry)


def _cluster(name: Value) -> Value:
    """Return a cluster file, a node as a cluster of one, or ``4x NODE`` as a cluster of four."""
    text = name.data.strip()
    ad_hoc = _SEVERAL.fullmatch(text) is not None
    if ad_hoc:
        pass
    elif text.endswith((".yaml", ".yml")):
        entry = read_layer(_find("cluster", "cluster", name))
        ad_hoc = entry.is_mapping and "kind" in entry.data and entry.data["kind"].data == "node"
    elif text not in catalog_names("cluster"):
        ad_hoc = text in catalog_names("node")
    if not ad_hoc:
        return _read("cluster", name)
    try:
        cluster = resolve_cluster(text, name.origin.path).cluster
    except SpecError as error:
        raise SpecError(
            *(p if p.line else _bad(name.origin, "cluster", repr(text), p.expected) for p in error.problems)
        ) from None

    def everywhere(data: Any) -> Value:
        if isinstance(data, dict):
            data = {key: everywhere(child) for key, child in data.items()}
        return Value(data, name.origin)

    return everywhere(cluster.model_dump(mode="json", exclude_unset=True))


def _find(kind: Kind, slot: str, name: Value) -> Path:
    text = name.data.strip()
    if text.endswith((".yaml", ".yml")):
        try:
            return find(text, kind, name.origin.path)
        except SpecError:
            raise SpecError(_bad(name.origin, slot, repr(text), "no such file")) from None
    known = catalog_names(kind)
    if text in known:
        return find(text, kind)
    if slot == "cluster":
        known = (*catalog_names("cluster"), *catalog_names("node"))
    expected = f"no {slot} of that name in the catalog{nearest(text, known)} (moesim list {slot}s)".replace(
        "routings", "routing"
    ).replace("traffics", "traffic")
    raise SpecError(_bad(name.origin, slot, repr(text), expected))


def _beside(slot: Slot, value: Value) -> Value:
    """Make paths in ``value`` independent of the folder they were written in; the catalog's own stay short."""
    for key in _FILES.get(slot, ()):
        value = _absolute(value, key)
    return value


def _absolute(value: Value, key: tuple[str, ...]) -> Value:
    if not key:
        path = None if value.origin.label == "catalog" else value.origin.path  # found there, on any machine
        if not isinstance(value.data, str) or path is None or not (path.parent / value.data).exists():
            return value
        return replace(value, data=str((path.parent / value.data).resolve()))
    if not value.is_mapping or key[0] not in value.data:
        return value
    return replace(value, data={**value.data, key[0]: _absolute(value.data[key[0]], key[1:])})


def _bad(origin: Origin, field: str, value: str, expected: str) -> Problem:
    return Problem(origin.where, origin.line, field, value, expected)


def _place(origin: Origin) -> str:
    return f"{origin.where}:{origin.line}" if origin.line else origin.where
