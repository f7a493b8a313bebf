"""Split: how many devices prefill and how many decode, each pool with its own cut; exact over the priced options."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moesim.errors import NoResult
from moesim.plan.parallelism.options import ParallelismProblem, Priced
from moesim.plan.parallelism.steady import decode_curve, prefill_curve
from moesim.spec.deployment import Pool

__all__ = ["Split", "best_split"]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Split:
    """A prefill and a decode pool.

    Attributes
    ----------
    prefill, decode : with replicas
    goodput : requests per second of both together, the smaller of the two
    ttft_s, tpot_s : means at the pools' goodput
    """

    prefill: Pool
    decode: Pool
    goodput: float
    ttft_s: float
    tpot_s: float

    @property
    def devices(self) -> int:
        """Devices of both pools."""
        return sum(pool.replicas * pool.parallelism.devices for pool in (self.prefill, self.decode))

    @property
    def per_device(self) -> float:
        """Goodput of one device, requests per second."""
        return self.goodput / self.devices


def best_split(problem: ParallelismProblem, priced: list[Priced]) -> Split:
    """Return the best prefill:decode split over all pairs of cuts and all divisions of the devices.

    With a rate: the fewest devices that reach it. Without: the most requests per second and device. For each number
    of devices the best pool of each side is found, then all divisions are compared: every pair is covered.

    Raises
    ------
    NoResult : no split serves the demand, with the shortage
    """
    prefill = [_best(priced_one, problem, "prefill") for priced_one in priced]
    decode = [_best(priced_one, problem, "decode") for priced_one in priced]
    total, rate = problem.devices, problem.demand.rate
    sides = []
    for name, side in (("prefill", prefill), ("decode", decode)):
        if not any(row is not None for row in side):
            raise NoResult(f"parallelism: no {name} pool meets its targets on any cut")
        sides.append(_by_devices(side, priced, total))
    (p_rate, p_index), (d_rate, d_index) = sides
    if rate:
        p_need, d_need = (np.flatnonzero(r >= rate * (1 - 1e-9)) for r in (p_rate, d_rate))
        if not len(p_need) or not len(d_need) or p_need[0] + d_need[0] > total:
            most = max(float(np.minimum(p_rate[: total + 1], d_rate[: total + 1][::-1]).max()), 0.0)
            raise NoResult(
                f"parallelism: no split of {total} devices reaches {rate:.4g} request/s: {most:.4g} at most, "
                f"{rate - most:.4g} short"
            )
        at = int(p_need[0]), int(d_need[0])
    else:
        both = np.minimum(p_rate[:, None], d_rate[None, :])
        used = np.arange(total + 1)[:, None] + np.arange(total + 1)[None, :]
        both = np.where(used <= total, both / np.maximum(used, 1), 0.0)
        i, j = np.unravel_index(int(np.argmax(both)), both.shape)
        at = int(i), int(j)
    pools, waits = [], []
    for count, index, side in ((at[0], p_index, prefill), (at[1], d_index, decode)):
        row = int(index[count])
        chosen = side[row]
        assert chosen is not None
        pools.append(
            priced[row].pool.model_copy(update={"replicas": count // priced[row].parallelism.devices})
        )
        waits.append(chosen)
    goodput = float(min(p_rate[at[0]], d_rate[at[1]]))
    return Split(pools[0], pools[1], goodput, waits[0][1], waits[1][2])


def _best(priced: Priced, problem: ParallelismProblem, side: str) -> tuple[float, float, float] | None:
    """Return most requests per second of one replica on one side within its targets, and its ttft and tpot."""
    engine, targets = priced.pool.engine, problem.targets
    if side == "prefill":
        limit = min(engine.max_num_batched_tokens, engine.prefill_chunk or engine.max_num_batched_tokens)
        curve = prefill_curve(priced.price, problem.demand, float(limit))
        good = curve.ttft <= (math.inf if targets.ttft is None else targets.ttft)
    else:
        curve = decode_curve(priced.price, problem.demand, max(priced.most_sequences(problem.demand), 1))
        good = curve.tpot <= (math.inf if targets.tpot is None else targets.tpot)
    if not good.any():
        return None
    best = int(np.flatnonzero(good)[np.argmax(curve.rate[good])])
    return float(curve.rate[best]), float(curve.ttft[best]), float(curve.tpot[best])


def _by_devices(
    side: list[tuple[float, float, float] | None], priced: list[Priced], total: int
) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Return, for exactly so many devices, the most requests per second of equal replicas, and whose they are."""
    rate, index = np.zeros(total + 1), np.full(total + 1, -1, dtype=np.int64)
    for row, found in enumerate(side):
        if found is None:
            continue
        devices = priced[row].parallelism.devices
        for count in range(devices, total + 1, devices):
            value = found[0] * (count // devices)
            if value > rate[count]:
                rate[count], index[count] = value, row
    return rate, index
