"""Compiled engine kernel. The compile cache is keyed by the sources, so a changed kernel is never run stale."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numba
import numpy as np


def _cache_folder() -> Path:
    digest = hashlib.sha256(f"{numba.__version__} {np.__version__} {sys.version_info[:2]}".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    name = f"kernel-{digest.hexdigest()[:16]}"
    stated, shared = os.environ.get("MOESIM_CACHE"), os.environ.get("XDG_CACHE_HOME")
    home = Path(stated) if stated else Path(shared or Path.home() / ".cache") / "moesim"
    try:
        (home / name).mkdir(parents=True, exist_ok=True)
        writable = os.access(home / name, os.W_OK)
    except OSError:
        writable = False
    return home / name if writable else Path(tempfile.gettempdir()) / f"moesim-{os.getuid()}" / name


CACHE_FOLDER = _cache_folder()
"""Where the compiled kernel of these very sources is kept."""


def is_compiled() -> bool:
    """Say whether an earlier run left the compiled kernel, so that this one starts at once."""
    return any(CACHE_FOLDER.rglob("*.nbc"))


_config: Any = numba.config
_before = _config.CACHE_DIR
_config.CACHE_DIR = str(CACHE_FOLDER)
try:
    from moesim.sim.kernel.advance import (
        advance,
        cached_by_replica,
        enqueue,
        fail_replica,
        fits,
        release,
        wake,
    )
    from moesim.sim.kernel.state import PoolState, Status
finally:
    _config.CACHE_DIR = _before

__all__ = [
    "PoolState",
    "Status",
    "advance",
    "cached_by_replica",
    "enqueue",
    "fail_replica",
    "fits",
    "release",
    "wake",
]
