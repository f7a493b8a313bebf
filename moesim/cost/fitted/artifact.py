"""Artifact: fitted kernel times as plain data, one JSON index beside one NPZ of arrays; no code inside.

A group is one family of kernels in one engine's version for one pair of types. It holds a forest per device it was
measured on, and one that knows no device and serves all others. A forest answers log(time / (floor + bound)).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moesim.cost.fitted.baseline import base_of, shares_of
from moesim.cost.fitted.curves import Curve
from moesim.cost.fitted.trees import Forest, bins_of
from moesim.errors import DataMissing
from moesim.files.catalog import catalog_root

if TYPE_CHECKING:
    from moesim.cost.fitted.features import Features
    from moesim.cost.pricing import FloatArray

__all__ = [
    "SHIPPED",
    "Artifact",
    "DeviceFit",
    "Group",
    "GroupKey",
    "load_artifact",
    "save_artifact",
    "shipped",
]

SHIPPED = "validation/fits/silicon"
"""Path in the catalog, without suffix."""
_FORMAT = 2
_BLOCK = 131_072

GroupKey = tuple[str, str, str, str]
"""(family, framework, dtype, kernel)."""
Interval = tuple[tuple[float, float], ...]
"""Per regime of size, (low, high): factors on the prediction between which nine of ten held-out rows lie."""


@dataclass(frozen=True, slots=True)
class DeviceFit:
    """What is known of one device in a group.

    Attributes
    ----------
    forest : of log(time / (floor + bound))
    floor_cycles : clock cycles that the shortest kernels take
    rows, versions : how many points it was fitted from, of which engine versions
    interval : see ``Interval``
    errors : hold-out errors by hold-out (``points``, ``shapes``), each ``{n, mape, median_ape, p90_ape, bias}``
    work : weights of the features' terms (see ``baseline``); empty where they have none
    age : how many engine versions of the group are newer than the newest one measured here
    """

    forest: Forest
    floor_cycles: float
    rows: int
    versions: tuple[str, ...]
    interval: Interval
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    work: tuple[float, ...] = ()
    age: int = 0


@dataclass(frozen=True, slots=True)
class Group:
    """One family of kernels for one engine and one pair of types.

    Attributes
    ----------
    borders : per feature
    pooled : the forest of all devices together
    floor_cycles : median of the devices'
    interval : for devices that were not measured, from leaving each device out
    regimes : borders of log2(bound / floor) between the regimes of the intervals
    errors : by left-out device, as in ``DeviceFit.errors``
    devices : by catalog name
    work : as in ``DeviceFit``, of all devices
    """

    borders: tuple[npt.NDArray[np.float32], ...]
    pooled: Forest
    floor_cycles: float
    interval: Interval
    regimes: tuple[float, ...]
    errors: dict[str, dict[str, float]]
    devices: dict[str, DeviceFit]
    work: tuple[float, ...] = ()

    def age(self, device: str) -> int:
        """Return the age of the engine version that answers for ``device``: 0 is the newest measured anywhere."""
        known = self.devices.get(device)
        return known.age if known else 0

    def seconds(self, features: Features, device: str, clock: float) -> FloatArray:
        """Return seconds per row; a device that was not measured gets what the others have in common."""
        known = self.devices.get(device)
        forest, cycles = (known.forest, known.floor_cycles) if known else (self.pooled, self.floor_cycles)
        work = known.work if known else self.work
        out = np.empty(features.bound.size)
        for start in range(0, out.size, _BLOCK):  # memory is reused from block to block
            part = features.take(slice(start, start + _BLOCK)) if out.size > _BLOCK else features
            ratio = np.exp(forest.answer(bins_of(shares_of(part, work), self.borders)))
            out[start : start + _BLOCK] = ratio * base_of(part, cycles, clock, work)
        return out

    def bounds(self, features: Features, device: str, clock: float) -> tuple[FloatArray, FloatArray]:
        """Return (low, high) factors of the 90 % interval per row."""
        known = self.devices.get(device)
        interval, cycles = (
            (known.interval, known.floor_cycles) if known else (self.interval, self.floor_cycles)
        )
        size = np.log2(np.maximum(features.bound * clock / cycles, 1e-30))
        table = np.array(interval)[np.searchsorted(self.regimes, size)]
        return table[:, 0], table[:, 1]


@dataclass(frozen=True, slots=True)
class Artifact:
    """All fitted groups.

    Attributes
    ----------
    groups : by (family, framework, dtype, kernel)
    curves : collectives, by (family, framework, dtype, pattern)
    meta : source, version, date, settings
    """

    groups: dict[GroupKey, Group]
    curves: dict[GroupKey, Curve]
    meta: dict[str, Any]

    def interval(self, family: str) -> tuple[float, float]:
        """Return (low, high) factors of a family's 90 % interval, medians over all groups and devices.

        Raises
        ------
        DataMissing : the family was not fitted
        """
        ends = [
            e
            for key, g in self.groups.items()
            if key[0] == family
            for d in g.devices.values()
            for e in d.interval
        ]
        if not ends:
            raise DataMissing(f"no fitted kernels of family {family!r}")
        low, high = np.median(np.array(ends), axis=0)
        return float(low), float(high)

    def kernels(self, family: str, framework: str, dtype: str) -> tuple[str, ...]:
        """Return the kernels fitted for one engine and pair of types."""
        return tuple(k for f, w, d, k in self.groups if (f, w, d) == (family, framework, dtype))


class _Pack:
    """Arrays of many groups, end to end, by kind; a group keeps (start, stop)."""

    def __init__(self) -> None:
        self.parts: dict[str, list[npt.NDArray[Any]]] = {}
        self.ends: dict[str, int] = {}

    def put(self, kind: str, array: npt.NDArray[Any]) -> list[int]:
        flat = np.ascontiguousarray(array).reshape(-1)
        start = self.ends.get(kind, 0)
        self.parts.setdefault(kind, []).append(flat)
        self.ends[kind] = start + flat.size
        return [start, start + flat.size]

    def forest(self, forest: Forest) -> dict[str, Any]:
        trees, depth = forest.feature.shape
        return {
            "trees": trees,
            "depth": depth,
            "feature": self.put("feature", forest.feature),
            "border": self.put("border", forest.border),
            "leaves": self.put("leaves", forest.leaves),
            "scale": self.put("scale", forest.scale),
        }


def save_artifact(artifact: Artifact, path: Path) -> None:
    """Write ``path.json`` and ``path.npz``; equal artifacts give equal bytes."""
    pack = _Pack()
    groups = []
    for key in sorted(artifact.groups):
        group = artifact.groups[key]
        widths = [b.size for b in group.borders]
        groups.append(
            {
                "key": list(key),
                "borders": {"at": pack.put("borders", np.concatenate(group.borders)), "widths": widths},
                "pooled": pack.forest(group.pooled),
                "floor_cycles": group.floor_cycles,
                "interval": group.interval,
                "regimes": group.regimes,
                "errors": group.errors,
                "work": group.work,
                "devices": {
                    name: {
                        "forest": pack.forest(fit.forest),
                        "floor_cycles": fit.floor_cycles,
                        "rows": fit.rows,
                        "versions": fit.versions,
                        "interval": fit.interval,
                        "errors": fit.errors,
                        "work": fit.work,
                        "age": fit.age,
                    }
                    for name, fit in sorted(group.devices.items())
                },
            }
        )
    curves = [{"key": list(key), **artifact.curves[key].as_dict()} for key in sorted(artifact.curves)]
    index = {"format": _FORMAT, "meta": artifact.meta, "groups": groups, "curves": curves}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(_rounded(index), sort_keys=True) + "\n")
    arrays = {kind: np.concatenate(parts) for kind, parts in sorted(pack.parts.items())}
    np.savez_compressed(path.with_suffix(".npz"), allow_pickle=False, **arrays)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(child) for child in value]
    return value


def load_artifact(path: Path) -> Artifact:
    """Read ``path.json`` and ``path.npz``.

    Raises
    ------
    DataMissing : no such artifact, or one of another format
    """
    index_path, array_path = path.with_suffix(".json"), path.with_suffix(".npz")
    if not (index_path.is_file() and array_path.is_file()):
        raise DataMissing(f"{path}: no fitted kernels there (moesim calibrate fit makes them)")
    index = json.loads(index_path.read_text())
    if index.get("format") != _FORMAT:
        raise DataMissing(f"{index_path}: expected format {_FORMAT}, found {index.get('format')!r}")
    with np.load(array_path, allow_pickle=False) as arrays:
        data = {name: arrays[name] for name in arrays.files}
    groups: dict[GroupKey, Group] = {}
    for entry in index["groups"]:
        widths = entry["borders"]["widths"]
        flat = data["borders"][slice(*entry["borders"]["at"])]
        groups[_key(entry)] = Group(
            borders=tuple(np.split(flat, np.cumsum(widths)[:-1])),
            pooled=_forest(entry["pooled"], data),
            floor_cycles=entry["floor_cycles"],
            interval=_interval(entry["interval"]),
            regimes=tuple(entry["regimes"]),
            errors=entry["errors"],
            devices={
                name: DeviceFit(
                    _forest(fit["forest"], data), fit["floor_cycles"], fit["rows"], tuple(fit["versions"]),
                    _interval(fit["interval"]), fit["errors"], tuple(fit["work"]), fit["age"],
                )
                for name, fit in entry["devices"].items()
            },
            work=tuple(entry["work"]),
        )  # fmt: skip
    curves = {_key(entry): Curve.from_dict(entry) for entry in index["curves"]}
    return Artifact(groups, curves, index["meta"])


def _key(entry: dict[str, Any]) -> GroupKey:
    family, framework, dtype, kernel = entry["key"]
    return family, framework, dtype, kernel


def _interval(raw: list[list[float]]) -> Interval:
    return tuple((low, high) for low, high in raw)


def _forest(entry: dict[str, Any], data: dict[str, npt.NDArray[Any]]) -> Forest:
    trees, depth = entry["trees"], entry["depth"]
    return Forest(
        data["feature"][slice(*entry["feature"])].reshape(trees, depth),
        data["border"][slice(*entry["border"])].reshape(trees, depth),
        data["leaves"][slice(*entry["leaves"])].reshape(trees, 1 << depth),
        data["scale"][slice(*entry["scale"])],
    )


@cache
def shipped() -> Artifact:
    """Return the artifact that ships with moesim.

    Raises
    ------
    DataMissing : this installation has none
    """
    return load_artifact(catalog_root() / SHIPPED)
