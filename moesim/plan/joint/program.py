"""Programs: MoETuner's two integer programs and the linear program RLT-1 of affinity, one function per constraint.

The products of the second program are linearised by their row sums (``sum_h z = y``), far tighter than by
``z >= y + y - 1``. At paper size the exact solvers of this package give the same optimum sooner; the programs are their
check.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pulp

from moesim.plan.affinity.problem import FloatArray, IntArray

__all__ = [
    "ClusterProgram",
    "NamingProgram",
    "absolute_deviation",
    "cluster_not_empty",
    "cluster_one_device",
    "cluster_program",
    "device_one_cluster",
    "expert_one_cluster",
    "experts_per_device",
    "first_layer_pinned",
    "least_deviation",
    "least_sum",
    "least_worst_pairs",
    "naming_program",
    "product_columns",
    "product_rows",
    "worst_pair",
]


@dataclass(slots=True)
class ClusterProgram:
    """First program for one layer: x[expert, cluster], off[cluster] = |T_c - mean|."""

    load: FloatArray
    clusters: int
    program: pulp.LpProblem = field(default_factory=lambda: pulp.LpProblem("clusters", pulp.LpMinimize))
    inside: dict[tuple[int, int], pulp.LpVariable] = field(init=False)
    off: list[pulp.LpVariable] = field(init=False)

    def __post_init__(self) -> None:
        self.inside = {
            (e, c): pulp.LpVariable(f"x_{e}_{c}", cat=pulp.LpBinary)
            for e in range(len(self.load))
            for c in range(self.clusters)
        }
        self.off = [pulp.LpVariable(f"off_{c}", 0) for c in range(self.clusters)]


def least_deviation(made: ClusterProgram) -> None:
    """Minimise the sum of deviations (Eq. 1)."""
    made.program += pulp.lpSum(made.off)


def absolute_deviation(made: ClusterProgram) -> None:
    """Let off be at least the load above and below the mean (Eq. 2, 3)."""
    mean = float(made.load.sum()) / made.clusters
    for c in range(made.clusters):
        carried = pulp.lpSum(float(load) * made.inside[e, c] for e, load in enumerate(made.load))
        made.program += made.off[c] >= carried - mean, f"above_{c}"
        made.program += made.off[c] >= mean - carried, f"below_{c}"


def expert_one_cluster(made: ClusterProgram) -> None:
    """Put every expert in one cluster (missing in the printed program)."""
    for e in range(len(made.load)):
        made.program += pulp.lpSum(made.inside[e, c] for c in range(made.clusters)) == 1, f"expert_{e}"


def cluster_not_empty(made: ClusterProgram, share: int | None = None) -> None:
    """Put at least one expert in every cluster (Eq. 7), or exactly ``share``."""
    for c in range(made.clusters):
        held = pulp.lpSum(made.inside[e, c] for e in range(len(made.load)))
        made.program += (held >= 1 if share is None else held == share), f"cluster_{c}"


def cluster_program(load: FloatArray, clusters: int, *, equal: bool = True) -> ClusterProgram:
    """Return MoETuner's first program for one layer."""
    made = ClusterProgram(load, clusters)
    least_deviation(made)
    absolute_deviation(made)
    expert_one_cluster(made)
    cluster_not_empty(made, len(load) // clusters if equal else None)
    return made


@dataclass(slots=True)
class NamingProgram:
    """Second program: y[cluster, device, layer], z[c1, g1, c2, g2, boundary] their products, t[boundary]."""

    flow: FloatArray
    slowness: FloatArray
    program: pulp.LpProblem = field(default_factory=lambda: pulp.LpProblem("naming", pulp.LpMinimize))
    on: dict[tuple[int, int, int], pulp.LpVariable] = field(init=False)
    both: dict[tuple[int, int, int, int, int], pulp.LpVariable] = field(init=False)
    worst: list[pulp.LpVariable] = field(init=False)

    def __post_init__(self) -> None:
        r, n = range(self.devices), len(self.flow)
        self.on = {
            (c, g, layer): pulp.LpVariable(f"y_{c}_{g}_{layer}", cat=pulp.LpBinary)
            for c in r
            for g in r
            for layer in range(n + 1)
        }
        self.both = {
            (c, g, d, h, b): pulp.LpVariable(f"z_{c}_{g}_{d}_{h}_{b}", 0)
            for c in r
            for g in r
            for d in r
            for h in r
            for b in range(n)
        }
        self.worst = [pulp.LpVariable(f"t_{b}", 0) for b in range(n)]

    @property
    def devices(self) -> int:
        """Devices, as many as clusters."""
        return int(self.flow.shape[1])


def least_sum(made: NamingProgram) -> None:
    """Minimise the cost of all pairs and boundaries."""
    made.program += pulp.lpSum(
        float(made.flow[b, c, d] * made.slowness[g, h]) * z
        for (c, g, d, h, b), z in made.both.items()
        if g != h
    )


def least_worst_pairs(made: NamingProgram) -> None:
    """Minimise the cost of the worst pair of devices, summed over boundaries (Eq. 8)."""
    made.program += pulp.lpSum(made.worst)


def worst_pair(made: NamingProgram) -> None:
    """Let t be at least the cost between any two devices."""
    r = range(made.devices)
    for b, worst in enumerate(made.worst):
        for g in r:
            for h in r:
                if g != h:
                    cost = pulp.lpSum(
                        float(made.flow[b, c, d] * made.slowness[g, h]) * made.both[c, g, d, h, b]
                        for c in r
                        for d in r
                    )
                    made.program += worst >= cost, f"pair_{g}_{h}_{b}"


def cluster_one_device(made: NamingProgram) -> None:
    """Put every cluster on one device (Eq. 14)."""
    r = range(made.devices)
    for layer in range(len(made.flow) + 1):
        for c in r:
            made.program += pulp.lpSum(made.on[c, g, layer] for g in r) == 1, f"cluster_{c}_{layer}"


def device_one_cluster(made: NamingProgram) -> None:
    """Put one cluster on every device (Eq. 15)."""
    r = range(made.devices)
    for layer in range(len(made.flow) + 1):
        for g in r:
            made.program += pulp.lpSum(made.on[c, g, layer] for c in r) == 1, f"device_{g}_{layer}"


def experts_per_device(made: NamingProgram, sizes: IntArray) -> None:
    """Give every device equally many experts over all layers (Eq. 13); ``sizes`` [layer, cluster] may not allow it."""
    r = range(made.devices)
    share = int(sizes.sum()) // made.devices
    for g in r:
        held = pulp.lpSum(
            int(sizes[layer, c]) * made.on[c, g, layer] for layer in range(len(sizes)) for c in r
        )
        made.program += held == share, f"experts_{g}"


def first_layer_pinned(made: NamingProgram) -> None:
    """Name the devices of layer 0's clusters: with one bandwidth for all pairs names are arbitrary."""
    for c in range(made.devices):
        made.program += made.on[c, c, 0] == 1, f"pinned_{c}"


def product_rows(made: NamingProgram) -> None:
    """Let the products of one earlier place add up to it: once per later cluster, once per later device."""
    r = range(made.devices)
    for b in range(len(made.flow)):
        for c in r:
            for g in r:
                for d in r:
                    held = pulp.lpSum(made.both[c, g, d, h, b] for h in r)
                    made.program += held == made.on[c, g, b], f"row_{c}_{g}_{d}_{b}"
                for h in r:
                    held = pulp.lpSum(made.both[c, g, d, h, b] for d in r)
                    made.program += held == made.on[c, g, b], f"row_to_{c}_{g}_{h}_{b}"


def product_columns(made: NamingProgram) -> None:
    """Let the products of one later place add up to it: once per earlier cluster, once per earlier device."""
    r = range(made.devices)
    for b in range(len(made.flow)):
        for d in r:
            for h in r:
                for c in r:
                    held = pulp.lpSum(made.both[c, g, d, h, b] for g in r)
                    made.program += held == made.on[d, h, b + 1], f"column_{d}_{h}_{c}_{b}"
                for g in r:
                    held = pulp.lpSum(made.both[c, g, d, h, b] for c in r)
                    made.program += held == made.on[d, h, b + 1], f"column_from_{d}_{h}_{g}_{b}"


def naming_program(
    flow: FloatArray, slowness: FloatArray, *, worst: bool = False, sizes: IntArray | None = None
) -> NamingProgram:
    """Return MoETuner's second program; ``sizes`` adds its Eq. 13."""
    made = NamingProgram(flow, slowness)
    if worst:
        least_worst_pairs(made)
        worst_pair(made)
    else:
        least_sum(made)
    cluster_one_device(made)
    device_one_cluster(made)
    product_rows(made)
    product_columns(made)
    apart = slowness[~np.eye(made.devices, dtype=bool)]
    if np.all(apart == apart[:1]) and sizes is None:
        first_layer_pinned(made)
    if sizes is not None:
        experts_per_device(made, sizes)
    return made
