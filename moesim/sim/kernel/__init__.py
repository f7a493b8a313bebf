"""Compiled engine kernel. The compile cache is keyed by the sources, so a changed kernel is never run stale."""

from __future__ import annotations

from pathlib import Path

from moesim.compiled import cache_folder, compiled_into

CACHE_FOLDER = cache_folder(Path(__file__).parent, "kernel")
"""Where the compiled kernel of these very sources is kept."""


def is_compiled() -> bool:
    """Say whether an earlier run left the compiled kernel, so that this one starts at once."""
    return any(CACHE_FOLDER.rglob("*.nbc"))


with compiled_into(CACHE_FOLDER):
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
