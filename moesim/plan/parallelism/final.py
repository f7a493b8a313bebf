"""Finalists: the best options of different cuts, simulated by whoever can, and ranked by what was seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moesim.plan.parallelism.options import Option, Table
from moesim.spec.deployment import Deployment

__all__ = ["Finalist", "Measured", "finalists", "simulated"]


@dataclass(frozen=True, slots=True)
class Measured:
    """What a simulation saw.

    Attributes
    ----------
    rate : requests per second that met all targets
    ttft_s, tpot_s : at the targets' percentile
    meets : all targets, at their percentile
    """

    rate: float
    ttft_s: float
    tpot_s: float
    meets: bool


@dataclass(frozen=True, slots=True)
class Finalist:
    """An option and what its simulation saw."""

    option: Option
    measured: Measured


def finalists(table: Table, count: int = 6) -> list[Option]:
    """Return up to ``count`` options that serve the demand, best first, at most one of each cut.

    The closed form knows means and targets are percentiles, so half of them are the best with the fewest devices, the
    others the best with more devices, one for each number of them.
    """
    first: list[Option] = []
    more: list[Option] = []
    cuts, numbers = set(), set()
    for option in table.good():
        if option.pool.parallelism in cuts:
            continue
        if not first or (option.devices == first[0].devices and len(first) < -(-count // 2)):
            first.append(option)
        elif option.devices != first[0].devices and option.devices not in numbers:
            numbers.add(option.devices)
            more.append(option)
        else:
            continue
        cuts.add(option.pool.parallelism)
    return [*first, *more][:count]


def simulated(options: Sequence[Option], simulate: Callable[[Deployment], Measured]) -> list[Finalist]:
    """Simulate options and rank them: those that meet all targets first, by devices, then by goodput per device.

    Parameters
    ----------
    simulate : runs one deployment under the scenario's traffic; the planner itself moves no time
    """
    found = [Finalist(option, simulate(Deployment(serve=option.pool))) for option in options]
    return sorted(
        found,
        key=lambda f: (
            not f.measured.meets,
            f.option.devices,
            -f.measured.rate / f.option.devices,
            f.measured.tpot_s,
        ),
    )
