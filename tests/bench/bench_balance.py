"""Balance against EPLB: DeepSeek-V3's size on seeded instances, and recorded routing. Not a test; run it by hand:

    python tests/bench/bench_balance.py              # 100 seeds, then recorded routing if the shared data is there
    python tests/bench/bench_balance.py --seeds 10
    python tests/bench/bench_balance.py --json       # one JSON line per row instead of the table

Imbalance is busiest rank over mean rank minus 1, in percent, mean over layers. Recorded routing is planned on the first
half of every group's sequences and judged on the second (and the other way round, and on random halves): worst group,
mean over layers. Seconds are CPU seconds of one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "plan")]

from balance_cases import RECORDINGS, deepseek_v3, recorded, shared_routing, tensorrt_llm  # noqa: E402

from moesim.plan.balance import Balance, Effort, balance, eplb, imbalance, pooled, worth  # noqa: E402
from moesim.plan.solution import Limits  # noqa: E402

NEAR = Limits(gap=0.01)


def seeded(seeds, ranks, replicas):
    """Return the study of many instances at DeepSeek-V3's size."""
    theirs, ours, gaps, seconds, worse = [], [], [], [], 0
    for seed in range(seeds):
        loads = deepseek_v3(seed)
        problem = Balance(loads[None], ranks, replicas // ranks)
        base = worth(problem, eplb(loads, replicas, 1, 1, ranks))
        began = time.process_time()
        plan = balance(problem, NEAR)
        seconds.append(time.process_time() - began)
        value = worth(problem, plan.answer)
        worse += int(np.sum(value > base + 1e-12))
        theirs.append(base.mean())
        ours.append(value.mean())
        gaps.append(plan.gap)
    return {
        "case": f"58 layers, 256 experts, {replicas} slots on {ranks} GPUs, {seeds} seeds",
        "EPLB_percent": 100 * (np.mean(theirs) - 1),
        "ours_percent": 100 * (np.mean(ours) - 1),
        "worst_seed_ratio": max((o - 1) / (t - 1) for o, t in zip(ours, theirs, strict=True)),
        "layers_worse_than_EPLB": worse,
        "largest_gap_percent": 100 * max(gaps),
        "largest_cpu_s": max(seconds),
    }


def published():
    """Return TensorRT-LLM's case."""
    loads = tensorrt_llm(0)
    problem = Balance(loads[None], 32, 9)
    began = time.process_time()
    plan = balance(problem, NEAR)
    seconds = time.process_time() - began
    return {
        "case": "TensorRT-LLM's spread, 288 slots on 32 GPUs",
        "EPLB_percent": 100 * (worth(problem, eplb(loads, 288, 1, 1, 32)).mean() - 1),
        "ours_percent": 100 * (plan.objective - 1),
        "largest_gap_percent": 100 * plan.gap,
        "largest_cpu_s": seconds,
    }


def robust(folder, name, ranks, redundant, shuffle, bound_seconds):
    """Return one robust case on recorded routing."""
    plan_loads, judge_loads, spread = recorded(folder, name, shuffle)
    problem = Balance(plan_loads, ranks, (plan_loads.shape[2] + redundant) // ranks)
    began = time.process_time()
    balance(problem, NEAR, spread=spread(ranks), effort=Effort(bound_seconds=0.0))
    planned = (time.process_time() - began) / problem.layers
    began = time.process_time()
    plan = balance(
        problem, Limits(1e9, 0.005), spread=spread(ranks), effort=Effort(bound_seconds=bound_seconds)
    )
    return {
        "case": f"{name}, {ranks} GPUs, +{redundant}, halves {'in order' if shuffle is None else shuffle}",
        "EPLB_judged": imbalance(judge_loads, pooled(problem), ranks).max(axis=0).mean(),
        "ours_judged": imbalance(judge_loads, plan.answer, ranks).max(axis=0).mean(),
        "planned": plan.objective,
        "bound": plan.bound,
        "gap_percent": 100 * plan.gap,
        "plan_cpu_s_per_layer": planned,
        "with_bound_cpu_s_per_layer": (time.process_time() - began) / problem.layers,
    }


def main():
    """Run the studies and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--bound-seconds", type=float, default=2.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    balance(Balance(np.arange(1.0, 9)[None, None], 2, 5), NEAR, effort=Effort(steps=10, exact=False))

    def show(row):
        if options.json:
            sys.stdout.write(json.dumps(row) + "\n")
        else:
            numbers = "  ".join(f"{k} {v:.4g}" for k, v in row.items() if k != "case")
            sys.stdout.write(f"{row['case']}\n    {numbers}\n")

        sys.stdout.flush()

    if options.seeds:
        show(published())
        show(seeded(options.seeds, 32, 288))
        show(seeded(options.seeds, 64, 320))
    folder = shared_routing()
    if folder is None:
        sys.stderr.write("shared data missing: no recorded routing (set MOESIM_SHARED)\n")
        return
    for shuffle in (None, 1):
        for name in RECORDINGS:
            for ranks, redundant in ((8, 0), (16, 0), (8, 16), (16, 16)):
                show(robust(folder, name, ranks, redundant, shuffle, options.bound_seconds))


if __name__ == "__main__":
    main()
