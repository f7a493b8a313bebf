"""Console: the answer on stdout, everything else on stderr, and what happens when a verb fails."""

from __future__ import annotations

import functools
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec

from moesim.errors import MoesimError, SpecError

__all__ = ["answers", "emit_json", "note", "print_table", "progress_bar", "text"]

P = ParamSpec("P")

_BUG = "https://github.com/moesim/moesim/issues"
_INTERNAL = 70
_INTERRUPTED = 130


def answers(verb: Callable[P, None]) -> Callable[P, None]:
    """Wrap a verb: errors become one line per problem and an exit code, never a traceback.

    Exit codes: 2 a wrong file or option, 3 no result, 4 missing data, 70 our bug, 130 interrupted. With
    ``--json`` the problems are printed on stdout as an object too.
    """

    @functools.wraps(verb)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        as_json = bool(kwargs.get("json_", False))
        try:
            verb(*args, **kwargs)
            sys.stdout.flush()
        except MoesimError as error:
            for line in str(error).splitlines() or [type(error).__name__]:
                note(line)
            if as_json:
                emit_json({"error": _error_object(error)})
            raise SystemExit(error.exit_code) from None
        except KeyboardInterrupt:
            note("interrupted")
            raise SystemExit(_INTERRUPTED) from None
        except BrokenPipeError:
            # the reader (head, less) has gone: nothing left to say, and nothing to say it to
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(0) from None
        except Exception as error:
            if os.environ.get("MOESIM_DEBUG") == "1":
                raise
            note(f"{type(error).__name__}: {error}")
            note(
                f"this is a bug in moesim; please report it at {_BUG} with the command and what it prints "
                "under MOESIM_DEBUG=1"
            )
            if as_json:
                emit_json(
                    {
                        "error": {
                            "type": "bug",
                            "exit_code": _INTERNAL,
                            "message": f"{type(error).__name__}: {error}",
                            "problems": [],
                        }
                    }
                )
            raise SystemExit(_INTERNAL) from None

    return wrapped


def _error_object(error: MoesimError) -> dict[str, Any]:
    problems = (
        []
        if not isinstance(error, SpecError)
        else [
            {"where": p.where, "line": p.line, "field": p.field, "value": p.value, "expected": p.expected}
            for p in error.problems
        ]
    )
    return {
        "type": type(error).__name__,
        "exit_code": error.exit_code,
        "message": str(error),
        "problems": problems,
    }


def emit_json(data: Any) -> None:
    """Print ``data`` as JSON on stdout: two spaces, keys in the given order, NaN as null."""
    sys.stdout.write(
        json.dumps(_finite(data), indent=2, ensure_ascii=False, allow_nan=False, default=_item) + "\n"
    )


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _item(value: Any) -> Any:
    """Turn numpy scalars into Python's, and anything else (paths, dates) into text."""
    return _finite(value.item()) if hasattr(value, "item") else str(value)


def note(line: str) -> None:
    """Print one line on stderr."""
    sys.stderr.write(line + "\n")


def text(line: str) -> None:
    """Print one line of the answer on stdout."""
    sys.stdout.write(line + "\n")


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], title: str = "", right: Sequence[int] = ()
) -> None:
    """Print a table on stdout; ``right`` are the columns of numbers. Piped output is 200 wide."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else 200, highlight=False).print(table)


@contextmanager
def progress_bar(label: str, quiet: bool = False) -> Iterator[Callable[[float, str], None] | None]:
    """Yield ``update(share, note)`` that moves a bar on stderr; off a terminal only its first note is printed.

    The first note is what the wait is for (compiling, say); with ``quiet`` nothing is printed.
    """
    if quiet:
        yield None
        return
    if not sys.stderr.isatty():
        told: list[str] = []

        def tell(share: float, about: str) -> None:
            if share == 0 and about and not told:
                told.append(about)
                note(about)

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=1.0, note="")
        yield lambda share, about: progress.update(task, completed=share, note=about)
