"""Catalog: from a short name such as ``h100-sxm`` to the file that ships with moesim."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Literal

from moesim.errors import SpecError

__all__ = ["CATALOG", "Kind", "catalog_names", "catalog_root", "find", "nearest"]

Kind = Literal[
    "device", "node", "cluster", "model", "traffic", "routing", "placement", "composition", "scenario"
]

# placements belong to one scenario each: they are named by path and have no folder of their own
CATALOG: dict[Kind, str] = {
    "device": "hardware/devices",
    "node": "hardware/nodes",
    "cluster": "hardware/clusters",
    "model": "workloads/models",
    "traffic": "workloads/traffic",
    "routing": "workloads/routing",
    "composition": "workloads/compositions",
    "scenario": "scenarios",
}


@cache
def catalog_root() -> Path:
    """Return the folder that holds ``hardware/``, ``workloads/`` and ``scenarios/``: the wheel's or the checkout's."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "catalog"
    return shipped if shipped.is_dir() else package.parent


def catalog_names(kind: Kind) -> tuple[str, ...]:
    """Return the names of ``kind`` in the catalog, sorted; scenarios in sub-folders carry the folder's name."""
    if kind not in CATALOG:
        return ()
    folder = catalog_root() / CATALOG[kind]
    return tuple(sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml")))


def nearest(word: str, known: Iterable[str], limit: int = 1) -> str:
    """Return ``", did you mean 'x'?"`` for the closest known word, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=limit, cutoff=0.6)
    return f", did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


def find(name: str, kind: Kind, beside: Path | None = None) -> Path:
    """Return the file for ``name``: a path (relative to ``beside``'s folder, then to the working directory) or a name.

    Raises
    ------
    SpecError : no such file or name; the message carries the closest known name
    """
    if name.endswith((".yaml", ".yml")):
        for folder in ([beside.parent] if beside is not None else []) + [Path.cwd()]:
            if (folder / name).is_file():
                return folder / name
        raise SpecError(f"{name}: no such {kind} file")
    if kind in CATALOG and (path := catalog_root() / CATALOG[kind] / f"{name}.yaml").is_file():
        return path
    known = catalog_names(kind)
    raise SpecError(
        f"{name}: no {kind} of that name in the catalog{nearest(name, known)} (moesim list {kind}s)"
    )
