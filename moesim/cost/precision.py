"""Formats: how each group of weights is stored on a device, and which arithmetic its products run in.

Rules, all noted in the result when they bite:

1. Unquantised weights run in their own type; quantised ones in the checkpoint's ``activations`` type, or in
their own
   when that is wider. ``activations: bf16`` is weight-only quantisation: weights are widened while they are
   loaded.
2. A quantised type without a peak on the device falls back to weight-only in bf16, as vLLM does with its
Marlin
   kernels for FP8 and INT4 weights. If the run itself asks for the missing type, that is refused.
3. bf16 and fp16 products without a peak run in the next type that the device has of bf16, fp16, fp32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moesim.errors import NoResult
from moesim.spec.parameters import KvDtype, bytes_per_kv_value, bytes_per_value, stored_weights

if TYPE_CHECKING:
    from moesim.spec.deployment import PrecisionChoice
    from moesim.spec.hardware import DeviceSpec, Dtype
    from moesim.spec.model import ModelSpec, WeightDtype, Weights

__all__ = ["Format", "Formats", "peak", "resolve_formats"]

_OWN: dict[WeightDtype, Dtype] = {
    "fp32": "fp32",
    "bf16": "bf16",
    "fp16": "fp16",
    "fp8": "fp8",
    "fp8_block": "fp8",
    "int8": "int8",
    "nvfp4": "fp4",
    "mxfp4": "fp4",
    "int4": "int4",
}
_BITS: dict[Dtype, int] = {"fp32": 32, "bf16": 16, "fp16": 16, "fp8": 8, "int8": 8, "fp4": 4, "int4": 4}
_INPUT_BYTES: dict[Dtype, float] = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "fp4": 0.5625,
}
_WIDENING: dict[Dtype, tuple[Dtype, ...]] = {
    "bf16": ("bf16", "fp16", "fp32"),
    "fp16": ("fp16", "bf16", "fp32"),
    "fp32": ("fp32",),
}


@dataclass(frozen=True, slots=True)
class Format:
    """Storage and arithmetic of one group of weights.

    Attributes
    ----------
    stored : storage type of the weights
    value_bytes : bytes per weight, scales included
    compute : arithmetic type on this device
    input_bytes : bytes per activation value that enters the product
    """

    stored: WeightDtype
    value_bytes: float
    compute: Dtype
    input_bytes: float

    @property
    def quantises(self) -> bool:
        """True when activations are quantised before the product."""
        return _BITS[self.compute] < 16


@dataclass(frozen=True, slots=True)
class Formats:
    """Formats of every group of a model on a device.

    Attributes
    ----------
    attention, dense, experts, ends, plain : projections; dense and shared FFN; routed experts; embedding and
        head; routers and norms (bf16)
    core : arithmetic of attention itself; a quantised cache is widened when read
    index : arithmetic of sparse attention's indexer: fp8 where the device has it (DeepSeek-V3.2-Exp)
    kv : storage type of the cache
    kv_bytes : bytes per cached value
    activation_bytes : bytes per value of activations between products
    notes : which rules bit, one sentence each
    """

    attention: Format
    dense: Format
    experts: Format
    ends: Format
    plain: Format
    core: Dtype
    index: Dtype
    kv: KvDtype
    kv_bytes: float
    activation_bytes: float
    notes: tuple[str, ...]


def peak(device: DeviceSpec, dtype: Dtype) -> float:
    """Return the device's dense matrix rate, FLOP/s.

    Raises
    ------
    NoResult : the device states no such peak; it is not guessed from another type's
    """
    try:
        return device.compute.peaks[dtype]
    except KeyError:
        known = ", ".join(device.compute.peaks)
        message = f"{device.name} has no {dtype} peak (it has {known}): choose another precision or device"
        raise NoResult(message) from None


def _widened(device: DeviceSpec, dtype: Dtype, what: str, notes: list[str]) -> Dtype:
    """Return the first 16- or 32-bit type the device has a peak for (rule 3)."""
    for candidate in _WIDENING[dtype]:
        if candidate in device.compute.peaks:
            if candidate != dtype:
                notes.append(f"{what}: {dtype} runs in {candidate}, {device.name} has no {dtype} peak")
            return candidate
    peak(device, dtype)
    raise AssertionError


def _format(
    device: DeviceSpec, stored: WeightDtype, types: Weights, what: str, notes: list[str], *, asked: bool
) -> Format:
    own, size = _OWN[stored], bytes_per_value(stored, types.int4_group)
    if _BITS[own] >= 16:
        compute = _widened(device, own, what, notes)
        return Format(stored, size, compute, _INPUT_BYTES[compute])
    compute = types.activations if _BITS[types.activations] >= _BITS[own] else own
    if _BITS[compute] >= 16:
        compute = _widened(device, compute, what, notes)
        notes.append(f"{what}: {stored} weights are widened to {compute} when loaded (weight-only)")
    elif compute not in device.compute.peaks:
        if asked:
            peak(device, compute)
        wide = _widened(device, "bf16", what, notes)
        notes.append(
            f"{what}: {stored} weights run weight-only in {wide}, {device.name} has no {compute} peak"
        )
        compute = wide
    return Format(stored, size, compute, _INPUT_BYTES[compute])


def resolve_formats(
    model: ModelSpec, device: DeviceSpec, precision: PrecisionChoice | None = None
) -> Formats:
    """Return how ``model`` runs on ``device`` under ``precision``; the rules are in the module text.

    Raises
    ------
    NoResult : the run asks for arithmetic that the device lacks, or the device has no 16- or 32-bit rate
    """
    types = stored_weights(model, precision)
    asked = precision is not None and precision.activations is not None
    if asked:
        peak(device, types.activations)
    notes: list[str] = []

    def form(stored: WeightDtype, what: str) -> Format:
        return _format(device, stored, types, what, notes, asked=asked)

    plain_core: Dtype = _OWN[types.default] if types.default in {"fp32", "fp16"} else "bf16"
    core = _widened(device, plain_core, "attention", notes)
    return Formats(
        attention=form(types.attention or types.default, "attention projections"),
        dense=form(types.default, "dense and shared FFN"),
        experts=form(types.experts or types.default, "routed experts"),
        ends=form(types.embedding, "embedding and head"),
        plain=form("bf16", "routers"),
        core=core,
        index="fp8" if "fp8" in device.compute.peaks else core,
        kv=types.kv_cache,
        kv_bytes=bytes_per_kv_value(types.kv_cache),
        activation_bytes=4.0 if types.default == "fp32" else 2.0,
        notes=tuple(dict.fromkeys(notes)),
    )
