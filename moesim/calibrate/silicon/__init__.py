"""Silicon: NVIDIA's measured kernel tables, read from the installed extra and turned into tidy SI frames."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moesim.calibrate.silicon.families import FAMILIES, Imported, ImportReport, read_family
    from moesim.calibrate.silicon.tables import systems_folder

__all__ = ["FAMILIES", "ImportReport", "Imported", "read_family", "systems_folder"]


def __getattr__(name: str) -> Any:
    """Import on first use: who asks only where the tables are does not pay for frames (0.5 s)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "tables" if name == "systems_folder" else "families"
    return getattr(import_module(f"{__name__}.{home}"), name)
