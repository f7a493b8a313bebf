"""README: its commands run, its Python runs, its scenario is valid."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.removeprefix("$ moesim ")
    for block in re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ moesim ")
]


def _run(arguments, folder):
    return subprocess.run(
        arguments,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        shell=isinstance(arguments, str),
    )


def test_the_readme_shows_commands():
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize("command", COMMANDS)
def test_command_runs(command, tmp_path):
    (tmp_path / "scenarios").symlink_to(ROOT / "scenarios")
    done = _run(f"{sys.executable} -m moesim {command}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_python_runs(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    done = _run([sys.executable, "-c", code], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "first_token_s" in done.stdout


def test_scenario_is_valid(tmp_path):
    (yaml,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml)
    done = _run([sys.executable, "-m", "moesim", "lint", str(path)], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_numbers_of_the_tour_are_what_it_prints(tmp_path):
    done = _run([sys.executable, "-m", "moesim", "run", "quickstart", "--no-report"], tmp_path)
    shown = next(b for b in re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL) if "3000 of 3000" in b)
    printed = {" ".join(line.split()) for line in done.stdout.splitlines()}
    for line in shown.splitlines()[1:]:
        words = " ".join(line.split())
        if words and words != "..." and "─" not in words:
            assert words in printed, words
