"""Link: one path between two tiers that transfers share: the most urgent first, chunk by chunk."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

from moesim.errors import SpecError

__all__ = ["Link", "Priority", "Transfer"]

_SLACK = 1e-12
"""Relative error of a time that still counts as on a boundary."""


class Priority(IntEnum):
    """What goes first. Of equals, what was asked for first."""

    DEMAND = 0
    PREFETCH = 1


@dataclass(slots=True, eq=False)
class Transfer:
    """An expert on its way.

    Attributes
    ----------
    key : which
    tier : where to
    left : bytes still to move
    started : its room is reserved, and its setup is paid
    write : a dirty copy goes back to a slower tier, ``tier`` is the link's; ``origin`` is where it leaves, ``version``
        what of it is written
    cancelled : it stops at the end of the chunk
    """

    key: int
    tier: int
    left: float
    priority: Priority
    order: int
    started: bool = False
    write: bool = False
    origin: int = 0
    version: int = 0
    cancelled: bool = False


class Link:
    """A server of transfers. A chunk that has begun is finished; then the most urgent transfer goes on.

    Parameters
    ----------
    bandwidth : bytes per second
    setup_s : seconds before the first byte of each transfer: latency, opening, unpacking
    chunk : bytes after which a more urgent transfer may take over; infinite: transfers are never interrupted
    """

    def __init__(self, bandwidth: float, setup_s: float = 0.0, chunk: float = math.inf) -> None:
        if not (bandwidth > 0 and setup_s >= 0 and chunk > 0):
            raise SpecError("link: expected positive bandwidth and chunk, non-negative setup seconds")
        self.bandwidth, self.setup_s, self.chunk = bandwidth, setup_s, chunk
        self.queue: list[Transfer] = []
        self.current: Transfer | None = None
        self.until = math.inf
        self.moved = 0.0
        self.busy_s = 0.0
        self._since = 0.0
        self._head = 0.0

    def seconds(self, size: float) -> float:
        """Return the seconds that ``size`` bytes need on a free link."""
        return self.setup_s + size / self.bandwidth

    def start(self, transfer: Transfer, now: float) -> None:
        """Serve ``transfer`` from ``now`` until it ends or is interrupted."""
        self.current, self._since = transfer, now
        self._head = 0.0 if transfer.started else self.setup_s
        transfer.started = True
        self.until = now + self._head + transfer.left / self.bandwidth

    def interrupt(self, now: float) -> None:
        """Stop at the end of the chunk that is moving at ``now``."""
        if self.current is None or math.isinf(self.chunk):
            return
        step = self.chunk / self.bandwidth
        moving = max(now - self._since - self._head, 0.0)
        chunks = max(math.ceil(moving / step * (1 - _SLACK)), 1)
        self.until = min(self.until, self._since + self._head + chunks * step)

    def stop(self) -> tuple[Transfer, bool]:
        """Account for the service that ends at ``until``; return the transfer, and whether it is complete."""
        transfer = self.current
        assert transfer is not None
        spent = self.until - self._since
        whole = self._head + transfer.left / self.bandwidth
        done = spent >= whole * (1 - _SLACK)
        bytes_moved = transfer.left if done else max(spent - self._head, 0.0) * self.bandwidth
        transfer.left = 0.0 if done else transfer.left - bytes_moved
        self.moved += bytes_moved
        self.busy_s += spent
        self.current, self.until = None, math.inf
        return transfer, done
