"""Run: import the tables, fit every family, and return one artifact."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from moesim.calibrate.fit.curve import fit_curves
from moesim.calibrate.fit.data import groups_of
from moesim.calibrate.fit.group import fit_group
from moesim.calibrate.silicon.families import FAMILIES, read_family
from moesim.calibrate.silicon.tables import package_version
from moesim.cost.fitted.artifact import Artifact
from moesim.errors import SpecError
from moesim.files import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from moesim.cost.fitted.artifact import Group, GroupKey
    from moesim.cost.fitted.curves import Curve

__all__ = ["CURVES", "fit_family", "fit_silicon", "merged"]

CURVES = ("all_reduce", "nccl")
"""Families whose sizes are dense and shapes few."""


VERSIONED = ("moe",)
"""Families whose older engine versions teach too: shapes are few, and what a version changed shows on shared ones."""


def fit_family(name: str, *, holdouts: bool = True) -> Artifact:
    """Return the artifact of one family; its ``meta`` carries the import report.

    Raises
    ------
    SpecError : no such family
    DataMissing : the extra ``silicon`` is not installed
    """
    if name not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise SpecError(f"kernel family {name!r}: expected one of {known}{nearest(name, FAMILIES)}")
    imported = read_family(name, newest=name not in VERSIONED)
    groups: dict[GroupKey, Group] = {}
    curves: dict[GroupKey, Curve] = {}
    if name in CURVES:
        curves = dict(fit_curves(imported))
    else:
        for data in groups_of(imported):
            groups[data.key] = fit_group(data, holdouts=holdouts)
    meta = {
        "source": f"aiconfigurator-core {package_version()} (NVIDIA, Apache-2.0), systems/data",
        "imports": {name: imported.report.as_dict() | {"intervals": "shapes"}},
    }
    return Artifact(groups, curves, meta)


def fit_silicon(
    families: Sequence[str] = tuple(FAMILIES),
    *,
    jobs: int = 1,
    holdouts: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> Artifact:
    """Return the artifact of several families, fitted in ``jobs`` processes; the result does not depend on them.

    Raises
    ------
    SpecError : an unknown family
    DataMissing : the extra ``silicon`` is not installed
    """
    parts: list[Artifact] = []
    if jobs == 1:
        for name in families:
            parts.append(fit_family(name, holdouts=holdouts))
            progress(name)
        return merged(parts)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = {name: pool.submit(fit_family, name, holdouts=holdouts) for name in families}
        for name, future in futures.items():
            parts.append(future.result())
            progress(name)
    return merged(parts)


def merged(parts: Sequence[Artifact]) -> Artifact:
    """Return one artifact of several; a later part replaces equal keys."""
    groups: dict[GroupKey, Group] = {}
    curves: dict[GroupKey, Curve] = {}
    meta: dict[str, Any] = {"imports": {}}
    for part in parts:
        groups |= part.groups
        curves |= part.curves
        meta |= {key: value for key, value in part.meta.items() if key != "imports"}
        meta["imports"] |= part.meta.get("imports", {})
    return Artifact(groups, curves, meta)
