"""Popularity of experts by layer, from any routing spec: what the cost model and the expert tables read."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moesim.errors import SpecError
from moesim.routing.expected import zipf_weights
from moesim.spec.routing import Popularity, RoutingSpec, Uniform

__all__ = ["layer_popularity"]

FloatArray = npt.NDArray[np.float64]


def layer_popularity(routing: RoutingSpec | None, experts: int, top_k: int) -> FloatArray:
    """Return the share of choices of each expert, [layer, E]; one row when all layers behave alike.

    Raises
    ------
    SpecError : the routing was taken from a model with other experts or another top_k
    """
    if routing is None or isinstance(routing.router, Uniform):
        return np.full((1, experts), 1.0 / experts)
    if (routing.experts or experts) != experts or (routing.top_k or top_k) != top_k:
        raise SpecError(
            f"routing {routing.name}: describes {routing.experts} experts, {routing.top_k} per token; "
            f"the model has {experts} and {top_k}"
        )
    router = routing.router
    if isinstance(router, Popularity):
        if router.shares is not None:
            table = np.array(router.shares, dtype=np.float64)
        else:
            assert router.zipf is not None
            weights = zipf_weights(experts, router.zipf)
            if router.order is None:
                return weights[None] / weights.sum()
            table = np.empty((len(router.order), experts))
            for layer, order in enumerate(router.order):
                table[layer, list(order)] = weights
        if table.shape[1] != experts:
            raise SpecError(
                f"routing {routing.name}: rows of {table.shape[1]} experts, the model has {experts}"
            )
        return np.asarray(table / table.sum(axis=1, keepdims=True))
    raise SpecError(f"routing {routing.name}: {router.kind} routing has no popularity table here")
