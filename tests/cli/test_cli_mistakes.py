"""Every deliberate mistake gets one line, the right exit code, no traceback, and a JSON object when asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from call import command
from mistakes import MISTAKES, Mistake, prepare


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: m.name)
def test_one_clear_line(mistake: Mistake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path, mistake)
    monkeypatch.chdir(tmp_path)
    answer = command(*mistake.args)
    lines = answer.err.splitlines()
    assert len(lines) == 1, answer.err
    if mistake.line.endswith(" "):  # the rest are numbers that other tests own
        assert lines[0].startswith(mistake.line)
    else:
        assert lines[0] == mistake.line.replace("{here}", str(tmp_path))
    assert answer.code == mistake.code
    assert answer.out == ""
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: m.name)
def test_json_carries_the_same(mistake: Mistake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path, mistake)
    monkeypatch.chdir(tmp_path)
    answer = command(*mistake.args, "--json")
    error = json.loads(answer.out)["error"]
    assert error["message"] == answer.err.rstrip("\n")
    assert error["exit_code"] == answer.code == mistake.code
    if mistake.code == 2:
        assert [p["expected"] for p in error["problems"]]


def test_there_are_enough_mistakes() -> None:
    assert len({m.name for m in MISTAKES}) == len(MISTAKES) >= 20
