"""Tier cases: what papers print about tiers, dataflow and compositions, with the efficiencies that answer it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from moesim.files import read_yaml
from moesim.spec.base import Spec, validate
from moesim.units import Bytes, Seconds

__all__ = ["Efficiency", "Speedup", "TierCases", "off", "ratio", "tier_cases"]


class Efficiency(Spec):
    """How one node runs Samba-CoE."""

    kernel: Seconds | None = None
    bandwidth: float | None = None
    start: Seconds
    source: str


class RouterCase(Spec):
    """The router's answer."""

    output: PositiveInt
    source: str


class Speedup(Spec):
    """Latency of a GPU node over that of the SN40L node."""

    batch: PositiveInt
    output: PositiveInt
    a100: PositiveFloat = Field(alias="dgx-a100")
    h100: PositiveFloat = Field(alias="dgx-h100")

    def published(self, node: str) -> float:
        """Return the printed ratio of ``node``."""
        return self.a100 if node == "dgx-a100" else self.h100


class SambaCase(Spec):
    """Samba-CoE on three nodes."""

    composition: str
    router: RouterCase
    efficiencies: dict[str, Efficiency]
    links: PositiveInt
    overall: tuple[Speedup, ...]
    expert_only: tuple[Speedup, ...]
    switch: dict[str, tuple[PositiveFloat, ...]]
    knee: PositiveInt
    stored: PositiveInt
    footprint: PositiveInt
    source: str


class Speed(Spec):
    """A decode speed."""

    model: str
    node: str
    context: PositiveInt
    value: PositiveFloat


class FusionCase(Spec):
    """What fusion and orchestration are worth."""

    monarch: tuple[float, float, float]
    launches: PositiveInt
    decode_hardware: tuple[float, float]
    decode_fusion: tuple[float, float]
    prefill_hardware: tuple[float, float]
    prefill_fusion: tuple[float, float]
    tokens_per_s: Speed
    source: str


class FiveCase(Spec):
    """The five-expert composition."""

    bytes: Bytes
    fits: dict[str, bool]
    average_active: dict[str, PositiveFloat]
    source: str


class CoServeCase(Spec):
    """Many small experts on one card."""

    composition: str
    memory: Bytes
    requests: PositiveInt
    interval: Seconds
    switch: Seconds
    switches: tuple[PositiveInt, PositiveInt]
    fewer: tuple[float, float]
    faster: tuple[float, float]
    source: str


class TierCases(Spec):
    """All of them."""

    kind: Literal["tier_cases"]
    samba: SambaCase
    fusion: FusionCase
    five: FiveCase
    coserve: CoServeCase


@cache
def tier_cases() -> TierCases:
    """Return the cases that ship with the package."""
    path = Path(__file__).with_name("tiers.yaml")
    return validate(TierCases, read_yaml(path, path.name))


def ratio(value: float, published: float) -> dict[str, float]:
    """Return a figure beside its published value; ``error`` is relative and unsigned."""
    return {"n": 1.0, "value": value, "published": published, "error": abs(value / published - 1)}


def off(value: float, published: float) -> dict[str, float]:
    """Return a count beside its published value; ``difference`` is absolute."""
    return {"n": 1.0, "value": value, "published": published, "difference": abs(value - published)}
