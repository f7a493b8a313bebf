"""Layers: trees of values that know where they were written, and how one is laid over another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from moesim.errors import Problem, SpecError
from moesim.files import Document, catalog_root
from moesim.files.reader import Key

__all__ = ["Merged", "Origin", "Value", "leaves", "merge", "plain", "shown", "tree", "value_at"]

_WIDEST = 60


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was written.

    Attributes
    ----------
    where : file as shown to the user, or an option such as ``--set``
    line : 1-based, 0 when there is none
    label : what the place is for, e.g. ``variant fast`` or ``catalog``; empty for a scenario file
    path : the file, for values that name other files
    """

    where: str
    line: int = 0
    label: str = ""
    path: Path | None = None

    def __str__(self) -> str:
        place = f"{self.where}:{self.line}" if self.line else self.where
        if self.label.startswith("variant"):
            return f"{self.label} ({place})"
        return f"{self.label} {place}" if self.label else place


@dataclass(frozen=True, slots=True)
class Value:
    """One node of a layer: a mapping or list of values, or a scalar, with its origin."""

    data: Any
    origin: Origin

    @property
    def is_mapping(self) -> bool:
        """Whether ``data`` maps names to values."""
        return isinstance(self.data, dict)


def shown(path: Path) -> tuple[str, str]:
    """Return (label, text) for messages: catalog files by catalog path, others from where we are."""
    resolved = path.resolve()
    if resolved.is_relative_to(catalog_root()):
        inside = resolved.relative_to(catalog_root()).as_posix()
        if not inside.startswith("scenarios/"):
            return "catalog", inside
    try:
        return "", resolved.relative_to(Path.cwd()).as_posix()
    except ValueError:
        return "", str(path)


def tree(document: Document, label: str = "") -> Value:
    """Return the values of ``document``, each with its line."""

    def walk(data: Any, key: Key) -> Value:
        origin = Origin(document.where, document.line(key), label, document.path)
        if isinstance(data, dict):
            return Value({name: walk(child, (*key, name)) for name, child in data.items()}, origin)
        if isinstance(data, list):
            return Value([walk(child, (*key, index)) for index, child in enumerate(data)], origin)
        return Value(data, origin)

    return walk(document.data, ())


def plain(value: Value) -> Any:
    """Return the plain data of a tree: dicts, lists and scalars."""
    if isinstance(value.data, dict):
        return {name: plain(child) for name, child in value.data.items()}
    if isinstance(value.data, list):
        return [plain(child) for child in value.data]
    return value.data


def leaves(value: Value, key: Key = ()) -> Iterator[tuple[Key, Value]]:
    """Yield (path, value) of every scalar, and of every empty mapping or list, in file order."""
    children: Any = value.data.items() if isinstance(value.data, dict) else ()
    if isinstance(value.data, list):
        children = enumerate(value.data)
    if not isinstance(value.data, dict | list) or not value.data:
        yield key, value
        return
    for step, child in children:
        yield from leaves(child, (*key, step))


def value_at(value: Value, key: Sequence[str | int]) -> Value | None:
    """Return the node at ``key``, or None."""
    for step in key:
        in_list = isinstance(value.data, list) and isinstance(step, int) and step < len(value.data)
        if not in_list and not (isinstance(value.data, dict) and step in value.data):
            return None
        value = value.data[step]
    return value


def merge(weak: Value, strong: Value, key: Key = ()) -> Value:
    """Lay ``strong`` over ``weak``.

    Two mappings are merged key by key; anything else is replaced whole, lists too. A mapping starts afresh
    when it names its own ``from:``, or a ``kind:`` (or ``problem:``) other than the weaker one's, whose keys would not
    fit. A mapping whose keys are all numbers changes elements of a list.

    Raises
    ------
    SpecError : an element that the list does not have
    """
    if not strong.is_mapping:
        return strong
    if isinstance(weak.data, list) and strong.data and all(name.isdigit() for name in strong.data):
        elements = list(weak.data)
        for name, child in strong.data.items():
            if int(name) >= len(elements):
                raise SpecError(
                    Problem(
                        child.origin.where,
                        child.origin.line,
                        ".".join(map(str, (*key, name))),
                        "",
                        f"expected an index below {len(elements)}, the length of the list",
                    )
                )
            elements[int(name)] = merge(elements[int(name)], child, (*key, name))
        return replace(weak, data=elements)
    if not weak.is_mapping or _starts_afresh(weak, strong):
        return strong
    merged = dict(weak.data)
    for name, child in strong.data.items():
        merged[name] = merge(merged[name], child, (*key, name)) if name in merged else child
    return replace(weak, data=merged)


def _starts_afresh(weak: Value, strong: Value) -> bool:
    if "from" in strong.data:
        return True
    for tag in ("kind", "problem"):
        if tag in strong.data and tag in weak.data:
            return bool(strong.data[tag].data != weak.data[tag].data)
    # a whole catalog entry written in place of a reference to one
    return "kind" in strong.data and "from" in weak.data


@dataclass(frozen=True, slots=True)
class Merged(Document):
    """A document put together from several files: each message names the file its value came from."""

    root: Value = field(default=Value(None, Origin("")), kw_only=True)
    references: dict[Key, Origin] = field(default_factory=dict, kw_only=True)
    """``(slot, "from")`` -> where the entry was chosen, for mistakes of the choice and not of the entry."""

    def nearest(self, key: Key) -> Origin:
        """Return the origin of ``key`` or of its nearest written ancestor."""
        for end in range(len(key), -1, -1):
            value = value_at(self.root, key[:end])
            if value is not None:
                return value.origin
        return self.root.origin

    def line(self, key: Key) -> int:
        """Return the line of ``key`` in its own file."""
        return self.nearest(key).line

    def problem(self, key: Key, value: Any, expected: str) -> Problem:
        """Make the one-line message for ``key``, naming the file (or option) it was written in."""
        origin = self.references.get(key) or self.nearest(key)
        key = key[:-1] if key[-1:] == ("from",) and value_at(self.root, key) is None else key
        text = "" if value is None else repr(value)
        text = text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"
        return Problem(origin.where, origin.line, ".".join(map(str, key)), text, expected)
