"""Estimators: which kernel knowledge prices a measured run: fitted kernels where they ship, the bound elsewhere."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import cast

from moesim.calibrate.serving.rows import ServingRow
from moesim.cost.fitted import Fitted, Framework
from moesim.cost.fitted.artifact import SHIPPED
from moesim.cost.roofline import Chain, Roofline
from moesim.errors import DataMissing
from moesim.files import catalog_root

__all__ = ["chains", "stamp"]


def chains(row: ServingRow) -> Chain:
    """Return the estimators for a run, best first: kernels of its engine, then the bound.

    Raises
    ------
    DataMissing : the fitted kernels do not ship with this copy
    """
    return _chain(row.backend)


@cache
def _chain(backend: str) -> Chain:
    return Chain((Fitted(framework=cast("Framework", backend)), Roofline()))


@cache
def stamp() -> str:
    """Return what names the estimators: a digest of the fitted artifact.

    Raises
    ------
    DataMissing : the fitted kernels do not ship with this copy
    """
    digest = hashlib.sha256()
    base = catalog_root() / SHIPPED
    files = sorted(base.parent.glob(f"{base.name}.*"))
    if not files:
        raise DataMissing(f"{SHIPPED}: no fitted kernels here; --bound prices with the roofline bound")
    for path in files:
        digest.update(path.read_bytes())
    return f"fitted {digest.hexdigest()[:16]}, then bound"
