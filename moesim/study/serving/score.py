"""Score: predictions of measured runs against their measurements, by set and by group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import PositiveFloat

from moesim.errors import DataMissing, SpecError
from moesim.files import read_yaml
from moesim.spec.base import Spec, validate
from moesim.study.serving.replay import Prediction
from moesim.study.serving.rows import ServingRow, distinct

__all__ = [
    "QUANTITIES",
    "Band",
    "Bands",
    "Errors",
    "Sets",
    "check_bands",
    "dense_interval",
    "errors",
    "interval_coverage",
    "load_bands",
    "metrics",
    "one_factor_left_out",
    "read_sets",
    "report",
    "throughput",
    "widened",
    "worst_groups",
]

FloatArray = npt.NDArray[np.float64]
Pair = tuple[ServingRow, Prediction]
Quantity = Literal["tpot", "ttft"]
QUANTITIES: tuple[Quantity, ...] = ("tpot", "ttft")
_FEW = 5
"""Groups below this many rows are listed, not ranked: a median of less says little."""
_LEVEL = 0.90


@dataclass(frozen=True, slots=True)
class Errors:
    """How far predictions lie from measurements; all but n and spearman are fractions of the measured value.

    Attributes
    ----------
    n : pairs
    mape, median_ape, p90_ape : mean, median and 90th percentile of |predicted - measured| / measured
    within_30 : share of pairs with an error of at most 30 %
    bias : mean of (predicted - measured) / measured
    spearman : rank correlation, NaN below two pairs
    """

    n: int
    mape: float
    median_ape: float
    p90_ape: float
    within_30: float
    bias: float
    spearman: float

    def as_dict(self) -> dict[str, float]:
        """Return the figures by name."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Sets:
    """Ids of the scoring sets of AIConfigurator's study."""

    a: frozenset[str]
    c: frozenset[str]
    d: frozenset[str]
    disagg: frozenset[str]


class Band(Spec):
    """A figure that must not get worse than ``limit``."""

    name: str
    """Metric and figure, e.g. ``C_tpot.median_ape``."""
    limit: float
    least: bool = False
    """True where larger is better (``within_30``, ``spearman``, coverage)."""
    source: str = ""
    """Where the limit comes from."""


class Bands(Spec):
    """Bands by suite; a suite fails when one of its figures lies outside."""

    kind: Literal["bands"]
    suites: dict[str, tuple[Band, ...]]
    tolerance: PositiveFloat = 1.0
    """Factor on limits, for machines with other random streams."""


def errors(predicted: Sequence[float] | FloatArray, measured: Sequence[float] | FloatArray) -> Errors:
    """Return the errors of pairs.

    Parameters
    ----------
    predicted, measured : [n], finite, measured positive

    Raises
    ------
    ValueError : different lengths, or a measured value that is not positive

    >>> errors([11.0, 9.0], [10.0, 10.0]).mape
    0.1
    """
    p, m = np.asarray(predicted, dtype=np.float64), np.asarray(measured, dtype=np.float64)
    if p.shape != m.shape or np.any(m <= 0):
        raise ValueError("expected as many predictions as positive measurements")
    if not len(p):
        return Errors(0, *[float("nan")] * 6)
    signed = (p - m) / m
    off = np.abs(signed)
    return Errors(
        n=len(p),
        mape=float(off.mean()),
        median_ape=float(np.median(off)),
        p90_ape=float(np.quantile(off, 0.9)),
        within_30=float((off <= 0.3).mean()),
        bias=float(signed.mean()),
        spearman=_spearman(p, m),
    )


def _spearman(a: FloatArray, b: FloatArray) -> float:
    if len(a) < 2:
        return float("nan")
    x, y = pd.Series(a).rank().to_numpy(), pd.Series(b).rank().to_numpy()
    spread = float(x.std() * y.std())
    return float(((x - x.mean()) * (y - y.mean())).mean() / spread) if spread else float("nan")


def throughput(row: ServingRow, ttft_s: float, tpot_s: float) -> float:
    """Return output tokens per second that follow from mean latencies: concurrency * osl / (TTFT + (osl-1) TPOT)."""
    return row.concurrency * row.osl / (ttft_s + (row.osl - 1) * tpot_s)


def one_factor_left_out(pairs: Sequence[Pair], value: Quantity) -> tuple[FloatArray, FloatArray]:
    """Return (predicted, measured) after one factor per ``row.group``, fitted on the group's other rows.

    The factor is the median of measured over predicted. Rows alone in their group are left out.
    """
    groups: dict[tuple[str, ...], list[tuple[float, float]]] = defaultdict(list)
    for row, made in pairs:
        groups[row.group].append((_of(made, value), _of(row, value)))
    predicted, measured = [], []
    for members in groups.values():
        if len(members) < 2:
            continue
        ratios = np.array([m / p for p, m in members])
        for index, (p, m) in enumerate(members):
            predicted.append(p * float(np.median(np.delete(ratios, index))))
            measured.append(m)
    return np.array(predicted), np.array(measured)


