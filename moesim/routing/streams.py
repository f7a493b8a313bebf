"""Streams: independent random generators derived from one seed by name, the same in every process."""

from __future__ import annotations

import hashlib

import numpy as np

from moesim.errors import SpecError

__all__ = ["stream"]


def stream(seed: int, name: str) -> np.random.Generator:
    """Return the generator of stream ``name`` under ``seed``; other names never share its numbers.

    >>> stream(1, "a").random() == stream(1, "a").random() != stream(1, "b").random()
    True
    """
    if seed < 0:
        raise SpecError(f"seed {seed}: expected a non-negative integer")
    label = int.from_bytes(hashlib.sha256(name.encode("utf-8")).digest()[:16], "little")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, label])))
