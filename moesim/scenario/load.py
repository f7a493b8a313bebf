"""Load: from a scenario's name, variants and ``--set`` to a resolved spec and the origin of each value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moesim.errors import Problem, SpecError
from moesim.files import find, nearest, parse_yaml
from moesim.files.reader import Key
from moesim.scenario.layers import Merged, Origin, Value, leaves, merge, plain, tree, value_at
from moesim.scenario.references import SLOTS, expand, normalise, read_layer
from moesim.spec.base import validate
from moesim.spec.scenario import ScenarioSpec

__all__ = ["Loaded", "content_hash", "load", "origin_of", "variant_names"]

_ABOUT = "about"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A resolved scenario and where each of its values came from.

    Attributes
    ----------
    scenario : the resolved, self-contained scenario
    origins : dotted path of every value -> ``file:line``, ``catalog file:line``, ``variant x (file:line)``,
        ``--set``, ``--seed`` or ``default``. A list of plain values has one entry; see ``origin_of``
    path : the scenario's own file
    variants : variants applied
    sets : ``--set`` options applied
    """

    scenario: ScenarioSpec
    origins: dict[str, str]
    path: Path
    variants: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()


def load(
    name_or_path: str | Path,
    variants: Sequence[str] = (),
    sets: Sequence[str] = (),
    seed: int | None = None,
) -> Loaded:
    """Load a scenario.

    Layers, weakest first: defaults, the files it ``extends`` (each once, its own bases before it), the file,
    variants, ``--set``, seed.

    Parameters
    ----------
    name_or_path : a name of the catalog (``quickstart``) or a path ending in ``.yaml``
    variants : names; ``"a,b"`` is the same as ``"a", "b"``
    sets : ``dotted.key=value`` with the value in YAML; all of them form one layer
    seed : replaces ``run.seed``

    Raises
    ------
    SpecError : with every problem found, each at the line it was written on
    """
    path = find(str(name_or_path), "scenario")
    chain = _chain(path, ())
    root = chain[0]
    for layer in chain[1:]:
        root = merge(root, layer)
    own = chain[-1]
    if "name" not in own.data:
        root = _with(root, "name", Value(path.stem, Origin(own.origin.where, 0, own.origin.label, path)))
    chosen = _names(variants)
    root = _apply_variants(_without(root, ("variants",)), _variants(root), chosen)
    options = [_option(text) for text in sets]
    if seed is not None:
        options.append((("run", "seed"), Value(seed, Origin("--seed"))))
    root = merge(root, normalise(_options(options)))
    scenario, full = _resolve(root, own.origin)
    return Loaded(scenario, _origins(scenario, full), path, chosen, tuple(sets))


def variant_names(name_or_path: str | Path) -> dict[str, str]:
    """Return the variants of a scenario and of its bases, with what each is about."""
    root: Value | None = None
    for layer in _chain(find(str(name_or_path), "scenario"), ()):
        root = layer if root is None else merge(root, layer)
    found = _variants(root) if root is not None else {}
    return {
        name: str(value.data[_ABOUT].data) if _ABOUT in value.data else "" for name, value in found.items()
    }


def origin_of(origins: dict[str, str], key: str) -> str:
    """Return the origin of ``key``, or of the list or mapping it is part of, or ``default``."""
    steps = key.split(".")
    for end in range(len(steps), 0, -1):
        if ".".join(steps[:end]) in origins:
            return origins[".".join(steps[:end])]
    return "default"


