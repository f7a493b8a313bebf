"""Streams: independent random generators derived from one seed by name, the same in every process."""

from __future__ import annotations

import hashlib

import numpy as np

from moesim.errors import SpecError

__all__ = ["stream"]


def stream(seed: int, name: str) -> np.random.Generator:
    """Return the generator of stream ``name`` under ``seed``.

    Parts of a run with different names never share numbers, and one part's numbers do not change when another
    draws more: runs that differ in one choice can be compared request by request (common random numbers).

    Parameters
    ----------
    seed : non-negative integer
    name : e.g. ``"arrivals"``; hashed with SHA-256, so it does not depend on ``PYTHONHASHSEED``

    Raises
    ------
    SpecError : negative seed

    >>> stream(1, "a").random() == stream(1, "a").random() != stream(1, "b").random()
    True
    """
    if seed < 0:
        raise SpecError(f"seed {seed}: expected a non-negative integer")
    label = int.from_bytes(hashlib.sha256(name.encode("utf-8")).digest()[:16], "little")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, label])))
