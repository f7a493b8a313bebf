"""Device: what is measured, with which software, and what its datasheet allows."""

from __future__ import annotations

import math
import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from moesim.errors import DataMissing, SpecError
from moesim.spec.base import load_spec
from moesim.spec.hardware import DeviceSpec, Dtype

if TYPE_CHECKING:
    from types import ModuleType

__all__ = [
    "bound_seconds",
    "cache_bytes",
    "choose",
    "describe",
    "device_name",
    "known_device",
    "torch_module",
]

_CATALOG = {
    "NVIDIA A100-PCIE-40GB": "a100-40-pcie",
    "NVIDIA A100-SXM4-40GB": "a100-40-sxm",
    "NVIDIA A100 80GB PCIe": "a100-80-pcie",
    "NVIDIA A100-SXM4-80GB": "a100-80-sxm",
    "NVIDIA A30": "a30",
    "NVIDIA B200": "b200-sxm",
    "NVIDIA GeForce RTX 3090": "rtx-3090",
    "NVIDIA GeForce RTX 4090": "rtx-4090",
    "NVIDIA H100 80GB HBM3": "h100-sxm",
    "NVIDIA H100 NVL": "h100-nvl",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H20": "h20",
    "NVIDIA H200": "h200-sxm",
    "NVIDIA H800": "h800-sxm",
    "NVIDIA L4": "l4",
    "NVIDIA L40S": "l40s",
    "AMD EPYC 9654 96-Core Processor": "epyc-9654",
}
"""Names as the driver or the processor reports them, to devices of the catalog. Only whole names match."""

_CACHE = re.compile(r"(\d+)([KM])")


def torch_module() -> ModuleType:
    """Return PyTorch.

    Raises
    ------
    DataMissing : the extra is not installed
    """
    try:
        import torch
    except ImportError:
        raise DataMissing("measuring needs PyTorch: pip install 'moesim[torch]'") from None
    return cast("ModuleType", torch)


def choose(device: str) -> Literal["cpu", "cuda"]:
    """Return the device to measure; ``auto`` is a GPU where PyTorch sees one.

    Raises
    ------
    SpecError : not ``auto``, ``cpu`` or ``cuda``, or no GPU is visible
    """
    if device not in {"auto", "cpu", "cuda"}:
        raise SpecError(f"--device {device!r}: expected auto, cpu or cuda")
    gpu = bool(torch_module().cuda.is_available())
    if device == "cuda" and not gpu:
        raise SpecError("--device cuda: PyTorch sees no CUDA device here; expected auto or cpu")
    return "cuda" if gpu and device != "cpu" else "cpu"


def device_name(device: str) -> str:
    """Return the name that the driver or the processor reports."""
    if device == "cuda":
        return str(torch_module().cuda.get_device_name())
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = dict(reversed([cpu_line(line) for line in text.splitlines() if ":" in line]))
    if "model name" not in found:
        return platform.processor() or platform.machine()
    return found["model name"]


def cpu_line(line: str) -> tuple[str, str]:
    """Split one line of a processor listing into name and value."""
    name, value = line.split(":", 1)
    return name.strip(), value.strip()


def cache_bytes(device: str) -> int:
    """Return the size of the last cache before main memory, 64 MiB where it is not stated."""
    if device == "cuda":
        properties = torch_module().cuda.get_device_properties(0)
        return int(getattr(properties, "L2_cache_size", 0)) or 64 * 2**20
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        found = _CACHE.match(path.read_text(encoding="utf-8"))
        if found:
            sizes.append(int(found[1]) * (2**10 if found[2] == "K" else 2**20))
    return max(sizes, default=64 * 2**20)


def describe(device: str) -> dict[str, Any]:
    """Return what a reader needs to judge or repeat the measurement: device, driver, versions, threads."""
    torch = torch_module()
    facts: dict[str, Any] = {
        "device": device,
        "device_name": device_name(device),
        "system": platform.system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in ("moesim", "torch", "triton", "numpy")},
        "cpu_name": device_name("cpu"),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "last_cache_bytes": cache_bytes(device),
    }
    if device == "cpu":
        facts["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    else:
        facts["cuda"] = torch.version.cuda
        facts["driver"] = _driver()
        facts["capability"] = list(torch.cuda.get_device_capability())
        facts["device_count"] = torch.cuda.device_count()
    return facts


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)  # noqa: S603 - fixed words
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else "unknown"


def known_device(name: str) -> DeviceSpec | None:
    """Return the catalog's device of this reported name, or None; nothing is guessed from a similar name."""
    return load_spec(DeviceSpec, _CATALOG[name], "device") if name in _CATALOG else None


def bound_seconds(spec: DeviceSpec | None, dtype: str, flop: float, moved: float) -> float:
    """Return the least seconds that the datasheet allows for ``flop`` operations and ``moved`` bytes.

    NaN for an unknown device, and where work is done in a type without a stated peak.
    """
    if spec is None:
        return math.nan
    if flop and (dtype not in get_args(Dtype) or cast("Dtype", dtype) not in spec.compute.peaks):
        return math.nan
    work = flop / spec.compute.peaks[cast("Dtype", dtype)] if flop else 0.0
    return float(max(work, moved / spec.main.bandwidth))
