"""Transfer: KV cache on its way from a prefill replica to a decode replica, over links that others use too."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import simpy

from moesim.spec.parameters import CacheBytes

__all__ = ["KvPath", "Links"]


@dataclass(frozen=True, slots=True)
class KvPath:
    """How KV moves between two pools.

    Attributes
    ----------
    cache : bytes of a sequence, whole model
    bytes_per_second : of one replica's side, the slower of sender and receiver
    latency_s : per transfer
    """

    cache: CacheBytes
    bytes_per_second: float
    latency_s: float

    def seconds(self, tokens: int) -> float:
        """Return the seconds a prompt's cache needs on free links."""
        return self.latency_s + float(self.cache.sequence_bytes(tokens)) / self.bytes_per_second


class Links:
    """One link out of every prefill replica, one into every decode replica; a transfer holds both, first come first."""

    def __init__(self, env: simpy.Environment, senders: int, receivers: int) -> None:
        self._env = env
        self._out = [simpy.Resource(env, capacity=1) for _ in range(senders)]
        self._in = [simpy.Resource(env, capacity=1) for _ in range(receivers)]

    def move(self, sender: int, receiver: int, seconds: float) -> Generator[Any, Any, None]:
        """Occupy both links for ``seconds``. Out before in, always: two transfers cannot wait for each other."""
        with self._out[sender].request() as out:
            yield out
            with self._in[receiver].request() as into:
                yield into
                yield self._env.timeout(seconds)
