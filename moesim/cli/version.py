"""``moesim version``: which moesim, which Python, which catalog."""

from __future__ import annotations

import platform

from moesim.cli.console import answers, emit_json, text
from moesim.cli.options import JsonFlag
from moesim.version import __version__

__all__ = ["version"]


@answers
def version(json_: JsonFlag = False) -> None:
    """Print the version, the Python it runs on and the catalog it reads."""
    from moesim.files.catalog import catalog_root

    if json_:
        emit_json(
            {"version": __version__, "python": platform.python_version(), "catalog": str(catalog_root())}
        )
    else:
        text(f"moesim {__version__} (Python {platform.python_version()}, catalog {catalog_root()})")
