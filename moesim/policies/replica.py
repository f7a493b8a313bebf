"""Replica routers: which replica of a pool a request goes to."""

from __future__ import annotations

from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from moesim.errors import SpecError
from moesim.files import nearest

__all__ = ["REPLICA_ROUTERS", "PoolView", "ReplicaRouter", "make_replica_router"]

Ids = npt.NDArray[np.int64]


class PoolView(Protocol):
    """What a router may look at."""

    def candidates(self) -> Ids:
        """Return the replicas in service, ascending; at least one."""

    def requests(self) -> Ids:
        """Return the requests waiting or running on every replica, [replicas]."""

    def tokens(self) -> Ids:
        """Return the tokens (prompt and generated so far) of those requests, [replicas]."""

    def cached_tokens(self, request: int) -> Ids:
        """Return the prompt tokens of the request that each replica has cached, [replicas]."""

    def session(self, request: int) -> int:
        """Return the conversation of the request, -1 for none."""


class ReplicaRouter(Protocol):
    """Rule that picks a replica. ``stateless`` rules ignore loads, so many requests can be placed at once."""

    stateless: ClassVar[bool]

    def choose(self, view: PoolView, request: int) -> int:
        """Return one of ``view.candidates()``."""

    def assign(self, candidates: Ids, count: int) -> Ids:
        """Place the next ``count`` requests at once; equal to ``count`` calls of ``choose``. Only if stateless."""


def _least(candidates: Ids, load: Ids) -> int:
    return int(candidates[np.argmin(load[candidates])])


class _Stateful:
    stateless: ClassVar[bool] = False

    def assign(self, candidates: Ids, count: int) -> Ids:
        """Refuse: the choice depends on loads that change with every request."""
        message = "this router looks at loads, its requests cannot be placed beforehand"
        raise NotImplementedError(message)


class RoundRobin:
    """Each replica in turn."""

    stateless: ClassVar[bool] = True

    def __init__(self, rng: np.random.Generator) -> None:  # noqa: ARG002 - one signature for all rules
        self._next = 0

    def choose(self, view: PoolView, request: int) -> int:  # noqa: ARG002 - the turn alone decides
        """Return the next replica in the circle."""
        return int(self.assign(view.candidates(), 1)[0])

    def assign(self, candidates: Ids, count: int) -> Ids:
        """Return the next ``count`` turns."""
        turns = candidates[(self._next + np.arange(count)) % len(candidates)]
        self._next += count
        return turns


class Random:
    """Any replica, with equal chance."""

    stateless: ClassVar[bool] = True

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def choose(self, view: PoolView, request: int) -> int:  # noqa: ARG002 - chance alone decides
        """Return one draw."""
        return int(self.assign(view.candidates(), 1)[0])

    def assign(self, candidates: Ids, count: int) -> Ids:
        """Return ``count`` draws."""
        return candidates[(self._rng.random(count) * len(candidates)).astype(np.int64)]


class LeastRequests(_Stateful):
    """The replica with the fewest requests, waiting and running."""

    def __init__(self, rng: np.random.Generator) -> None:
        pass

    def choose(self, view: PoolView, request: int) -> int:  # noqa: ARG002 - only the loads decide
        """Return the least loaded replica, the first of equals."""
        return _least(view.candidates(), view.requests())


class LeastTokens(_Stateful):
    """The replica with the fewest tokens in its requests."""

    def __init__(self, rng: np.random.Generator) -> None:
        pass

    def choose(self, view: PoolView, request: int) -> int:  # noqa: ARG002 - only the loads decide
        """Return the least loaded replica, the first of equals."""
        return _least(view.candidates(), view.tokens())


class PowerOfTwo(_Stateful):
    """The less loaded of two replicas drawn at random (Mitzenmacher 2001)."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def choose(self, view: PoolView, request: int) -> int:  # noqa: ARG002 - chance and loads decide
        """Return the one of two draws with fewer requests."""
        candidates = view.candidates()
        if len(candidates) == 1:
            return int(candidates[0])
        first = int(self._rng.random() * len(candidates))
        second = int(self._rng.random() * (len(candidates) - 1))
        pair = np.sort(candidates[[first, second + (second >= first)]])
        return _least(pair, view.requests())


class PrefixAware(_Stateful):
    """The replica that caches most of the prompt, unless it is much busier than the least loaded one.

    A replica is passed over when it has more than ``imbalance`` requests above the least loaded (SGLang's
    cache-aware router falls back to balance in the same way).
    """

    imbalance: ClassVar[int] = 32

    def __init__(self, rng: np.random.Generator) -> None:
        pass

    def choose(self, view: PoolView, request: int) -> int:
        """Return the best match among replicas that are not overloaded; ties go to the least loaded."""
        candidates, load = view.candidates(), view.requests()
        calm = candidates[load[candidates] <= load[candidates].min() + self.imbalance]
        cached = view.cached_tokens(request)[calm]
        return _least(calm[cached == cached.max()], load)


class SessionSticky(_Stateful):
    """All requests of a conversation on one replica; the first goes to the least loaded, as do lone requests."""

    def __init__(self, rng: np.random.Generator) -> None:  # noqa: ARG002 - one signature for all rules
        self._home: dict[int, int] = {}

    def choose(self, view: PoolView, request: int) -> int:
        """Return the conversation's replica while it is in service."""
        candidates = view.candidates()
        session = view.session(request)
        home = self._home.get(session, -1) if session >= 0 else -1
        if home not in candidates:
            home = _least(candidates, view.requests())
            if session >= 0:
                self._home[session] = home
        return home


REPLICA_ROUTERS: dict[str, type[ReplicaRouter]] = {
    "round_robin": RoundRobin,
    "random": Random,
    "least_requests": LeastRequests,
    "least_tokens": LeastTokens,
    "power_of_two": PowerOfTwo,
    "prefix_aware": PrefixAware,
    "session_sticky": SessionSticky,
}


def make_replica_router(name: str, rng: np.random.Generator) -> ReplicaRouter:
    """Return a fresh router of that name, with its own random stream.

    Raises
    ------
    SpecError : unknown name
    """
    if name not in REPLICA_ROUTERS:
        raise SpecError(f"router {name!r}: unknown policy{nearest(name, REPLICA_ROUTERS)}")
    return REPLICA_ROUTERS[name](rng)  # type: ignore[call-arg] # every rule takes its random stream
