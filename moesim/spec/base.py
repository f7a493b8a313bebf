"""Spec: a frozen noun read from a file; every problem of a file is reported at once, with its line."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from moesim.errors import Problem, SpecError
from moesim.files import Document, Kind, find, nearest, read_yaml

__all__ = ["Finding", "Source", "Spec", "findings", "load_spec", "validate"]

S = TypeVar("S", bound="Spec")


class Spec(BaseModel):
    """Root of all specs: unknown keys refused, values frozen, attribute docstrings are the reference."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Source(Spec):
    """Where a group of facts was read."""

    fields: tuple[str, ...]
    """Dotted prefixes of the fields that this source states, e.g. ``compute.peaks``; ``*`` for all."""
    cite: str
    """Publication, with its date or version."""
    url: str = ""
    """Address, where there is a stable one."""
    note: str = ""
    """What was derived, assumed or disputed."""


class Finding(NamedTuple):
    """A part of a spec that does not fit another part: ``validate`` reports it at ``key``'s own line."""

    key: tuple[str | int, ...]
    value: Any
    expected: str


def findings(*found: Finding) -> PydanticCustomError:
    """Return the error that a model validator raises to report several findings, each at its own key."""
    text = "; ".join(f"{'.'.join(map(str, f.key))}: {f.expected}" for f in found)
    return PydanticCustomError("findings", "{text}", {"text": text, "found": found})


def validate(cls: type[S], document: Document, prefix: tuple[str | int, ...] = ()) -> S:
    """Validate ``document.data`` (or the part at ``prefix``) as ``cls``.

    Raises
    ------
    SpecError : with every problem found, in file order
    """
    data: Any = document.data
    for step in prefix:
        data = data[step]
    if not isinstance(data, dict):
        raise SpecError(document.problem(prefix, data, f"expected a mapping that describes a {cls.__name__}"))
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        problems = []
        for detail in error.errors(include_url=False):
            if detail["type"] == "findings":
                at = (*prefix, *detail["loc"])
                problems += [
                    document.problem((*at, *f.key), f.value, f.expected) for f in detail["ctx"]["found"]
                ]
            else:
                problems.append(_problem(cls, document, prefix, data, detail))
        raise SpecError(*sorted(set(problems), key=lambda p: p.line)) from None


def load_spec(cls: type[S], name: str, kind: Kind, beside: Path | None = None) -> S:
    """Load a spec by catalog name or by path. The file's ``kind:`` key must agree."""
    path = find(name, kind, beside)
    try:
        shown = path.relative_to(Path.cwd())
    except ValueError:
        shown = path
    modified = path.stat().st_mtime_ns
    spec: S = _load_cached(cls, path, str(shown), kind, modified)
    return spec


@cache
def _load_cached(cls: type[S], path: Path, where: str, kind: Kind, modified: int) -> S:  # noqa: ARG001 - cache key
    document = read_yaml(path, where)
    if isinstance(document.data, dict) and document.data.get("kind") != kind:
        raise SpecError(document.problem(("kind",), document.data.get("kind"), f"expected kind: {kind}"))
    return validate(cls, document)


def _problem(
    cls: type[Spec], document: Document, prefix: tuple[str | int, ...], data: Any, detail: Any
) -> Problem:
    location = tuple(detail["loc"])
    key, value, cursor = prefix, data, data
    for (
        step
    ) in location:  # drop pydantic's own steps (union tags, 'function-after[...]'), keep the user's keys
        inside = isinstance(cursor, list) and isinstance(step, int) and step < len(cursor)
        if inside or (isinstance(cursor, dict) and step in cursor):
            cursor = cursor[step]
        elif detail["type"] == "missing" and step == location[-1]:
            key = (*key, step)
            value = None
            break
        else:
            continue
        key = (*key, step)
        value = cursor
    kind = detail["type"]
    if kind == "extra_forbidden":
        known = _fields_at(cls, location[:-1])
        return document.problem(key, None, f"unknown key{nearest(str(location[-1]), known)}")
    if kind == "missing":
        return document.problem(key, None, "expected a value, the key is missing")
    text = str(detail["msg"])
    text = text.removeprefix("Value error, ")
    text = text[:1].lower() + text[1:] if text.startswith("Input") else text
    text = text.replace("input should be", "expected")
    return document.problem(key, value if not isinstance(value, dict | list) else None, text)


def _fields_at(cls: Any, location: tuple[str | int, ...]) -> list[str]:
    """Return the field names known at ``location`` below ``cls``."""
    current: list[Any] = [cls]
    for step in location:
        following: list[Any] = []
        for kind in current:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                if step in kind.model_fields:
                    following += _models_in(kind.model_fields[str(step)].annotation)
                elif _tag_of(kind, step):
                    following.append(kind)
            else:
                following += _models_in(kind)
        current = following or current
    models = [kind for kind in current if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return [name for kind in models for name in kind.model_fields]


def _tag_of(kind: type[BaseModel], step: str | int) -> bool:
    return any(field.default == step for field in kind.model_fields.values())


def _models_in(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _models_in(part)]
