"""Axes: every way to cut a model over the devices of a replica, and why some are not allowed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moesim.cost.layout import Layout
from moesim.errors import NoResult, SpecError
from moesim.spec.deployment import Parallelism
from moesim.spec.model import MoeFfn

if TYPE_CHECKING:
    from moesim.spec.deployment import PrecisionChoice
    from moesim.spec.model import ModelSpec
    from moesim.spec.topology import Topology

__all__ = ["Axes", "Cut", "cuts"]


@dataclass(frozen=True, slots=True)
class Axes:
    """What to try; empty: everything that divides. Nothing is capped.

    Attributes
    ----------
    tp, pp, dp, ep : degrees; ``dp`` is attention data parallelism inside a replica
    max_num_seqs, max_num_batched_tokens : limits of one attention rank's step
    """

    tp: tuple[int, ...] = ()
    pp: tuple[int, ...] = ()
    dp: tuple[int, ...] = ()
    ep: tuple[int, ...] = ()
    max_num_seqs: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    max_num_batched_tokens: tuple[int, ...] = (2048, 4096, 8192, 16384)


@dataclass(frozen=True, slots=True)
class Cut:
    """One way to cut, and why it is not allowed, if so."""

    parallelism: Parallelism
    reason: str = ""


def cuts(
    model: ModelSpec, topology: Topology, devices: int, axes: Axes, precision: PrecisionChoice | None = None
) -> Iterator[Cut]:
    """Yield every cut of up to ``devices`` devices, the forbidden ones with their reason.

    Degrees are powers of two and divisors of ``devices``, unless ``axes`` names others; ``ep`` divides ``tp * dp``.
    """
    routed = [f for f in model.ffns.values() if isinstance(f, MoeFfn)]
    degrees = sorted(
        {d for d in range(1, devices + 1) if devices % d == 0} | {1 << i for i in range(devices.bit_length())}
    )
    for tp in axes.tp or degrees:
        for pp in axes.pp or degrees:
            for dp in axes.dp or degrees:
                if tp * pp * dp > devices:
                    continue
                shards = tp * dp
                spread = axes.ep or ([d for d in degrees if shards % d == 0] if routed else [1])
                for ep in spread:
                    if shards % ep == 0:
                        cut = Parallelism(tp=tp, pp=pp, dp=dp, ep=ep)
                        yield Cut(cut, _forbidden(model, topology, cut, precision))


def _forbidden(
    model: ModelSpec, topology: Topology, cut: Parallelism, precision: PrecisionChoice | None
) -> str:
    for ffn in model.ffns.values():
        if isinstance(ffn, MoeFfn) and ffn.intermediate % cut.moe_tp:
            return f"tp {cut.moe_tp} inside each expert does not divide its width {ffn.intermediate}"
    try:
        Layout.of(model, topology, cut, precision)
    except (NoResult, SpecError) as error:
        return str(error)
    return ""
