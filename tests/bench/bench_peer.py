"""Time per estimate, moesim against NVIDIA AIConfigurator, on the same measured configurations. Run it by hand:

    python -m venv /tmp/peer && /tmp/peer/bin/pip install aiconfigurator==0.12.0
    python tests/bench/bench_peer.py --peer /tmp/peer/bin/python              # 60 configurations
    python tests/bench/bench_peer.py --peer /tmp/peer/bin/python --rows 200 --json

The peer has an environment of its own, since it pins its tables. Each side runs in one fresh process over the same rows
of ``silicon_sample.csv``, so imports, tables and compiled code are paid once and counted. Times are CPU seconds of the
process (the wall is beside them). The peer is helped: it is told its tables' version, looked up beforehand, since
without it every call parses all its files anew. Rows that a side refuses are left out of both, with what they took;
``process_s`` is all that a process took, and ``times_faster_process`` sets these side by side.

moesim is timed twice: ``estimate`` is the planner's closed form (``moesim.plan.parallelism``), to be set beside the
peer's closed form; ``simulate`` replays every request of the benchmark client through the engine's scheduler, which no
closed form does.

Found on 2026-11-24 (two cores, nothing else running, peer 0.12.0, ``--mode estimate``), peer against moesim:

=================================== ======================= ========================
                                    46 rows, 36 by both     240 rows, 182 by both
=================================== ======================= ========================
CPU s per configuration, cold start 0.652 / 0.0361 (18.1 x) 0.217 / 0.0120 (18.1 x)
CPU s of the whole process          27.8 / 1.62 (17.1 x)    52.2 / 2.95 (17.7 x)
median row                          14.2 / 9.6 ms (1.5 x)   13.4 / 6.7 ms (2.0 x)
=================================== ======================= ========================

The gain is in what is paid once: imports, tables, models, cuts. Most rows are new cuts, which cost moesim some 7 ms; a
row of a known cut takes 0.8 ms. The rows left out are those the peer refused. Runs on the same machine while it was
busy gave 11 to 21 in the first line.
"""

from __future__ import annotations

import argparse
import json
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
MODES = ("estimate", "simulate")


class Answer(NamedTuple):
    """Mean seconds to the first token and per token, or why there are none."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    error: str = ""


PEER = """
import contextlib, io, json, logging, sys, time
begin, wall = time.process_time(), time.perf_counter()
asked, answer, known = sys.argv[1:4]
logging.disable(logging.CRITICAL)
from aiconfigurator.cli.api import cli_estimate
imported = time.process_time() - begin
versions = json.load(open(known)) if known != "-" else {}
found = {}
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    for row in json.load(open(asked)):
        place = row["system_name"] + " " + row["backend_name"]
        identity = row.pop("id")
        if known == "-" and place in versions:
            continue
        start = time.process_time()
        try:
            made = cli_estimate(**row, **({"backend_version": versions[place]} if known != "-" else {}))
        except Exception as error:
            found[identity] = {"error": type(error).__name__, "s": time.process_time() - start}
            continue
        if known == "-":
            versions[place] = made.backend_version
        found[identity] = {"s": time.process_time() - start, "ttft_s": made.ttft / 1e3, "tpot_s": made.tpot / 1e3}
out = {"imported": imported, "cpu": time.process_time() - begin, "wall": time.perf_counter() - wall, "rows": found}
json.dump(versions if known == "-" else out, open(answer, "w"))
"""


def chosen(count: int) -> list[Any]:
    """Return ``count`` aggregated runs, evenly spread over the distinct ones."""
    from moesim.study.serving.rows import distinct, read_rows

    rows = [row for row in distinct(read_rows()) if row.mode == "agg" and not row.left_out]
    return [rows[i * len(rows) // count] for i in range(min(count, len(rows)))]


def peer_inputs(row: Any) -> dict[str, Any]:
    """Return the peer's arguments for a run: the file's labels, our repaired degrees."""
    cut = row.shape
    batch = cut.batch or max(1, round(row.concurrency / cut.dp))
    labels = {"gemm_quant_mode": row.gemm or None, "moe_quant_mode": None if row.dense else row.moe or None}
    degrees = {} if row.dense else {"moe_tp_size": cut.moe_tp, "moe_ep_size": cut.ep}
    return {
        "id": row.id, "model_path": row.model, "system_name": row.system, "backend_name": row.backend, "isl": row.isl,
        "osl": row.osl, "batch_size": batch, "tp_size": cut.tp, "pp_size": cut.pp, "attention_dp_size": cut.dp,
        **labels, **degrees,
    }  # fmt: skip


def simulator() -> Callable[[Any], Any]:
    """Return the replay of a row as the suite silicon-serving does it."""
    from moesim.cost.overheads import load_overheads
    from moesim.study.serving.estimators import chains
    from moesim.study.serving.replay import Replayer

    replayer = Replayer(chains=chains, overheads=load_overheads())
    return lambda row: next(iter(replayer.predict([row])))


def estimator() -> Callable[[Any], Any]:
    """Return the planner's closed form for a row, priced by the same fitted kernels and host terms."""
    import numpy as np

    from moesim.cost.overheads import Overhead, load_overheads
    from moesim.cost.roofline import Chain
    from moesim.plan.parallelism.demand import Demand
    from moesim.plan.parallelism.loads import Loads
    from moesim.plan.parallelism.price import Memo, price_cut
    from moesim.plan.parallelism.steady import serve_curve
    from moesim.sim.calibration import calibrated
    from moesim.study.serving.scenario import scenario_of

    table, prices, loads, memos = load_overheads(), {}, {}, {}

    def one(row: Any) -> Answer:
        scenario = scenario_of(row)
        pool, topology = scenario.deployment.serve, scenario.topology()
        engine, cut = pool.engine, pool.parallelism
        kernels = (row.model, row.precision, row.gemm, row.system, row.backend)
        key = (*kernels, topology.nodes, cut, engine)
        host = (
            Overhead() if table is None else table.of(row.backend, row.client, topology.device.architecture)
        )
        if key not in prices:
            longest = 1 << (cut.dp * engine.max_num_batched_tokens - 1).bit_length()
            routed = (row.model, topology.devices_per_node, topology.nodes, longest)
            if routed not in loads:
                loads[routed] = Loads(scenario.model, topology, None, longest)
            if kernels not in memos:
                chain = calibrated("shipped", engine, topology.device).chain or Chain()
                memos[kernels] = Memo(chain, topology.device)
            prices[key] = price_cut(
                scenario.model, topology, cut, engine, loads[routed].of(cut),
                precision=scenario.deployment.precision, memo=memos[kernels], overhead=host,
            )  # fmt: skip
        demand = Demand(np.array([float(row.isl)]), np.array([float(row.osl)]))
        lane = max(1.0, row.concurrency / cut.dp)
        curve = serve_curve(prices[key], demand, engine, max(2, round(lane)))
        if not len(curve.rate):
            return Answer(error="no steady state")
        tpot, ttft = (float(np.interp(lane, curve.sequences, values)) for values in (curve.tpot, curve.ttft))
        return Answer(ttft + host.request_s, tpot)

    def safe(row: Any) -> Answer:
        from moesim.errors import MoesimError

        try:
            return one(row)
        except MoesimError as error:
            return Answer(error=str(error))

    return safe


