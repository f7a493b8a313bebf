"""TieringProblem: experts, tiers, bitwidths, budgets; and what a choice costs. Nothing about loss is assumed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moesim.errors import SpecError
from moesim.files import nearest
from moesim.spec.topology import host_bandwidth

if TYPE_CHECKING:
    from moesim.spec.topology import Topology

__all__ = ["FloatArray", "IntArray", "Tier", "Tiering", "TieringProblem", "tier_of"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Tier:
    """One memory that experts may live in.

    Attributes
    ----------
    capacity : bytes left for experts; infinite where nothing limits it
    bandwidth : bytes per second that one device reads from it
    latency : seconds to the first byte
    staged : experts are copied into the working tier before they are computed; otherwise they are read in place
    """

    name: str
    capacity: float
    bandwidth: float
    latency: float = 0.0
    staged: bool = False


@dataclass(frozen=True, slots=True)
class Tiering:
    """A decision.

    Attributes
    ----------
    tier : index of each expert's tier, [E]
    width : index of each expert's bitwidth, [E]
    """

    tier: IntArray
    width: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class TieringProblem:
    """Experts of one device over its tiers.

    Attributes
    ----------
    tiers : fastest first; those not ``staged`` come before those that are, the last of them is the working tier
    bits : bitwidths, e.g. (2, 4, 8)
    touches : expected steps that use each expert, per step, [E]
    reuse : share of those whose copy is still there from the step before, [E], 0..1; it saves the copy of staged tiers
    size : stored bytes of each expert at each bitwidth, [E, W]
    loss : accuracy that each expert costs at each bitwidth, [E, W], as measured, in the unit of ``loss_budget``;
        infinite forbids. Losses add up (EdgeMoE, arXiv 2308.14352 section 3, sums them the same way)
    loss_budget : most loss in all; infinite: none
    load_s : seconds per copy beside reading, e.g. dequantisation and file access, [W]
    """

    tiers: tuple[Tier, ...]
    bits: tuple[int, ...]
    touches: FloatArray
    reuse: FloatArray
    size: FloatArray
    loss: FloatArray
    loss_budget: float = math.inf
    load_s: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        count, widths = len(self.touches), len(self.bits)
        if not self.tiers or not widths or not count:
            raise SpecError("tiering: expected at least one tier, one bitwidth and one expert")
        _check_tiers(self.tiers)
        for name, array, shape in (
            ("touches", self.touches, (count,)),
            ("reuse", self.reuse, (count,)),
            ("size", self.size, (count, widths)),
            ("loss", self.loss, (count, widths)),
        ):
            if array.shape != shape:
                raise SpecError(f"tiering: {name} of shape {array.shape}, expected {shape}")
        if self.load_s and (len(self.load_s) != widths or min(self.load_s) < 0):
            raise SpecError(f"tiering: load_s: expected {widths} non-negative seconds")
        for what, good in (
            (
                "touches: expected finite non-negative numbers",
                np.isfinite(self.touches) & (self.touches >= 0),
            ),
            ("reuse: expected shares between 0 and 1", (self.reuse >= 0) & (self.reuse <= 1)),
            ("size: expected positive bytes", np.isfinite(self.size) & (self.size > 0)),
            (
                "loss and loss_budget: expected non-negative numbers",
                (self.loss >= 0) & (self.loss_budget >= 0),
            ),
        ):
            if not np.all(good):
                raise SpecError(f"tiering: {what}")

    @property
    def experts(self) -> int:
        """How many there are."""
        return len(self.touches)

    @property
    def working(self) -> int:
        """Index of the slowest tier that is read in place: staged experts are copied there."""
        return max(i for i, tier in enumerate(self.tiers) if not tier.staged)

    def seconds(self) -> FloatArray:
        """Return the expected seconds per step of every choice, [E, T, W].

        In place: ``touches * (bytes / bandwidth + latency)``. Staged: the same from the working tier, and
        ``touches * (1 - reuse) * (bytes / bandwidth + latency + load_s)`` for the copy.
        """
        total = np.empty((self.experts, len(self.tiers), len(self.bits)))
        extra = np.asarray(self.load_s or (0.0,) * len(self.bits))
        work = self.tiers[self.working]
        for index, tier in enumerate(self.tiers):
            read = self.size / tier.bandwidth + tier.latency
            if tier.staged:
                again = (1.0 - self.reuse)[:, None] * (read + extra)
                read = self.size / work.bandwidth + work.latency + again
            total[:, index] = self.touches[:, None] * read
        return total

    def objective(self, answer: Tiering) -> float:
        """Return the expected seconds per step that ``answer`` spends on reading experts."""
        rows = np.arange(self.experts)
        return float(np.sum(self.seconds()[rows, answer.tier, answer.width]))

    def held(self, answer: Tiering) -> FloatArray:
        """Return the bytes in each tier, [T]."""
        size = self.size[np.arange(self.experts), answer.width]
        return np.bincount(answer.tier, weights=size, minlength=len(self.tiers)).astype(np.float64)

    def lost(self, answer: Tiering) -> float:
        """Return the summed loss."""
        return float(np.sum(self.loss[np.arange(self.experts), answer.width]))

    def broken(self, answer: Tiering) -> dict[str, float]:
        """Return by how much ``answer`` breaks each limit it breaks: bytes by tier name, and ``loss``."""
        held = self.held(answer)
        over = {
            tier.name: float(held[i] - tier.capacity)
            for i, tier in enumerate(self.tiers)
            if held[i] > tier.capacity * (1 + 1e-12)
        }
        lost = self.lost(answer)
        if lost > self.loss_budget * (1 + 1e-12) + 1e-15:
            over["loss"] = lost - self.loss_budget
        return over


def _check_tiers(tiers: tuple[Tier, ...]) -> None:
    staged = [tier.staged for tier in tiers]
    if staged[0] or staged != sorted(staged):
        raise SpecError(
            "tiering: expected tiers read in place first, then staged ones; at least one in place"
        )
    for tier in tiers:
        if not (tier.capacity >= 0 and tier.bandwidth > 0 and tier.latency >= 0):
            raise SpecError(f"tiering: tier {tier.name}: expected capacity and latency >= 0, bandwidth > 0")


def tier_of(topology: Topology, name: str, *, reserved: float = 0.0) -> Tier:
    """Return one tier of a device, or the device's share of a tier of its host.

    Tiers of the device down to its main memory are read in place; slower ones, and the host's, are staged.

    Parameters
    ----------
    topology : where
    name : as in the hardware files, e.g. ``sram``, ``hbm``, ``ddr``, ``nvme``
    reserved : bytes of one device that experts may not have: other weights, caches, room for copies

    Raises
    ------
    SpecError : no such tier
    """
    device, host = topology.device.memory, topology.node.host.memory
    if name in device:
        order, tier = list(device), device[name]
        below = order.index(name) > order.index(topology.device.main_memory)
        return Tier(name, max(tier.capacity - reserved, 0.0), tier.bandwidth, tier.latency, staged=below)
    if name in host:
        capacity = host[name].capacity / topology.devices_per_node - reserved
        latency = host[name].latency + topology.node.host.link_latency
        return Tier(name, max(capacity, 0.0), host_bandwidth(topology, name), latency, staged=True)
    known = (*device, *host)
    raise SpecError(
        f"{topology.node.name}: no memory tier {name!r}{nearest(name, known)}, it has {', '.join(known)}"
    )