def read_sets(path: Path) -> Sets:
    """Read the ids of the scoring sets from AIConfigurator's own predictions.

    Raises
    ------
    DataMissing : there is no such file
    SpecError : it lacks a set
    """
    if not path.is_file():
        raise DataMissing(f"{path}: no such file; the scoring sets are part of the shared data")
    frame = pd.read_csv(path)
    names = ("set_A", "set_C", "set_D", "set_disagg")
    missing = [name for name in ("id", *names) if name not in frame.columns]
    if missing:
        raise SpecError(f"{path.name}: expected the columns {', '.join(missing)}")
    return Sets(*(frozenset(frame["id"][frame[name].astype(bool)]) for name in names))


def metrics(
    rows: Iterable[ServingRow], predictions: Mapping[str, Prediction], sets: Sets | None
) -> dict[str, Errors]:
    """Return every metric by name. Without sets only ``all_*`` (distinct measurements) are known."""
    known = [(row, predictions[row.id]) for row in rows if row.id in predictions and predictions[row.id].ok]
    every = {row.id for row in distinct(row for row, _ in known)}
    chosen: dict[str, list[Pair]] = {"all": [p for p in known if p[0].id in every]}
    if sets is not None:
        chosen["A"] = [p for p in known if p[0].id in sets.a]
        chosen["C"] = [p for p in known if p[0].id in sets.c]
        chosen["C_moe"] = [p for p in chosen["C"] if not p[0].dense]
        chosen["C_dense"] = [p for p in chosen["C"] if p[0].dense]
        chosen["D"] = [p for p in known if p[0].id in sets.d]
        chosen["disagg"] = [p for p in known if p[0].id in sets.disagg]
    found: dict[str, Errors] = {}
    values = QUANTITIES
    for name, pairs in chosen.items():
        for value in values:
            found[f"{name}_{value}"] = _errors_of(pairs, value)
    moe, base = chosen.get("C_moe"), chosen.get("C", chosen["all"])
    if moe is not None:
        for value in values:
            found[f"E_{value}"] = errors(*one_factor_left_out(moe, value))
    derived = [(throughput(r, p.ttft_s, p.tpot_s), throughput(r, r.ttft_s, r.tpot_s)) for r, p in base]
    found["throughput"] = errors([p for p, _ in derived], [m for _, m in derived])
    return found


def dense_interval(pairs: Iterable[Pair], value: Quantity, level: float = _LEVEL) -> tuple[float, float]:
    """Return (low, high) factors on a prediction between which ``level`` of the dense runs were measured.

    Raises
    ------
    ValueError : fewer runs than the tails need
    """
    ratios = np.array([_of(row, value) / _of(made, value) for row, made in pairs if row.dense])
    tail = (1 - level) / 2
    if len(ratios) * tail < 1:
        raise ValueError(f"{len(ratios)} dense runs are too few for an interval of {level:.0%}")
    low, high = np.quantile(ratios, [tail, 1 - tail], method="nearest")
    return float(low), float(high)


