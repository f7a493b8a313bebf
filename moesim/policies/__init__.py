"""Policies: decision rules, apart from the mechanism that moves time. One class per rule, found by its name."""

from moesim.policies.replica import REPLICA_ROUTERS, PoolView, ReplicaRouter, make_replica_router
from moesim.policies.scaling import SCALERS, Scaler, make_scaler

__all__ = [
    "REPLICA_ROUTERS",
    "SCALERS",
    "PoolView",
    "ReplicaRouter",
    "Scaler",
    "make_replica_router",
    "make_scaler",
]
