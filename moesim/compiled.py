"""Where compiled kernels are kept: a cache folder keyed by the sources, so that none is ever run stale."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
import numpy as np

__all__ = ["cache_folder", "compiled_into"]


def cache_folder(sources: Path, name: str, *more: Path) -> Path:
    """Return the folder for kernels compiled from the .py files in ``sources`` and ``more``, made where writable."""
    digest = hashlib.sha256(f"{numba.__version__} {np.__version__} {sys.version_info[:2]}".encode())
    for source in (*sorted(sources.glob("*.py")), *more):
        digest.update(source.read_bytes())
    folder = f"{name}-{digest.hexdigest()[:16]}"
    stated, shared = os.environ.get("MOESIM_CACHE"), os.environ.get("XDG_CACHE_HOME")
    home = Path(stated) if stated else Path(shared or Path.home() / ".cache") / "moesim"
    try:
        (home / folder).mkdir(parents=True, exist_ok=True)
        writable = os.access(home / folder, os.W_OK)
    except OSError:
        writable = False
    return home / folder if writable else Path(tempfile.gettempdir()) / f"moesim-{os.getuid()}" / folder


@contextmanager
def compiled_into(folder: Path) -> Iterator[None]:
    """Let modules imported inside keep their compiled functions in ``folder``."""
    config: Any = numba.config
    before = config.CACHE_DIR
    config.CACHE_DIR = str(folder)
    try:
        yield
    finally:
        config.CACHE_DIR = before
