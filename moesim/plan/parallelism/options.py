"""Options: every cut and batch limit in one table, each with its goodput or the reason why not. Memory comes first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from moesim.cost.memory import MemoryPlan, memory_plan
from moesim.cost.roofline import Chain
from moesim.cost.stepprice import launch_of
from moesim.errors import NoResult
from moesim.plan.parallelism.axes import Axes, cuts
from moesim.plan.parallelism.loads import Loads
from moesim.plan.parallelism.price import CutPrice, Memo, price_cut
from moesim.plan.parallelism.steady import Curve, serve_curve
from moesim.spec.deployment import Engine, Pool, PrecisionChoice, Targets
from moesim.units import format_quantity

if TYPE_CHECKING:
    from moesim.cost.overheads import Overhead
    from moesim.plan.parallelism.demand import Demand
    from moesim.spec.deployment import Parallelism
    from moesim.spec.model import ModelSpec
    from moesim.spec.routing import RoutingSpec
    from moesim.spec.topology import Topology

__all__ = ["Option", "ParallelismProblem", "Priced", "Status", "Table", "option_table", "priced_cuts"]

Status = Literal["good", "short of devices", "misses a target", "does not fit", "not allowed"]


@dataclass(frozen=True, slots=True, eq=False)
class ParallelismProblem:
    """What is to be served, on what, how well.

    Attributes
    ----------
    model, topology, precision, routing : as in the scenario
    demand : lengths and rate
    devices : how many there are, at most the cluster's
    targets : means are held against them here; the simulation of finalists holds percentiles
    engine : everything but the two limits that ``axes`` varies
    chain, overhead : what prices steps, and host time; none: the roofline bound
    """

    model: ModelSpec
    topology: Topology
    demand: Demand
    devices: int
    targets: Targets = field(default_factory=Targets)
    engine: Engine = field(default_factory=Engine)
    axes: Axes = field(default_factory=Axes)
    precision: PrecisionChoice | None = None
    routing: RoutingSpec | None = None
    chain: Chain | None = None
    overhead: Overhead | None = None


@dataclass(frozen=True, slots=True)
class Option:
    """One row of the table.

    Attributes
    ----------
    pool : parallelism, engine limits, and as many replicas as the demand takes (or the devices hold)
    status, reason : why not, where not good
    goodput : requests per second of one replica within the targets
    sequences : decoding together on a lane there
    ttft_s, tpot_s : means, at the demand's rate where there is one, else at the goodput
    weight_bytes, kv_bytes : per device
    """

    pool: Pool
    status: Status
    reason: str = ""
    goodput: float = 0.0
    sequences: float = 0.0
    ttft_s: float = math.nan
    tpot_s: float = math.nan
    weight_bytes: float = math.nan
    kv_bytes: float = math.nan

    @property
    def devices(self) -> int:
        """Devices of all replicas."""
        return self.pool.replicas * self.pool.parallelism.devices

    @property
    def per_device(self) -> float:
        """Goodput of one device, requests per second."""
        return self.goodput / self.pool.parallelism.devices


@dataclass(frozen=True, slots=True)
class Table:
    """All options: rated ones, then refused ones, each in the order they were tried."""

    options: tuple[Option, ...]

    def good(self) -> list[Option]:
        """Return the options that serve the demand, best first: fewest devices, most goodput per device, least tpot."""
        found = [o for o in self.options if o.status == "good"]
        return sorted(found, key=lambda o: (o.devices, -o.per_device, o.tpot_s, o.pool.parallelism.devices))

    def counts(self) -> dict[str, int]:
        """Return how many options have each status."""
        names = [o.status for o in self.options]
        return {name: names.count(name) for name in dict.fromkeys(names)}


@dataclass(frozen=True, slots=True)
class Priced:
    """A cut with its price and the pools of one engine's limits that it may have, each with its memory."""

    parallelism: Parallelism
    pool: Pool
    price: CutPrice
    memory: MemoryPlan

    def most_sequences(self, demand: Demand) -> int:
        """Return how many sequences one lane (of one pipeline slot) can decode: seats, tokens of a step, cache."""
        engine = self.pool.engine
        tokens = self.memory.max_tokens * (1 - engine.watermark) / self.parallelism.pp
        cache = int(tokens // demand.held_tokens())
        return min(engine.max_num_seqs, engine.max_num_batched_tokens, cache)


def priced_cuts(
    problem: ParallelismProblem, refuse: Callable[[Option], None], tell: Callable[[float], None] | None = None
) -> list[Priced]:
    """Price every cut and limit that fits; hand the others to ``refuse`` with their reason."""
    axes = problem.axes
    every = list(
        cuts(
            problem.model,
            problem.topology,
            min(problem.devices, problem.topology.devices),
            axes,
            problem.precision,
        )
    )
    lanes = max((c.parallelism.dp for c in every if not c.reason), default=1)
    top = max(axes.max_num_batched_tokens)
    loads = Loads(problem.model, problem.topology, problem.routing, lanes * top)
    memo = Memo(problem.chain or Chain(), problem.topology.device)
    widest = problem.engine.model_copy(
        update={"max_num_batched_tokens": top, "max_num_seqs": max(axes.max_num_seqs)}
    )
    found = []
    for number, cut in enumerate(every):
        if tell is not None:
            tell(number / len(every))
        kept: dict[int, CutPrice] = {}
        for seqs in axes.max_num_seqs:
            for tokens in axes.max_num_batched_tokens:
                engine = problem.engine.model_copy(
                    update={"max_num_seqs": seqs, "max_num_batched_tokens": tokens}
                )
                pool = Pool(parallelism=cut.parallelism, engine=engine)
                refused, memory = _memory(problem, pool, cut.reason)
                if memory is None:
                    refuse(refused)
                    continue
                # the tables of one cut differ between limits by what a captured graph covers
                captured = launch_of(problem.topology, engine).graph_tokens
                if captured not in kept:
                    kept[captured] = price_cut(
                        problem.model, problem.topology, cut.parallelism, engine, loads.of(cut.parallelism),
                        precision=problem.precision, overhead=problem.overhead, memo=memo, widest=widest,
                    )  # fmt: skip
                found.append(Priced(cut.parallelism, pool, kept[captured], memory))
    return found


def _memory(problem: ParallelismProblem, pool: Pool, reason: str) -> tuple[Option, MemoryPlan | None]:
    """Return the memory of a pool, or the option that says why there is none."""
    if reason:
        return Option(pool, "not allowed", reason), None
    longest = pool.engine.max_model_len or problem.model.context
    if problem.demand.longest > longest:
        return Option(
            pool,
            "not allowed",
            f"the longest request has {problem.demand.longest} tokens, allowed are {longest}",
        ), None
    if pool.engine.max_num_batched_tokens < pool.engine.max_num_seqs:
        return Option(pool, "not allowed", "max_num_batched_tokens is below max_num_seqs"), None
    try:
        memory = memory_plan(
            problem.model, problem.topology, pool, problem.precision, sequence_tokens=problem.demand.longest
        )
    except NoResult as error:
        return Option(pool, "does not fit", str(error)), None
    room = memory.max_tokens // pool.parallelism.pp
    if memory.kv_bytes_per_token and room < problem.demand.longest:
        short = (problem.demand.longest - room) * memory.kv_bytes_per_token * pool.parallelism.pp
        return Option(
            pool, "does not fit",
            f"the cache of a lane holds {room} tokens, the longest request has {problem.demand.longest}: "
            f"{format_quantity(short, 'B')} short per device",
            weight_bytes=memory.weight_bytes, kv_bytes=memory.kv_bytes,
        ), None  # fmt: skip
    return Option(pool, "good"), memory


def option_table(
    problem: ParallelismProblem, every: Sequence[Priced], refused: Sequence[Option] = ()
) -> Table:
    """Rate every priced pool that prefills and decodes, and append those that ``priced_cuts`` refused."""
    options: list[Option] = []
    for priced in every:
        most = priced.most_sequences(problem.demand)
        curve = serve_curve(priced.price, problem.demand, priced.pool.engine, max(most, 1))
        options.append(_rated(problem, priced, curve))
    return Table((*options, *refused))


def _rated(problem: ParallelismProblem, priced: Priced, curve: Curve) -> Option:
    memory = {"weight_bytes": priced.memory.weight_bytes, "kv_bytes": priced.memory.kv_bytes}
    pool, targets, rate = priced.pool, problem.targets, problem.demand.rate
    good = curve.meets(targets)
    if not len(curve.rate):
        return Option(pool, "misses a target", "prompts outrun the tokens of a step at any batch", **memory)
    if not good.any():
        return Option(
            pool, "misses a target", _missed(curve, targets),
            ttft_s=float(curve.ttft.min()), tpot_s=float(curve.tpot.min()), **memory,
        )  # fmt: skip
    best = int(np.flatnonzero(good)[np.argmax(curve.rate[good])])
    goodput, devices = float(curve.rate[best]), priced.parallelism.devices
    fit = problem.devices // devices
    need = math.ceil(rate / goodput * (1 - 1e-9)) if rate else fit
    at, status, reason = best, "good", ""
    if rate and need <= fit:
        enough = np.flatnonzero(good & (curve.rate >= rate / need * (1 - 1e-9)))
        at = int(enough[np.argmin(curve.rate[enough])])
    elif need > fit:
        status = "short of devices"
        reason = f"needs {need} replicas = {need * devices} devices, {need * devices - fit * devices} short"
    return Option(
        pool.model_copy(update={"replicas": max(need, 1)}),
        "good" if status == "good" else "short of devices",
        reason,
        goodput,
        float(curve.sequences[at]),
        float(curve.ttft[at]),
        float(curve.tpot[at]),
        **memory,
    )


def _missed(curve: Curve, targets: Targets) -> str:
    parts = []
    for name, value, limit in (
        ("ttft", curve.ttft, targets.ttft),
        ("tpot", curve.tpot, targets.tpot),
        ("e2e", curve.e2e, targets.e2e),
    ):
        if limit is not None and value.min() > limit:
            over = format_quantity(float(value.min()) - limit, "s")
            parts.append(f"{name} is {format_quantity(float(value.min()), 's')} at best, {over} over")
    return "; ".join(parts) or "no load meets all targets at once"
