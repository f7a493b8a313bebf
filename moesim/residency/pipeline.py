"""Pipeline: a trace in time. Layers run one after another while experts move; closed forms where nothing contends."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moesim.errors import NoResult, SpecError
from moesim.policies.eviction import NEVER
from moesim.policies.miss import Act
from moesim.residency.accesses import Accesses, Guesses
from moesim.residency.kernel import next_use
from moesim.residency.link import Priority
from moesim.residency.manager import ResidencyManager

__all__ = ["Seconds", "Timeline", "demand_seconds", "prefetched_seconds", "run_pipeline"]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Seconds:
    """What the work of a request takes when every expert is there.

    Attributes
    ----------
    fixed : attention, router and the rest, before experts are known, [layer]
    device : one expert on the device, [use]
    host : one expert on the host, [use]; infinite where it cannot
    """

    fixed: FloatArray
    device: FloatArray
    host: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Timeline:
    """What happened when.

    Attributes
    ----------
    end : end of each request, [request]
    waited : seconds that the device stood still for experts on their way, [request]
    hit : expert there when its router asked, bool [use]
    guessed, useful : experts asked for on a guess, and those of them that were there when needed
    link_busy_s : seconds that each link moved bytes or prepared to
    moved : bytes over each link, withdrawn ones too
    """

    end: FloatArray
    waited: FloatArray
    hit: npt.NDArray[np.bool_]
    guessed: int
    useful: int
    link_busy_s: tuple[float, ...]
    moved: tuple[float, ...]


def run_pipeline(
    accesses: Accesses,
    manager: ResidencyManager,
    seconds: Seconds,
    *,
    guesses: Guesses | None = None,
    act: npt.NDArray[np.int8] | None = None,
) -> Timeline:
    """Play ``accesses`` in time.

    A layer runs its fixed part, then its router names experts. Those present are computed first; absent ones are
    fetched, heaviest first, and computed as they come; the host works beside the device. Guesses for the layer that
    proved wrong are withdrawn, and guesses for later layers are asked for, behind all demands. Experts of a request
    stay until it ends, unless the tier is too small for that.

    Parameters
    ----------
    act : what to do about an absent expert, ``Act`` [use]; none: always fetch. ``Act.LOW`` fetches here too: the
        manager keeps one size per expert

    Raises
    ------
    SpecError : shapes that do not agree
    NoResult : the first tier cannot take an expert that must be fetched
    """
    if len(manager.size) != accesses.layers * accesses.experts or len(seconds.fixed) != accesses.layers:
        raise SpecError("pipeline: expected a manager and seconds for the layers and experts of the accesses")
    if seconds.device.shape != accesses.keys.shape or seconds.host.shape != accesses.keys.shape:
        raise SpecError(f"pipeline: expected seconds for each of {len(accesses.keys)} uses")
    run = _Run(accesses, manager, seconds, guesses, act)
    for request in range(accesses.requests):
        run.serve(request)
    return Timeline(
        end=run.end,
        waited=run.waited,
        hit=run.hit,
        guessed=run.guessed,
        useful=run.useful,
        link_busy_s=tuple(link.busy_s for link in manager.links),
        moved=tuple(link.moved for link in manager.links),
    )


class _Run:
    def __init__(
        self,
        accesses: Accesses,
        manager: ResidencyManager,
        seconds: Seconds,
        guesses: Guesses | None,
        act: npt.NDArray[np.int8] | None,
    ) -> None:
        self.a, self.m, self.s, self.guesses = accesses, manager, seconds, guesses
        self.act = np.zeros(len(accesses.keys), dtype=np.int8) if act is None else act
        self.end = np.zeros(accesses.requests)
        self.waited = np.zeros(accesses.requests)
        self.hit = np.zeros(len(accesses.keys), dtype=bool)
        self.guessed = self.useful = 0
        self._open: dict[int, tuple[int, bool]] = {}
        self._upcoming, first = next_use(
            accesses.keys,
            accesses.start,
            accesses.fresh,
            np.arange(accesses.requests, dtype=np.float64),
            len(manager.size),
            False,  # noqa: FBT003 - a compiled function takes no keywords
            NEVER,
        )
        manager.upcoming[:] = first

    def serve(self, request: int) -> None:
        """Run one layer of one step."""
        a, m = self.a, self.m
        layer = int(a.layer[request])
        begin = m.now
        ready = begin + float(self.s.fixed[layer])
        m.advance(ready)
        m.clock, m.layer = request, layer
        uses = range(int(a.start[request]), int(a.start[request + 1]))
        self._judge(request, {int(a.keys[u]) for u in uses})
        present, absent, host = [], [], 0.0
        for use in uses:
            key, act = int(a.keys[use]), int(self.act[use])
            m.touch(key, heavy=act == Act.FETCH)
            m.upcoming[key] = self._upcoming[use]
            if m.cached[0, key]:
                self.hit[use] = True
                m.use(key)
                present.append(use)
            elif act == Act.HOST:
                host += float(self.s.host[use])
            elif act != Act.SKIP:
                absent.append(use)
        for use in absent:
            m.request(int(a.keys[use]))
        self._guess(request)
        device = self._compute(ready, present, absent, request)
        end = max(device, ready + host)
        if not math.isfinite(end):
            raise NoResult(f"pipeline: request {request}: the host cannot compute its experts")
        m.advance(end)
        self.end[request] = end

    def _compute(self, ready: float, present: list[int], absent: list[int], request: int) -> float:
        """Compute present experts, then the absent as they come; return when the device is done."""
        a, m = self.a, self.m
        device, held, waiting = ready, [int(a.keys[u]) for u in present], list(absent)
        for use in present:
            device += float(self.s.device[use])
        while waiting:
            m.advance(max(device, m.now))
            use = next((u for u in waiting if m.cached[0, int(a.keys[u])]), -1)
            if use < 0:
                event = m.next_event()
                if math.isinf(event):
                    if not held:
                        raise NoResult(
                            f"pipeline: request {request}: {m.tiers[0].name} has no room for another expert"
                        )
                    m.release(held.pop(0))  # too small for the whole request: what is computed may leave
                    continue
                m.advance(event)
                self.waited[request] += max(m.now - device, 0.0)
                device = max(device, m.now)
                continue
            key = int(a.keys[use])
            m.use(key)
            held.append(key)
            waiting.remove(use)
            device += float(self.s.device[use])
        m.advance(max(device, m.now))
        for key in held:
            m.release(key)
        return device

    def _judge(self, request: int, wanted: set[int]) -> None:
        """Count the guesses for this request, and withdraw those that proved wrong."""
        for key in [k for k, (target, _) in self._open.items() if target <= request]:
            _, fetched = self._open.pop(key)
            if key not in wanted:
                self.m.cancel(key)
            elif fetched and self.m.cached[0, key]:
                self.useful += 1

    def _guess(self, request: int) -> None:
        if self.guesses is None:
            return
        target = request + self.guesses.lead
        if target >= self.a.requests:
            return
        for key in self.guesses.keys[self.guesses.start[target] : self.guesses.start[target + 1]].tolist():
            fetched = not self.m.cached[0, key] and not self.m.in_flight(key)
            self.m.request(key, Priority.PREFETCH)
            self._open[key] = (target, fetched)
            self.guessed += fetched


def demand_seconds(
    hits: npt.ArrayLike, misses: npt.ArrayLike, fixed: npt.ArrayLike, device: float, fetch: float
) -> FloatArray:
    """Return the seconds of requests whose absent experts are fetched one after another on a free link, [request].

    The device computes what is there, then each expert as it comes: with h there and m to come, experts of equal
    size and work, the end is that of the work, of the first fetch and all work behind it, or of the last fetch:
    ``fixed + max((h + m) c, f + m c, m f + c)``, without misses ``fixed + h c``.

    Parameters
    ----------
    hits, misses : experts there and to fetch, [request]
    fixed : seconds before the router has decided, one number or [request]
    device : c, seconds of one expert on the device
    fetch : f, seconds of one fetch on a free link
    """
    h, m = np.asarray(hits, dtype=np.float64), np.asarray(misses, dtype=np.float64)
    late = np.maximum(fetch + m * device, m * fetch + device)
    return np.asarray(fixed + np.maximum((h + m) * device, np.where(m > 0, late, 0.0)))


def prefetched_seconds(experts: float, fixed: float, device: float, fetch: float) -> float:
    """Return the seconds of a layer whose experts all came while the layer before ran, and whose successor's come now.

    The longer of work and copies: ``max(fixed + k c, k f)``, as in Pre-gated MoE (ISCA 2024).
    """
    return max(fixed + experts * device, experts * fetch)
