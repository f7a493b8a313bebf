"""Record: from the state at the end of a run to the declared tables."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from moesim.cost.energy import device_energy_j, node_energy_j
from moesim.errors import DataMissing
from moesim.results.tables import Tables, conform
from moesim.routing.popularity import layer_popularity
from moesim.sim.driver import Driver
from moesim.sim.kernel import Status
from moesim.sim.kernel.state import ITL_BINS, ITL_LOW_S, ITL_RATIO
from moesim.sim.pool import Pool
from moesim.sim.routing_load import expert_rank, placed_experts
from moesim.sim.setup import PoolParts
from moesim.spec.deployment import Run
from moesim.spec.model import MoeFfn
from moesim.spec.scenario import ScenarioSpec
from moesim.traffic.requests import Requests

__all__ = ["tables"]

_STATUS = {Status.FINISHED: "finished", Status.REJECTED: "rejected"}


def tables(scenario: ScenarioSpec, parts: dict[str, PoolParts], driver: Driver) -> Tables:
    """Return the tables of a run that has ended."""
    pools = driver.pools
    return Tables(
        requests=conform("requests", requests_table(driver, scenario.run)),
        timeline=conform(
            "timeline", pd.concat([timeline_table(p) for p in pools.values()], ignore_index=True)
        ),
        ops=conform("ops", pd.concat([ops_table(p) for p in pools.values()], ignore_index=True)),
        replicas=conform(
            "replicas",
            pd.concat([replicas_table(p, parts[name]) for name, p in pools.items()], ignore_index=True),
        ),
        itl=conform("itl", pd.concat([itl_table(p) for p in pools.values()], ignore_index=True)),
        experts=conform("experts", experts_table(scenario)),
    )


def requests_table(driver: Driver, run: Run) -> pd.DataFrame:
    """Return one row per request that arrived."""
    n = driver.sent
    rec, requests = driver.records[:n], driver.requests
    status = np.full(n, "in_flight", dtype=object)
    for code, name in _STATUS.items():
        status[rec["status"] == code] = name
    started = ~np.isnan(rec["first"])
    return pd.DataFrame(
        {
            "request": np.arange(n),
            "arrival_s": rec["arrival"],
            "input_tokens": rec["input"],
            "output_tokens": rec["output"],
            "priority": requests.priority[:n],
            "session": requests.session[:n],
            "status": status,
            "replica": np.where(started, rec["replica"], -1),
            "decode_replica": np.where(started, rec["decode_replica"], -1),
            "cached_tokens": rec["cached"],
            "scheduled_s": rec["scheduled"],
            "first_token_s": rec["first"],
            "kv_transfer_s": driver.transfer_s[:n],
            "finish_s": rec["finish"],
            "generated_tokens": rec["generated"],
            "preemptions": rec["preemptions"],
            "restarts": rec["restarts"],
            "measured": _measured(requests, rec["arrival"], run),
        }
    )


def _measured(requests: Requests, arrival: npt.NDArray[np.float64], run: Run) -> npt.NDArray[np.bool_]:
    index = np.arange(len(arrival))
    first = max(run.warmup_requests, requests.warmup)
    return (index >= first) & (index < len(requests) - run.cooldown_requests) & (arrival >= run.warmup)


def timeline_table(pool: Pool) -> pd.DataFrame:
    """Return the sampled steps of every replica."""
    frames = []
    for replica, rep in enumerate(pool.state.rep):
        rows = pool.state.timeline[replica, : int(rep["timeline_n"])]
        frames.append(
            pd.DataFrame(
                {
                    "time_s": rows[:, 0],
                    "pool": pool.setup.name,
                    "replica": replica,
                    "waiting": rows[:, 1].astype(np.int64),
                    "running": rows[:, 2].astype(np.int64),
                    "kv_used": rows[:, 3],
                    "step_tokens": rows[:, 4].astype(np.int64),
                    "step_s": rows[:, 5],
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def ops_table(pool: Pool) -> pd.DataFrame:
    """Return seconds by op: step counts by size times the table each op was priced from."""
    pricing, state = pool.setup.pricing, pool.state
    rows: list[tuple[str, str, str, str, float]] = []
    for infos, seconds, hist in (
        (pricing.lane_ops, pricing.lane_s, state.hist[0]),
        (pricing.group_ops, pricing.group_s, state.hist[1]),
        (pricing.head_ops, pricing.head_s, state.hist[2]),
    ):
        spent = seconds @ hist[: seconds.shape[1]]
        rows += [(o.name, o.phase, o.kind, o.source, float(s)) for o, s in zip(infos, spent, strict=True)]
    for term, spent in zip(pricing.attention, state.spent.sum(axis=0), strict=True):
        rows += [
            (f"{term.name}_{what}", "attention", "attention", term.source, float(seconds))
            for what, seconds in zip(("decode", "prefill"), spent, strict=True)
        ]
    for name, field in (
        ("host", "overhead_s"), ("draft", "draft_s"), ("kv_swap", "swap_s"), ("pipeline_hop", "hop_s"),
        ("straggler", "straggle_s"),
    ):  # fmt: skip
        source = pricing.overhead_source if name == "host" else "bound"
        rows.append((name, "overhead", "overhead", source, float(state.rep[field].sum())))
    frame = pd.DataFrame(rows, columns=["op", "phase", "kind", "source", "seconds"])
    return frame[frame["seconds"] > 0].assign(pool=pool.setup.name)


def replicas_table(pool: Pool, parts: PoolParts) -> pd.DataFrame:
    """Return one row per replica."""
    rep, setup = pool.state.rep, pool.setup
    return pd.DataFrame(
        {
            "pool": setup.name,
            "replica": np.arange(setup.replicas),
            "devices": setup.pricing.devices,
            "kv_blocks": setup.kv_blocks,
            "kv_block_tokens": setup.engine.block_tokens,
            "steps": rep["steps"],
            "busy_s": np.minimum(rep["busy"], pool.alive_s),
            "step_s": rep["step_s"],
            "alive_s": pool.alive_s,
            "prefill_tokens": rep["prefill_tokens"],
            "decode_tokens": rep["decode_tokens"],
            "cached_tokens": rep["cached_tokens"],
            "preemptions": rep["preemptions"],
            "kv_peak": rep["peak"],
            "requests_s": rep["area"],
            "energy_J": _energy(pool, parts),
        }
    )


def _energy(pool: Pool, parts: PoolParts) -> npt.NDArray[np.float64]:
    """Joules of each replica: its devices, and its share of the node around them while in service."""
    topology, devices = parts.topology, pool.setup.pricing.devices
    busy = np.minimum(pool.state.rep["busy"], pool.alive_s)
    try:
        chips = device_energy_j(topology.device, busy, pool.alive_s) * devices
    except DataMissing:
        return np.full(pool.setup.replicas, math.nan)
    around = [
        node_energy_j(topology.node, float(alive), float(b / alive) if alive > 0 else 0.0)
        for b, alive in zip(busy, pool.alive_s, strict=True)
    ]
    return np.asarray(chips + np.array(around) * devices / topology.devices_per_node)


def itl_table(pool: Pool) -> pd.DataFrame:
    """Return the histogram of gaps between tokens, without its empty bins."""
    counts = pool.state.hist[3, :ITL_BINS]
    filled = np.flatnonzero(counts)
    low = np.where(filled == 0, 0.0, ITL_LOW_S * ITL_RATIO ** (filled - 1.0))
    high = np.where(filled == 0, ITL_LOW_S, ITL_LOW_S * ITL_RATIO**filled)
    return pd.DataFrame({"pool": pool.setup.name, "low_s": low, "high_s": high, "tokens": counts[filled]})


def experts_table(scenario: ScenarioSpec) -> pd.DataFrame:
    """Return where each expert is and which share of its layer's work it gets."""
    model = scenario.model
    pool = list(scenario.deployment.pools.values())[-1]
    if pool.placement is not None:
        return pd.DataFrame(placed_experts(scenario, pool.placement))
    ranks = pool.parallelism.ep
    rows: list[dict[str, Any]] = []
    moe = 0
    for _, name in model.blocks():
        ffn = model.ffns[name]
        if not isinstance(ffn, MoeFfn):
            continue
        table = np.atleast_2d(layer_popularity(scenario.routing, ffn.experts, ffn.top_k))
        share = table[moe % len(table)]
        rows.append(
            {
                "layer": np.full(ffn.experts, moe),
                "expert": np.arange(ffn.experts),
                "rank": expert_rank(ffn.experts, ranks),
                "load": share / share.sum(),
            }
        )
        moe += 1
    if not rows:
        return pd.DataFrame(
            {
                name: np.empty(0, kind)
                for name, kind in (("layer", int), ("expert", int), ("rank", int), ("load", float))
            }
        )
    return pd.DataFrame({key: np.concatenate([r[key] for r in rows]) for key in rows[0]})