def moesim_side(mode: str, asked: Path, answer: Path) -> None:
    """Answer the rows in this process, and write the times."""
    begin, wall = time.process_time(), time.perf_counter()
    rows = pickle.loads(asked.read_bytes())  # noqa: S301 - written by our parent
    one = estimator() if mode == "estimate" else simulator()
    imported = time.process_time() - begin
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        start = time.process_time()
        made = one(row)
        took = time.process_time() - start
        found[row.id] = {"s": took, "ttft_s": made.ttft_s, "tpot_s": made.tpot_s}
        if made.error:
            found[row.id]["error"] = made.error
    out = {"imported": imported, "cpu": time.process_time() - begin,
           "wall": time.perf_counter() - wall, "rows": found}  # fmt: skip
    answer.write_text(json.dumps(out))


def summary(side: dict[str, Any], both: list[str], truth: dict[str, Any]) -> dict[str, float]:
    """Return times over the rows that every side answered, and how far off TPOT is."""
    times = [side["rows"][i]["s"] for i in both]
    errors = [abs(side["rows"][i]["tpot_s"] / truth[i].tpot_s - 1) for i in both]
    return {
        "imported_s": side["imported"],
        "first_s": times[0],
        "median_s": statistics.median(times),
        "per_configuration_s": (side["imported"] + sum(times)) / len(both),
        "process_s": side["cpu"],
        "wall_s": side["wall"],
        "tpot_median_ape": statistics.median(errors),
    }


def run(peer: str, count: int, modes: tuple[str, ...]) -> dict[str, Any]:
    """Run every side once over the same rows."""
    rows = chosen(count)
    truth = {row.id: row for row in rows}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "peer.json").write_text(json.dumps([peer_inputs(row) for row in rows]))
        (folder / "rows.pickle").write_bytes(pickle.dumps(rows))
        (folder / "peer.py").write_text(PEER)
        asked = [peer, str(folder / "peer.py"), str(folder / "peer.json")]
        subprocess.run([*asked, str(folder / "versions.json"), "-"], check=True)
        subprocess.run([*asked, str(folder / "out.json"), str(folder / "versions.json")], check=True)
        sides = {"aiconfigurator": json.loads((folder / "out.json").read_text())}
        for mode in modes:
            out = folder / f"{mode}.json"
            subprocess.run(
                [sys.executable, __file__, "--side", mode, str(folder / "rows.pickle"), str(out)], check=True
            )
            sides[f"moesim {mode}"] = json.loads(out.read_text())
    both = [
        i for i in truth if all("error" not in side["rows"].get(i, {"error": ""}) for side in sides.values())
    ]
    found = {name: summary(side, both, truth) for name, side in sides.items()}
    base = found["aiconfigurator"]
    for name, figures in found.items():
        if name != "aiconfigurator":
            figures["times_faster"] = base["per_configuration_s"] / figures["per_configuration_s"]
            figures["times_faster_process"] = base["process_s"] / figures["process_s"]
            figures["times_faster_warm"] = base["median_s"] / figures["median_s"]
    return {"rows": len(rows), "answered_by_all": len(both), "sides": found}


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="Python of an environment with aiconfigurator.")
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--mode", choices=(*MODES, "both"), default="both")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if options.side:
        moesim_side(options.side[0], Path(options.side[1]), Path(options.side[2]))
        return
    if not options.peer:
        parser.error("--peer: expected the Python of an environment with aiconfigurator")
    answer = run(options.peer, options.rows, MODES if options.mode == "both" else (options.mode,))
    if options.json:
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
        return
    sys.stdout.write(
        f"{answer['answered_by_all']} of {answer['rows']} configurations answered by every side\n"
    )
    for name, figures in answer["sides"].items():
        sys.stdout.write(
            f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in figures.items()) + "\n"
        )


if __name__ == "__main__":
    main()
