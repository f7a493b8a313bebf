"""A small deterministic run that keeps every law: continuous batching, step by step, no simulator."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import pandas as pd

from moesim.results import Result, Tables

OVERHEAD_S, PREFILL_S, DECODE_S = 0.004, 2e-5, 1e-4
KV_BLOCKS, BLOCK = 4000, 16


def make_result(
    requests=300,
    replicas=2,
    rate=12.0,
    max_batch=16,
    seed=7,
    horizon=None,
    warmup=20,
    targets=None,
    name="synthetic",
    title="Two replicas, continuous batching",
):
    """Serve ``requests`` arrivals on ``replicas``; a horizon cuts the run, huge prompts are rejected."""
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(1 / rate, requests))
    prompt = rng.integers(50, 900, requests)
    prompt[::97] = 90_000  # never fits: rejected at the door
    output = rng.integers(1, 120, requests)
    status = np.where(prompt > 50_000, "rejected", "in_flight").astype(object)
    times = {key: np.full(requests, np.nan) for key in ("scheduled_s", "first_token_s", "finish_s")}
    made = np.zeros(requests, np.int64)
    home = np.full(requests, -1, np.int64)
    accepted = np.flatnonzero(status != "rejected")
    gaps, timeline, rows, ops = [], [], [], {"prefill_gemm": 0.0, "decode_attention": 0.0, "host": 0.0}
    limit = math.inf if horizon is None else horizon
    ends = []
    for replica in range(replicas):
        mine = accepted[replica::replicas]
        queue, running, index, now = deque(mine), [], 0, 0.0
        busy = prefilled = decoded = steps = peak = 0.0
        last_token = {}
        while queue or running:
            if not running and arrival[queue[0]] > now:
                now = arrival[queue[0]]
            admitted = []
            while queue and len(running) + len(admitted) < max_batch and arrival[queue[0]] <= now:
                admitted.append(queue.popleft())
            prefill, decode = (
                PREFILL_S * float(prompt[admitted].sum()),
                DECODE_S * (len(running) + len(admitted)),
            )
            end = now + OVERHEAD_S + prefill + decode
            if end > limit:
                break
            times["scheduled_s"][admitted] = now
            times["first_token_s"][admitted] = end
            home[admitted] = replica
            running += admitted
            made[running] += 1
            blocks = sum(math.ceil((prompt[r] + made[r]) / BLOCK) for r in running)
            peak = max(peak, blocks / KV_BLOCKS)
            gaps += [end - last_token[r] for r in running if r in last_token]
            last_token |= dict.fromkeys(running, end)
            waiting = sum(1 for r in queue if arrival[r] <= end)
            timeline.append(
                (
                    "serve",
                    replica,
                    end,
                    waiting,
                    len(running),
                    blocks / KV_BLOCKS,
                    int(prompt[admitted].sum()) + len(running),
                    end - now,
                )
            )
            for part, seconds in zip(ops, (prefill, decode, OVERHEAD_S), strict=True):
                ops[part] += seconds
            busy, steps = busy + OVERHEAD_S + prefill + decode, steps + 1
            prefilled, decoded = prefilled + int(prompt[admitted].sum()), decoded + len(running)
            done = [r for r in running if made[r] == output[r]]
            status[done], times["finish_s"][done] = "finished", end
            running = [r for r in running if made[r] < output[r]]
            now, index = end, index + 1
        ends.append(now)
        rows.append([replica, busy, steps, prefilled, decoded, peak, mine])
    end = limit if horizon is not None else max(ends)
    seen = arrival <= end
    requests_table = pd.DataFrame(
        {
            "request": np.arange(requests),
            "arrival_s": arrival,
            "input_tokens": prompt,
            "output_tokens": output,
            "priority": 0,
            "session": -1,
            "status": status,
            "replica": home,
            "decode_replica": -1,
            "cached_tokens": 0,
            **{k: times[k] for k in ("scheduled_s", "first_token_s")},
            "kv_transfer_s": 0.0,
            "finish_s": times["finish_s"],
            "generated_tokens": made,
            "preemptions": 0,
            "restarts": 0,
            "measured": np.arange(requests) >= warmup,
        }
    )[seen].reset_index(drop=True)
    replica_rows = [
        {
            "pool": "serve",
            "replica": r,
            "devices": 4,
            "kv_blocks": KV_BLOCKS,
            "kv_block_tokens": BLOCK,
            "steps": int(steps),
            "busy_s": busy,
            "step_s": busy,
            "alive_s": end,
            "prefill_tokens": int(prefilled),
            "decode_tokens": int(decoded),
            "cached_tokens": 0,
            "preemptions": 0,
            "kv_peak": peak,
            "requests_s": integral(arrival[mine][seen[mine]], times["finish_s"][mine][seen[mine]], end),
            "energy_J": 4 * (700.0 * busy + 100.0 * (end - busy)),
        }
        for r, busy, steps, prefilled, decoded, peak, mine in rows
    ]
    edges = np.geomspace(1e-3, 1.0, 91)
    tokens, _ = np.histogram(gaps, edges)
    assert tokens.sum() == len(gaps)
    load = np.random.default_rng(seed + 1).dirichlet(np.full(32, 3.0), 6)
    tables = Tables(
        requests=requests_table,
        timeline=pd.DataFrame(
            sorted(timeline, key=lambda t: (t[2], t[1])),
            columns=[
                "pool",
                "replica",
                "time_s",
                "waiting",
                "running",
                "kv_used",
                "step_tokens",
                "step_s",
            ],
        )[["time_s", "pool", "replica", "waiting", "running", "kv_used", "step_tokens", "step_s"]],
        ops=pd.DataFrame(
            {
                "pool": "serve",
                "op": list(ops),
                "phase": ["lane", "attention", "overhead"],
                "kind": ["gemm", "attention", "overhead"],
                "source": ["bound", "fitted", "measured"],
                "seconds": list(ops.values()),
            }
        ),
        replicas=pd.DataFrame(replica_rows),
        itl=pd.DataFrame({"pool": "serve", "low_s": edges[:-1], "high_s": edges[1:], "tokens": tokens}),
        experts=pd.DataFrame(
            {
                "layer": np.repeat(np.arange(6), 32),
                "expert": np.tile(np.arange(32), 6),
                "rank": np.tile(np.arange(32) // 8, 6),
                "load": load.ravel(),
            }
        ),
    )
    scenario = {
        "kind": "scenario",
        "name": name,
        "title": title,
        "question": "Do two replicas hold 12 requests per second?",
        "cluster": {"name": "pair", "nodes": 1, "pue": 1.1},
        "node": {"name": "hgx", "devices": 8},
        "device": {
            "name": "H100 SXM",
            "vendor": "NVIDIA",
            "price": {"rental": "2.5 USD/h"},
            "main_memory": "hbm",
            "sources": [
                {"fields": ["*"], "cite": "A datasheet, 2024", "url": "https://example.org/sheet.pdf"}
            ],
        },
        "model": {"name": "toy-moe", "hidden": 2048, "sources": [{"fields": ["*"], "cite": "A model card"}]},
        "traffic": {"arrivals": {"kind": "poisson", "rate": f"{rate} request/s"}},
        "deployment": {"serve": {"replicas": replicas, "parallelism": {"tp": 4}}},
        "targets": targets
        if targets is not None
        else {"ttft": "200 ms", "tpot": "0.02 s", "percentile": 95.0},
        "economics": {"electricity": "0.1 USD/(kW*h)", "pue": 1.3},
        "run": {"seed": seed, "requests": requests},
    }
    manifest = {
        "scenario": scenario,
        "version": "0.1.0",
        "seed": seed,
        "events": int(len(timeline) + requests),
        "steps": len(timeline),
        "wall_s": 0.25,
        "simulated_s": float(end),
        "arrived": int(seen.sum()),
        "devices": 4 * replicas,
        "origins": {
            "targets.ttft": "synthetic.yaml:12",
            "deployment.serve.replicas": "--set",
            "model": "catalog",
        },
        "pricing_notes": {"serve": ["Weights are read once per step."]},
        "memory": {"serve": {"weights_bytes": 2.0e10, "kv_bytes": 4.0e10}},
        "laws": {},
    }
    return Result(manifest, tables)


def integral(arrivals, finishes, end):
    """Integrate the number of requests present over time, event by event; nothing here sums waiting times."""
    finishes = np.where(np.isnan(finishes), end, finishes)
    moments = np.concatenate([arrivals, finishes])
    change = np.concatenate([np.ones(len(arrivals)), -np.ones(len(finishes))])
    order = np.argsort(moments, kind="stable")
    present = np.cumsum(change[order])
    return float(math.fsum(present[:-1] * np.diff(moments[order])))
