"""Residency: experts of any grain in memory tiers while time passes: cached, evicted, prefetched, switched."""
