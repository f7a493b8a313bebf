"""Replay: measured runs through the simulator, priced once per cell, answers kept by content."""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import moesim
from moesim.cost.load import RoutingLoad
from moesim.cost.memory import MemoryPlan, memory_plan
from moesim.cost.overheads import Overhead, OverheadTable, hidden, with_overhead
from moesim.cost.pricing import StepPricing
from moesim.cost.roofline import Chain
from moesim.cost.stepprice import step_pricing
from moesim.errors import MoesimError, NoResult
from moesim.files import write_atomic
from moesim.sim.kernel import Status
from moesim.sim.pool import PoolSetup
from moesim.sim.routing_load import routing_load
from moesim.sim.run import build
from moesim.sim.setup import PoolParts, draft_seconds
from moesim.spec.deployment import Engine, Pool, Speculation
from moesim.spec.routing import RoutingSpec
from moesim.spec.scenario import ScenarioSpec
from moesim.spec.topology import Topology
from moesim.study.serving.engines import EngineRules
from moesim.study.serving.rows import ServingRow
from moesim.study.serving.scenario import architecture_of, checkpoint_of, scenario_of
from moesim.traffic.sample import sample

__all__ = ["Prediction", "Replayer", "replay_rows"]

Progress = Callable[[float, str], None]
Chains = Callable[[ServingRow, Engine], Chain]
Routings = Callable[[ServingRow], RoutingSpec | None]
_AFTERWARDS = frozenset({"fit.py", "page.py", "score.py", "section.py", "suite.py"})
"""Files of ours that come after the answers."""
_KEPT = 4
"""Priced workers kept: the rows of a cell come together, wide tables take tens of megabytes."""
_SOURCES = ("study/serving", "cost", "policies", "routing", "sim", "spec", "traffic")


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the simulator says about one measured run.

    Attributes
    ----------
    id : of the row
    ttft_s, tpot_s : means over all requests, as the client computes them
    tokens_per_s : output tokens over the time from the first measured arrival to the last finish
    steps : engine steps of the run
    wall_s : seconds this took, pricing of the cell apart
    notes : what was assumed, e.g. that memory had to be stretched
    error : why there is no prediction; times are then NaN
    """

    id: str
    ttft_s: float = float("nan")
    tpot_s: float = float("nan")
    tokens_per_s: float = float("nan")
    steps: int = 0
    wall_s: float = 0.0
    notes: tuple[str, ...] = ()
    error: str = ""

    @property
    def ok(self) -> bool:
        """True when there is a prediction."""
        return not self.error


class Replayer:
    """Replays rows; the tables of the last cell are kept, so rows should come cell by cell.

    Parameters
    ----------
    chains : estimators for a row, best first; by default the roofline bound
    stamp : names the estimators and what they were fitted from: part of the key of every kept answer
    overheads : host time of engines per step, sequence and request; none: zero
    speculation : what a run is taken to have drafted; none: nothing
    routing : popularity of the experts of a row's model; none: uniform choice
    folder : where answers are kept; none: nowhere
    """

    def __init__(
        self,
        *,
        chains: Chains | None = None,
        stamp: str = "bound",
        overheads: OverheadTable | None = None,
        routing: Routings | None = None,
        speculation: Callable[[ServingRow], Speculation | None] | None = None,
        rules: EngineRules | None = None,
        folder: Path | None = None,
        seed: int = 0,
    ) -> None:
        self._chains: Chains = chains or (lambda *_: Chain())
        self._stamp, self._overheads = stamp, overheads
        self._routing: Routings = routing or (lambda _: None)
        self._speculation = speculation or (lambda _: None)
        self._loads: dict[tuple[Any, ...], dict[str, RoutingLoad] | None] = {}
        self._rules, self._folder, self._seed = rules, folder, seed
        self._priced: dict[tuple[Any, ...], StepPricing] = {}
        self.priced_s = 0.0

    def predict(self, rows: Iterable[ServingRow], progress: Progress | None = None) -> Iterator[Prediction]:
        """Yield a prediction for every row, cell by cell; rows that cannot be predicted say why."""
        cells: dict[tuple[Any, ...], list[ServingRow]] = defaultdict(list)
        for row in rows:
            cells[_cell_key(row)].append(row)
        total, done = sum(map(len, cells.values())), 0
        for members in cells.values():
            for row in members:
                yield self._one(row, members)
                done += 1
                if progress is not None:
                    progress(done / total, f"{done} of {total} runs")

    def _one(self, row: ServingRow, members: list[ServingRow]) -> Prediction:
        if row.left_out:
            return Prediction(row.id, error=row.left_out)
        try:
            key = self._key(row)
        except MoesimError as error:
            return Prediction(row.id, error=str(error).splitlines()[0])
        kept = _load(self._folder, key)
        if kept is not None:
            return replace(kept, id=row.id)
        try:
            made = self._simulate(row, members)
        except MoesimError as error:
            made = Prediction(row.id, error=str(error).splitlines()[0])
        _store(self._folder, key, made)
        return made

    def _key(self, row: ServingRow) -> str:
        """Digest of everything an answer depends on: the run's inputs, our sources, estimators, settings."""
        inputs = asdict(
            replace(row, id="", source="", named="", duplicate_of="", ttft_s=0.0, tpot_s=0.0, repairs=())
        )
        overhead = None if self._overheads is None else asdict(self._overhead(row))
        stated = self._routing(row)
        routing = None if stated is None else stated.model_dump(mode="json")
        rules = None if self._rules is None else self._rules.model_dump(mode="json")
        drafts = self._speculation(row)
        parts = [inputs, overhead, routing, rules, self._stamp, self._seed, _sources_digest()]
        parts += [] if drafts is None else [drafts.model_dump(mode="json")]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    def _overhead(self, row: ServingRow) -> Overhead:
        if self._overheads is None:
            return Overhead()
        return self._overheads.of(row.backend, row.client, architecture_of(row.system))

    # -- one run -----------------------------------------------------------------------------------------------------
    def _simulate(self, row: ServingRow, members: list[ServingRow]) -> Prediction:
        scenario = scenario_of(
            row,
            seed=self._seed,
            routing=self._routing(row),
            rules=self._rules,
            speculation=self._speculation(row),
        )
        parts = {
            name: self._parts(row, members, scenario, name, pool)
            for name, pool in scenario.deployment.pools.items()
        }
        begun = time.perf_counter()
        run = scenario.run
        requests = sample(scenario.traffic, run.seed, run.requests, run.horizon)
        driver = build(scenario, parts, requests)
        end = driver.run()
        records = driver.records
        records = records[requests.warmup :]
        finished = records[records["status"] == Status.FINISHED]
        notes = [note for p in parts.values() for note in p.notes]
        if self._overheads is not None:
            terms = self._overheads.note(row.backend, row.client, architecture_of(row.system), row.version)
            notes += [terms] if terms else []
        if len(finished) < len(records):
            lost = len(records) - len(finished)
            raise NoResult(f"{lost} of {len(records)} requests do not fit into the KV cache")
        first, arrival = finished["first"], finished["arrival"]
        several = finished["output"] > 1
        tpot = (finished["finish"] - first)[several] / (finished["output"][several] - 1)
        extra = self._overhead(row)
        return Prediction(
            id=row.id,
            ttft_s=float((first - arrival).mean()) + extra.request_s,
            tpot_s=float(tpot.mean()) if several.any() else float("nan"),
            tokens_per_s=float(finished["output"].sum() / (end - float(arrival.min()))),
            steps=int(sum(p.state.rep["steps"].sum() for p in driver.pools.values())),
            wall_s=time.perf_counter() - begun,
            notes=tuple(dict.fromkeys(notes)),
        )

    def _parts(
        self, row: ServingRow, members: list[ServingRow], scenario: ScenarioSpec, name: str, pool: Pool
    ) -> PoolParts:
        pricing = self._pricing(row, members, scenario, name, pool)
        if self._overheads is not None:
            terms = self._overhead(row)
            pricing = with_overhead(pricing, hidden(terms) if pool.engine.async_scheduling else terms)
        memory, notes = _memory(scenario, pool)
        speculation = scenario.deployment.speculation if name != "prefill" else None
        setup = PoolSetup(
            name=name,
            replicas=pool.replicas,
            pricing=pricing,
            engine=pool.engine,
            stages=pool.parallelism.pp,
            kv_blocks=memory.kv_blocks_per_lane // pool.parallelism.pp,
            max_len=pool.engine.max_model_len or scenario.model.context,
            speculation=speculation,
            draft_s=draft_seconds(pricing, speculation),
        )
        return PoolParts(setup, memory, pool.replicas, scenario.topology(), notes)

    def _pricing(
        self, row: ServingRow, members: list[ServingRow], scenario: ScenarioSpec, name: str, pool: Pool
    ) -> StepPricing:
        """Return the tables of one worker, wide enough for the largest engine of the cell's rows."""
        wide = pool.engine
        for other in members:
            engine = scenario_of(other, rules=self._rules).deployment.pools[name].engine
            tokens = max(wide.max_num_batched_tokens, engine.max_num_batched_tokens)
            sequences = max(wide.max_num_seqs, engine.max_num_seqs)
            wide = wide.model_copy(update={"max_num_seqs": sequences, "max_num_batched_tokens": tokens})
        # a power of two, so that workers of other cells find the same tables
        sequences = 1 << (wide.max_num_seqs - 1).bit_length()
        wide = wide.model_copy(
            update={
                "max_num_seqs": sequences,
                "max_num_batched_tokens": max(wide.max_num_batched_tokens, sequences),
            }
        )
        topology = scenario.topology()
        cut = pool.parallelism
        drafts = scenario.deployment.speculation if name != "prefill" else None
        shape = (topology.nodes, cut.tp, cut.pp, cut.dp, cut.ep, sequences)
        key = (*_cell_key(row)[:5], *shape, *_widths(wide), str(drafts))
        if key not in self._priced:
            begun = time.perf_counter()
            while len(self._priced) >= _KEPT:
                self._priced.pop(next(iter(self._priced)))
            widest = pool.model_copy(update={"engine": wide})
            load = self._load(scenario, topology, widest)
            chain, precision = self._chains(row, widest.engine), scenario.deployment.precision
            self._priced[key] = step_pricing(scenario.model, topology, widest, precision, load, drafts, chain)
            self.priced_s += time.perf_counter() - begun
        return self._priced[key]

    def _load(self, scenario: ScenarioSpec, topology: Topology, pool: Pool) -> dict[str, RoutingLoad] | None:
        """Return what routing does to the experts; a skewed choice over many ranks takes a minute, so it is kept."""
        model, cut, routing = scenario.model, pool.parallelism, scenario.routing
        name = None if routing is None else routing.name
        top = pool.engine.max_num_batched_tokens
        key = (model.name, name, cut.tp, cut.dp, cut.ep, topology.devices_per_node, top)
        if key not in self._loads:
            self._loads[key] = routing_load(scenario, topology, pool)[0]
        return self._loads[key]


