"""Joint: load, communication and topology together, bytes by dispatch mode, and MoETuner's two programs."""

from moesim.plan.joint.clusters import cluster_layer, cluster_layers, deviation
from moesim.plan.joint.naming import cluster_flow, name_clusters, naming_cost
from moesim.plan.joint.solve import (
    Tradeoff,
    busiest,
    busiest_bound,
    fewest_nodes,
    moetuner,
    near_home,
    pareto,
    solve_joint,
)
from moesim.plan.joint.traffic import DispatchMode, Traffic, sequence_homes, traffic

__all__ = [
    "DispatchMode",
    "Tradeoff",
    "Traffic",
    "busiest",
    "busiest_bound",
    "cluster_flow",
    "cluster_layer",
    "cluster_layers",
    "deviation",
    "fewest_nodes",
    "moetuner",
    "name_clusters",
    "naming_cost",
    "near_home",
    "pareto",
    "sequence_homes",
    "solve_joint",
    "traffic",
]
