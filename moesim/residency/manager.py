"""ResidencyManager: where every expert is, while time passes: cached, in flight, pinned, in use, dirty."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moesim.errors import LawBroken, SpecError
from moesim.policies.eviction import NEVER, EvictionRule
from moesim.residency.kernel import CODES, weakest
from moesim.residency.link import Link, Priority, Transfer

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ResidencyManager", "Tier"]

FloatArray = npt.NDArray[np.float64]

_NOBODY = max(Priority) + 1


@dataclass(frozen=True, slots=True)
class Tier:
    """A memory. ``capacity`` in bytes."""

    name: str
    capacity: float


class ResidencyManager:
    """Experts in a chain of tiers, the fastest first; the last is their home and holds them all.

    A fetch copies an expert tier by tier, over the link between each two; room is reserved when a copy starts to move.
    What leaves a tier is chosen by the eviction rule among copies that are neither pinned, nor in use or asked for, nor
    read from; a dirty one is written back first. Time is the caller's: ``advance`` moves it.

    Parameters
    ----------
    size : bytes of each expert, [key]
    tiers : fastest first, at least two; the last must hold everything
    links : from the second tier to the first, from the third to the second, ...
    eviction : the rule of all tiers
    layers : MoE layers; keys are ``layer * experts + expert``
    quota : most bytes of each layer in the first tier, one number or [layer]; none: layers share it freely
    """

    def __init__(
        self,
        size: npt.ArrayLike,
        tiers: Sequence[Tier],
        links: Sequence[Link],
        eviction: EvictionRule,
        layers: int = 1,
        quota: npt.ArrayLike | None = None,
    ) -> None:
        self.size = np.asarray(size, dtype=np.float64)
        self.tiers, self.links, self.eviction = tuple(tiers), tuple(links), eviction
        if len(self.tiers) < 2 or len(self.links) != len(self.tiers) - 1:
            raise SpecError("residency: expected at least two tiers, and a link between each two")
        if self.size.ndim != 1 or len(self.size) == 0 or len(self.size) % layers or not np.all(self.size > 0):
            raise SpecError("residency: expected positive sizes, as many in every layer")
        if self.size.sum() > self.tiers[-1].capacity:
            raise SpecError(f"residency: tier {self.tiers[-1].name}: expected room for all experts")
        keys, count = len(self.size), len(self.tiers)
        self.now = 0.0
        self.cached = np.zeros((count, keys), dtype=bool)
        self.cached[-1] = True
        self.dirty = np.zeros((count, keys), dtype=bool)
        self.pinned = np.zeros(keys, dtype=bool)
        self.in_use = np.zeros(keys, dtype=np.int64)
        self.used = np.zeros(count)
        self.used[-1] = self.size.sum()
        self.came, self.left = np.zeros(count), np.zeros(count)
        # what the eviction rule may know; a driver that knows more writes it here
        self.clock = 0
        self.layer = 0
        self.last = np.full(keys, -1.0)
        self.uses = np.zeros(keys)
        self.heavy = np.zeros(keys)
        self.upcoming = np.full(keys, NEVER)
        self.probability = np.zeros(keys)
        self._layers, self._experts = layers, keys // layers
        self._code = CODES[eviction.model_dump()["policy"]]
        self._seed = int(eviction.model_dump().get("seed", 0))
        self._awaited = np.full(
            keys, _NOBODY
        )  # the priority it was asked for with, until it is used or withdrawn
        self._reading = np.zeros((count, keys), dtype=np.int64)
        self._moving: dict[tuple[int, int], Transfer] = {}
        self._wanted: dict[int, Priority] = {}
        self._order = 0
        self._version = np.zeros(keys, dtype=np.int64)
        self._by_layer = np.zeros(layers)
        self.quota = None if quota is None else np.broadcast_to(np.asarray(quota, dtype=np.float64), layers)

    def in_flight(self, key: int) -> bool:
        """Say whether a copy is moving towards the first tier, or waits to."""
        return key in self._wanted

    def place(self, key: int, tier: int = 0, *, pinned: bool = False) -> None:
        """Put an expert into a tier at once, as at the start of a run.

        Raises
        ------
        SpecError : no room; it is on its way
        """
        if key in self._wanted or any(moving == key for _, moving in self._moving):
            raise SpecError(f"residency: expert {key} is on its way")
        if not self.cached[tier, key]:
            if self.used[tier] + self.size[key] > self.tiers[tier].capacity:
                raise SpecError(f"residency: tier {self.tiers[tier].name}: no room for expert {key}")
            if self._crowded(tier, key // self._experts, float(self.size[key])):
                raise SpecError(f"residency: layer {key // self._experts}: no room for expert {key}")
            self._arrive(key, tier)
            self._hold(tier, key, 1)
        if tier == 0:
            self.pinned[key] |= pinned

    def request(self, key: int, priority: Priority = Priority.DEMAND) -> bool:
        """Ask for an expert in the first tier; return whether it is there.

        A demand overtakes its own prefetch. What was asked for stays until it is used or withdrawn; but a demand that
        finds no other room takes that of a prefetch.
        """
        self._awaited[key] = min(int(self._awaited[key]), priority)
        if self.cached[0, key]:
            return True
        before = self._wanted.get(key)
        if before is None or priority < before:
            self._wanted[key] = priority
            if before is None:
                self._leg(key)
            else:
                for (_, moving), transfer in self._moving.items():
                    if moving == key and not transfer.write:
                        transfer.priority, transfer.cancelled = priority, False
                        self._urge(self.links[transfer.tier], transfer)
        self._serve()
        return False

    def cancel(self, key: int) -> None:
        """Withdraw a request: what waits is forgotten, what moves stops at the end of its chunk."""
        self._awaited[key] = _NOBODY
        if self._wanted.pop(key, None) is None:
            return
        for (tier, moving), transfer in list(self._moving.items()):
            if moving != key or transfer.write:
                continue
            if self.links[tier].current is transfer:
                transfer.cancelled = True
                self.links[tier].interrupt(self.now)
            else:
                self.links[tier].queue.remove(transfer)
                self._abandon(transfer)
        self._serve()

    def use(self, key: int) -> None:
        """Begin to compute on an expert: it cannot leave until ``release``.

        Raises
        ------
        LawBroken : it is not in the first tier
        """
        if not self.cached[0, key]:
            raise LawBroken(f"law nothing_absent_is_used: expert {key} is used and not there")
        self.in_use[key] += 1
        self._awaited[key] = _NOBODY

    def release(self, key: int, *, dirty: bool = False) -> None:
        """End a use; ``dirty`` if it changed the weights.

        Raises
        ------
        LawBroken : it is not in use
        """
        if self.in_use[key] <= 0:
            raise LawBroken(f"law nothing_absent_is_used: expert {key} is released and not in use")
        self.in_use[key] -= 1
        if dirty:
            self.dirty[0, key] = True
            self._version[key] += 1
        self._serve()

    def touch(self, key: int, *, heavy: bool = True) -> None:
        """Note a use for the eviction rule; the time of uses is ``clock``, which the driver moves."""
        self.last[key], self.uses[key] = self.clock, self.uses[key] + 1
        self.heavy[key] += heavy

    def pin(self, key: int, *, pinned: bool = True) -> None:
        """Keep an expert in the first tier for good, once it is there; or no longer."""
        self.pinned[key] = pinned
        self._serve()

    def next_event(self) -> float:
        """Return when a transfer ends or is interrupted next; infinite: nothing moves."""
        return min(link.until for link in self.links)

    def advance(self, to: float) -> None:
        """Let transfers go on until ``to``, inclusive.

        Raises
        ------
        SpecError : ``to`` is in the past
        """
        if to < self.now:
            raise SpecError(f"residency: time runs forward, {to} is before {self.now}")
        while (event := self.next_event()) <= to:
            self.now = event
            for index, link in enumerate(self.links):
                if link.until <= event:
                    self._ended(index, *link.stop())
            self._serve()
        self.now = to

    def _ended(self, index: int, transfer: Transfer, done: bool) -> None:  # noqa: FBT001 - as Link.stop says
        key = transfer.key
        if transfer.cancelled and not done:
            self._abandon(transfer)
        elif not done:
            self.links[index].queue.append(transfer)
        elif transfer.write:
            del self._moving[index, key]
            home = index + 1 == len(self.tiers) - 1
            if (
                not home and not self.cached[index + 1, key]
            ):  # it passes through, down to the next that holds it
                self._write(key, transfer.origin, index + 1, transfer.priority)
                return
            self.dirty[index + 1, key] = not home
            if transfer.version == self._version[key]:  # else it was changed again while it was written
                self.dirty[transfer.origin, key] = False
            self._reading[transfer.origin, key] -= 1
        else:
            del self._moving[index, key]
            self._reading[index + 1, key] -= 1
            self._arrive(key, index)
            if key not in self._wanted:
                return  # withdrawn in its last chunk: a copy more, which may leave when room is needed
            if index == 0:
                del self._wanted[key]
            else:
                self._leg(key)

    def _arrive(self, key: int, tier: int) -> None:
        self.cached[tier, key] = True
        self.came[tier] += self.size[key]

    def _leg(self, key: int) -> None:
        """Queue the copy from the fastest tier that has the expert to the next faster one."""
        source = int(np.argmax(self.cached[:, key]))
        moving = self._moving.get((source - 1, key))
        if moving is not None:  # a copy that was withdrawn and still moves is taken up again
            moving.cancelled, moving.priority = False, self._wanted[key]
            return
        self._reading[source, key] += 1
        self._queue(Transfer(key, source - 1, float(self.size[key]), self._wanted[key], self._order))

    def _queue(self, transfer: Transfer) -> None:
        self._order += 1
        self._moving[transfer.tier, transfer.key] = transfer
        link = self.links[transfer.tier]
        link.queue.append(transfer)
        self._urge(link, transfer)

    def _urge(self, link: Link, transfer: Transfer) -> None:
        if (
            link.current is not None
            and link.current is not transfer
            and link.current.priority > transfer.priority
        ):
            link.interrupt(self.now)

    def _abandon(self, transfer: Transfer) -> None:
        del self._moving[transfer.tier, transfer.key]
        self._reading[transfer.tier + 1, transfer.key] -= 1
        if transfer.started:
            self._hold(transfer.tier, transfer.key, -1)

    def _serve(self) -> None:
        for index, link in enumerate(self.links):
            tried = True
            while tried and link.current is None and link.queue:
                tried = False
                for transfer in sorted(link.queue, key=lambda t: (not t.write, t.priority, t.order)):
                    if transfer.write or transfer.started or self._reserve(index, transfer):
                        link.queue.remove(transfer)
                        link.start(transfer, self.now)
                        break
                    if any(t.write and not t.started for t in link.queue):
                        tried = True  # room is made by writing a dirty copy back: that goes first
                        break

    def _reserve(self, tier: int, transfer: Transfer) -> bool:
        """Reserve room for a copy, making others leave; False: not now."""
        size = float(self.size[transfer.key])
        capacity = self.tiers[tier].capacity
        layer = transfer.key // self._experts
        writing = any(t.write and t.origin == tier for t in self._moving.values())
        while (crowded := self._crowded(tier, layer, size)) or self.used[tier] + size > capacity:
            victim = -1 if writing else self._victim(tier, layer if crowded else -1, transfer.priority)
            if victim < 0:
                return False
            if self.dirty[tier, victim]:
                self._reading[tier, victim] += 1
                self._write(victim, tier, tier, transfer.priority)
                return False
            self.cached[tier, victim] = False
            self.left[tier] += self.size[victim]
            self._hold(tier, victim, -1)
        self._hold(tier, transfer.key, 1)
        return True

    def _crowded(self, tier: int, layer: int, size: float) -> bool:
        quota = self.quota
        return tier == 0 and quota is not None and bool(self._by_layer[layer] + size > quota[layer])

    def _hold(self, tier: int, key: int, sign: int) -> None:
        self.used[tier] += sign * self.size[key]
        if tier == 0:
            self._by_layer[key // self._experts] += sign * self.size[key]

    def _write(self, key: int, origin: int, link: int, priority: Priority) -> None:
        version = int(self._version[key])
        size = float(self.size[key])
        order = self._order
        self._queue(Transfer(key, link, size, priority, order, write=True, origin=origin, version=version))

    def _victim(self, tier: int, only: int, priority: Priority) -> int:
        if self.eviction.admission == "free":
            return -1
        free = self.cached[tier] & (self._reading[tier] == 0)
        if tier > 0:
            return self._least(free, only)
        free &= ~self.pinned & (self.in_use == 0)
        victim = self._least(free & (self._awaited == _NOBODY), only)
        if victim < 0 and priority == Priority.DEMAND:
            victim = self._least(free & (self._awaited > Priority.DEMAND), only)
        return victim

    def _least(self, free: npt.NDArray[np.bool_], only: int) -> int:
        return int(
            weakest(
                free, only, self._code, self.eviction.parameters(), self._seed, float(self.clock), self.layer,
                self._layers, self.last, self.uses, self.heavy, self.upcoming, self.probability,
            )
        )  # fmt: skip

    def check(self) -> None:
        """Check capacity and the conservation of bytes.

        Raises
        ------
        LawBroken : a tier holds more than its capacity, or bytes that never came
        """
        for index, tier in enumerate(self.tiers[:-1]):
            moving = sum(
                float(self.size[key])
                for (place, key), t in self._moving.items()
                if place == index and t.started and not t.write
            )
            held = float(self.size[self.cached[index]].sum())
            slack = 1e-9 * max(tier.capacity if math.isfinite(tier.capacity) else 1.0, 1.0)
            if self.used[index] > tier.capacity + slack:
                raise LawBroken(f"law capacity_is_kept: {tier.name} holds {self.used[index]:.6g} bytes")
            if abs(held + moving - self.used[index]) > slack:
                raise LawBroken(f"law bytes_are_conserved: {tier.name}: {held + moving:.6g} bytes are there")
            if abs(self.came[index] - self.left[index] - held) > 1e-9 * max(self.came[index], 1.0):
                raise LawBroken(f"law bytes_are_conserved: {tier.name}: came less left is not what is there")
