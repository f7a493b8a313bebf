"""CompositionProblem: models, equal bins (nodes or sockets) with tiers, latency and load limits; what packings cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moesim.errors import SpecError
from moesim.files import nearest

if TYPE_CHECKING:
    from moesim.spec.topology import Topology

__all__ = ["BinTier", "CompositionProblem", "Packing", "tiers_of_node"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BinTier:
    """One memory of every bin.

    Attributes
    ----------
    capacity : bytes for experts in one bin
    bandwidth : bytes per second at which a whole expert is copied to where it runs; infinite: it runs from here
    latency : seconds per copy beside reading
    """

    name: str
    capacity: float
    bandwidth: float = math.inf
    latency: float = 0.0


@dataclass(frozen=True, slots=True)
class Packing:
    """A decision: bin and tier of every expert, [E]."""

    bin: IntArray
    tier: IntArray

    @property
    def bins(self) -> int:
        """How many are used."""
        return len(np.unique(self.bin))


@dataclass(frozen=True, slots=True, eq=False)
class CompositionProblem:
    """Experts that are whole models, one of which answers each request; every expert lives once.

    An expert that one bin cannot serve alone is entered several times, with its requests divided.

    Attributes
    ----------
    size : stored bytes, [E]
    share : of the requests that each expert answers, [E], sums to 1
    run_s : seconds that a bin works for one request, [E], as measured or simulated
    tiers : of one bin, fastest first
    most_bins : how many there are at most
    router_s : seconds of the router per request, in the same bin
    mean_s : most expected seconds of a request (router, copy, run), infinite: no limit
    target_s, late_share : at most ``late_share`` of the requests may take longer than ``target_s``; the copy is
        counted for every request of an expert that does not run in place: nobody else's request warmed it
    rate : requests per second of all bins together; 0: load is no matter
    busy_share : most busy time of a bin
    """

    size: FloatArray
    share: FloatArray
    run_s: FloatArray
    tiers: tuple[BinTier, ...]
    most_bins: int
    router_s: float = 0.0
    mean_s: float = math.inf
    target_s: float = math.inf
    late_share: float = 0.0
    rate: float = 0.0
    busy_share: float = 1.0

    def __post_init__(self) -> None:
        count = len(self.size)
        if not count or not self.tiers or self.most_bins < 1:
            raise SpecError("composition: expected at least one expert, one tier and one bin")
        if self.share.shape != (count,) or self.run_s.shape != (count,):
            raise SpecError(f"composition: share and run_s: expected one number for each of {count} experts")
        for what, good in (
            ("size: expected positive bytes", np.isfinite(self.size) & (self.size > 0)),
            ("share: expected non-negative shares that sum to 1", (self.share >= 0) & self._sums_to_one()),
            ("run_s: expected non-negative seconds", np.isfinite(self.run_s) & (self.run_s >= 0)),
            ("late_share: expected a share between 0 and 1", 0 <= self.late_share <= 1),
            ("busy_share: expected a share between 0 and 1", 0 < self.busy_share <= 1),
            ("rate, router_s: expected non-negative numbers", self.rate >= 0 and self.router_s >= 0),
        ):
            if not np.all(good):
                raise SpecError(f"composition: {what}")

    def _sums_to_one(self) -> bool:
        return abs(float(self.share.sum()) - 1.0) <= 1e-9

    @property
    def experts(self) -> int:
        """How many there are."""
        return len(self.size)

    def latency(self) -> FloatArray:
        """Return the seconds of a request by expert and tier, [E, T]: router, copy, run."""
        copy = [
            self.size / tier.bandwidth + tier.latency
            if math.isfinite(tier.bandwidth)
            else np.zeros(self.experts)
            for tier in self.tiers
        ]
        return np.asarray(self.router_s + np.stack(copy, axis=1) + self.run_s[:, None])

    def late(self) -> npt.NDArray[np.bool_]:
        """Return which choices miss the target, [E, T]."""
        return np.asarray(self.latency() > self.target_s * (1 + 1e-12))

    def busy(self) -> FloatArray:
        """Return the share of a bin's time that each choice takes, [E, T]."""
        return np.asarray(self.latency() * (self.rate * self.share)[:, None])

    def mean_latency(self, answer: Packing) -> float:
        """Return the expected seconds of a request."""
        return float(self.share @ self.latency()[np.arange(self.experts), answer.tier])

    def broken(self, answer: Packing) -> dict[str, float]:
        """Return by how much ``answer`` breaks each limit it breaks: bytes, shares, seconds."""
        rows, over = np.arange(self.experts), {}
        used = int(answer.bin.max()) + 1
        held = np.zeros((used, len(self.tiers)))
        np.add.at(held, (answer.bin, answer.tier), self.size)
        for index, tier in enumerate(self.tiers):
            excess = float((held[:, index] - tier.capacity).max())
            if excess > 1e-12 * tier.capacity:
                over[tier.name] = excess
        load = np.bincount(answer.bin, weights=self.busy()[rows, answer.tier], minlength=used)
        checks = (
            ("busy", float(load.max()) - self.busy_share, self.busy_share),
            ("late", float(self.share @ self.late()[rows, answer.tier]) - self.late_share, 1.0),
            ("mean", self.mean_latency(answer) - self.mean_s, self.mean_s),
            ("bins", float(answer.bins - self.most_bins), 1.0),
        )
        over |= {name: excess for name, excess, scale in checks if excess > 1e-12 * scale}
        return over


def tiers_of_node(
    topology: Topology,
    names: tuple[str, ...],
    *,
    devices: int | None = None,
    reserved: float = 0.0,
    copy_bandwidth: float | None = None,
) -> tuple[BinTier, ...]:
    """Return the tiers of one bin: a node, or some of its devices, over which every expert is spread (tensor parallel).

    Device tiers down to the main memory run experts in place. Slower device tiers copy at their summed bandwidth,
    host tiers at the slower of the tier and the host links; a bin of some devices has its share of the host.

    Parameters
    ----------
    names : fastest first, as in the hardware files
    devices : of one bin, 1 for a socket of its own; none: the whole node
    reserved : bytes of the first tier that experts may not have: router, caches, room for copies
    copy_bandwidth : bytes per second of copies where measured; replaces the datasheet's for every copied tier

    Raises
    ------
    SpecError : no such tier, or more devices than the node has
    """
    device, host = topology.device.memory, topology.node.host
    count = topology.devices_per_node if devices is None else devices
    if not 1 <= count <= topology.devices_per_node:
        raise SpecError(
            f"{topology.node.name}: a bin of {count} devices, the node has {topology.devices_per_node}"
        )
    part = count / topology.devices_per_node
    order, made = list(device), []
    for index, name in enumerate(names):
        kept = reserved if index == 0 else 0.0
        if name in device:
            tier, whole = device[name], device[name].capacity * count
            copied = order.index(name) > order.index(topology.device.main_memory)
            rate = (copy_bandwidth or tier.bandwidth * count) if copied else math.inf
            made.append(BinTier(name, max(whole - kept, 0.0), rate, tier.latency if copied else 0.0))
        elif name in host.memory:
            tier = host.memory[name]
            links = math.inf if host.link_bandwidth is None else host.link_bandwidth * host.links
            rate = copy_bandwidth or part * min(tier.bandwidth, links)
            latency = tier.latency + host.link_latency
            made.append(BinTier(name, max(part * tier.capacity - kept, 0.0), rate, latency))
        else:
            known = (*device, *host.memory)
            raise SpecError(f"{topology.node.name}: no memory tier {name!r}{nearest(name, known)}")
    return tuple(made)
