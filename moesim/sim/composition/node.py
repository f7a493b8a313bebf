"""Node: one engine over all devices of a node, its queue, and the experts in its main memory."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import simpy

from moesim.policies.composition import Waiting
from moesim.policies.eviction import NEVER, Facts

if TYPE_CHECKING:
    from moesim.sim.composition.prompts import Prompts
    from moesim.sim.composition.setup import CompositionSetup

__all__ = ["Node", "Staged"]


@dataclass(slots=True)
class Staged:
    """A run whose expert is resident or on its way.

    Attributes
    ----------
    ready : happens when the expert is there
    copy_from_s, copy_to_s : of its copy, both -1 where it was resident
    """

    expert: int
    prompts: list[int]
    ready: simpy.Event
    copy_from_s: float = -1.0
    copy_to_s: float = -1.0


@dataclass(slots=True)
class _Known:
    """What the node remembers of an expert, resident or not."""

    last: float = -1.0
    uses: int = 0


@dataclass(slots=True)
class NodeTotals:
    """What a node did."""

    routed: int = 0
    router_s: float = 0.0
    busy_s: float = 0.0
    copy_s: float = 0.0
    switches: int = 0
    runs: int = 0
    evictions: int = 0
    most_resident_bytes: float = 0.0
    resident: list[tuple[float, float]] = field(default_factory=list)
    """(time, bytes) at every change."""


class Node:
    """Routes first, then runs; an expert is copied in before its run, one copy at a time."""

    def __init__(
        self,
        env: simpy.Environment,
        index: int,
        setup: CompositionSetup,
        prompts: Prompts,
        on_routed: Callable[[list[int]], None],
        on_run: Callable[[int, Staged, float, float], None],
    ) -> None:
        self.env, self.index, self.setup, self.prompts = env, index, setup, prompts
        self.fresh: list[int] = []
        self.queue: list[Waiting] = []
        self.staged: list[Staged] = []
        self.running: Staged | None = None
        self.totals = NodeTotals()
        self.resident = {int(e) for e in setup.resident[index].nonzero()[0]}
        self.bytes = float(sum(setup.size[e] for e in self.resident))
        self._known: dict[int, _Known] = {}
        self._clock = 0.0
        self._path = simpy.Resource(env, capacity=1)
        self._wake = env.event()
        self._on_routed, self._on_run = on_routed, on_run
        self._note()
        env.process(self._work())

    @property
    def waiting(self) -> int:
        """Prompts queued or running here, unrouted ones included."""
        staged = [*self.staged, *([self.running] if self.running else [])]
        return len(self.fresh) + len(self.queue) + sum(len(run.prompts) for run in staged)

    def expects(self, expert: int) -> bool:
        """Tell whether the expert is resident, or will be for a prompt in the queue."""
        return expert in self.resident or any(w.expert == expert for w in self.queue)

    def ask(self, prompts: list[int]) -> None:
        """Queue prompts for the router."""
        self.fresh += prompts
        self._stir()

    def submit(self, waiting: Waiting) -> None:
        """Queue a routed prompt."""
        self.queue.append(waiting)
        if self.running is not None:
            self._stage_ahead()
        self._stir()

    def _stir(self) -> None:
        if not self._wake.triggered:
            self._wake.succeed()

    def _work(self) -> Generator[Any, Any, None]:
        while True:
            if self.fresh and self.setup.router is not None:
                yield from self._route()
            elif self.staged or self._stage():
                yield from self._run(self.staged.pop(0))
            else:
                self._wake = self.env.event()
                yield self._wake
                # prompts that arrive at the same instant are one batch
                yield self.env.timeout(0)

    def _route(self) -> Generator[Any, Any, None]:
        router = self.setup.router
        assert router is not None
        taken, self.fresh = self.fresh[: self.setup.router_batch], self.fresh[self.setup.router_batch :]
        seconds = router.seconds(
            int(self.prompts.input_tokens[taken].max()), self.setup.router_output, len(taken)
        )
        yield self.env.timeout(seconds)
        self.totals.routed += len(taken)
        self.totals.router_s += seconds
        self._on_routed(taken)

    def _run(self, run: Staged) -> Generator[Any, Any, None]:
        self.running = run
        self._stage_ahead()
        yield run.ready
        began = self.env.now
        sent, asked = self.prompts.input_tokens[run.prompts], self.prompts.output_tokens[run.prompts]
        price = self.setup.price[run.expert]
        seconds = price.seconds(int(sent.max()), int(asked.max()), len(run.prompts))
        yield self.env.timeout(seconds)
        self.totals.busy_s += seconds
        self.totals.runs += 1
        self.running = None
        self._on_run(self.index, run, began, self.env.now)

    def _stage_ahead(self) -> None:
        while len(self.staged) < self.setup.ahead and self._stage():
            pass

    def _stage(self) -> bool:
        """Choose the next run and bring its expert in; False without prompts, or while there is no room."""
        if not self.queue:
            return False
        chosen = self.setup.batching(self.queue, frozenset(self.resident), self.setup.max_batch)
        expert = self.queue[chosen[0]].expert
        fetched = expert not in self.resident
        if fetched and not self._make_room(float(self.setup.size[expert])):
            return False
        run = Staged(expert, [self.queue[i].prompt for i in chosen], self.env.event())
        kept = set(chosen)
        self.queue = [w for i, w in enumerate(self.queue) if i not in kept]
        self._clock += 1
        known = self._known.setdefault(expert, _Known())
        known.last, known.uses = self._clock, known.uses + len(run.prompts)
        self.staged.append(run)
        if fetched:
            self.resident.add(expert)
            self.bytes += float(self.setup.size[expert])
            self._note()
            self.env.process(self._copy(run))
        else:
            self._follow(run)
        return True

    def _follow(self, run: Staged) -> None:
        """Call a resident expert ready: at once, or when an earlier run's copy of it ends."""
        others = [*self.staged[:-1], *([self.running] if self.running else [])]
        earlier = next((o for o in others if o.expert == run.expert and not o.ready.triggered), None)
        if earlier is None:
            run.ready.succeed()
        else:
            assert earlier.ready.callbacks is not None
            earlier.ready.callbacks.append(lambda _event: self._ready(run))

    @staticmethod
    def _ready(run: Staged) -> None:
        run.ready.succeed()

    def _copy(self, run: Staged) -> Generator[Any, Any, None]:
        with self._path.request() as turn:
            yield turn
            run.copy_from_s = self.env.now
            seconds = self.setup.switch_seconds(run.expert)
            yield self.env.timeout(seconds)
            run.copy_to_s = self.env.now
            self.totals.copy_s += seconds
            self.totals.switches += 1
            run.ready.succeed()

    def _make_room(self, size: float) -> bool:
        """Evict until ``size`` bytes are free, but never what a staged or running run uses; weights are read only."""
        held = {run.expert for run in self.staged} | ({self.running.expert} if self.running else set())
        gone: list[int] = []
        free = self.setup.capacity - self.bytes
        candidates = sorted(self.resident - held, key=self._value)
        for expert in candidates:
            if free >= size:
                break
            gone.append(expert)
            free += float(self.setup.size[expert])
        if free < size:
            return False
        for expert in gone:
            self.resident.discard(expert)
            self.bytes -= float(self.setup.size[expert])
            self.totals.evictions += 1
            self._note()
        return True

    def _value(self, expert: int) -> tuple[float, float, int]:
        """Return what keeping the expert is worth; of equals the longest unused leaves."""
        known = self._known.get(expert, _Known())
        parent = int(self.setup.parent[expert])
        rule = self.setup.eviction
        facts = Facts(
            now=self._clock, last=known.last, uses=float(known.uses), heavy=0.0, upcoming=NEVER,
            probability=float(self.setup.probability[expert]), ahead=1.0, layers=1.0,
            orphan=float(parent >= 0 and parent not in self.resident), draw=0.0,
        )  # fmt: skip
        return type(rule).keep(facts, rule.parameters()), known.last, expert

    def _note(self) -> None:
        self.totals.most_resident_bytes = max(self.totals.most_resident_bytes, self.bytes)
        self.totals.resident.append((self.env.now, self.bytes))
