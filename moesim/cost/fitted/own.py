"""Own: a user's own fits before the shipped ones, for the devices that they were measured on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from moesim.cost.fitted.artifact import Artifact, load_artifact, shipped
from moesim.errors import DataMissing, SpecError

if TYPE_CHECKING:
    from pathlib import Path

    from moesim.cost.fitted.artifact import GroupKey
    from moesim.cost.fitted.estimator import Framework

__all__ = ["ANY", "devices_of", "own_artifact", "with_own"]

ANY = "any"
"""Framework of own measurements that stand in for every engine's kernels."""


def devices_of(artifact: Artifact) -> tuple[str, ...]:
    """Return the names of the devices that ``artifact`` was fitted on, sorted."""
    found = {device for group in artifact.groups.values() for device in group.devices}
    return tuple(sorted(found | {device for curve in artifact.curves.values() for device, _ in curve.fits}))


def with_own(base: Artifact, own: Artifact, framework: Framework, device: str) -> Artifact:
    """Return ``base`` with the own fits of ``device`` in place of its fits of the same kernels.

    A family and type that was measured on ``device`` comes from the own fits alone; everything else stays. Fits of
    experts without a gate do not replace those with one, nor the reverse.

    Parameters
    ----------
    base, own : artifacts; neither is changed
    framework : the engine that will be priced
    device : name of the device that it runs on
    """
    groups = {
        _named(key, framework): group
        for key, group in own.groups.items()
        if device in group.devices and key[1] in {ANY, framework}
    }
    curves = {
        _named(key, framework): curve
        for key, curve in own.curves.items()
        if any(name == device for name, _ in curve.fits)
    }
    taken = {_class(key) for key in groups}
    patterns = {key[3] for key in curves}
    kept = {key: group for key, group in base.groups.items() if _class(key) not in taken}
    others = {key: curve for key, curve in base.curves.items() if key[3] not in patterns}
    return replace(base, groups=kept | groups, curves=others | curves)


def own_artifact(path: Path, framework: Framework, device: str) -> Artifact:
    """Return the fits at ``path`` for an engine on ``device``, completed by the shipped ones.

    Fits of another device never speak for this one where they are a user's own (framework ``any``): that is an error.

    Parameters
    ----------
    path : artifact that ``moesim calibrate fit`` wrote, with or without its suffix

    Raises
    ------
    DataMissing : no artifact there
    SpecError : own measurements of other devices alone
    """
    own = load_artifact(path.with_suffix("") if path.suffix in {".json", ".npz"} else path)
    known = devices_of(own)
    if device not in known:
        if any(key[1] == ANY for key in own.groups):
            raise SpecError(f"{path}: expected fits of {device}, it has {', '.join(known) or 'none'}")
        return own
    try:
        base = shipped()
    except DataMissing:
        base = Artifact({}, {}, {})
    return with_own(base, own, framework, device)


def _named(key: GroupKey, framework: Framework) -> GroupKey:
    return (key[0], framework if key[1] == ANY else key[1], key[2], key[3])


def _class(key: GroupKey) -> tuple[str, str, bool]:
    """Return what a group can stand in for: a family and type, experts with a gate apart from those without."""
    return key[0], key[2], key[0] == "moe" and key[3] == "nongated"
