"""Joint: load, communication and topology together; the Pareto front between balance and traffic, with its bound."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moesim.errors import SpecError
from moesim.plan.affinity.kernel import anneal, anneal_cover
from moesim.plan.affinity.problem import Affinity, FloatArray, IntArray, Topology, hop_cost, hops
from moesim.plan.affinity.rounding import place_layer
from moesim.plan.affinity.solve import solve_affinity
from moesim.plan.joint.clusters import cluster_layers
from moesim.plan.joint.naming import Objective, cluster_flow, name_clusters
from moesim.plan.solution import Limits, Point, Solution
from moesim.routing.trace import RoutingTrace

__all__ = [
    "Tradeoff",
    "busiest",
    "busiest_bound",
    "fewest_nodes",
    "moetuner",
    "near_home",
    "pareto",
    "solve_joint",
]

_STEPS = 1200
"""Annealing steps per expert and layer of one point."""
_COVER_STEPS = 500
"""Annealing steps per expert of one layer of ``fewest_nodes``."""
_PRICES = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 2.0, 5.0, 20.0)


def busiest(loads: FloatArray, placement: IntArray, devices: int) -> FloatArray:
    """Return the load of the busiest device of each layer, [layer]."""
    return np.array(
        [np.bincount(p, weights=w, minlength=devices).max() for p, w in zip(placement, loads, strict=True)]
    )


def busiest_bound(loads: FloatArray, devices: int) -> float:
    """Return what the busiest devices of all layers carry at least: the mean, or the hottest with the lightest."""
    share = loads.shape[1] // devices
    ordered = np.sort(loads, axis=1)
    company = ordered[:, -1] + ordered[:, : share - 1].sum(axis=1)
    return float(np.maximum(loads.sum(axis=1) / devices, company).sum())


@dataclass(frozen=True, slots=True, eq=False)
class Tradeoff:
    """One point of the front.

    Attributes
    ----------
    placement : int [layer, expert]
    weighted_hops : of all transitions
    busiest : load of each layer's busiest device, summed over layers
    price : hops that one unit of busiest load is worth
    bound : ``weighted_hops + price * busiest`` cannot be below it
    """

    placement: IntArray
    weighted_hops: float
    busiest: float
    price: float
    bound: float


def solve_joint(
    problem: Affinity,
    loads: FloatArray,
    price: float,
    limits: Limits | None = None,
    *,
    starts: Sequence[IntArray] = (),
    hop_bound: float = 0.0,
) -> Solution[IntArray]:
    """Minimise ``weighted hops + price * sum over layers of the busiest device's load``.

    Annealed from every start (contiguous and load-balanced clusters among them); the bound adds those of both parts.

    Parameters
    ----------
    loads : float64 [layer, expert], tokens
    price : hops that one unit of busiest load is worth
    hop_bound : known lower bound of the weighted hops

    Raises
    ------
    SpecError : loads of another shape, a negative price
    """
    limits = limits or Limits()
    began = time.perf_counter()
    if loads.shape != (problem.layers, problem.experts) or price < 0:
        raise SpecError(
            f"loads {loads.shape} at price {price}: expected {(problem.layers, problem.experts)} and at least 0"
        )
    devices = problem.topology.devices
    saved = problem.topology.node_hop - hop_cost(problem.topology)
    unit = problem.total * max(saved.max(), 1e-300) / (len(problem.counts) * problem.experts)
    unit += price * float(loads.mean())
    balanced = _balanced(problem, loads)
    best, kept = np.inf, balanced
    history = []
    bound = hop_bound + price * busiest_bound(loads, devices)
    for number, start in enumerate((*starts, balanced)):
        for heat in (0.02, 0.2):
            _, found = anneal(
                problem.counts,
                saved,
                loads,
                price,
                start,
                _STEPS * loads.size,
                heat * unit,
                0.002 * unit,
                limits.seed + number,
            )
            for placement in (start, found):
                cost = hops(problem, placement).weighted + price * float(
                    busiest(loads, placement, devices).sum()
                )
                if cost < best:
                    best, kept = cost, placement
                    history.append(Point(time.perf_counter() - began, best, min(bound, best)))
            if time.perf_counter() - began > limits.seconds:
                break
    bound = min(bound, best)
    proven = best - bound <= 1e-9 * max(1.0, abs(best))
    status = "optimal" if proven else "feasible"
    return Solution(kept, best, bound, "annealing", status, time.perf_counter() - began, tuple(history))  # type: ignore[arg-type]


def _balanced(problem: Affinity, loads: FloatArray) -> IntArray:
    """Return load-balanced clusters, named along the chain of least traffic."""
    return moetuner(problem.counts, loads, problem.topology)


def pareto(
    problem: Affinity, loads: FloatArray, prices: Sequence[float] = _PRICES, limits: Limits | None = None
) -> tuple[Tradeoff, ...]:
    """Return the placements that no other found one beats in both hops and balance, fewest hops first.

    Parameters
    ----------
    prices : of one unit of busiest load, in units of the mean weighted hop of a transition per token
    """
    limits = limits or Limits()
    fewest = solve_affinity(problem, limits)
    scale = problem.topology.node_hop
    found: list[Tradeoff] = []
    start = fewest.answer
    for relative in sorted(prices):
        price = relative * scale
        got = solve_joint(
            problem, loads, price, limits, starts=[start, fewest.answer], hop_bound=fewest.bound
        )
        start = got.answer
        cost = hops(problem, start).weighted
        load = float(busiest(loads, start, problem.topology.devices).sum())
        found.append(Tradeoff(start, cost, load, price, got.bound))
    front: list[Tradeoff] = []
    for point in sorted(found, key=lambda p: (p.weighted_hops, p.busiest)):
        if not front or point.busiest < front[-1].busiest:
            front.append(point)
    return tuple(front)


def moetuner(
    counts: FloatArray,
    loads: FloatArray,
    topology: Topology,
    *,
    slowness: FloatArray | None = None,
    objective: Objective = "sum",
) -> IntArray:
    """Return MoETuner's placement (arXiv:2502.06643): balanced clusters first, then devices for them.

    Parameters
    ----------
    counts : float64 [layer - 1, expert, expert]
    loads : float64 [layer, expert]
    slowness : [device, device], cost of a transition between devices; none: the topology's hop weights. With unlike
        weights and more than six devices one weight for all is taken
    """
    devices = topology.devices
    clusters = cluster_layers(loads, devices)
    flow = cluster_flow(counts, clusters, devices)
    cost = hop_cost(topology) if slowness is None else slowness
    if devices > 6:
        cost = 1.0 - np.eye(devices)
    named = name_clusters(flow, cost, objective)
    return np.take_along_axis(named, clusters, axis=1)


def near_home(trace: RoutingTrace, home: IntArray, topology: Topology) -> IntArray:
    """Return the placement with the fewest weighted copies from tokens' homes to their experts: exact.

    For ``return_home`` dispatch: layers do not interact, and each is one linear assignment.

    Parameters
    ----------
    home : int [token]
    """
    cost = hop_cost(topology)
    found = np.empty((trace.layers, trace.total), dtype=np.int64)
    for layer in range(trace.layers):
        pair = trace.experts[:, layer].astype(np.int64) * topology.devices + home[:, None]
        used = np.bincount(pair.ravel(), minlength=trace.total * topology.devices)
        found[layer] = place_layer(-(used.reshape(trace.total, -1) @ cost), trace.total // topology.devices)
    return found


def fewest_nodes(trace: RoutingTrace, topology: Topology, seed: int = 0) -> IntArray:
    """Return a placement whose tokens touch few nodes and devices, for deduplicated dispatch.

    Annealed layer by layer on the exact count of distinct groups that the tokens touch, each weighted as a hop across
    its border; never worse than contiguous blocks. Equal shares hold, balance of load is not asked for.
    """
    share = trace.total // topology.devices
    block = np.arange(trace.total, dtype=np.int64) // share
    levels = topology.levels or ((topology.devices, 1.0),)
    size = np.array([topology.devices // groups for groups, _ in levels])
    weight = np.array([value for _, value in levels])
    found = np.empty((trace.layers, trace.total), dtype=np.int64)
    for layer in range(trace.layers):
        chosen = trace.experts[:, layer].astype(np.int64)
        unit = float(weight.sum()) * chosen.size / trace.total
        steps = _COVER_STEPS * trace.total
        found[layer] = anneal_cover(
            chosen, block, size, weight, steps, 0.02 * unit, 0.0005 * unit, seed + layer
        )[1]
    return found
