"""Steady: closed form of a replica under constant load: time to first token, per token, and requests per second.

With b sequences decoding on each lane, every step yields b tokens, so b / (output - 1) requests finish per step and
as many prompts must be prefilled: q = b * prompt / (output - 1) tokens per step. They come in chunks of c tokens in a
share f = q / c of the steps. Lanes run in lock-step: a step is slow when any of them prefills. Queueing for prefill is
that of M/D/1 with the used share of the step's token budget. Means, not percentiles: finalists are simulated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from moesim.plan.parallelism.demand import Demand
    from moesim.plan.parallelism.price import CutPrice
    from moesim.spec.deployment import Engine, Targets

__all__ = ["Curve", "decode_curve", "prefill_curve", "serve_curve"]

FloatArray = npt.NDArray[np.float64]
_POINTS = 48
_BUSIEST = 0.98
"""Most used share of prefill: beyond it the queue of M/D/1 is longer than any run would show."""


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """A replica at rising load, each [n].

    Attributes
    ----------
    sequences : decoding together on one lane (of one pipeline slot)
    ttft, tpot, e2e : mean seconds
    rate : requests per second of the replica
    """

    sequences: FloatArray
    ttft: FloatArray
    tpot: FloatArray
    e2e: FloatArray
    rate: FloatArray

    def meets(self, targets: Targets) -> npt.NDArray[np.bool_]:
        """Return where every stated target holds, [n]."""
        good = np.ones(len(self.rate), dtype=bool)
        for value, limit in ((self.ttft, targets.ttft), (self.tpot, targets.tpot), (self.e2e, targets.e2e)):
            if limit is not None:
                good &= value <= limit
        return good


def serve_curve(price: CutPrice, demand: Demand, engine: Engine, most: int) -> Curve:
    """Return a replica that prefills and decodes, at 1 to ``most`` sequences per lane; empty if none is sustained."""
    b = np.unique(np.geomspace(1, most, _POINTS).astype(np.int64)).astype(np.float64)
    limit = float(min(engine.max_num_batched_tokens, engine.prefill_chunk or engine.max_num_batched_tokens))
    budget = np.full(len(b), limit)
    if not engine.prefill_first:
        budget = np.minimum(limit, engine.max_num_batched_tokens - b)
    longest = float(demand.input.max()) if not engine.chunked_prefill else 0.0
    per_step = b * demand.prompt / max(demand.decodes, 1e-9)
    used = per_step / np.maximum(budget, 1e-9)
    if demand.decodes <= 0:
        return _only_prefill(price, demand, limit)
    keep = (budget >= max(longest, 1.0)) & (used <= _BUSIEST)
    if engine.prefill_first:
        keep = budget >= max(longest, 1.0)
    b, budget, per_step, used = b[keep], budget[keep], per_step[keep], used[keep]
    chunks = demand.chunks(budget) if engine.chunked_prefill else np.ones(len(b))
    # one prompt's share of a step, or several prompts together where that is not enough
    chunk = np.minimum(np.maximum(demand.prompt / chunks, per_step), budget)
    share = np.minimum(per_step / chunk, 1.0) if not engine.prefill_first else per_step / chunk
    zero = np.zeros(len(b))
    lanes = float(price.lanes)
    some = 1.0 - (1.0 - np.minimum(share, 1.0)) ** lanes
    together = lanes * np.minimum(share, 1.0) / np.maximum(some, 1e-12) * chunk
    typical = float(demand.prompt / chunks.mean()) if len(b) else 1.0
    plain = price.step_s(demand, b, zero, lanes * b, typical)
    if engine.prefill_first:
        extra = price.step_s(demand, zero, chunk, together, typical)
        mean = plain + np.maximum(share, some) * extra
        slow, used = extra, np.maximum(share, some) * extra / mean
    else:
        slow = price.step_s(demand, b, chunk, lanes * b + together, typical)
        # stages pass batches on together: a slow step of one slot holds up the others
        some = 1.0 - (1.0 - some) ** price.stages
        mean = (1 - some) * plain + some * slow
    hops = (price.stages - 1) * price.hop_s(b + share * chunk)
    period = np.maximum(mean + hops, price.stages * price.widest_stage * mean)
    rate = price.stages * lanes * b / (demand.decodes * period)
    prefill = chunks * (slow + hops)
    ttft = prefill + period / 2 + used / (2 * (1 - np.minimum(used, _BUSIEST))) * prefill
    return Curve(b, ttft, period, ttft + demand.decodes * period, rate)


def _only_prefill(price: CutPrice, demand: Demand, limit: float) -> Curve:
    curve = prefill_curve(price, demand, limit)
    return Curve(np.zeros(len(curve.rate)), curve.ttft, np.zeros(len(curve.rate)), curve.ttft, curve.rate)


def prefill_curve(price: CutPrice, demand: Demand, limit: float) -> Curve:
    """Return a replica that only prefills, from idle to nearly always busy; prompts one by one, or filling steps."""
    busy = np.linspace(0.02, _BUSIEST, _POINTS)
    found = []
    for chunk in sorted({min(demand.prompt, limit), limit}):
        steps = max(float(demand.chunks(chunk)), 1.0) if chunk <= demand.prompt else 1.0
        prompts = max(chunk / demand.prompt, 1.0)
        tokens = np.array([chunk if prompts > 1 else demand.prompt / steps])
        zero = np.zeros(1)
        step = float(price.step_s(demand, zero, tokens, price.lanes * tokens, float(tokens[0]))[0])
        hops = (price.stages - 1) * float(price.hop_s(tokens)[0])
        work = steps * (step + hops)
        each = steps * max(step + hops, price.stages * price.widest_stage * step) / price.stages
        found.append((busy * price.lanes * prompts / each, work + busy / (2 * (1 - busy)) * work / prompts))
    rate, wait = (np.concatenate([f[i] for f in found]) for i in (0, 1))
    zero = np.zeros(len(rate))
    return Curve(zero, wait, zero, wait, rate)


def decode_curve(price: CutPrice, demand: Demand, most: int) -> Curve:
    """Return a replica that only decodes, at 1 to ``most`` sequences per lane; its first token came from elsewhere."""
    b = np.unique(np.geomspace(1, most, _POINTS).astype(np.int64)).astype(np.float64)
    step = price.step_s(demand, b, np.zeros(len(b)), price.lanes * b, 1.0)
    period = np.maximum(step + (price.stages - 1) * price.hop_s(b), price.stages * price.widest_stage * step)
    rate = price.stages * price.lanes * b / (max(demand.decodes, 1e-9) * period)
    return Curve(b, np.zeros(len(b)), period, demand.decodes * period, rate)
