"""Chain: transitions between experts of adjacent layers from a trace, from fitted tables, or drawn at random."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moesim.errors import SpecError
from moesim.routing.expected import zipf_weights

if TYPE_CHECKING:
    from moesim.routing.trace import RoutingTrace

__all__ = ["drawn_transitions", "hops_of_trace", "rank_traffic"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def drawn_transitions(layers: int, experts: int, zipf: float, concentration: float, seed: int) -> FloatArray:
    """Return transition shares of a random Markov chain, [layer - 1, E, E]; every boundary sums to 1.

    The first layer's popularity is a Zipf law by number; each expert's successors are a Dirichlet draw of the given
    concentration: the smaller, the fewer experts follow one. Synthetic, for comparing methods; nobody's measurement.

    Raises
    ------
    SpecError : fewer than two layers or experts, or a concentration that is not positive
    """
    if layers < 2 or experts < 2 or not concentration > 0:
        raise SpecError(
            f"transitions of {layers} layers, {experts} experts, concentration {concentration}: expected at least 2, 2 "
            "and a positive number"
        )
    generator = np.random.default_rng(seed)
    now = zipf_weights(experts, zipf)
    rows = []
    for _ in range(layers - 1):
        table = now[:, None] * generator.dirichlet(np.full(experts, concentration), size=experts)
        rows.append(table)
        now = table.sum(axis=0)
    return np.array(rows)


def hops_of_trace(
    trace: RoutingTrace, rank_of_expert: IntArray, node_of_rank: IntArray
) -> tuple[float, float]:
    """Return (hops inside a node, hops between nodes) per token and pass, counted token by token.

    A token's heaviest expert says where it is in each layer.

    Parameters
    ----------
    rank_of_expert : [layer, E]
    node_of_rank : [rank]
    """
    where = rank_of_expert[np.arange(trace.layers), trace.experts[:, :, 0].astype(np.int64)]  # [token, layer]
    moved = where[:, 1:] != where[:, :-1]
    away = node_of_rank[where[:, 1:]] != node_of_rank[where[:, :-1]]
    return float((moved & ~away).sum() / len(where)), float(away.sum() / len(where))


def rank_traffic(transitions: FloatArray, rank_of_expert: IntArray, ranks: int) -> FloatArray:
    """Return what goes from rank to rank over all boundaries, [rank, rank], in the unit of ``transitions``.

    Parameters
    ----------
    transitions : [layer - 1, E, E]
    rank_of_expert : [layer, E]
    """
    home = np.eye(ranks)[rank_of_expert]  # [layer, E, rank]
    return np.asarray(np.einsum("ler,lef,lfs->rs", home[:-1], transitions, home[1:], optimize=True))