def widened(interval: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    """Return an interval with another source of error in it: logarithms of both add in quadrature, side by side.

    >>> tuple(round(end, 3) for end in widened((0.8, 1.25), (1.0, 1.25)))
    (0.8, 1.371)
    """
    ends = [np.hypot(np.log(a), np.log(b)) for a, b in zip(interval, other, strict=True)]
    return float(np.exp(-ends[0])), float(np.exp(ends[1]))


def interval_coverage(
    pairs: Sequence[Pair], value: Quantity, interval: tuple[float, float] | None = None
) -> dict[str, float]:
    """Return how much of the MoE runs a 90 % interval that no MoE run made covers: n, value, low, high.

    Calibration and scored runs share no model, so this is a test of transfer.

    Parameters
    ----------
    interval : the one that ships for models with experts; by default that of the dense runs among the pairs
    """
    others = np.array([_of(r, value) / _of(p, value) for r, p in pairs if not r.dense])
    try:
        low, high = interval or dense_interval(pairs, value)
    except ValueError:
        return {"n": float(len(others)), "value": float("nan"), "low": float("nan"), "high": float("nan")}
    inside = (others >= low) & (others <= high)
    share = float(inside.mean()) if len(others) else float("nan")
    return {"n": float(len(others)), "value": share, "low": low, "high": high}


def worst_groups(pairs: Sequence[Pair], value: Quantity) -> list[dict[str, Any]]:
    """Return the errors of every (model, system, backend, precision), worst median first."""
    groups: dict[tuple[str, ...], list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[pair[0].group].append(pair)
    listed = []
    for (model, system, backend, precision), members in groups.items():
        listed.append(
            {
                "model": model, "system": system, "backend": backend, "precision": precision, "value": value,
                **_errors_of(members, value).as_dict(),
            }
        )  # fmt: skip
    return sorted(listed, key=lambda g: (g["n"] < _FEW, -g["median_ape"]))


def load_bands(path: Path) -> Bands:
    """Read the bands of every suite.

    Raises
    ------
    SpecError : the file is wrong
    """
    return validate(Bands, read_yaml(path, str(path)))


def check_bands(bands: Iterable[Band], figures: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Return ``{name, value, limit, ok}`` of every band; a figure that is missing or NaN is not ok."""
    checked = []
    for band in bands:
        metric, _, figure = band.name.partition(".")
        value = float(figures.get(metric, {}).get(figure, float("nan")))
        ok = value >= band.limit if band.least else abs(value) <= band.limit
        checked.append({"name": band.name, "value": value, "limit": band.limit, "ok": bool(ok)})
    return checked


def report(
    rows: Sequence[ServingRow],
    predictions: Mapping[str, Prediction],
    sets: Sets | None,
    bands: Iterable[Band] = (),
    drafted: Mapping[str, Prediction] | None = None,
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, Any]:
    """Return the suite's answer: {suite, rows, covered, metrics, intervals, groups, bands, left_out}.

    Parameters
    ----------
    drafted : predictions of runs that very likely drafted tokens, which the file does not state. They make figures of
        their own (``C_mtp_tpot``, ``E_mtp_tpot``, ...) beside those of the inputs as stated
    intervals : factors of the 90 % interval that ship; by default made from the dense runs
    """
    first = distinct(rows)
    covered = [row for row in first if row.id in predictions and predictions[row.id].ok]
    figures: dict[str, dict[str, float]] = {
        name: found.as_dict() for name, found in metrics(rows, predictions, sets).items()
    }
    if drafted and sets is not None:
        other = metrics(rows, {**predictions, **drafted}, sets)
        for value in ("tpot", "ttft"):
            for name in ("C", "C_moe", "E"):
                figures[f"{name}_mtp_{value}"] = other[f"{name}_{value}"].as_dict()
    pairs = [(row, predictions[row.id]) for row in covered]
    values = QUANTITIES
    for value in values:
        figures[f"interval_coverage_{value}"] = interval_coverage(
            pairs, value, (intervals or {}).get(f"{value}_moe")
        )
    figures["interval_coverage"] = figures["interval_coverage_tpot"]
    figures["coverage"] = {
        "n": float(len(first)),
        "value": len(covered) / len(first) if first else float("nan"),
    }
    groups = [group for value in values for group in worst_groups(pairs, value)]
    return {
        "suite": "silicon-serving",
        "rows": len(rows),
        "distinct": len(first),
        "covered": len(covered),
        "metrics": figures,
        "intervals": {
            value: [figures[f"interval_coverage_{value}"][end] for end in ("low", "high")] for value in values
        },
        "groups": groups,
        # without the sets their figures do not exist, which is no fault of the predictions
        "bands": check_bands([b for b in bands if sets or b.name.partition(".")[0] in figures], figures),
        "left_out": _left_out(rows, predictions),
    }


def _left_out(rows: Iterable[ServingRow], predictions: Mapping[str, Prediction]) -> list[dict[str, Any]]:
    reasons: dict[tuple[str, str], int] = defaultdict(int)
    for row in rows:
        made = predictions.get(row.id)
        if made is None or not made.ok:
            reason = row.left_out or (made.error.removeprefix(f"{row.id}: ") if made else "not replayed")
            reasons[row.mode, reason] += 1
    return [{"mode": mode, "reason": why, "rows": n} for (mode, why), n in sorted(reasons.items())]


def _errors_of(pairs: Sequence[Pair], value: Quantity) -> Errors:
    kept = [(p, m) for p, m in ((_of(made, value), _of(row, value)) for row, made in pairs) if p == p]  # noqa: PLR0124
    return errors([p for p, _ in kept], [m for _, m in kept])


_READ: dict[Quantity, Callable[[Any], float]] = {"tpot": lambda x: x.tpot_s, "ttft": lambda x: x.ttft_s}


def _of(what: ServingRow | Prediction, value: Quantity) -> float:
    return float(_READ[value](what))
