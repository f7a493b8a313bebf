"""Calibration: what prices the steps of a pool beside the roofline bound, and how far it has been from measurements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from moesim.cost.fitted import Fitted, Framework, chain_for, shipped
from moesim.cost.fitted.own import own_artifact
from moesim.cost.overheads import Overhead, OverheadTable, hidden, load_overheads
from moesim.cost.roofline import Chain, Estimator
from moesim.errors import DataMissing
from moesim.spec.deployment import Engine
from moesim.spec.hardware import DeviceSpec

__all__ = ["Calibration", "Tables", "calibrated"]

Tables = Callable[[Framework], Estimator]
_SHIPPED = ("shipped", "tables")
_LATENCIES = ("ttft", "tpot")
_MEASURED_VENDOR = "NVIDIA"
_CALIBRATED_ON = (
    "dense models on Hopper and Blackwell; with experts, the hold-out error of their kernels is added"
)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Estimators and host time of one engine on one device.

    Attributes
    ----------
    chain : estimators, best first; None: the bound alone
    host : host time per step and sequence, without what only a client sees
    intervals : ``ttft`` and ``tpot`` -> factors (low, high) on simulated means between which nine of ten measured
        deployments lie; empty where nothing was validated
    notes : assumptions, one sentence each
    """

    chain: Chain | None = None
    host: Overhead = field(default_factory=Overhead)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def calibrated(
    name: str,
    engine: Engine,
    device: DeviceSpec,
    beside: Path | None = None,
    tables: Tables | None = None,
    *,
    experts: bool = False,
) -> Calibration:
    """Return what prices an engine's steps on a device.

    Parameters
    ----------
    name : ``shipped``, ``tables`` (exact measurements before the shipped fits), ``none``, or the path of an artifact
        without suffix
    engine : whose kernels
    device : the shipped kernels are CUDA's: other makers' devices are priced by the bound, unless an artifact is named
    beside : file that a relative path starts from
    experts : the model has routed experts, whose kernels add to the interval
    tables : from a flavor to the estimator of its measured tables, which the extra ``silicon`` holds

    Raises
    ------
    DataMissing : there is no such artifact, or the tables are asked for and not at hand
    """
    ours = name in _SHIPPED
    cuda = device.vendor == _MEASURED_VENDOR
    if name == "none" or (ours and not cuda):
        return Calibration(host=_stated(Overhead(), engine))
    artifact = (
        shipped()
        if ours
        else own_artifact(Path(beside.parent if beside else "", name), engine.flavor, device.name)
    )
    chain = chain_for(engine.flavor, artifact, engine.moe_backend)
    if name == "tables":
        if tables is None:
            raise DataMissing("calibration 'tables': the measured tables need the extra `silicon`")
        chain = Chain((tables(engine.flavor), *chain.estimators))
    table = load_overheads() if cuda else None
    if table is None:
        return Calibration(
            chain,
            _stated(Overhead(), engine),
            notes=_kernels(Fitted(engine.flavor, artifact), engine, device),
        )
    host = replace(table.of(engine.flavor, architecture=device.architecture), request_s=0.0)
    suffix = "_moe" if experts else ""
    intervals = {
        key: table.intervals[key + suffix] for key in _LATENCIES if ours and key + suffix in table.intervals
    }
    notes = (*_kernels(Fitted(engine.flavor, artifact), engine, device), *_hosts(table, engine, device))
    return Calibration(chain, _stated(host, engine), intervals, (*notes, *_bands(intervals)))


def _stated(host: Overhead, engine: Engine) -> Overhead:
    """Return the terms without the one that the scenario states itself (the tables already hold it)."""
    if engine.async_scheduling:
        host = hidden(host)
    return host if engine.step_overhead is None else replace(host, step_s=0.0)


def _kernels(fitted: Fitted, engine: Engine, device: DeviceSpec) -> tuple[str, ...]:
    versions = fitted.versions(device.name)
    if not versions:
        return (
            f"No kernel of {engine.flavor} was measured on {device.name}: fits of other devices stand in.",
        )
    known = ", ".join(sorted({version for family in versions.values() for version in family}))
    first = f"Kernel times are fitted to {engine.flavor} {known} on {device.name}."
    other = fitted.mismatch(device.name, engine.version) if engine.version else ""
    return (first, f"{other[0].upper()}{other[1:]}.") if other else (first,)


def _hosts(table: OverheadTable, engine: Engine, device: DeviceSpec) -> tuple[str, ...]:
    rule = table.rule(engine.flavor, architecture=device.architecture)
    if rule is None:
        return (f"No host time of {engine.flavor} was fitted: steps are kernels alone.",)
    if engine.async_scheduling:
        return (f"Host time of {engine.flavor} is hidden by asynchronous scheduling.",)
    terms = (
        f"Host time of {engine.flavor}: {rule.step * 1e6:.0f} us a step, {rule.sequence * 1e6:.1f} us a sequence, "
        f"fitted on {rule.rows} runs. Clients saw {rule.request * 1e3:.0f} ms more in TTFT, which is not added."
    )
    other = table.note(engine.flavor, "inferencemax", device.architecture, engine.version)
    return (terms, f"{other[0].upper()}{other[1:]}.") if other else (terms,)


def _bands(intervals: dict[str, tuple[float, float]]) -> tuple[str, ...]:
    if not intervals:
        return ()
    parts = [
        f"mean {key.upper()} {low:.2f} to {high:.2f} times" for key, (low, high) in sorted(intervals.items())
    ]
    return (f"Nine of ten measured runs had {' and '.join(parts)} the simulated one ({_CALIBRATED_ON}).",)
