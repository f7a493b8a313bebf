"""Program: affinity as an integer program with products linearised by row sums (RLT-1), one function per constraint.

Its linear relaxation is what ``matching_bound`` computes without a solver; with integers it is the check of the exact
solver at small sizes. Weighted levels (nodes, devices) each carry products of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pulp

from moesim.plan.affinity.problem import Affinity, IntArray

__all__ = [
    "AffinityProgram",
    "affinity_program",
    "equal_shares",
    "expert_one_device",
    "first_expert_pinned",
    "least_hops",
    "placement_of",
    "product_columns",
    "product_rows",
]


@dataclass(slots=True)
class AffinityProgram:
    """x[expert, device, layer] and per level z[i, j, group, boundary]: both experts in the group."""

    problem: Affinity
    program: pulp.LpProblem = field(default_factory=lambda: pulp.LpProblem("affinity", pulp.LpMinimize))
    on: dict[tuple[int, int, int], pulp.LpVariable] = field(init=False)
    both: list[dict[tuple[int, int, int, int], pulp.LpVariable]] = field(init=False)

    def __post_init__(self) -> None:
        experts, layers = range(self.problem.experts), self.problem.layers
        self.on = {
            (e, g, layer): pulp.LpVariable(f"x_{e}_{g}_{layer}", cat=pulp.LpBinary)
            for e in experts
            for g in range(self.problem.topology.devices)
            for layer in range(layers)
        }
        self.both = [
            {
                (i, j, g, b): pulp.LpVariable(f"z{level}_{i}_{j}_{g}_{b}", 0)
                for i in experts
                for j in experts
                for g in range(groups)
                for b in range(layers - 1)
            }
            for level, (groups, _) in enumerate(self.problem.topology.levels)
        ]

    def inside(self, level: int, expert: int, group: int, layer: int) -> pulp.LpAffineExpression:
        """Return 1 where the expert is on a device of the group."""
        devices, groups = self.problem.topology.devices, self.problem.topology.levels[level][0]
        size = devices // groups
        return pulp.lpSum(self.on[expert, g, layer] for g in range(group * size, (group + 1) * size))


def least_hops(made: AffinityProgram) -> None:
    """Minimise the weight of all transitions minus what staying together saves on each level."""
    counts, levels = made.problem.counts, made.problem.topology.levels
    total = made.problem.total * sum(weight for _, weight in levels)
    saved = pulp.lpSum(
        float(weight * counts[b, i, j]) * z
        for (_, weight), both in zip(levels, made.both, strict=True)
        for (i, j, _, b), z in both.items()
        if counts[b, i, j]
    )
    made.program += total - saved


def expert_one_device(made: AffinityProgram) -> None:
    """Put every expert of every layer on one device."""
    devices = range(made.problem.topology.devices)
    for layer in range(made.problem.layers):
        for e in range(made.problem.experts):
            made.program += pulp.lpSum(made.on[e, g, layer] for g in devices) == 1, f"expert_{e}_{layer}"


def equal_shares(made: AffinityProgram) -> None:
    """Put equally many experts of every layer on every device."""
    for layer in range(made.problem.layers):
        for g in range(made.problem.topology.devices):
            held = pulp.lpSum(made.on[e, g, layer] for e in range(made.problem.experts))
            made.program += held == made.problem.share, f"share_{g}_{layer}"


def product_rows(made: AffinityProgram) -> None:
    """Let an expert have as many partners of the next layer in its group as the group holds, none elsewhere."""
    _products(made, "row")


def product_columns(made: AffinityProgram) -> None:
    """Let an expert have as many partners of the layer before in its group as the group holds, none elsewhere."""
    _products(made, "column")


def _products(made: AffinityProgram, side: str) -> None:
    experts = range(made.problem.experts)
    for level, both in enumerate(made.both):
        groups = made.problem.topology.levels[level][0]
        held = made.problem.experts // groups
        for b in range(made.problem.layers - 1):
            for e in experts:
                for g in range(groups):
                    own = [both[(e, o, g, b) if side == "row" else (o, e, g, b)] for o in experts]
                    place = made.inside(level, e, g, b + (side == "column"))
                    made.program += pulp.lpSum(own) == held * place, f"{side}{level}_{e}_{g}_{b}"
                    for o, z in enumerate(own):
                        made.program += z <= place, f"{side}_most{level}_{e}_{o}_{g}_{b}"


def first_expert_pinned(made: AffinityProgram) -> None:
    """Name the device of layer 0's expert 0: device names are arbitrary."""
    made.program += made.on[0, 0, 0] == 1, "pinned"


def affinity_program(problem: Affinity) -> AffinityProgram:
    """Return the whole program."""
    made = AffinityProgram(problem)
    least_hops(made)
    expert_one_device(made)
    equal_shares(made)
    product_rows(made)
    product_columns(made)
    first_expert_pinned(made)
    return made


def placement_of(made: AffinityProgram, values: dict[str, float]) -> IntArray:
    """Return the placement that the values of a solve mean, [layer, expert]."""
    found = np.empty((made.problem.layers, made.problem.experts), dtype=np.int64)
    for (e, g, layer), variable in made.on.items():
        if values[variable.name] > 0.5:
            found[layer, e] = g
    return found
