"""Read YAML strictly: 1.2 rules, duplicate keys refused, every key's line remembered."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moesim.errors import Problem, SpecError

__all__ = ["Document", "Key", "parse_yaml", "read_text", "read_yaml"]

Key = tuple[str | int, ...]

_MAX_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file: plain data, and the line where each path was written.

    Attributes
    ----------
    data : dicts, lists, str, int, float, bool, None
    where : name to print in messages, usually the path as the user wrote it
    lines : path of keys and indices -> 1-based line
    path : the file, None for text that came from elsewhere
    """

    data: Any
    where: str
    lines: dict[Key, int] = field(default_factory=dict)
    path: Path | None = None

    def line(self, key: Key) -> int:
        """Return the line of ``key`` or of its nearest written ancestor (0 when there is none)."""
        for end in range(len(key), -1, -1):
            if key[:end] in self.lines:
                return self.lines[key[:end]]
        return 0

    def problem(self, key: Key, value: Any, expected: str) -> Problem:
        """Make the one-line message for ``key``."""
        shown = "" if value is None else _shorten(repr(value))
        return Problem(self.where, self.line(key), ".".join(map(str, key)), shown, expected)


def _shorten(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def read_text(path: Path, where: str | None = None) -> str:
    """Read a UTF-8 file of at most 64 MiB; every failure is a SpecError with the file's name."""
    name = where or str(path)
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise SpecError(Problem(name, 0, "", "", "expected a file, found a directory"))
        if size > _MAX_BYTES:
            raise SpecError(Problem(name, 0, "", f"{size} bytes", "expected a text file of at most 64 MiB"))
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError(Problem(name, 0, "", "", "no such file")) from None
    except UnicodeDecodeError as error:
        raise SpecError(
            Problem(name, 0, "", "", f"expected UTF-8 text (byte {error.start} is not)")
        ) from None
    except OSError as error:
        raise SpecError(Problem(name, 0, "", "", f"cannot be read: {error.strerror}")) from None


def read_yaml(path: Path, where: str | None = None) -> Document:
    """Read one YAML document from ``path``.

    Raises
    ------
    SpecError : missing file, syntax error, duplicate key, non-finite number, several documents
    """
    document = parse_yaml(read_text(path, where), where or str(path))
    return Document(document.data, document.where, document.lines, path)


def parse_yaml(text: str, where: str) -> Document:
    """Parse YAML text; see ``read_yaml``.

    >>> parse_yaml("a: 1e9", "x").data
    {'a': 1000000000.0}
    """
    from ruamel.yaml import YAML  # noqa: PLC0415 - 60 ms, paid only when a file is read
    from ruamel.yaml.error import MarkedYAMLError, YAMLError  # noqa: PLC0415

    yaml = YAML(typ="rt", pure=True)
    try:
        root = yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 0
        what = error.problem or error.context or "not YAML"
        raise SpecError(Problem(where, line, "", "", f"expected YAML: {what}")) from None
    except YAMLError as error:
        raise SpecError(Problem(where, 0, "", "", f"expected YAML: {str(error).splitlines()[0]}")) from None
    if root is None:
        raise SpecError(Problem(where, 0, "", "", "expected a YAML document, the file is empty"))
    walker = _Walker(where)
    data = walker.value(root, ())
    if walker.problems:
        raise SpecError(*walker.problems)
    return Document(data, where, walker.lines)


class _Walker:
    """Turns ruamel's node graph into plain data, collecting lines and problems."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.lines: dict[Key, int] = {}
        self.problems: list[Problem] = []
        self._open: set[int] = set()

    def value(self, node: Any, key: Key) -> Any:
        self.lines.setdefault(key, node.start_mark.line + 1)
        if id(node) in self._open:
            self._bad(node, key, "", "an anchor that contains itself is not allowed")
            return None
        self._open.add(id(node))
        try:
            if node.id == "mapping":
                return self._mapping(node, key)
            if node.id == "sequence":
                return [self.value(child, (*key, index)) for index, child in enumerate(node.value)]
            return self._scalar(node, key)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: Any, key: Key) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name_node, child in node.value:
            name = name_node.value if isinstance(name_node.value, str) else None
            if name is None:
                self._bad(name_node, key, "", "expected a plain word as key")
                continue
            here = (*key, name)
            if name in result:
                first = self.lines[here]
                self._bad(name_node, here, "", f"expected one value, the key already stands on line {first}")
                continue
            self.lines[here] = name_node.start_mark.line + 1
            result[name] = self.value(child, here)
        return result

    def _scalar(self, node: Any, key: Key) -> Any:
        text: str = node.value
        if node.style == ">":
            text = text.replace("\a", "")  # ruamel marks where a folded line was broken
        kind = str(node.ctag if hasattr(node, "ctag") else node.tag).rsplit(":", 1)[-1]
        if node.style in {"'", '"', "|", ">"} or kind in {"str", "timestamp"}:
            # YAML 1.2 core has no timestamps; ruamel leaves '1e9' a string in some builds, JSON numbers are numbers
            return _json_number(text) if node.style is None and kind == "str" else text
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == "int":
            based = text.lstrip("+-")[:2].lower() in {"0x", "0o", "0b"}
            return int(text.replace("_", ""), 0 if based else 10)
        if kind == "float":
            number = float(
                text.replace("_", "")
                .replace(".inf", "inf")
                .replace(".Inf", "inf")
                .replace(".nan", "nan")
                .replace(".NaN", "nan")
            )
            if not math.isfinite(number):
                self._bad(node, key, text, "expected a finite number")
            return number
        self._bad(node, key, text, f"the tag {node.tag!s} is not allowed here")
        return None

    def _bad(self, node: Any, key: Key, value: str, expected: str) -> None:
        line = node.start_mark.line + 1
        self.problems.append(Problem(self.where, line, ".".join(map(str, key)), _shorten(value), expected))


def _json_number(text: str) -> str | float:
    head = text.lstrip("+-")[:1]
    if not head.isdigit() or not all(c.isdigit() or c in "+-.eE" for c in text):
        return text
    try:
        return float(text)
    except ValueError:
        return text
