"""Moving cases: copies on the device, between host and device, from storage, and starting kernels."""

from __future__ import annotations

import mmap
import os
import random
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesim.calibrate.measure.case import Case, copies, normal, value_bytes
from moesim.calibrate.measure.record import Point

if TYPE_CHECKING:
    import torch

__all__ = ["copy", "launch", "storage_read", "transfer"]

_FILE_BYTES = 256 * 2**20
_PAGE = 4096


def _difference(destination: torch.Tensor, source: torch.Tensor) -> float:
    """Return 0 for equal bytes, else infinity: a copy has no rounding."""
    same = bool((destination.cpu() == source.cpu()).all())
    return 0.0 if same else float("inf")


def copy(point: Point, cache: int) -> Case:
    """Make a copy inside the device's memory ready; ``bytes`` counts reading and writing."""
    count = point["size"] // value_bytes(point.dtype)
    pairs = [
        (
            normal(i, count, dtype=point.dtype, device=point.device),
            normal(0, count, dtype=point.dtype, device=point.device),
        )
        for i in range(1, 1 + copies(2.0 * point["size"], cache, 32))
    ]
    source, destination = pairs[0]

    def check() -> float:
        destination.copy_(source)
        return _difference(destination, source)

    return Case([partial(d.copy_, s) for s, d in pairs], 0.0, 2.0 * point["size"], check)


def transfer(point: Point, cache: int) -> Case:
    """Make a copy between host and GPU ready; ``variant`` is ``h2d`` or ``d2h``, then ``pinned`` or ``pageable``."""
    del cache
    direction, kind = point.variant.split("-")
    count = point["size"] // value_bytes(point.dtype)
    pinned = kind == "pinned"
    host = normal(1, count, dtype=point.dtype, device="cpu")
    if pinned:
        host = host.pin_memory()
    device = normal(2, count, dtype=point.dtype, device="cuda")
    source, destination = (host, device) if direction == "h2d" else (device, host)

    def check() -> float:
        import torch

        destination.copy_(source, non_blocking=pinned)
        torch.cuda.synchronize()
        return _difference(destination, source)

    return Case(
        [partial(destination.copy_, source, non_blocking=pinned)],
        0.0,
        float(point["size"]),
        check,
        eager=True,
    )


def launch(point: Point, cache: int) -> Case:
    """Make ``launches`` kernels with next to no work ready: the time of a call is what starting them costs.

    ``variant`` is ``eager`` (one by one from the host) or ``graph`` (replayed, GPU only).
    """
    del cache
    x = normal(0, 1, dtype=point.dtype, device=point.device)
    count = point["launches"]

    def run() -> None:
        for _ in range(count):
            x.add_(0.0)

    return Case([run], 0.0, 0.0, eager=point.variant == "eager")


def storage_read(point: Point, cache: int, folder: Path) -> Case:
    """Make reads of ``size`` bytes at random places of a file in ``folder`` ready, one at a time.

    ``variant`` is ``direct`` (past the page cache) or ``cached`` (from it). The file holds random bytes, so that
    no layer below compresses it.

    Raises
    ------
    OSError : no room for the file, or direct reads are not possible on this file system
    """
    del cache
    size = point["size"]
    handle, name = tempfile.mkstemp(prefix=".moesim-read-", dir=folder)
    with os.fdopen(handle, "wb") as file:
        block = random.Random(0).randbytes(2**20)  # noqa: S311 - not for secrets
        for index in range(_FILE_BYTES // 2**20):
            file.write(index.to_bytes(8, "little") + block[8:])
        file.flush()
        os.fsync(file.fileno())
    direct = point.variant == "direct"
    try:
        opened = os.open(name, os.O_RDONLY | (getattr(os, "O_DIRECT", 0) if direct else 0))
    finally:
        Path(name).unlink()  # the open handle keeps the bytes until it is closed
    buffer = mmap.mmap(-1, max(size, _PAGE))  # page-aligned, as direct reads demand
    places = random.Random(1)  # noqa: S311 - not for secrets
    spots = [places.randrange(0, (_FILE_BYTES - size) // _PAGE + 1) * _PAGE for _ in range(256)]

    def check() -> float:
        at = (_FILE_BYTES - size) // 2**20 * 2**20
        _read(opened, buffer, size, at)
        want = (at // 2**20).to_bytes(8, "little") + block[8:_PAGE]
        return 0.0 if buffer[:_PAGE] == want else float("inf")

    def close() -> None:
        os.close(opened)
        buffer.close()

    calls: list[Callable[[], Any]] = [partial(_read, opened, buffer, size, spot) for spot in spots]
    if not direct:
        for spot in range(0, _FILE_BYTES - size + 1, size):
            _read(opened, buffer, size, spot)
    return Case(calls, 0.0, float(size), check, close=close)


def _read(opened: int, buffer: mmap.mmap, size: int, at: int) -> None:
    with memoryview(buffer) as view:
        done = 0
        while done < size:
            got = os.preadv(opened, [view[done:size]], at + done)
            if got <= 0:
                raise OSError(f"read {done} of {size} bytes")
            done += got
