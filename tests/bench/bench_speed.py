"""Speed of the simulator on the timing workload (scenarios/bench/azure-100k.yaml). Not a test; run it by hand:

    python tests/bench/bench_speed.py            # 10,000, 100,000 and 1,000,000 requests on 1, 8 and 64 replicas
    python tests/bench/bench_speed.py --quick    # without the million
    python tests/bench/bench_speed.py --json     # one JSON line per row instead of the table

Each row runs in a process of its own, so that its peak memory is its own. Timed is the run loop alone, in CPU seconds:
neither compiling, nor pricing, nor sampling traffic, nor making tables (the last two have columns). The load per
replica is the same in every row. The last rows run the same workload without the fast path, and through the plain
Python reference of the tests; compare rows as ratios, machines differ.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "sim")]

RATE = 6.45  # requests per second on each replica, as the scenario has it
COLUMNS = (
    "mode",
    "replicas",
    "requests",
    "cpu_s",
    "requests/s",
    "steps/s",
    "tokens/s",
    "sample_s",
    "tables_s",
    "peak_MiB",
)


def world(requests: int, replicas: int) -> Any:
    """Return the scenario at this size, its parts and its traffic, and the seconds of sampling it."""
    import moesim as ms
    from moesim.sim.setup import pool_parts
    from moesim.traffic.sample import sample

    spec = ms.load(
        "bench/azure-100k",
        sets=[
            f"cluster.nodes={-(-replicas // 8)}",  # nothing crosses them: each replica is one device
            "cluster.fabric={kind: single_switch}",
            f"deployment.serve.replicas={replicas}",
            f"traffic.arrivals.rate={RATE * replicas} request/s",
            f"run.requests={requests}",
        ],
    ).scenario
    parts = {name: pool_parts(spec, name, pool) for name, pool in spec.deployment.pools.items()}
    begin = time.process_time()
    traffic = sample(spec.traffic, spec.run.seed, requests, None, None)
    return spec, parts, traffic, time.process_time() - begin


def compiled(requests: int, replicas: int, *, fast: bool) -> dict[str, float]:
    """Time the simulator's run loop."""
    from moesim.sim.record import tables
    from moesim.sim.run import build

    spec, parts, traffic, sampling = world(requests, replicas)
    build(spec, parts, traffic.slice(0, 200), fast=fast).run()  # compiled code is loaded
    driver = build(spec, parts, traffic, fast=fast)
    begin = time.process_time()
    driver.run()
    took = time.process_time() - begin
    begin = time.process_time()
    tables(spec, parts, driver)
    rep = driver.pools["serve"].state.rep
    tokens = int(rep["prefill_tokens"].sum() + rep["decode_tokens"].sum())
    row = {"cpu_s": took, "steps": int(rep["steps"].sum()), "tokens": tokens}
    return row | {"sample_s": sampling, "tables_s": time.process_time() - begin}


def plain(requests: int, replicas: int) -> dict[str, float]:
    """Time the reference: the same engine and prices, one step after the other in plain Python."""
    from reference import Prices, Request, Settings, simulate

    _, parts, traffic, sampling = world(requests, replicas)
    made = parts["serve"].setup
    engine, priced = made.engine, made.pricing
    names = ("decode_flop", "decode_kv", "decode_seq", "prefill_flop", "prefill_kv", "prefill_token")
    terms = [
        {"window": t.window, "launch": t.launch_s} | {n: getattr(t, f"{n}_s") for n in names}
        for t in priced.attention
    ]
    prices = Prices(
        priced.overhead_s,
        *(part.sum(axis=0).tolist() for part in (priced.lane_s, priced.group_s, priced.head_s)),
        terms,
    )
    settings = Settings(
        seqs=engine.max_num_seqs,
        tokens=engine.max_num_batched_tokens,
        chunk=engine.max_num_batched_tokens,
        block=engine.block_tokens,
        blocks=made.kv_blocks,
        max_len=made.max_len,
        replicas=replicas,
    )
    rows = [
        Request(i, *values)
        for i, values in enumerate(
            zip(
                traffic.arrival_s.tolist(),
                traffic.input_tokens.tolist(),
                traffic.output_tokens.tolist(),
                strict=True,
            )
        )
    ]
    begin = time.process_time()
    done = simulate(rows, [i % replicas for i in range(requests)], settings, prices)
    took = time.process_time() - begin
    tokens = sum(r.prefill_tokens + r.decode_tokens for r in done)
    return {
        "cpu_s": took, "steps": sum(r.steps for r in done), "tokens": tokens, "sample_s": sampling, "tables_s": 0.0,
    }  # fmt: skip


def one(mode: str, replicas: int, requests: int) -> dict[str, Any]:
    """Measure one row in this process."""
    took = plain(requests, replicas) if mode == "plain" else compiled(requests, replicas, fast=mode == "fast")
    seconds = took["cpu_s"]
    return {
        "mode": mode,
        "replicas": replicas,
        "requests": requests,
        "cpu_s": seconds,
        "requests/s": requests / seconds,
        "steps/s": took["steps"] / seconds,
        "tokens/s": took["tokens"] / seconds,
        "sample_s": took["sample_s"],
        "tables_s": took["tables_s"],
        "peak_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    """Measure every row in its own process and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="leave the million requests out")
    parser.add_argument("--json", action="store_true", help="one JSON line per row")
    parser.add_argument(
        "--row", nargs=3, metavar=("MODE", "REPLICAS", "REQUESTS"), help="measure one row, print JSON"
    )
    options = parser.parse_args()
    if options.row:
        mode, replicas, requests = options.row
        sys.stdout.write(json.dumps(one(mode, int(replicas), int(requests))) + "\n")
        return
    sizes = [10_000, 100_000] if options.quick else [10_000, 100_000, 1_000_000]
    plan = [("fast", replicas, requests) for replicas in (1, 8, 64) for requests in sizes]
    plan += [("steps", 1, 10_000), ("steps", 8, 100_000), ("plain", 1, 1_000)]
    if not options.json:
        sys.stdout.write("  ".join(f"{name:>10}" for name in COLUMNS) + "\n")
    rows = []
    for mode, replicas, requests in plan:
        command = [sys.executable, __file__, "--row", mode, str(replicas), str(requests)]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        cells = [rows[-1][name] for name in COLUMNS]
        text = "  ".join(f"{c:>10}" if isinstance(c, str | int) else f"{c:>10.4g}" for c in cells)
        sys.stdout.write((json.dumps(rows[-1]) if options.json else text) + "\n")
        sys.stdout.flush()
    if not options.json:
        rate = {(r["mode"], r["replicas"], r["requests"]): r["requests/s"] for r in rows}
        fast = rate["fast", 1, 10_000]
        sys.stdout.write(
            f"one replica: {fast / rate['steps', 1, 10_000]:.1f} times as fast as step by step, "
            f"{fast / rate['plain', 1, 1_000]:.0f} times as fast as plain Python\n"
        )


if __name__ == "__main__":
    main()
