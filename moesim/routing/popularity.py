"""Popularity of experts by layer, from any routing spec: what the cost model and the expert tables read."""

from __future__ import annotations

from functools import cache
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

__all__ = ["ORDERS", "layer_popularity", "popularity_of_layers"]

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


def popularity_of_layers(
    routing: RoutingSpec | None, experts: int, top_k: int, layers: int, beside: Path | None = None
) -> FloatArray:
    """Return the share of choices of each expert in each MoE layer of a model, [layers, E]; rows sum to 1.

    Where ``layer_popularity`` may answer with one row for all, or some known rows, this one says which row every
    layer has: layers that no row describes behave as the mean of those that do, a Zipf popularity without ``order``
    gives each layer an order of its own (the first 16 are those of ``layer_popularity``).

    Raises
    ------
    SpecError : as ``layer_popularity``; a trace or tables of another number of layers
    """
    router = None if routing is None else routing.router
    if (
        routing is not None
        and isinstance(router, Popularity)
        and router.shares is None
        and router.order is None
    ):
        layer_popularity(routing, experts, top_k, beside)  # checks the dimensions
        table = _zipf(_orders(routing.name, experts, layers), top_k, router.zipf or 0.0)
        return np.asarray(table / table.sum(axis=1, keepdims=True))
    known = layer_popularity(routing, experts, top_k, beside)
    if routing is None or router is None or isinstance(router, Uniform):
        return np.repeat(known, layers, axis=0)
    if isinstance(router, Popularity):
        rows = router.layers or tuple(range(len(known)))
        if len(known) > 1 and max(rows) >= layers:
            raise SpecError(
                f"routing {routing.name}: describes MoE layer {max(rows)}, the model has {layers}"
            )
        table = np.repeat(known.mean(axis=0, keepdims=True), layers, axis=0)
        if len(known) > 1:
            table[list(rows)] = known
        return table
    if len(known) != layers:
        raise SpecError(f"routing {routing.name}: has {len(known)} MoE layers, the model has {layers}")
    return known


def _stated(name: str, router: Popularity, experts: int, top_k: int) -> FloatArray:
    if router.shares is not None:
        return np.array(router.shares, dtype=np.float64)
    assert router.zipf is not None
    order = np.array(router.order) if router.order is not None else _orders(name, experts, ORDERS)
    return _zipf(order, top_k, router.zipf)


def _zipf(order: npt.NDArray[np.int64], top_k: int, exponent: float) -> FloatArray:
    ranked = _ranked(order.shape[1], top_k, exponent)
    table = np.empty(order.shape)
    np.put_along_axis(table, order, np.broadcast_to(ranked, order.shape), axis=1)
    return table


@cache
def _ranked(experts: int, top_k: int, exponent: float) -> FloatArray:
    """Return the inclusion of Zipf weights by rank; a second for 256 experts, asked for again and again."""
    found = plackett_luce_inclusion(zipf_weights(experts, exponent), top_k)
    found.flags.writeable = False
    return found


def _orders(name: str, experts: int, layers: int) -> npt.NDArray[np.int64]:
    generator = stream(0, f"routing order {name}")
    return np.stack([generator.permutation(experts) for _ in range(layers)])
