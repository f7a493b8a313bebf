"""Compiled searches of the balance problem, kept in a cache folder keyed by these very sources."""

from __future__ import annotations

from pathlib import Path

from moesim.plan.compiled import cache_folder, compiled_into

with compiled_into(cache_folder(Path(__file__).parent, "balance")):
    from moesim.plan.balance.kernel.anneal import anneal
    from moesim.plan.balance.kernel.pattern import best_pattern

__all__ = ["anneal", "best_pattern"]
