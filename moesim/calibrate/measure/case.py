"""Case: a point made ready: calls on rotating buffers, its work, and its check against float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moesim.calibrate.measure.timing import Calls

if TYPE_CHECKING:
    import torch

__all__ = ["Case", "copies", "largest_error", "normal", "sampled", "torch_dtype", "value_bytes"]

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A point made ready.

    Attributes
    ----------
    calls : the same work on different buffers
    flop, bytes : work of one call
    check : returns the largest error of a call against float64, over the largest reference value; None where
        there is nothing to verify
    tolerance : what rounding explains
    extra : sizes known only now, such as the number of distinct experts
    eager : start the kernels one by one even where a graph could replay them
    close : frees what memory management does not (files)
    """

    calls: Calls
    flop: float
    bytes: float
    check: Callable[[], float] | None = None
    tolerance: float = 0.0
    extra: tuple[tuple[str, int], ...] = ()
    eager: bool = False
    close: Callable[[], Any] = lambda: None


def torch_dtype(dtype: str) -> Any:
    """Return PyTorch's type for ``fp32``, ``bf16`` or ``fp16``."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]


def value_bytes(dtype: str) -> int:
    """Return bytes per value of ``fp32``, ``bf16`` or ``fp16``."""
    return _BYTES[dtype]


def copies(set_bytes: float, cache: int, limit: int = 64) -> int:
    """Return how many sets of buffers to rotate: together three times the cache, 1 to ``limit``, 4 GiB at most."""
    wanted = -(-3 * cache // max(1, int(set_bytes)))
    return max(1, min(wanted, limit, int(4 * 2**30 // max(1.0, set_bytes))))


def normal(seed: int, *shape: int, dtype: str, device: str, scale: float = 1.0) -> torch.Tensor:
    """Return normal random values, equal for equal arguments: all-zero data draws less power and runs faster."""
    import torch

    generator = torch.Generator(device).manual_seed(seed)
    values = torch.randn(*shape, generator=generator, device=device, dtype=torch.float32)
    return (values * scale).to(torch_dtype(dtype))


def sampled(count: int, at_most: int = 16) -> list[int]:
    """Return up to ``at_most`` row numbers spread over ``count`` rows, the first and the last among them.

    Float64 references are slow; a wrong tile, a wrong mask or a wrong expert shows in the spread-out rows.
    """
    if count <= at_most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (at_most - 1)) for i in range(at_most)})


def largest_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Return the largest difference over the largest reference value; NaN anywhere in ``got`` gives infinity."""
    import torch

    difference = (got.double() - want).abs()
    if not bool(torch.isfinite(difference).all()):
        return float("inf")
    return float(difference.max() / want.abs().max().clamp_min(1e-300))