def content_hash(scenario: ScenarioSpec) -> str:
    """Return eight hex digits that equal scenarios share, whatever files they came from."""
    data = json.dumps(scenario.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(data.encode()).hexdigest()[:8]


def _chain(path: Path, above: tuple[Path, ...]) -> list[Value]:
    """Return the layers of ``path`` and its bases, weakest first, each file once."""
    resolved = path.resolve()
    layer = read_layer(path)
    if not layer.is_mapping:
        raise SpecError(_problem(layer, "", "expected a mapping that describes a scenario"))
    kind = layer.data.get("kind")
    if kind is None or kind.data != "scenario":
        raise SpecError(_problem(kind or layer, "kind", "expected kind: scenario"))
    bases = layer.data.get("extends")
    listed = [] if bases is None else bases.data if isinstance(bases.data, list) else [bases]
    chain: list[Value] = []
    seen: set[Path] = set()
    for base in listed:
        if not isinstance(base.data, str):
            raise SpecError(_problem(base, "extends", "expected the name or path of a scenario"))
        try:
            target = find(base.data, "scenario", path)
        except SpecError as error:
            raise SpecError(_problem(base, "extends", str(error).split(": ", 1)[-1])) from None
        if target.resolve() in (*above, resolved):
            loop = " -> ".join(p.name for p in (*above, resolved, target.resolve()))
            raise SpecError(_problem(base, "extends", f"the files extend each other in a circle: {loop}"))
        for part in _chain(target, (*above, resolved)):
            file = part.origin.path.resolve() if part.origin.path is not None else None
            if file is not None and file not in seen:  # a base shared by two bases is laid down once, weakest
                seen.add(file)
                chain.append(part)
    body = replace(layer, data={key: child for key, child in layer.data.items() if key != "extends"})
    return [*chain, normalise(body)]


def _names(variants: Sequence[str]) -> tuple[str, ...]:
    names = [name.strip() for text in variants for name in text.split(",") if name.strip()]
    return tuple(dict.fromkeys(names))


def _variants(root: Value) -> dict[str, Value]:
    listed = root.data.get("variants")
    if listed is None or listed.data is None:
        return {}
    if not listed.is_mapping:
        raise SpecError(_problem(listed, "variants", "expected a mapping from names to overrides"))
    kept = {
        name: value for name, value in listed.data.items() if value.data is not None
    }  # null drops a base's variant
    for name, value in kept.items():
        if not value.is_mapping:
            raise SpecError(_problem(value, f"variants.{name}", "expected a mapping of overrides"))
    return {name: normalise(value) for name, value in kept.items()}


def _apply_variants(root: Value, known: dict[str, Value], chosen: tuple[str, ...]) -> Value:
    """Lay the chosen variants over the root; two that set the same key are refused: no order matters."""
    for name in chosen:
        if name not in known:
            which = f"known: {', '.join(known)}" if known else "the scenario has none"
            raise SpecError(
                Problem(
                    "--variant", 0, "", repr(name), f"no variant of that name{nearest(name, known)} ({which})"
                )
            )
    parts = {name: _labelled(_without(known[name], (_ABOUT,)), f"variant {name}") for name in chosen}
    written: dict[Key, tuple[str, Value]] = {}
    problems = []
    for name, part in parts.items():
        for key, leaf in leaves(part):
            if not key:
                continue
            clash = next(
                (
                    k
                    for k in written
                    if written[k][0] != name and (k[: len(key)] == key or key[: len(k)] == k)
                ),
                None,
            )
            if clash is not None:
                other, there = written[clash]
                problems.append(
                    Problem(
                        leaf.origin.where,
                        leaf.origin.line,
                        ".".join(map(str, key)),
                        "",
                        f"variants {other!r} and {name!r} both set it ({other!r} on "
                        f"{there.origin.where}:{there.origin.line}); choose one",
                    )
                )
            written[key] = (name, leaf)
    if problems:
        raise SpecError(*problems)
    for name, part in parts.items():
        root = merge(root, part)
        if "name" not in part.data and "name" in root.data:
            title = root.data["name"]
            root = _with(root, "name", Value(f"{title.data}+{name}", title.origin))
    return root


def _labelled(value: Value, label: str) -> Value:
    origin = replace(value.origin, label=label)
    if isinstance(value.data, dict):
        return Value({key: _labelled(child, label) for key, child in value.data.items()}, origin)
    if isinstance(value.data, list):
        return Value([_labelled(child, label) for child in value.data], origin)
    return Value(value.data, origin)


def _option(text: str) -> tuple[tuple[str, ...], Value]:
    key, equals, value = text.partition("=")
    steps = tuple(step.strip() for step in key.split("."))
    if not equals or not all(steps) or not value.strip():
        raise SpecError(Problem("--set", 0, "", repr(text), "expected key=value, such as run.requests=2000"))
    try:
        document = parse_yaml(value, "--set")
    except SpecError as error:
        raise SpecError(
            *(Problem("--set", 0, key, repr(value), p.expected) for p in error.problems)
        ) from None
    parsed = tree(replace(document, lines={}))
    return steps, parsed


def _options(options: list[tuple[tuple[str, ...], Value]]) -> Value:
    """Return all options as one layer, so that their order does not matter."""
    root = Value({}, Origin("--set"))
    taken: set[tuple[str, ...]] = set()
    for steps, value in options:
        if steps in taken:
            raise SpecError(
                Problem(
                    value.origin.where,
                    0,
                    ".".join(steps),
                    "",
                    "expected it once, another option sets this key too",
                )
            )
        taken.add(steps)
    # the shorter key first: `model=x` names what `model.vocab=y` then changes
    for steps, value in sorted(options, key=lambda option: len(option[0])):
        layer = value
        for step in reversed(steps):
            layer = Value({step: layer}, value.origin)
        root = merge(root, normalise(layer))
    return root


def _resolve(root: Value, own: Origin) -> tuple[ScenarioSpec, Value]:
    full, problems, missing = expand(root)
    named: dict[Key, Origin] = {
        (slot, "from"): root.data[slot].origin for slot in SLOTS if _is_reference(root.data.get(slot))
    }
    document = Merged(plain(full), own.where, path=own.path, root=full, references=named)
    try:
        scenario = validate(ScenarioSpec, document)
    except SpecError as error:
        problems += [p for p in error.problems if p.field.split(".")[0] not in missing]
    else:
        if not problems:
            return scenario, full
    files = list(dict.fromkeys([own.where, *(p.where for p in problems)]))
    raise SpecError(*sorted(dict.fromkeys(problems), key=lambda p: (files.index(p.where), p.line)))


def _is_reference(value: Value | None) -> bool:
    return value is not None and value.is_mapping and "from" in value.data


def _origins(scenario: ScenarioSpec, root: Value) -> dict[str, str]:
    return {
        ".".join(map(str, key)): _origin(root, key)
        for key in _resolved_leaves(scenario.model_dump(mode="json"))
    }


def _resolved_leaves(data: Any, key: Key = ()) -> Iterator[Key]:
    """Yield the path of every scalar and every list without mappings: a table is one value, not thousands."""
    if isinstance(data, dict) and data:
        for name, child in data.items():
            yield from _resolved_leaves(child, (*key, name))
    elif isinstance(data, list) and any(isinstance(child, dict) for child in data):
        for index, child in enumerate(data):
            yield from _resolved_leaves(child, (*key, index))
    else:
        yield key


def _origin(root: Value, key: Key) -> str:
    value = value_at(root, key)
    if value is not None:
        return str(value.origin)
    for end in range(len(key) - 1, 0, -1):
        above = value_at(root, key[:end])
        if above is not None:  # a short form, such as text that a spec opens into several fields
            return "default" if isinstance(above.data, dict | list) else str(above.origin)
    return "default"


def _without(value: Value, keys: tuple[str, ...]) -> Value:
    return replace(value, data={key: child for key, child in value.data.items() if key not in keys})


def _with(value: Value, key: str, child: Value) -> Value:
    return replace(value, data={**value.data, key: child})


def _problem(value: Value, field: str, expected: str) -> Problem:
    text = repr(value.data) if not isinstance(value.data, dict | list) and value.data is not None else ""
    return Problem(value.origin.where, value.origin.line, field, text, expected)
