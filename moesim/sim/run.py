"""Run: simulate a scenario from its resolved spec to a result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from moesim.policies import make_replica_router, make_scaler
from moesim.results import Result
from moesim.results import check as check_laws
from moesim.results.laws import LAWS
from moesim.sim.calibration import Tables
from moesim.sim.driver import Driver, Plan
from moesim.sim.kernel import is_compiled
from moesim.sim.pool import Pool, block_records, request_records
from moesim.sim.record import tables
from moesim.sim.setup import PoolParts, kv_path, pool_parts
from moesim.sim.warm import load_kernel
from moesim.spec.scenario import ScenarioSpec
from moesim.streams import stream
from moesim.traffic.requests import Requests
from moesim.traffic.sample import sample
from moesim.version import __version__

__all__ = ["build", "simulate"]

Progress = Callable[[float, str], None]


def simulate(
    scenario: ScenarioSpec,
    *,
    check: bool = False,
    progress: Progress | None = None,
    beside: Path | None = None,
    fast: bool = True,
    measured: Tables | None = None,
) -> Result:
    """Simulate a scenario.

    Parameters
    ----------
    scenario : resolved
    check : check every law on the result
    progress : called with the share of requests sent, 0..1, and a short text
    beside : file that relative trace paths start from
    measured : see ``calibrated``: who answers for ``calibration: tables``
    fast : price runs of equal steps at once; the result is the same either way (a test says so)

    Returns
    -------
    result : equal scenarios give equal bytes, but for the clock

    Raises
    ------
    NoResult : the model does not fit, or the device lacks an arithmetic type
    SpecError, DataMissing : the traffic cannot be read
    LawBroken : with ``check``, a law does not hold
    """
    run = scenario.run
    requests = sample(scenario.traffic, run.seed, run.requests, run.horizon, beside)
    parts = {
        name: pool_parts(scenario, name, spec, beside, measured)
        for name, spec in scenario.deployment.pools.items()
    }
    driver = build(scenario, parts, requests, progress=progress, fast=fast)
    if progress is not None and not is_compiled():
        progress(0.0, "compiling the engine kernel, once (about half a minute)")
    load_kernel()
    wall, cpu = time.perf_counter(), time.process_time()
    end = driver.run()
    timing = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    result = Result(_manifest(scenario, parts, driver, end, timing), tables(scenario, parts, driver))
    laws = check_laws(result) if check else dict.fromkeys(LAWS, "not checked")
    return replace(result, manifest={**result.manifest, "laws": laws})


def build(
    scenario: ScenarioSpec,
    parts: dict[str, PoolParts],
    requests: Requests,
    *,
    progress: Progress | None = None,
    fast: bool = True,
) -> Driver:
    """Return the driver of a run, nothing done yet."""
    deployment, run = scenario.deployment, scenario.run
    records, blocks = request_records(requests), block_records(requests)
    pools = {
        name: Pool(
            p.setup, requests, records, blocks, seed=run.seed, fast=fast, timeline_points=run.timeline_points
        )
        for name, p in parts.items()
    }
    routers = {
        name: make_replica_router(spec.router.policy, stream(run.seed, f"router {name}"))
        for name, spec in deployment.pools.items()
    }
    scaling = deployment.autoscaling
    plan = Plan(
        faults=deployment.faults,
        stragglers=deployment.stragglers,
        autoscaling=scaling,
        horizon_s=math.inf if run.horizon is None else run.horizon,
    )
    total = max(len(requests), 1)
    return Driver(
        pools,
        requests,
        routers,
        plan,
        path=kv_path(scenario, parts),
        scaler=None if scaling is None else make_scaler(scaling.policy, scaling.low, scaling.high),
        replicas={name: p.initial for name, p in parts.items()},
        progress=None if progress is None else lambda sent: progress(sent / total, f"{sent} requests sent"),
    )


def _manifest(
    scenario: ScenarioSpec, parts: dict[str, PoolParts], driver: Driver, end: float, timing: dict[str, float]
) -> dict[str, Any]:
    return {
        "scenario": scenario.model_dump(mode="json"),
        "origins": {},
        "version": __version__,
        "seed": scenario.run.seed,
        "events": driver.events,
        "steps": int(sum(pool.state.rep["steps"].sum() for pool in driver.pools.values())),
        "wall_s": timing["wall_s"],
        "timing": timing,
        "simulated_s": end,
        "arrived": driver.sent,
        "devices": sum(p.setup.replicas * p.setup.pricing.devices for p in parts.values()),
        "pricing_notes": list(dict.fromkeys(note for p in parts.values() for note in p.notes)),
        "intervals": next((p.intervals for p in parts.values() if p.intervals), {}),
        "memory": {name: asdict(p.memory) for name, p in parts.items()},
        "outside_s": driver.outside_s,
        "lost_tokens": 0,
    }
