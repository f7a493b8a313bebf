"""Cache: one tier that holds some of the experts, whole or shared out over the layers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moesim.errors import SpecError

__all__ = ["Cache", "layer_cache", "shared_cache"]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Cache:
    """A tier and what it may hold. Keys are ``layer * experts + expert``.

    Attributes
    ----------
    capacity : bytes of each part, [part]
    part : part that a layer's experts live in, int32 [layer]
    size : bytes of an expert in full precision, [key]
    small : bytes in low precision, [key]; the same where there is none
    pinned : experts that are there from the start and never leave, bool [key]
    resident : experts that are there at the start, pinned ones among them, bool [key]
    probability : chance that a request of its layer uses it, 0..1, [key]; 0 where nothing is stated
    parent : key of the expert that is always used before this one, -1 for none, int64 [key]
    """

    capacity: FloatArray
    part: npt.NDArray[np.int32]
    size: FloatArray
    small: FloatArray
    pinned: npt.NDArray[np.bool_]
    resident: npt.NDArray[np.bool_]
    probability: FloatArray
    parent: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        keys = len(self.size)
        layers = len(self.part)
        if keys == 0 or layers == 0 or keys % layers:
            raise SpecError(f"cache: {keys} experts, expected the same number in each of {layers} layers")
        self._check_shapes(keys)
        self._check_values(keys)
        over = self.used() - self.capacity
        if over.max() > 0:
            raise SpecError(
                f"cache: part {int(over.argmax())}: what is there at the start is {over.max():.0f} bytes "
                "more than its capacity"
            )

    def _check_shapes(self, keys: int) -> None:
        for name in ("small", "pinned", "resident", "probability", "parent"):
            if getattr(self, name).shape != (keys,):
                raise SpecError(f"cache: {name}: expected one entry for each of {keys} experts")
        if self.part.min() < 0 or self.part.max() >= len(self.capacity):
            raise SpecError(f"cache: part: expected 0..{len(self.capacity) - 1}")

    def _check_values(self, keys: int) -> None:
        if np.any(self.capacity < 0) or np.isnan(self.capacity).any():
            raise SpecError("cache: capacity: expected non-negative bytes")
        if not (np.all(self.size > 0) and np.all(self.small > 0) and np.all(self.small <= self.size)):
            raise SpecError("cache: expected positive sizes, low precision no larger than full")
        if not np.all((self.probability >= 0) & (self.probability <= 1)):
            raise SpecError("cache: probability: expected 0..1")
        if self.parent.min() < -1 or self.parent.max() >= keys:
            raise SpecError(f"cache: parent: expected -1..{keys - 1}")
        if np.any(self.pinned & ~self.resident):
            raise SpecError("cache: expected pinned experts to be resident")

    @property
    def experts(self) -> int:
        """Experts of each layer."""
        return len(self.size) // len(self.part)

    def used(self) -> FloatArray:
        """Return the bytes there at the start, [part]."""
        part = np.repeat(self.part, self.experts)
        held = self.size * self.resident
        return np.bincount(part, weights=held, minlength=len(self.capacity)).astype(np.float64)

    def holding(self, keys: npt.ArrayLike, *, pinned: bool = False) -> Cache:
        """Return the cache with these experts there at the start.

        Raises
        ------
        SpecError : they do not fit
        """
        there = self.resident.copy()
        there[np.asarray(keys, dtype=np.int64)] = True
        return replace(self, resident=there, pinned=there & (self.pinned | pinned))


def layer_cache(
    layers: int,
    experts: int,
    capacity: npt.ArrayLike,
    size: npt.ArrayLike = 1.0,
    small: npt.ArrayLike | None = None,
) -> Cache:
    """Return a cache with a part for each layer.

    Parameters
    ----------
    capacity : bytes of each layer's part, one number or [layer]; with ``size`` 1, experts
    size, small : bytes of an expert in full and low precision, one number or [layer * experts]
    """
    parts = np.broadcast_to(np.asarray(capacity, dtype=np.float64), layers).copy()
    return _cache(parts, np.arange(layers, dtype=np.int32), layers * experts, size, small)


def shared_cache(
    layers: int, experts: int, capacity: float, size: npt.ArrayLike = 1.0, small: npt.ArrayLike | None = None
) -> Cache:
    """Return a cache that all layers share; otherwise as ``layer_cache``."""
    return _cache(
        np.array([float(capacity)]), np.zeros(layers, dtype=np.int32), layers * experts, size, small
    )


def _cache(
    capacity: FloatArray,
    part: npt.NDArray[np.int32],
    keys: int,
    size: npt.ArrayLike,
    small: npt.ArrayLike | None,
) -> Cache:
    whole = np.broadcast_to(np.asarray(size, dtype=np.float64), keys).copy()
    return Cache(
        capacity=capacity,
        part=part,
        size=whole,
        small=whole if small is None else np.broadcast_to(np.asarray(small, dtype=np.float64), keys).copy(),
        pinned=np.zeros(keys, dtype=bool),
        resident=np.zeros(keys, dtype=bool),
        probability=np.zeros(keys),
        parent=np.full(keys, -1, dtype=np.int64),
    )
