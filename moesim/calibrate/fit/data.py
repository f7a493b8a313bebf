"""Data: tidy rows of one family cut into groups, with the features that the fit learns from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from moesim.calibrate.silicon.bounds import TYPES
from moesim.calibrate.silicon.collectives import group_of
from moesim.calibrate.silicon.families import FAMILIES, Imported, device_spec
from moesim.calibrate.silicon.tables import version_key
from moesim.cost.fitted import features
from moesim.cost.fitted.features import Machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from moesim.cost.fitted.artifact import GroupKey
    from moesim.cost.fitted.features import Features
    from moesim.cost.pricing import FloatArray
    from moesim.spec.hardware import Dtype

__all__ = ["GroupData", "groups_of"]


@dataclass(frozen=True, slots=True, eq=False)
class GroupData:
    """Rows of one group.

    Attributes
    ----------
    key : (family, framework, dtype, kernel)
    features : matrix [feature, row] and the bound [row]
    seconds, clock : [row]
    device, version : [row] names
    shape : [row] number of the shape that the row belongs to
    current : [row] rows of the newest engine version of their shape: errors are those of these rows alone. Older
        rows teach, and tell by their features that they are old. None: all rows are
    age : by device, how many engine versions of the group are newer than its newest
    """

    key: GroupKey
    features: Features
    seconds: FloatArray
    clock: FloatArray
    device: npt.NDArray[np.str_]
    version: npt.NDArray[np.str_]
    shape: npt.NDArray[np.int64]
    current: npt.NDArray[np.bool_] | None = None
    age: dict[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """How many."""
        return int(self.seconds.size)

    def take(self, where: npt.NDArray[np.int64]) -> GroupData:
        """Return the rows at ``where``."""
        return GroupData(
            self.key,
            self.features.take(where),
            self.seconds[where],
            self.clock[where],
            self.device[where],
            self.version[where],
            self.shape[where],
            None if self.current is None else self.current[where],
            self.age,
        )

    def tested(self) -> npt.NDArray[np.bool_]:
        """Return [row] whether errors count the row."""
        return np.ones(self.rows, dtype=np.bool_) if self.current is None else self.current


def groups_of(imported: Imported) -> Iterator[GroupData]:
    """Yield the groups of one family, rows that beat physics left out."""
    family = FAMILIES[imported.family]
    rows = imported.rows[imported.rows["possible"]]
    for names, found_rows in rows.groupby(["framework", "dtype", "kernel"], observed=True):
        framework, dtype, kernel = map(str, names)
        part = _aged(found_rows, family.shape)
        found = _features(imported.family, part, dtype)
        if found is None:
            continue
        feature, clock = found
        yield GroupData(
            (imported.family, framework, dtype, kernel),
            feature,
            part["seconds"].to_numpy(dtype=np.float64),
            clock,
            part["device"].astype(str).to_numpy(dtype=np.str_),
            part["version"].astype(str).to_numpy(dtype=np.str_),
            part.groupby(list(family.shape), observed=True).ngroup().to_numpy().astype(np.int64),
            part["current"].to_numpy(dtype=np.bool_),
            {str(n): int(age) for n, age in part.groupby("device", observed=True)["age"].min().items()},
        )


def _aged(part: pd.DataFrame, shape: tuple[str, ...]) -> pd.DataFrame:
    """Add ``age``, how many versions of the group are newer, and ``current``: none is of that shape and device."""
    names = part["version"].astype(str)
    rank = {v: i for i, v in enumerate(sorted(names.unique(), key=version_key, reverse=True))}
    age = names.map(rank).astype(np.int64)
    newest = age.groupby([part[c] for c in ("device", *shape)], observed=True).transform("min")
    return part.assign(age=age, current=age == newest)


def _machine(part: pd.DataFrame, dtype: Dtype) -> Machine | None:
    names = part["device"].astype(str)
    table = {str(name): features.machine_of(device_spec(str(name)), dtype) for name in names.unique()}
    if any(machine is None for machine in table.values()):
        return None
    columns = (
        names.map({n: getattr(m, what) for n, m in table.items()}).to_numpy(dtype=np.float64)
        for what in Machine._fields
    )
    return Machine(*columns)


def _features(family: str, part: pd.DataFrame, dtype: str) -> tuple[Features, FloatArray] | None:
    def column(name: str) -> FloatArray:
        return part[name].to_numpy(dtype=np.float64)

    machine = _machine(part, _compute(family, dtype))
    if machine is None:
        return None
    return _BUILD[family](column, part, dtype, machine), np.asarray(machine.clock)


def _compute(family: str, dtype: str) -> Dtype:
    if family in {"gemm", "moe"}:
        return TYPES[dtype].compute
    return "fp8" if dtype.startswith("fp8_kv") else "bf16"


def _gemm(column: Callable[[str], FloatArray], _: pd.DataFrame, dtype: str, machine: Machine) -> Features:
    form = TYPES[dtype]
    return features.gemm_features(
        column("m"), column("n"), column("k"), form.value_bytes, form.input_bytes, machine
    )


def _moe(column: Callable[[str], FloatArray], _: pd.DataFrame, dtype: str, machine: Machine) -> Features:
    form = TYPES[dtype]
    return features.moe_features(
        column("tokens"), column("rows"), column("touched"), column("hidden"), column("inner"), column("ups"),
        column("experts"), column("ep"), column("top_k"), column("skew"), form.value_bytes, form.input_bytes, machine,
        column("age"),
    )  # fmt: skip


def _attention(*, decode: bool) -> Callable[..., Features]:
    def build(column: Callable[[str], FloatArray], part: pd.DataFrame, _: str, machine: Machine) -> Features:
        latent = "kv_heads" not in part
        ones = np.ones(len(part))
        return features.attention_features(
            column("sequences"), column("context"), column("heads"),
            ones if latent else column("kv_heads"), 576 * ones if latent else column("head_dim"),
            0 * ones if latent else column("window"), column("flop"), column("bytes"), machine, decode=decode,
        )  # fmt: skip

    return build


def _exchange(column: Callable[[str], FloatArray], part: pd.DataFrame, dtype: str, _: Machine) -> Features:
    link = part["device"].astype(str).map(_link).to_numpy(dtype=np.float64)
    value = {"bf16": 2.0, "fp8": 1.0 + 4.0 / 128, "nvfp4": 0.5625}[dtype]
    combine = np.asarray(part["phase"] == "combine", dtype=np.float64)
    return features.exchange_features(
        column("tokens"), column("hidden"), column("top_k"), column("experts"), column("ranks"), column("nodes"),
        column("sms"), value * np.ones(len(part)), combine, link,
    )  # fmt: skip


def _link(device: str) -> float:
    group = group_of(device, 4)
    return group.intra_bandwidth if group else float("nan")


def _quantise(column: Callable[[str], FloatArray], _: pd.DataFrame, __: str, machine: Machine) -> Features:
    return features.quantise_features(column("m"), column("k"), machine)


_BUILD: dict[str, Callable[..., Features]] = {
    "gemm": _gemm,
    "moe": _moe,
    "context_attention": _attention(decode=False),
    "generation_attention": _attention(decode=True),
    "context_mla": _attention(decode=False),
    "generation_mla": _attention(decode=True),
    "expert_exchange": _exchange,
    "quantise": _quantise,
}
