"""Compiled replays, kept in a cache folder keyed by these very sources and the rules they compile."""

from __future__ import annotations

from pathlib import Path

from moesim.compiled import cache_folder, compiled_into
from moesim.policies import eviction

with compiled_into(cache_folder(Path(__file__).parent, "residency", Path(eviction.__file__))):
    from moesim.residency.kernel.replay import next_use, replay
    from moesim.residency.kernel.score import ADMISSIONS, CODES, draw, value
    from moesim.residency.kernel.weakest import weakest

__all__ = ["ADMISSIONS", "CODES", "draw", "next_use", "replay", "value", "weakest"]
