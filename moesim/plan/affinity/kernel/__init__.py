"""Compiled searches of the affinity problem, kept in a cache folder keyed by these very sources."""

from __future__ import annotations

from pathlib import Path

from moesim.plan.compiled import cache_folder, compiled_into

with compiled_into(cache_folder(Path(__file__).parent, "affinity")):
    from moesim.plan.affinity.kernel.anneal import anneal, anneal_layer
    from moesim.plan.affinity.kernel.cover import anneal_cover
    from moesim.plan.affinity.kernel.match import match
    from moesim.plan.affinity.kernel.triangle import violated

__all__ = ["anneal", "anneal_cover", "anneal_layer", "match", "violated"]
