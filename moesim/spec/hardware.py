"""Hardware nouns: device, node, cluster. Facts only; efficiencies are fitted and live in ``validation/``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from moesim.spec.base import Source, Spec
from moesim.units import Bytes, Flops, Hertz, LinkRate, MemoryRate, Seconds, Usd, UsdPerHour, Watts

__all__ = [
    "ClusterSpec",
    "Compute",
    "Dataflow",
    "DeviceSpec",
    "Dtype",
    "Fabric",
    "Host",
    "Link",
    "MemoryTier",
    "Network",
    "NodeSpec",
    "Power",
    "Price",
    "unsourced",
]

Dtype = Literal["fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "int8", "fp6", "fp4", "int4"]
"""Arithmetic types a peak can be stated for."""


class Compute(Spec):
    """What a device can calculate."""

    units: PositiveInt
    """Streaming multiprocessors, compute units, PCUs, cores: the blocks that share the work."""
    unit_name: str = "SM"
    """What the vendor calls a unit."""
    clock: Hertz | None = None
    """Boost clock."""
    peaks: dict[Dtype, Flops]
    """Dense matrix rate per data type. An absent type is not supported; none is guessed from another's."""
    vector: dict[Dtype, Flops] = Field(default_factory=dict)
    """Rate outside the matrix units, where the vendor states one."""


class MemoryTier(Spec):
    """One level of memory of a device or host."""

    kind: Literal["sram", "hbm", "gddr", "lpddr", "ddr", "nvme", "flash", "sata", "hdd", "sd"]
    """Technology."""
    capacity: Bytes
    """Usable bytes."""
    bandwidth: MemoryRate
    """Read bandwidth."""
    write_bandwidth: MemoryRate | None = None
    """Write bandwidth where it differs from reading."""
    latency: Seconds = 0.0
    """First-byte latency, where known."""


class Power(Spec):
    """Electrical power of a device or host."""

    idle: Watts
    """Power with clocks up and no work."""
    peak: Watts
    """Board or thermal design power."""


class Price(Spec):
    """What it costs, where public."""

    purchase: Usd | None = None
    """Street or list price."""
    rental: UsdPerHour | None = None
    """On-demand price of one device (or node) per hour."""
    as_of: str = ""
    """When the price was seen."""


class Dataflow(Spec):
    """What a device reaches that streams a whole operator graph as one kernel (RDU), as its maker states it."""

    fused_bandwidth: float = Field(gt=0, le=1)
    """Share of the main memory's bandwidth inside a fused kernel."""
    unfused_bandwidth: float = Field(gt=0, le=1)
    """The same with one kernel per operator, results going through main memory."""
    fused_units: float = Field(gt=0, le=1)
    """Share of the compute units that a fused decoder layer occupies."""


class DeviceSpec(Spec):
    """One accelerator, socket or edge SoC."""

    kind: Literal["device"]
    name: str
    vendor: str
    family: Literal["gpu", "rdu", "tpu", "cpu", "edge"]
    architecture: str
    """Generation, e.g. ``hopper``; fits are shared inside one."""
    compute: Compute
    memory: dict[str, MemoryTier]
    """Tiers by name, fastest first, e.g. ``l2``, ``hbm``, ``ddr``."""
    main_memory: str
    """The tier that holds weights and KV cache."""
    launch_latency: Seconds
    """Time to start one kernel from the host when the queue is not empty."""
    graph_launch_latency: Seconds = 0.0
    """Time between kernels inside a captured graph (or hardware-orchestrated schedule)."""
    dataflow: Dataflow | None = None
    """For a device that fuses operators in space; none: every operator is a kernel."""
    power: Power | None = None
    price: Price = Price()
    sources: tuple[Source, ...] = Field(min_length=1)
    """Every fact above is covered by one of these."""

    @model_validator(mode="after")
    def _main_memory_exists(self) -> DeviceSpec:
        if self.main_memory not in self.memory:
            msg = f"main_memory {self.main_memory!r} is not one of {', '.join(self.memory)}"
            raise ValueError(msg)
        return self

    @property
    def main(self) -> MemoryTier:
        """The tier that holds weights and KV cache."""
        return self.memory[self.main_memory]


class Link(Spec):
    """How the devices of one node reach each other."""

    kind: Literal["nvlink", "xgmi", "upi", "pcie", "ici", "d2d", "onchip", "none"]
    topology: Literal["switch", "mesh", "pcie_tree", "ring", "torus", "single"]
    """``switch`` carries any pair at the full rate; a ``mesh`` gives each pair its own share of the links, so
    only traffic to all peers at once reaches ``bandwidth``; ``pcie_tree`` shares the root; ``single`` is one
    device."""
    bandwidth: LinkRate | None = None
    """One way, per device."""
    latency: Seconds = 0.0
    """One hop, small message."""
    links_per_device: PositiveInt = 1
    """Physical links that make up ``bandwidth``."""