def _widths(engine: Engine) -> tuple[int, bool, str, str]:
    return engine.max_num_batched_tokens, engine.cuda_graphs, engine.expert_exchange, engine.moe_backend


def _memory(scenario: ScenarioSpec, pool: Pool) -> tuple[MemoryPlan, tuple[str, ...]]:
    """Return what is left for KV. A run that was measured did fit: where our estimate refuses it, more memory is given.

    Raises
    ------
    NoResult : the weights alone exceed the device
    """
    precision = scenario.deployment.precision
    topology = scenario.topology()
    try:
        return memory_plan(scenario.model, topology, pool, precision), ()
    except NoResult:
        engine = pool.engine.model_copy(update={"gpu_memory_utilization": 1.0, "runtime_reserve": 0.0})
        note = "memory stretched: the run was measured, the estimate leaves no KV block"
        return memory_plan(scenario.model, topology, pool.model_copy(update={"engine": engine}), precision), (
            note,
        )


def replay_rows(
    rows: Iterable[ServingRow], replayer: Replayer, progress: Progress | None = None
) -> dict[str, Prediction]:
    """Return predictions by row id."""
    return {made.id: made for made in replayer.predict(rows, progress)}


def _cell_key(row: ServingRow) -> tuple[Any, ...]:
    """Return what decides the prices of a row's steps."""
    if row.left_out:
        return (row.left_out,)
    try:
        chosen = checkpoint_of(row)
    except MoesimError as error:
        return (str(error),)
    cuts = [
        None if shape is None else (shape.tp, shape.pp, shape.dp, shape.ep)
        for shape in (row.shape, row.prefill, row.decode)
    ]
    return (chosen, row.system, row.backend, row.version, row.client, *cuts)


@cache
def _sources_digest() -> str:
    """Digest of the sources that an answer depends on, so that no answer outlives a change of ours."""
    root = Path(moesim.__file__).parent
    digest = hashlib.sha256(moesim.__version__.encode())
    for folder in _SOURCES:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in {".py", ".yaml"} and path.name not in _AFTERWARDS:
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _load(folder: Path | None, key: str) -> Prediction | None:
    if folder is None:
        return None
    path = folder / key[:2] / f"{key}.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    times = {
        name: float("nan") if data[name] is None else data[name]
        for name in ("ttft_s", "tpot_s", "tokens_per_s")
    }
    return Prediction(**{**data, **times, "notes": tuple(data["notes"])})


def _store(folder: Path | None, key: str, made: Prediction) -> None:
    if folder is None:
        return
    data = {name: None if value != value else value for name, value in asdict(made).items()}  # noqa: PLR0124 - NaN
    write_atomic(folder / key[:2] / f"{key}.json", json.dumps(data))
