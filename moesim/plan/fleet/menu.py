"""Menu: entries for the fleet from parallelism's options, of any number of device types and classes of traffic."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from moesim.errors import SpecError
from moesim.plan.fleet.prices import replica_power, replica_price
from moesim.plan.fleet.problem import MenuEntry
from moesim.plan.parallelism.options import Option, Table
from moesim.spec.deployment import Economics
from moesim.spec.topology import Topology

__all__ = ["entries_of"]


def entries_of(
    tables: Mapping[str, Table],
    topology: Topology,
    economics: Economics,
    *,
    reserved: float | None = None,
    power: bool = False,
    goodput: Callable[[str, Option], float] | None = None,
) -> list[MenuEntry]:
    """Return one entry per cut and batch limit of one device type, with its goodput for every class of traffic.

    Parameters
    ----------
    tables : by class of traffic; the same axes were tried for each, so the same pools are in each
    topology : whose devices they are
    economics : prices where the hardware files state none
    reserved : USD per hour of one reserved device; none: not offered
    power : state the power too; needs the device's to be published
    goodput : measured or simulated requests per second of one replica of an option under a class; by default the
        closed form's

    Raises
    ------
    DataMissing : a price, or the power, is not known
    SpecError : no table
    """
    if not tables:
        raise SpecError("fleet: expected a table of options for at least one class")
    rate = goodput or (lambda _, option: option.goodput)
    found: dict[str, tuple[Option, dict[str, float]]] = {}
    for name, table in tables.items():
        for option in table.options:
            if option.goodput > 0:
                found.setdefault(_key(option), (option, {}))[1][name] = rate(name, option)
    made = []
    for key, (option, by_class) in found.items():
        devices = option.pool.parallelism.devices
        made.append(
            MenuEntry(
                f"{devices}x {topology.device.name} {key}",
                topology.device.name,
                devices,
                by_class,
                on_demand=replica_price(topology, devices, economics),
                reserved=float("inf") if reserved is None else reserved * devices,
                power=replica_power(topology, devices, economics) if power else 0.0,
            )
        )
    return made


def _key(option: Option) -> str:
    cut, engine = option.pool.parallelism, option.pool.engine
    limits = f"seqs{engine.max_num_seqs} tokens{engine.max_num_batched_tokens}"
    return f"tp{cut.tp} pp{cut.pp} dp{cut.dp} ep{cut.ep} {limits}"
