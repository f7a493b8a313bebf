"""Call the command line in this process."""

from __future__ import annotations

from dataclasses import dataclass

from typer.testing import CliRunner

from moesim.cli import app


@dataclass(frozen=True)
class Answer:
    """What a command said: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


def command(*args: str) -> Answer:
    """Run ``moesim ARGS``."""
    result = CliRunner().invoke(app, list(args))
    return Answer(result.exit_code, result.stdout, result.stderr)
