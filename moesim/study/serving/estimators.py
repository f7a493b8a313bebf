"""Estimators: which kernel knowledge prices a measured run: fitted kernels where they ship, the bound elsewhere."""

from __future__ import annotations

import hashlib
from functools import cache

from moesim.cost.fitted import Artifact, Products, chain_for
from moesim.cost.fitted.artifact import SHIPPED
from moesim.cost.roofline import Chain
from moesim.errors import DataMissing
from moesim.files import catalog_root
from moesim.spec.deployment import Engine
from moesim.study.serving.products import StaticScales
from moesim.study.serving.rows import ServingRow
from moesim.study.serving.scenario import checkpoint_of

__all__ = ["chains", "stamp"]


def chains(row: ServingRow, engine: Engine, artifact: Artifact | None = None) -> Chain:
    """Return the estimators for a run, best first: kernels of its engine, then the bound.

    Parameters
    ----------
    engine : of the worker that is priced
    artifact : fitted kernels; by default those that ship

    Raises
    ------
    DataMissing : the fitted kernels do not ship with this copy
    SpecError : the run's checkpoint is not known
    """
    chain = chain_for(engine.flavor, artifact, engine.moe_backend)
    if not checkpoint_of(row).static_scales:
        return chain
    products, *others = chain.estimators
    assert isinstance(products, Products)
    return Chain((StaticScales(products), *others))


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
