"""Fitted: the estimator that answers from kernel times fitted to measurements, in an engine's flavour."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from moesim.cost.fitted.artifact import Artifact, Group, shipped
from moesim.cost.fitted.attention import attention_term
from moesim.cost.fitted.exchange import exchange_seconds
from moesim.cost.fitted.features import (
    Features,
    Machine,
    gemm_features,
    machine_of,
    moe_features,
    quantise_features,
)
from moesim.cost.fitted.formats import FORMATS, Kernel, kernel_of
from moesim.errors import SpecError

if TYPE_CHECKING:
    from moesim.cost.attention import AttentionShape
    from moesim.cost.fitted.artifact import GroupKey
    from moesim.cost.ops import Op
    from moesim.cost.pricing import AttentionTerm, FloatArray
    from moesim.cost.roofline import Origin, Place
    from moesim.spec.hardware import DeviceSpec, Dtype

__all__ = ["FRAMEWORKS", "Fitted", "Framework", "launched"]

Framework = Literal["vllm", "sglang", "trtllm"]
FRAMEWORKS: tuple[Framework, ...] = ("vllm", "sglang", "trtllm")

_KERNELS = ("trtllm", "deepgemm", "triton", "cutlass", "default", "marlin", "min_latency")
"""Which kernel of experts an engine prefers where several were measured: the one its defaults pick first."""
_FUSED = ("moe_permute", "moe_activation", "moe_unpermute")


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """Kernel times of one engine's flavour; what it was never measured for stays unknown (NaN).

    Attributes
    ----------
    framework : whose kernels. Where it has none for a pair of types, another engine's stand in, in the order of
        ``FRAMEWORKS``: they often share the library
    artifact : fitted groups
    moe_kernel : which kernel runs the experts, of whatever engine it was measured in; ``auto``: the engine's first
    skew : exponent of the power law of the experts' load that the tile counts of expert kernels assume: 1.2 as in
        the measurements' default; 0 for an evenly balanced router. Rows and distinct experts come from the op
    """

    framework: Framework = "vllm"
    artifact: Artifact = field(default_factory=shipped)
    moe_kernel: str = "auto"
    skew: float = 1.2
    origin: Origin = "fitted"

    def __post_init__(self) -> None:
        if self.framework not in FRAMEWORKS:
            known = ", ".join(FRAMEWORKS)
            raise SpecError(f"framework {self.framework!r}: expected one of {known}")

    def seconds(self, op: Op, place: Place) -> FloatArray:
        """Return seconds of all layers of ``op``, [tokens]; NaN where no measured kernel speaks for it.

        The measurements replay captured graphs; launched one by one, an op takes at least its launches.
        """
        work = self._work(op, place)
        if work is None:
            return np.full(op.tokens.shape, np.nan)
        return launched(op, place, work) if not _fused(op) else op.layers * work

    def attention(self, shape: AttentionShape, place: Place) -> AttentionTerm | None:
        """Return the bound's coefficients with the grids of measured time over bound, or None where unknown."""
        return attention_term(self._groups, shape, place)

    def interval(self, op: Op, place: Place) -> tuple[FloatArray, FloatArray]:
        """Return (low, high) factors on ``seconds`` of the 90 % interval, [tokens]; NaN where unknown.

        Made from hold-out errors: of unseen shapes on a measured device, of unseen devices on another.
        """
        unknown = np.full(op.tokens.shape, np.nan)
        found = self._kernel(op, place.device)
        if found is None:
            return unknown, unknown.copy()
        _, group, features = found
        clock = _clock(place.device)
        return group.bounds(features, place.device.name, clock)

    def stamp(self, op: Op, place: Place) -> str:
        """Return which engine and version answers for ``op``: ``vllm 0.24.0``, or ``vllm, another device``."""
        found = self._kernel(op, place.device)
        if found is None:
            return ""
        (_, framework, _, _), group, _ = found
        fit = group.devices.get(place.device.name)
        return f"{framework} {', '.join(fit.versions)}" if fit else f"{framework}, fitted on other devices"

    def versions(self, device: str) -> dict[str, tuple[str, ...]]:
        """Return ``family -> engine versions`` that the own engine's fits on ``device`` were measured with."""
        found: dict[str, set[str]] = {}
        for (family, framework, _, _), group in self.artifact.groups.items():
            if framework == self.framework and device in group.devices:
                found.setdefault(family, set()).update(group.devices[device].versions)
        return {family: tuple(sorted(versions)) for family, versions in sorted(found.items())}

    def mismatch(self, device: str, version: str) -> str:
        """Return one sentence where ``version`` of the engine is not the one measured on ``device``, else nothing."""
        measured = {v for versions in self.versions(device).values() for v in versions}
        if not measured or version in measured:
            return ""
        return (
            f"kernel times were measured with {self.framework} {', '.join(sorted(measured))}, not {version}"
        )

    def _work(self, op: Op, place: Place) -> FloatArray | None:
        """Return seconds of one layer without what eager launches add, [tokens]."""
        if op.exchange is not None:
            return exchange_seconds(self.artifact, self.framework, op, place)
        if _fused(op):  # inside the measured expert kernel, where there is one
            return None if self._expert_group(op, place.device) is None else np.zeros(op.tokens.shape)
        found = self._kernel(op, place.device)
        if found is None:
            return None
        _, group, features = found
        seconds = group.seconds(features, place.device.name, _clock(place.device))
        if op.kind == "grouped_gemm":
            return seconds * _share(op)
        return seconds

    def _kernel(self, op: Op, device: DeviceSpec) -> tuple[GroupKey, Group, Features] | None:
        if op.kind == "gemm":
            return self._gemm(op, device)
        if op.kind == "grouped_gemm":
            return self._experts(op, device)
        if op.kind == "memory" and op.dtype == "fp8" and "quantise" in op.name:
            return self._quantise(op, device)
        return None

    def _gemm(self, op: Op, device: DeviceSpec) -> tuple[GroupKey, Group, Features] | None:
        name, machine = kernel_of(op.stored, op.dtype), machine_of(device, op.dtype)
        if name is None or machine is None:
            return None
        found = self._find("gemm", name, device.name)
        if found is None:
            return None
        dims, form = dict(op.dims), FORMATS[name]
        n, k = float(dims["n"]), float(dims["k"])
        m = np.maximum(op.flop / (2 * n * k), 1.0)
        return *found, gemm_features(m, np.array(n), np.array(k), form.value_bytes, form.input_bytes, machine)

    def _expert_group(self, op: Op, device: DeviceSpec) -> tuple[GroupKey, Group, Kernel, Machine] | None:
        """Return the group of the routed experts that ``op`` belongs to, product or pass beside it."""
        dims = dict(op.dims)
        if "hidden" not in dims or not op.stored:
            return None
        compute = op.dtype if op.kind == "grouped_gemm" else _compute(op.stored, dims["input_bits"])
        name = kernel_of(op.stored, compute) if compute else None
        machine = machine_of(device, compute) if compute else None
        if name is None or machine is None:
            return None
        kernels = (*_KERNELS, "nongated") if dims["ups"] == 2 else ("nongated", *_KERNELS)
        found = None
        if self.moe_kernel != "auto":
            found = self._find("moe", name, device.name, (self.moe_kernel,))
            found = found if found is not None and device.name in found[1].devices else None
        found = found or self._find("moe", name, device.name, kernels)
        return None if found is None else (*found, FORMATS[name], machine)

    def _experts(self, op: Op, device: DeviceSpec) -> tuple[GroupKey, Group, Features] | None:
        found = self._expert_group(op, device)
        if found is None:
            return None
        key, group, form, machine = found
        dims = dict(op.dims)
        hidden, inner, ups, top_k, experts, ep = (
            np.array(float(dims[c])) for c in ("hidden", "inner", "ups", "top_k", "experts", "ep")
        )
        values = float(dims["n"]) * dims["k"]
        rows, touched = op.flop / (2 * values), op.weight_bytes / (values * form.value_bytes)
        tokens = op.tokens.astype(np.float64)
        if dims.get("sent"):
            # the kernel sees what was sent to its rank: each row is a token with one expert of few
            tokens, top_k, experts, ep = rows, np.array(1.0), experts / ep, np.array(1.0)
        features = moe_features(
            tokens, rows, touched, hidden, inner, ups, experts, ep, top_k,
            np.array(self.skew), form.value_bytes, form.input_bytes, machine, group.age(device.name),
        )  # fmt: skip
        return key, group, features

    def _quantise(self, op: Op, device: DeviceSpec) -> tuple[GroupKey, Group, Features] | None:
        found, machine = self._find("quantise", "fp8", device.name), machine_of(device, "bf16")
        if found is None or machine is None:
            return None
        m = np.maximum(op.tokens.astype(np.float64), 1.0)
        return *found, quantise_features(m, np.maximum(op.bytes / (3 * m), 1.0), machine)

    def _find(
        self, family: str, dtype: str, device: str, kernels: tuple[str, ...] = ("any",)
    ) -> tuple[GroupKey, Group] | None:
        """Return the group to ask: measured on the device if any is, the own engine's before others'."""
        frameworks = (self.framework, *(f for f in FRAMEWORKS if f != self.framework))
        there = [
            (key, group)
            for framework in frameworks
            for kernel in kernels
            if (group := self.artifact.groups.get(key := (family, framework, dtype, kernel))) is not None
        ]
        measured = [pair for pair in there if device in pair[1].devices]
        return next(iter(measured or there), None)

    def _groups(self, family: str, dtype: str, device: str) -> tuple[GroupKey, Group] | None:
        """Return the attention group to ask, whatever its kernel: the one fitted from most rows."""
        kernels = {key[3] for key in self.artifact.groups if key[0] == family and key[2] == dtype}

        def rows(kernel: str) -> int:
            group = self.artifact.groups.get((family, self.framework, dtype, kernel))
            fit = group.devices.get(device) if group else None
            return fit.rows if fit else 0

        ordered = tuple(sorted(kernels, key=lambda kernel: (-rows(kernel), kernel)))
        return self._find(family, dtype, device, ordered)


def launched(op: Op, place: Place, work: FloatArray) -> FloatArray:
    """Return seconds of all layers from measured ``work`` of one: at least the launches, nothing for no tokens."""
    slower = np.maximum(work, np.where(np.isnan(work), np.nan, op.launches * place.launch.seconds(op.tokens)))
    return np.where(op.tokens > 0, op.layers * slower, 0.0)


def _fused(op: Op) -> bool:
    return op.kind == "memory" and op.name.startswith(_FUSED)


def _clock(device: DeviceSpec) -> float:
    machine = machine_of(device, next(iter(device.compute.peaks)))
    assert machine is not None
    return float(machine.clock)


def _compute(stored: str, input_bits: int) -> Dtype | None:
    return next(
        (
            k.compute
            for k in FORMATS.values()
            if k.stored == stored and round(8 * k.input_bytes) == input_bits
        ),
        None,
    )


def _share(op: Op) -> float:
    """Return the part of the fused expert kernel that is this product's: by its share of the weights and flop."""
    dims = dict(op.dims)
    ups = dims["ups"]
    return 1 / (ups + 1) if op.name.startswith("moe_down") else ups / (ups + 1)
