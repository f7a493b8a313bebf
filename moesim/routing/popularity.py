"""Popularity of experts by layer, from any routing spec: what the cost model and the expert tables read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moesim.errors import SpecError
from moesim.routing.expected import plackett_luce_inclusion, zipf_weights
from moesim.routing.statistics import popularity
from moesim.routing.store import load_model, load_trace
from moesim.spec.routing import Fitted, Popularity, Recorded, RoutingSpec, Uniform
from moesim.streams import stream

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ORDERS", "layer_popularity"]

FloatArray = npt.NDArray[np.float64]

ORDERS = 16
"""Random orders that stand for the layers of a Zipf popularity without stated order."""


def layer_popularity(
    routing: RoutingSpec | None, experts: int, top_k: int, beside: Path | None = None
) -> FloatArray:
    """Return the share of choices of each expert, [layer, E]; rows sum to 1, one row when all layers behave alike.

    A share times top_k is the probability that a token uses the expert. Zipf weights are selection weights: drawn
    without replacement, the most popular experts take a little less than their weight. Without an ``order``, 16
    orders at random (fixed by the routing's name) stand for the layers.

    Parameters
    ----------
    beside : the YAML file that paths in the spec are relative to; none: the catalog's folder

    Raises
    ------
    SpecError : the routing was taken from a model with other experts or another top_k, or its file is missing
    """
    if routing is None or isinstance(routing.router, Uniform):
        return np.full((1, experts), 1.0 / experts)
    if (routing.experts or experts) != experts or (routing.top_k or top_k) != top_k:
        raise SpecError(
            f"routing {routing.name}: describes {routing.experts} experts, {routing.top_k} per token; "
            f"the model has {experts} and {top_k}"
        )
    router = routing.router
    if isinstance(router, Fitted):
        table = load_model(routing, beside).popularity.astype(np.float64)
    elif isinstance(router, Recorded):
        table = popularity(load_trace(routing, beside))
    else:
        table = _stated(routing.name, router, experts, top_k)
    if table.shape[1] != experts:
        raise SpecError(f"routing {routing.name}: rows of {table.shape[1]} experts, the model has {experts}")
    return np.asarray(table / table.sum(axis=1, keepdims=True))


def _stated(name: str, router: Popularity, experts: int, top_k: int) -> FloatArray:
    if router.shares is not None:
        return np.array(router.shares, dtype=np.float64)
    assert router.zipf is not None
    order = np.array(router.order) if router.order is not None else _orders(name, experts)
    ranked = plackett_luce_inclusion(zipf_weights(order.shape[1], router.zipf), top_k)
    table = np.empty(order.shape)
    np.put_along_axis(table, order, np.broadcast_to(ranked, order.shape), axis=1)
    return table


def _orders(name: str, experts: int) -> npt.NDArray[np.int64]:
    generator = stream(0, f"routing order {name}")
    return np.stack([generator.permutation(experts) for _ in range(ORDERS)])
