"""Formats: the pairs of stored and computed types that kernels were measured for."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from moesim.spec.hardware import Dtype
    from moesim.spec.model import WeightDtype

__all__ = ["FORMATS", "Kernel", "kernel_of"]


class Kernel(NamedTuple):
    """Types of one measured kernel.

    Attributes
    ----------
    name : key of ``FORMATS``
    stored, value_bytes : weights, scales included
    compute, input_bytes : arithmetic, and bytes of an activation that enters it
    """

    name: str
    stored: WeightDtype
    value_bytes: float
    compute: Dtype
    input_bytes: float


FORMATS: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        Kernel("bf16", "bf16", 2.0, "bf16", 2.0),
        Kernel("fp8", "fp8", 1.0, "fp8", 1.0),
        Kernel("fp8_block", "fp8_block", 1.0 + 4.0 / 128**2, "fp8", 1.0),
        Kernel("nvfp4", "nvfp4", 0.5625, "fp4", 0.5625),
        Kernel("int4_wo", "int4", 0.5 + 2.0 / 128, "bf16", 2.0),
        Kernel("mxfp4_wo", "mxfp4", 0.53125, "bf16", 2.0),
        Kernel("mxfp4_fp8", "mxfp4", 0.53125, "fp8", 1.0),
    )
}
"""By name. Bytes per value are those of ``spec.parameters.bytes_per_value``."""


def kernel_of(stored: str, compute: Dtype) -> str | None:
    """Return the measured kernel for weights ``stored`` that multiply in ``compute``; None if there is none.

    >>> kernel_of("mxfp4", "fp8"), kernel_of("fp8", "bf16")
    ('mxfp4_fp8', None)
    """
    alike = {"fp16": "bf16"}
    for kernel in FORMATS.values():
        if (alike.get(stored, stored), alike.get(compute, compute)) == (kernel.stored, kernel.compute):
            return kernel.name
    return None
