"""Lint: check files of any kind by their ``kind:`` key, and scenarios with each of their variants."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from moesim.errors import MoesimError, Problem, SpecError
from moesim.files import catalog_names, find, nearest, read_yaml
from moesim.files.catalog import CATALOG
from moesim.scenario.layers import shown
from moesim.scenario.load import load, variant_names
from moesim.scenario.schema import KINDS
from moesim.spec.base import validate
from moesim.spec.scenario import ScenarioSpec

__all__ = ["LintReport", "lint"]


@dataclass(frozen=True, slots=True)
class LintReport:
    """What lint found.

    Attributes
    ----------
    files : files read, as shown to the user
    problems : all mistakes, file by file
    """

    files: tuple[str, ...]
    problems: tuple[Problem, ...]


def lint(targets: Iterable[str], check: Callable[[ScenarioSpec], None] | None = None) -> LintReport:
    """Check files, folders (every YAML file below) and catalog names.

    Parameters
    ----------
    targets : paths or names; none: the whole catalog
    check : a further question to each resolved scenario, e.g. whether the model fits; raises when it does not
    """
    files: list[str] = []
    problems: list[Problem] = []
    for target in list(targets) or [""]:
        try:
            paths = _files(target)
        except SpecError as error:
            problems += error.problems
            continue
        for path in paths:
            files.append("".join(shown(path)[1:]))
            problems += _problems(path, check)
    return LintReport(tuple(files), tuple(dict.fromkeys(problems)))


def _files(target: str) -> list[Path]:
    if not target:
        return [find(name, kind) for kind in CATALOG for name in catalog_names(kind)]
    path = Path(target)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix in {".yaml", ".yml"})
        if not found:
            raise SpecError(Problem(target, 0, "", "", "expected YAML files in this folder"))
        return found
    if path.is_file() or path.suffix in {".yaml", ".yml"}:
        return [path]
    for kind in CATALOG:
        if target in catalog_names(kind):
            return [find(target, kind)]
    known = [name for kind in CATALOG for name in catalog_names(kind)]
    raise SpecError(
        Problem(target, 0, "", "", f"no such file, folder or catalog name{nearest(target, known)}")
    )


def _problems(path: Path, check: Callable[[ScenarioSpec], None] | None) -> list[Problem]:
    where = shown(path)[1]
    try:
        document = read_yaml(path, where)
        if not isinstance(document.data, dict):
            return [document.problem((), document.data, "expected a mapping with the key kind")]
        kind = document.data.get("kind")
        if kind not in KINDS:
            known = f"expected kind: {', '.join(KINDS)}"
            return [document.problem(("kind",), kind, known + (nearest(str(kind), KINDS) if kind else ""))]
        if kind != "scenario":
            validate(KINDS[kind], document)
            return []
    except SpecError as error:
        return list(error.problems)
    return _scenario_problems(path, where, check)


def _scenario_problems(path: Path, where: str, check: Callable[[ScenarioSpec], None] | None) -> list[Problem]:
    problems: list[Problem] = []
    names: list[str] = [""]
    file = str(path.resolve())
    try:
        names += variant_names(file)
    except SpecError as error:
        return list(error.problems)
    for name in names:
        try:
            loaded = load(file, [name] if name else [])
            if check is not None:
                check(loaded.scenario)
        except SpecError as error:
            problems += error.problems
        except MoesimError as error:
            label = f"variant {name}" if name else ""
            problems.append(Problem(where, 0, label, "", str(error)))
    return problems
