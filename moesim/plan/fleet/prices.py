"""Prices: what a replica costs and draws, from the hardware files or the scenario's economics; nothing is assumed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesim.errors import DataMissing

if TYPE_CHECKING:
    from moesim.spec.deployment import Economics
    from moesim.spec.topology import Topology

__all__ = ["owned_usd_per_hour", "replica_power", "replica_price"]

_HOURS_PER_YEAR = 8766.0


def replica_price(topology: Topology, devices: int, economics: Economics) -> float:
    """Return USD per hour of ``devices`` rented devices: the scenario's price, the device's, or the node's share.

    Raises
    ------
    DataMissing : none of the three states a rental price
    """
    each = economics.rental
    if each is None:
        each = topology.device.price.rental
    if each is None and topology.node.price.rental is not None:
        each = topology.node.price.rental / topology.devices_per_node
    if each is None:
        raise DataMissing(
            f"{topology.device.name}: no rental price in the hardware files; set economics.rental to plan with it"
        )
    return each * devices


def replica_power(topology: Topology, devices: int, economics: Economics) -> float:
    """Return the peak watts of ``devices`` devices with their share of the host, facility overhead included.

    Raises
    ------
    DataMissing : the device's power is not published
    """
    power, host = topology.device.power, topology.node.host.power
    if power is None:
        raise DataMissing(
            f"{topology.device.name}: its power is not published; a power cap cannot be checked"
        )
    share = 0.0 if host is None else host.peak / topology.devices_per_node
    return devices * (power.peak + share) * economics.pue


def owned_usd_per_hour(topology: Topology, devices: int, economics: Economics, years: float) -> float:
    """Return USD per hour of ``devices`` bought devices: purchase spread over ``years``, and electricity at peak power.

    Raises
    ------
    DataMissing : no purchase price of device or node in the hardware files, or no power
    """
    each = topology.device.price.purchase
    if each is None and topology.node.price.purchase is not None:
        each = topology.node.price.purchase / topology.devices_per_node
    if each is None:
        raise DataMissing(f"{topology.device.name}: no purchase price in the hardware files")
    energy = replica_power(topology, devices, economics) / 1e3 * economics.electricity
    return devices * each / (years * _HOURS_PER_YEAR) + energy
