"""moesim: simulate and price the serving of Mixture-of-Experts models.

    import moesim as ms
    result = ms.simulate(ms.load("quickstart"))
    result.tables.requests

Names are imported when they are first used, so that ``import moesim`` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moesim.version import __version__

if TYPE_CHECKING:
    from moesim.api import (
        Loaded,
        Result,
        compare,
        lint,
        load,
        memory,
        read,
        simulate,
        summary,
        write,
        write_report,
    )
    from moesim.errors import DataMissing, LawBroken, MoesimError, NoResult, SpecError

__all__ = [
    "DataMissing",
    "LawBroken",
    "Loaded",
    "MoesimError",
    "NoResult",
    "Result",
    "SpecError",
    "__version__",
    "compare",
    "lint",
    "load",
    "memory",
    "read",
    "simulate",
    "summary",
    "write",
    "write_report",
]

_ERRORS = {"DataMissing", "LawBroken", "MoesimError", "NoResult", "SpecError"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'moesim' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - nothing is imported before it is used

    value = getattr(import_module("moesim.errors" if name in _ERRORS else "moesim.api"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
