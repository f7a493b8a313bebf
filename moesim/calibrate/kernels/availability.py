"""Availability: whether Triton kernels can run on a device here."""

from __future__ import annotations

import importlib.util
import os

__all__ = ["kernel_errors", "runs_on"]


def runs_on(device: str) -> bool:
    """Return whether the Triton kernels run on ``device`` (``cpu`` or ``cuda``).

    A CPU needs Triton's interpreter (``TRITON_INTERPRET=1`` before the kernels are imported), which checks
    results and tells nothing about time.
    """
    if importlib.util.find_spec("triton") is None or importlib.util.find_spec("torch") is None:
        return False
    if device == "cpu":
        return os.environ.get("TRITON_INTERPRET") == "1"
    import torch

    return bool(torch.cuda.is_available())


def kernel_errors() -> tuple[type[Exception], ...]:
    """Return what Triton raises for a kernel that this device cannot hold or compile; nothing without Triton."""
    if importlib.util.find_spec("triton") is None:
        return ()
    from triton.errors import TritonError

    return (TritonError,)
