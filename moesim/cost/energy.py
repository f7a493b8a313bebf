"""Energy and money of a run: pure functions of busy seconds, the device's power and its price."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesim.errors import DataMissing

if TYPE_CHECKING:
    from moesim.cost.pricing import FloatArray
    from moesim.spec.deployment import Economics
    from moesim.spec.hardware import DeviceSpec, NodeSpec
    from moesim.spec.topology import Topology

__all__ = [
    "HOURS_PER_YEAR",
    "capex_usd_per_s",
    "device_energy_j",
    "device_usd_per_s",
    "facility_energy_j",
    "grid_usd",
    "node_energy_j",
]

HOURS_PER_YEAR = 8766.0
_JOULES_PER_KWH = 3.6e6


def device_energy_j(
    device: DeviceSpec,
    busy_s: float | FloatArray,
    span_s: float | FloatArray,
    intensity: float | FloatArray = 1.0,
) -> float | FloatArray:
    """Return joules of one device: ``idle * span + (peak - idle) * intensity * busy``.

    A linear model between idle and board power. ``intensity`` is how hard the busy time drives the chip: 1 is
    board power, an upper bound; a decode step bound by memory draws less, and no datasheet says how much.

    Parameters
    ----------
    busy_s, span_s : seconds with work, and seconds powered; 0 <= busy <= span
    intensity : 0..1

    Raises
    ------
    DataMissing : the device states no power
    """
    if device.power is None:
        raise DataMissing(f"{device.name} states no power: energy is not known")
    return device.power.idle * span_s + (device.power.peak - device.power.idle) * intensity * busy_s


def node_energy_j(node: NodeSpec, span_s: float, utilization: float = 0.0) -> float:
    """Return joules of what is around the devices of one node (host, fans, adapters); 0 where none is stated.

    ``idle + (peak - idle) * utilization`` over the span.
    """
    if node.host.power is None:
        return 0.0
    return (node.host.power.idle + (node.host.power.peak - node.host.power.idle) * utilization) * span_s


def facility_energy_j(it_energy_j: float, economics: Economics) -> float:
    """Return joules at the meter: IT energy times PUE (facility power over IT power)."""
    return it_energy_j * economics.pue


def grid_usd(facility_j: float, economics: Economics) -> float:
    """Return the electricity bill of ``facility_j`` joules at the meter."""
    return facility_j / _JOULES_PER_KWH * economics.electricity


def device_usd_per_s(topology: Topology, economics: Economics) -> float:
    """Return rent of one device per second: the run's own price, the device's, or the node's shared evenly.

    Raises
    ------
    DataMissing : nobody states a rental price
    """
    per_hour = economics.rental
    if per_hour is None:
        per_hour = topology.device.price.rental
    if per_hour is None and topology.node.price.rental is not None:
        per_hour = topology.node.price.rental / topology.devices_per_node
    if per_hour is None:
        raise DataMissing(f"{topology.device.name} has no public rental price: set economics.rental")
    return per_hour / 3600.0


def capex_usd_per_s(topology: Topology, years: float) -> float:
    """Return the purchase price of one device per second of a life of ``years`` years, straight line.

    Raises
    ------
    DataMissing : neither node nor device states a purchase price
    """
    price = topology.device.price.purchase
    if topology.node.price.purchase is not None:  # the node's price has the host in it
        price = topology.node.price.purchase / topology.devices_per_node
    if price is None:
        raise DataMissing(f"{topology.device.name} has no public purchase price")
    return price / (years * HOURS_PER_YEAR * 3600.0)
