"""Events: a Chrome trace read as a stream, one event at a time, with line numbers and bounded memory."""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from moesim.errors import Problem, SpecError

__all__ = ["MAX_TEXT", "EventStream", "opened_text", "shorten"]

MAX_TEXT = 4 * 2**30
"""Longest trace read, characters after unpacking: about ten million events."""
_CHUNK = 2**20
_MAX_VALUE = 16 * 2**20
_SPACE = re.compile(r"[\s,]*")
_NEAR_END = 16


def shorten(value: Any, limit: int = 60) -> str:
    """Return ``value`` as a user wrote it, on one line, cut to ``limit`` characters."""
    text = " ".join(value.splitlines()) if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


@contextmanager
def opened_text(path: Path, where: str, encoding: str = "utf-8-sig") -> Iterator[io.TextIOWrapper]:
    """Open a file or its ``.gz`` as text; bytes that are no UTF-8 (they occur in kernel names) are replaced.

    Raises
    ------
    SpecError : no such file, a directory, not readable, a damaged archive
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield io.TextIOWrapper(file, encoding, errors="replace")
    except FileNotFoundError:
        raise SpecError(Problem(where, 0, "", "", "no such file")) from None
    except IsADirectoryError:
        raise SpecError(Problem(where, 0, "", "", "expected a file, found a directory")) from None
    except (OSError, EOFError, zlib.error) as error:
        raise SpecError(Problem(where, 0, "", "", f"cannot be read: {error}")) from None


class EventStream:
    """Iterates over the events of a trace; ``head`` holds the keys that stand before them.

    Both forms of the format are read: an object with ``traceEvents``, and a bare array of events. Only the text of
    the current chunk is held. Iterating yields (line, event).

    Raises
    ------
    SpecError : not JSON, no ``traceEvents``, an event that is no object, a file that ends too early, more than
        ``limit`` characters, one value of more than 16 MiB
    """

    def __init__(self, file: io.TextIOBase, where: str, limit: int = MAX_TEXT) -> None:
        self.head: dict[str, Any] = {}
        self._file, self._where, self._limit = file, where, limit
        self._text, self._at, self._read = "", 0, 0
        self._line, self._counted = 1, 0  # the line of the character at _counted
        self._decoder = json.JSONDecoder(strict=False)

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        self._enter()
        while True:
            self._skip()
            if self._text.startswith("]", self._at):
                return
            line = self._here()
            event = self._value("an event")
            if not isinstance(event, dict):
                self._bad(line, shorten(event), "expected an event, a JSON object")
            yield line, event

    def _enter(self) -> None:
        """Move to the first event, keeping what stands before."""
        self._skip()
        if self._text.startswith("[", self._at):
            self._at += 1
            return
        if not self._text.startswith("{", self._at):
            self._bad(1, shorten(self._text[:40]), "expected a Chrome trace: JSON that starts with { or [")
        self._at += 1
        while True:
            self._skip()
            if self._text.startswith("}", self._at):
                self._bad(0, "", "expected the key traceEvents: this is no Chrome trace")
            key = self._value("a key")
            self._skip()
            if not isinstance(key, str) or not self._text.startswith(":", self._at):
                self._bad(self._here(), shorten(key), "expected a JSON object's key and a colon")
            self._at += 1
            self._skip()
            if key == "traceEvents":
                if not self._text.startswith("[", self._at):
                    self._bad(self._here(), "traceEvents", "expected an array of events")
                self._at += 1
                return
            self.head[key] = self._value(key)

    def _skip(self) -> None:
        """Move over white space and commas to the next character, reading on where the chunk ends."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text):
                return
            if not self._more():
                self._bad(self._here(), "", "expected more: the file ends inside the trace (was it cut off?)")

    def _value(self, what: str) -> Any:
        while True:
            try:
                value, self._at = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                self._continue(error, what)
            except RecursionError:
                self._bad(self._here(), what, "expected JSON that is not nested this deep")
            else:
                return value

    def _continue(self, error: json.JSONDecodeError, what: str) -> None:
        """Read on where a value is only cut by the chunk; refuse one that is wrong or never ends."""
        open_text = error.msg.startswith("Unterminated")
        if open_text or error.pos >= len(self._text) - _NEAR_END:
            if len(self._text) - self._at > _MAX_VALUE:
                self._bad(self._here(), what, "expected values of at most 16 MiB")
            if self._more():
                return
            if open_text or error.pos >= len(self._text.rstrip()):
                self._bad(self._here(), what, "expected more: the file ends inside a value (was it cut off?)")
        line = self._here() + self._text.count("\n", self._at, error.pos)
        near = shorten(self._text[error.pos : error.pos + 40])
        self._bad(line, near, f"expected JSON ({error.msg})")

    def _more(self) -> bool:
        chunk = self._file.read(_CHUNK)
        if not chunk:
            return False
        self._read += len(chunk)
        if self._read > self._limit:
            size = f"more than {self._limit} characters"
            self._bad(0, size, "expected a smaller trace: profile fewer steps (torch.profiler.schedule)")
        self._here()
        self._text, self._at, self._counted = self._text[self._at :] + chunk, 0, 0
        return True

    def _here(self) -> int:
        """Return the line of the next character."""
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def _bad(self, line: int, value: str, expected: str) -> NoReturn:
        raise SpecError(Problem(self._where, line, "", value, expected))
