"""One thread: small matrices decompose fastest on one, and two processes that share cores must not fight for them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["one_blas_thread"]


@cache
def _openblas() -> tuple[Any, Any] | None:
    """Return the functions that read and set the threads of the OpenBLAS that numpy's wheel carries, if it does."""
    folders = (Path(np.__file__).parent.parent / "numpy.libs", Path(np.__file__).parent / ".dylibs")
    for path in sorted(p for folder in folders for p in folder.glob("libscipy_openblas*")):
        with suppress(OSError, AttributeError):
            library = ctypes.CDLL(str(path))
            return library.scipy_openblas_get_num_threads64_, library.scipy_openblas_set_num_threads64_
    return None


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Run numpy's linear algebra on one thread inside, where its OpenBLAS lets us; otherwise change nothing."""
    found = _openblas()
    if found is None:
        yield
        return
    before = int(found[0]())
    found[1](1)
    try:
        yield
    finally:
        found[1](before)