class Network(Spec):
    """How a node reaches other nodes."""

    kind: Literal["infiniband", "roce", "ethernet", "nvlink", "ici"]
    nics: PositiveInt
    """Adapters per node; with as many as devices, each device has its own rail."""
    bandwidth: LinkRate
    """One way, per adapter."""
    latency: Seconds
    """Small message, same leaf switch."""


class Host(Spec):
    """The machine around the devices."""

    cpu: str
    cores: PositiveInt
    memory: dict[str, MemoryTier]
    """Host tiers by name, fastest first, e.g. ``ddr``, ``nvme``. Unified-memory boards have none."""
    link_bandwidth: LinkRate | None = None
    """Host to device, one way, per link."""
    links: PositiveInt = 1
    """Host links per node: one per device on most servers. Some papers assume one: set it to compare."""
    link_kind: Literal["pcie3", "pcie4", "pcie5", "pcie6", "c2c", "unified"] = "pcie5"
    link_latency: Seconds = 0.0
    power: Power | None = None
    """CPU, fans, adapters: the node without its devices."""


class NodeSpec(Spec):
    """One server, tray or board."""

    kind: Literal["node"]
    name: str
    device: str
    """Catalog name or path of the device."""
    devices: PositiveInt
    link: Link
    host: Host
    network: Network | None = None
    tier_copy: dict[str, MemoryRate] = Field(default_factory=dict)
    """Measured rate of copies from a device tier into main memory, all devices of the node together, by tier."""
    price: Price = Price()
    """Of the whole node."""
    sources: tuple[Source, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _devices_are_joined(self) -> NodeSpec:
        if self.devices > 1 and self.link.bandwidth is None:
            raise ValueError("a node of several devices needs link.bandwidth")
        return self


class Fabric(Spec):
    """How nodes are joined."""

    kind: Literal["single_switch", "fat_tree", "rail_optimised", "nvlink_domain", "torus", "none"]
    """``rail_optimised``: same-index devices share a leaf; others cross the spine, or use the node's link."""
    oversubscription: float = Field(default=1.0, ge=1.0)
    """Downlink over uplink bandwidth at the leaf; 1 is non-blocking."""
    leaf_nodes: PositiveInt = 32
    """Nodes under one leaf (or one rail group)."""
    spine_latency: Seconds = 0.0
    """Added latency when a message leaves its leaf."""


class ClusterSpec(Spec):
    """Nodes of one kind over one fabric."""

    kind: Literal["cluster"]
    name: str
    node: str
    """Catalog name or path of the node."""
    nodes: PositiveInt
    fabric: Fabric = Fabric(kind="none")
    sources: tuple[Source, ...] = ()
    pue: NonNegativeFloat = 1.0
    """Facility power over IT power."""

    @model_validator(mode="after")
    def _nodes_are_joined(self) -> ClusterSpec:
        if self.nodes > 1 and self.fabric.kind == "none":
            raise ValueError("a cluster of several nodes needs fabric.kind")
        return self


def unsourced(spec: DeviceSpec | NodeSpec | ClusterSpec) -> tuple[str, ...]:
    """Return the dotted paths of the numbers that a file states and no source covers (DESIGN §1.5).

    A source covers a number when one of its ``fields`` equals the number's path, or is a whole-step prefix of
    it (``memory.hbm`` covers ``memory.hbm.capacity``, not ``memory.hbm2.capacity``); ``*`` covers all.
    Defaults that the file leaves alone are not facts of the file and are not asked for.

    Parameters
    ----------
    spec : a loaded device, node or cluster

    Returns
    -------
    tuple of str : uncovered paths in file order, empty when every number has a source
    """
    covered = {tuple(field.split(".")) for source in spec.sources for field in source.fields if field != "*"}
    if any("*" in source.fields for source in spec.sources):
        return ()
    stated = spec.model_dump(exclude_unset=True, exclude={"sources"})
    return tuple(
        ".".join(path)
        for path in _numbers(stated, ())
        if not any(path[:end] in covered for end in range(1, len(path) + 1))
    )


def _numbers(value: Any, path: tuple[str, ...]) -> list[tuple[str, ...]]:
    if isinstance(value, dict):
        return [found for key, child in value.items() for found in _numbers(child, (*path, str(key)))]
    return [path] if isinstance(value, int | float) and not isinstance(value, bool) else []
