"""Affinity on recorded transitions: our plan beside the baselines, its certified gap, and hops on unseen sequences.

    python tests/bench/bench_affinity.py              # every case, top-1 transitions and all pairs of the top k
    python tests/bench/bench_affinity.py --top1       # ExFlow's transitions (the heaviest expert of each layer) only
    python tests/bench/bench_affinity.py --json       # one JSON line per case

Planned on one half of every group's sequences, judged on the other. ``share`` is weighted hops over transitions (a hop
inside a node weighs 1, one between nodes 2). Needs the shared data folder (MOESIM_SHARED, or ../shared).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

TRACES = (("gpt-oss-20b-decode", 32), ("deepseek-v2-lite-prefill", 64))
TOPOLOGIES = {"4": (1, 4), "8": (1, 8), "16": (1, 16), "2x8": (2, 8), "4x8": (4, 8)}


def cases(top1_only: bool = False):
    """Yield (name, pairs, topology name, planning problem, judging problem)."""
    from moesim.plan.affinity import Affinity, Topology
    from moesim.routing.statistics import transitions
    from moesim.routing.trace import read_trace

    folder = Path(os.environ.get("MOESIM_SHARED", ROOT.parent / "shared")) / "data" / "routing"
    for name, experts in TRACES:
        halves = read_trace(folder / f"{name}.npz", experts).split(0)
        for top1 in (True,) if top1_only else (True, False):
            plan, judge = (transitions(half, top1=top1) for half in halves)
            for label, (nodes, per_node) in TOPOLOGIES.items():
                where = Topology(nodes, per_node)
                yield (
                    name,
                    "top-1" if top1 else "all pairs",
                    label,
                    Affinity(plan, where),
                    Affinity(judge, where),
                )


def row(name: str, pairs: str, label: str, problem, unseen, seed: int = 0) -> dict:
    """Return one case's figures."""
    from moesim.plan.affinity import BASELINES, hops, solve_affinity
    from moesim.plan.solution import Limits

    wall, cpu = time.perf_counter(), time.process_time()
    found = solve_affinity(problem, Limits(seconds=600.0, seed=seed))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    others = {rule: made(problem, seed) for rule, made in BASELINES.items()}
    share = {rule: hops(problem, p).weighted / problem.total for rule, p in others.items()}
    judged = {rule: hops(unseen, p).weighted / unseen.total for rule, p in others.items()}
    ours = hops(unseen, found.answer).weighted / unseen.total
    return {
        "trace": name,
        "pairs": pairs,
        "devices": label,
        "share": found.objective / problem.total,
        "bound": found.bound / problem.total,
        "gap": found.gap,
        "best_baseline": min(share.values()),
        "unseen_share": ours,
        "unseen_best_baseline": min(judged.values()),
        "baselines": share,
        "unseen_baselines": judged,
        "wall_s": wall,
        "cpu_s": cpu,
        "method": found.method,
    }


def say(line: str) -> None:
    """Write a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--top1", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", default="", help="substring of 'trace pairs devices'")
    parser.add_argument("--seed", type=int, default=0)
    stated = parser.parse_args()
    shown = (
        "share",
        "bound",
        "gap",
        "best_baseline",
        "unseen_share",
        "unseen_best_baseline",
        "wall_s",
        "cpu_s",
    )
    if not stated.json:
        say(f"{'trace':26}{'pairs':11}{'devices':8}" + "".join(f"{c:>21}" for c in shown))
    for name, pairs, label, problem, unseen in cases(stated.top1):
        if stated.only not in f"{name} {pairs} {label}":
            continue
        got = row(name, pairs, label, problem, unseen, stated.seed)
        if stated.json:
            say(json.dumps(got))
        else:
            say(f"{name:26}{pairs:11}{label:8}" + "".join(f"{got[c]:21.4f}" for c in shown))


if __name__ == "__main__":
    main()
