"""Driver: one run in motion. simpy owns arrivals, faults, transfers and scaling; pools run their steps in between."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import simpy

from moesim.policies import ReplicaRouter, Scaler
from moesim.sim.kernel import Status
from moesim.sim.pool import Pool
from moesim.sim.transfer import KvPath, Links
from moesim.spec.deployment import Autoscaling, Fault, Straggler
from moesim.traffic.requests import Requests

__all__ = ["Driver", "Plan"]

Event = Generator[Any, Any, None]
_FEED = 65536
"""Arrivals handed over at once: bounds memory, and how often progress is shown."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What happens to the pools during a run, besides the traffic."""

    faults: tuple[Fault, ...] = ()
    stragglers: tuple[Straggler, ...] = ()
    autoscaling: Autoscaling | None = None
    horizon_s: float = math.inf


class Driver:
    """Moves one run through time.

    A pool may be run ahead only to the next moment at which anything outside can reach it: the next simpy event, or
    the next departure from a pool that feeds it. So causes always come before effects, in any number of pools.
    """

    def __init__(
        self,
        pools: dict[str, Pool],
        requests: Requests,
        routers: dict[str, ReplicaRouter],
        plan: Plan,
        *,
        path: KvPath | None = None,
        scaler: Scaler | None = None,
        replicas: dict[str, int] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.env = simpy.Environment()
        self.pools, self.requests, self.routers, self.plan = pools, requests, routers, plan
        self.entry = next(iter(pools))
        self.last = list(pools)[-1]
        self.path = path
        self.scaler = scaler
        self.records = pools[self.entry].state.req
        self.events = 0
        self.outside_s = 0.0
        self.now = 0.0
        self.sent = 0
        self._progress = progress
        self._replicas = replicas or {name: pool.setup.replicas for name, pool in pools.items()}
        self._closed = requests.concurrency > 0
        self._stalled: dict[str, list[tuple[int, float]]] = {name: [] for name in pools}
        self._moving: dict[int, float] = {}
        self._leaving = 0
        self._opened = self.env.event()
        self._transfers: dict[int, simpy.Process] = {}
        self._broken: Counter[tuple[str, int]] = Counter()
        self._slow: dict[tuple[str, int], list[float]] = {}
        self.transfer_s = np.zeros(len(requests))
        if path is not None:
            self._links = Links(self.env, pools[self.entry].setup.replicas, pools[self.last].setup.replicas)

    # -- the run -----------------------------------------------------------------------------------------------------
    def run(self) -> float:
        """Run to the horizon, or until every request has left or can never leave; returns the end in seconds."""
        fed = self._can_feed()
        self._prepare(fed)
        while self.env.peek() <= 0.0:  # what holds from the start holds for the first step
            self.env.step()
            self.events += 1
        while True:
            until = min(self.env.peek(), self.plan.horizon_s)
            if fed and self.sent < len(self.requests):
                if self._feed(until):
                    continue
            elif self._advance(until):
                continue
            if self.env.peek() > self.plan.horizon_s or self.env.peek() == math.inf or self._done():
                break
            self.env.step()
            self.events += 1
        return self._close()

    def _prepare(self, fed: bool) -> None:  # noqa: FBT001 - what _can_feed said
        """Put replicas into service and the run's own events on simpy's calendar."""
        for name, pool in self.pools.items():
            for replica in range(self._replicas[name]):
                pool.start(replica, 0.0)
        for fault in self.plan.faults:
            self.env.process(self._fault(fault))
        for straggler in self.plan.stragglers:
            self.env.process(self._straggle(straggler))
        if self.plan.autoscaling is not None and self.scaler is not None:
            self.env.process(self._scale(self.plan.autoscaling, self.scaler))
        if not fed:
            self.env.process(self._clients() if self._closed else self._arrivals())

    def _close(self) -> float:
        """Book what is still open at the end, and return the end: the horizon, or the last thing that happened."""
        cut = self.plan.horizon_s < math.inf and self._work_left()
        end = self.plan.horizon_s if cut else max(self.now, float(self.env.now))
        for pool in self.pools.values():
            pool.close(end)
        for waiting in self._stalled.values():
            self.outside_s += sum(end - since for _, since in waiting)
        for request in list(self._moving):
            self._outside(request, end)
        return end

    def _done(self) -> bool:
        """Say whether nothing moves any more: repairs and scaling to come are not part of the run."""
        return (
            self.sent == len(self.requests)
            and self._leaving == 0
            and not self._moving
            and not any(self._stalled.values())
            and all(pool.next_event() == math.inf for pool in self.pools.values())
        )

    def _work_left(self) -> bool:
        unfinished = np.isin(
            self.records["status"][: self.sent], (Status.FINISHED, Status.REJECTED), invert=True
        )
        return self.sent < len(self.requests) or bool(unfinished.any())

    def _can_feed(self) -> bool:
        """Arrivals can be placed beforehand: one pool, no reaction to departures, a router that ignores loads."""
        return (
            len(self.pools) == 1
            and not self._closed
            and self.routers[self.entry].stateless
            and not self.plan.faults
            and self.plan.autoscaling is None
        )

    def _feed(self, until: float) -> bool:
        """Hand the next arrivals up to ``until`` over at once; False when there were none left before it."""
        times = self.requests.arrival_s
        stop = min(int(np.searchsorted(times, until, side="right")), self.sent + _FEED)
        if stop > self.sent:  # requests of one moment stay together
            stop = int(np.searchsorted(times, times[stop - 1], side="right"))
        pool = self.pools[self.entry]
        if stop == self.sent:
            self.now = max(self.now, pool.advance_fed(until, *_nothing()))
            return False
        ids = np.arange(self.sent, stop, dtype=np.int32)
        to = self.routers[self.entry].assign(np.arange(pool.setup.replicas), len(ids)).astype(np.int32)
        reach = until if stop == len(times) or times[stop] > until else float(times[stop - 1])
        self.sent = stop
        if stop == len(times):
            self.now = max(self.now, pool.advance_fed(until, times[ids], ids, to))
        else:
            self.now = max(self.now, pool.advance_fed(min(reach, until), times[ids], ids, to))
        pool.take_departures()
        self._show()
        return stop < len(times) and times[stop] <= until

    def _advance(self, until: float) -> bool:
        """Run the pools to ``until`` in causal order; True when a departure became a simpy event at its time."""
        while True:
            order = sorted(self.pools, key=lambda name: self.pools[name].next_event())
            name = order[0]
            pool = self.pools[name]
            if pool.next_event() > until or pool.next_event() == math.inf:
                return False
            limit = until
            others = [self.pools[other].next_event() for other in order[1:]]
            if others and (self._closed or name != self.entry):
                limit = min(until, *others)
            reacts = self._closed or (self.path is not None and name == self.entry)
            at = pool.advance(limit, stop=reacts)
            self.now = max(self.now, at)
            left = pool.take_departures()
            if left and reacts:
                self._leaving += 1
                moment = self.env.timeout(max(0.0, at - self.env.now))
                moment.callbacks.append(partial(self._depart, name, at, left))
                return True

    def _show(self) -> None:
        if self._progress is not None:
            self._progress(self.sent)

    # -- requests ----------------------------------------------------------------------------------------------------
    def _send(self, name: str, request: int, now: float) -> None:
        """Route a request into a pool at ``now``; with nobody in service it waits at the door."""
        pool = self.pools[name]
        if name == self.entry and not self.pools[self.last].fits(request):
            self.records["status"][request] = Status.REJECTED  # nobody could decode it
            return
        if not pool.accepting.any():
            self._stalled[name].append((request, now))
            return
        pool.enqueue(request, self.routers[name].choose(pool, request), now)

    def _arrivals(self) -> Event:
        times = self.requests.arrival_s.tolist()
        for request, at in enumerate(times):
            if at > self.env.now:
                yield self.env.timeout(at - self.env.now)
            self.sent = request + 1
            self._send(self.entry, request, at)
            if request % 4096 == 0:
                self._show()

    def _clients(self) -> Event:
        """Fill the slots at time 0; departures send the rest."""
        for _ in range(min(self.requests.concurrency, len(self.requests))):
            self._send_next(0.0)
        yield self.env.timeout(0.0)

    def _send_next(self, now: float) -> None:
        while self.sent < len(self.requests):
            request = self.sent
            self.sent += 1
            self.records["arrival"][request] = now
            self._send(self.entry, request, now)
            if self.records["status"][request] != Status.REJECTED:
                break  # a rejected request frees its slot at once
        self._show()

    def _depart(self, name: str, now: float, left: list[int], _event: simpy.Event) -> None:
        self._leaving -= 1
        for request in left:
            if self.records["status"][request] == Status.HELD:
                self.env.process(self._hand_over(name, request, now))
                self._moving[request] = now
            elif self._closed and self.records["status"][request] == Status.FINISHED:
                self._send_next(now)

    def _hand_over(self, name: str, request: int, now: float) -> Event:
        """Move the KV cache of a prefilled request to the decode pool; again, when the receiver fails meanwhile."""
        assert self.path is not None
        if request not in self._moving:
            return  # the sender failed at this very moment
        source, target = self.pools[name], self.pools[self.last]
        process = self.env.active_process
        assert process is not None
        self._transfers[request] = process
        sender, seconds = (
            int(self.records["replica"][request]),
            self.path.seconds(int(self.records["done"][request])),
        )
        try:
            while True:
                while not target.accepting.any():
                    yield self._opened
                receiver = self.routers[self.last].choose(target, request)
                yield from self._links.move(sender, receiver, seconds)
                if target.state.rep["alive"][receiver]:
                    break
        except simpy.Interrupt:
            return  # the sender failed: the links are free, the request starts again
        finally:
            del self._transfers[request]
        arrived = float(self.env.now)
        self._outside(request, arrived)
        self.transfer_s[request] += arrived - now
        source.release(request, arrived)
        target.enqueue(request, receiver, arrived)

    def _outside(self, request: int, now: float) -> None:
        """Book the time a request spent between pools."""
        since = self._moving.pop(request, None)
        if since is not None:
            self.outside_s += now - since

    # -- replicas ----------------------------------------------------------------------------------------------------
    def _open(self, name: str, replica: int, now: float) -> None:
        self.pools[name].start(replica, now)
        self._let_in(name, now)

    def _let_in(self, name: str, now: float) -> None:
        """Send in what waited at the door of a pool that nobody served."""
        if name == self.last:
            opened, self._opened = self._opened, self.env.event()
            opened.succeed()
        waiting, self._stalled[name] = self._stalled[name], []
        for request, since in waiting:
            self._send(name, request, now)
            if self.records["status"][request] != Status.REJECTED:
                self.outside_s += now - since
            elif self._closed:
                self._send_next(now)

    def _fault(self, fault: Fault) -> Event:
        yield self.env.timeout(fault.at)
        now = float(self.env.now)
        pool, key = self.pools[fault.pool], (fault.pool, fault.replica)
        # one that was not in service (scaled down, or still starting) does not enter it by being repaired
        returns = bool(pool.state.rep["alive"][fault.replica]) or self._broken[key] > 0
        self._broken[key] += 1
        for request in pool.stop(fault.replica, now):
            self._outside(request, now)
            if request in self._transfers:
                self._transfers[request].interrupt()
            self._send(self.entry, request, now)
        yield self.env.timeout(fault.repair)
        self._broken[key] -= 1
        if returns and self._broken[key] == 0:
            self._open(fault.pool, fault.replica, float(self.env.now))

    def _straggle(self, straggler: Straggler) -> Event:
        key = (straggler.pool, straggler.replica)
        active = self._slow.setdefault(key, [])
        yield self.env.timeout(straggler.at)
        active.append(straggler.slowdown)
        rep = self.pools[straggler.pool].state.rep
        rep["slow"][straggler.replica] = math.prod(active)
        if straggler.duration is not None:
            yield self.env.timeout(straggler.duration)
            active.remove(straggler.slowdown)
            rep["slow"][straggler.replica] = math.prod(active)

    def _scale(self, rule: Autoscaling, scaler: Scaler) -> Event:
        """Add replicas (draining ones first, then cold ones) or let some drain, every interval."""
        pool = self.pools[self.last]
        rep = pool.state.rep
        booting: set[int] = set()
        while self._work_left():
            yield self.env.timeout(rule.interval)
            now = float(self.env.now)
            for replica in np.flatnonzero(
                (rep["alive"] == 1) & ~pool.accepting & (rep["present"] == 0)
            ).tolist():
                pool.stop(replica, now)
            serving = int(pool.accepting.sum()) + len(booting)
            waiting = pool.waiting() + len(self._stalled[self.last])
            wanted = min(max(scaler.wanted(serving, waiting), rule.min_replicas), rule.max_replicas)
            draining = np.flatnonzero((rep["alive"] == 1) & ~pool.accepting).tolist()
            for replica in draining[: max(0, wanted - serving)]:
                pool.accepting[replica] = True
                serving += 1
                self._let_in(self.last, now)
            cold = [
                r
                for r in np.flatnonzero(rep["alive"] == 0).tolist()
                if r not in booting and not self._broken[self.last, r]
            ]
            for replica in cold[: max(0, wanted - serving)]:
                booting.add(replica)
                self.env.process(self._boot(replica, rule.startup, booting))
            for replica in np.flatnonzero(pool.accepting)[::-1][: max(0, serving - wanted)].tolist():
                pool.accepting[replica] = False

    def _boot(self, replica: int, startup: float, booting: set[int]) -> Event:
        yield self.env.timeout(startup)
        booting.discard(replica)
        if not self._broken[self.last, replica]:
            self._open(self.last, replica, float(self.env.now))


def _nothing() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    return np.empty(0), np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int32)
