"""Fit: a user's own measurements as an artifact of fitted kernels, with its hold-out errors inside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from moesim.calibrate.fit.curve import fit_curves
from moesim.calibrate.fit.data import groups_of
from moesim.calibrate.fit.group import Plan, fit_group, plan_of
from moesim.calibrate.profiles.families import own_families
from moesim.calibrate.profiles.importer import import_profile
from moesim.calibrate.profiles.measured import is_measured
from moesim.calibrate.profiles.store import read_import
from moesim.calibrate.silicon.families import Imported, ImportReport
from moesim.cost.fitted.artifact import Artifact, Group, GroupKey
from moesim.cost.fitted.curves import Curve
from moesim.cost.fitted.estimator import FRAMEWORKS
from moesim.cost.fitted.own import ANY
from moesim.errors import DataMissing, Problem, SpecError
from moesim.files import nearest

__all__ = ["LEAST_ROWS", "LEAST_SIZES", "OwnFit", "fit_own", "read_sources"]

LEAST_ROWS = 60
"""Rows of one family, type and device below which no fit is made: hold-outs of fewer say nothing."""
LEAST_SIZES = 4
"""Sizes of one collective below which no curve is made."""


@dataclass(frozen=True, slots=True, eq=False)
class OwnFit:
    """What was fitted, and what was not.

    Attributes
    ----------
    artifact : fitted groups and curves; hold-out errors are inside
    read, used : rows of the sources; rows that some fit learned from
    left_out : reason -> rows, ``read == used + sum(left_out.values())``
    """

    artifact: Artifact
    read: int
    used: int
    left_out: dict[str, int]


def read_sources(paths: Sequence[Path]) -> tuple[pd.DataFrame, str]:
    """Return the rows of several imports, and the software that was measured.

    Parameters
    ----------
    paths : files that ``calibrate import`` wrote, folders of them, or folders of ``calibrate measure``

    Raises
    ------
    SpecError : nothing that can be read, or end-to-end results, which say nothing of single kernels
    """
    frames, software = [], []
    for path in paths:
        for file in _files(path):
            if is_measured(file):
                found = import_profile(file)
                frames.append(found.frame)
                software.append(found.software)
                continue
            frame, report = read_import(file)
            if report["kind"] == "serving":
                what = "expected kernel times: end-to-end results replay as scenarios (import --scenario)"
                raise SpecError(Problem(str(file), 0, "", "", what))
            frames.append(frame)
            software.append(str(report.get("software", "")))
    return pd.concat(frames, ignore_index=True), ", ".join(sorted(set(filter(None, software))))


def _files(path: Path) -> list[Path]:
    if is_measured(path) or path.is_file():
        return [path]
    found = [p for p in sorted(path.glob("*.parquet")) if not p.stem.endswith("-requests")]
    if not found:
        what = "expected a file or folder of moesim calibrate import, or a folder of moesim calibrate measure"
        raise SpecError(Problem(str(path), 0, "", "", what))
    return found


def fit_own(
    paths: Sequence[Path],
    *,
    framework: str = ANY,
    holdouts: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> OwnFit:
    """Fit a user's own measurements in efficiency space, as the shipped tables are.

    Parameters
    ----------
    paths : see ``read_sources``
    framework : the engine whose kernels were measured; ``any``: they stand in for every engine's
    holdouts : measure errors on unseen points and shapes; without, the artifact says nothing of its accuracy

    Raises
    ------
    SpecError : an unknown framework, or a source that cannot be read
    DataMissing : too few usable rows for a single fit
    """
    if framework not in (ANY, *FRAMEWORKS):
        known = ", ".join((ANY, *FRAMEWORKS))
        raise SpecError(f"framework {framework!r}: expected one of {known}{nearest(framework, FRAMEWORKS)}")
    frame, software = read_sources(paths)
    left: Counter[str] = Counter()
    groups: dict[GroupKey, Group] = {}
    curves: dict[GroupKey, Curve] = {}
    imports: dict[str, Any] = {}
    for imported in own_families(frame, left, framework=framework, software=software or "not stated"):
        enough = _enough(imported, left)
        if enough.rows.empty:
            continue
        if imported.family == "nccl":
            curves |= dict(fit_curves(enough))
        else:
            groups |= {
                data.key: fit_group(data, _plan(imported.family), holdouts=holdouts)
                for data in groups_of(enough)
            }
        imports[imported.family] = enough.report.as_dict()
        progress(imported.family)
    if not groups and not curves:
        reasons = "; ".join(f"{count} rows: {reason}" for reason, count in left.most_common(4))
        raise DataMissing(f"no fit of {', '.join(map(str, paths))}: {reasons}")
    used = sum(entry["kept"] for entry in imports.values())
    source = (
        f"own measurements: {', '.join(path.name for path in paths)} ({software or 'software not stated'})"
    )
    artifact = Artifact(groups, curves, {"source": source, "imports": imports})
    return OwnFit(artifact, len(frame), used, dict(left.most_common()))


def _plan(family: str) -> Plan:
    """Return the shipped fits' plan; shapes are few here, so each is left out once."""
    plan = plan_of(family)
    return replace(plan, tried=plan.folds)


def _enough(imported: Imported, left: Counter[str]) -> Imported:
    """Return the rows of groups with enough of them; the others are counted."""
    collective = imported.family == "nccl"
    keys = ["device", "kernel", "ranks"] if collective else ["device", "dtype", "kernel"]
    least = LEAST_SIZES if collective else LEAST_ROWS
    rows = imported.rows
    size = rows.groupby(keys)["seconds"].transform("size")
    few = rows[size < least]
    for names, part in few.groupby(keys):
        name = " ".join(map(str, names)) if isinstance(names, tuple) else str(names)
        left[f"{imported.family} {name}: {len(part)} rows, at least {least} are needed"] += len(part)
    kept = rows[size >= least].reset_index(drop=True)
    return Imported(imported.family, kept, ImportReport(imported.family, read=len(rows), kept=len(kept)))
