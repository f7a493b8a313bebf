"""Fit: host time of engines from runs of dense models; runs of models with experts are refused."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from moesim.cost.overheads import Overhead, OverheadRule, OverheadTable
from moesim.errors import SpecError
from moesim.files import dump_yaml
from moesim.study.serving.replay import Prediction
from moesim.study.serving.rows import ServingRow
from moesim.study.serving.scenario import architecture_of
from moesim.study.serving.score import errors

__all__ = ["fit_overheads", "least_relative", "overheads_yaml"]

FloatArray = npt.NDArray[np.float64]
Replay = Callable[[Sequence[ServingRow], OverheadTable], Mapping[str, Prediction]]
Key = tuple[str, str, str]
"""(backend, client, architecture): a client stands for a way of deploying, with or without a front end."""
_ROUNDS = 4
_FEWEST = 30
"""Runs that two terms are worth being fitted on."""
_MOST_PREFILL = 2.0
_RANKED, _FEW = 0.6, 10
"""Least rank correlation of a group that a request term is fitted on; smaller groups are not judged."""
_QUEUED_S = 5.0
"""TTFT beyond this is a queue's, not the host's."""


def least_relative(design: FloatArray, target: FloatArray, scale: FloatArray) -> FloatArray:
    """Return non-negative x that makes ``sum |design x - target| / scale`` least, by reweighted least squares.

    Parameters
    ----------
    design : [n, k]
    target, scale : [n]; scale positive
    """
    from scipy.optimize import nnls  # noqa: PLC0415 - half a second that replays do not need

    a, b = design / scale[:, None], target / scale
    weights = np.ones(len(b))
    x = np.zeros(design.shape[1])
    for _ in range(100):
        root = np.sqrt(weights)
        new = np.asarray(nnls(a * root[:, None], b * root)[0])
        if np.allclose(new, x, rtol=1e-9, atol=0):
            break
        x = new
        weights = 1 / np.maximum(np.abs(a @ x - b), 1e-6)
    return x


def fit_overheads(rows: Iterable[ServingRow], replay: Replay, stamp: str) -> OverheadTable:
    """Return the terms of every engine that has enough dense runs.

    One rule per engine, client and generation of devices. Time per output token says step and sequence terms, of each
    generation's hosts; TTFT the request term, which is the engine's and the client's on whatever device, and a factor
    on prefill steps per generation. The terms enter the simulator, so the fit goes around: replay, fit what is left,
    replay.

    Parameters
    ----------
    rows : dense runs
    replay : predictions of rows with a table of terms
    stamp : names the estimators that the terms complete; other estimators need other terms

    Raises
    ------
    SpecError : a run of a model with experts is among the rows
    """
    groups: dict[Key, list[ServingRow]] = defaultdict(list)
    for row in rows:
        if not row.dense:
            raise SpecError(f"{row.id}: {row.model} has experts; overheads are fitted on dense models only")
        if not row.left_out:
            groups[row.backend, row.client, architecture_of(row.system)].append(row)
    fitted: dict[Key, Overhead] = {
        key: Overhead() for key, members in groups.items() if len(members) >= _FEWEST
    }
    for _ in range(_ROUNDS):
        table = _table(fitted, groups, stamp)
        made = {key: replay(groups[key], table) for key in fitted}
        kept = {key: [row for row in groups[key] if made[key][row.id].ok] for key in fitted}
        decode = {key: _decode_terms(kept[key], made[key], fitted[key]) for key in fitted}
        for pair in {key[:2] for key in fitted}:
            keys = [key for key in sorted(fitted) if key[:2] == pair]
            request, factors = _prefill_terms([(kept[key], made[key], fitted[key]) for key in keys])
            for key, factor in zip(keys, factors, strict=True):
                fitted[key] = Overhead(*decode[key], request, factor)
    return _table(_completed(fitted), groups, stamp)


def _decode_terms(
    rows: Sequence[ServingRow], made: Mapping[str, Prediction], old: Overhead
) -> tuple[float, float]:
    """Return seconds per step and per sequence."""
    measured = np.array([row.tpot_s for row in rows])
    batch = np.array([row.concurrency / (row.shape.dp if row.shape else 1) for row in rows], dtype=np.float64)
    design = np.column_stack([np.ones(len(rows)), batch])
    # what the terms add now is taken off, so that they may shrink as well as grow
    without = np.array([made[row.id].tpot_s for row in rows]) - design @ np.array(
        [old.step_s, old.sequence_s]
    )
    step, sequence = least_relative(design, measured - without, measured)
    return float(step), float(sequence)


def _prefill_terms(
    groups: Sequence[tuple[Sequence[ServingRow], Mapping[str, Prediction], Overhead]],
) -> tuple[float, list[float]]:
    """Return the request term of all groups together, seconds, and each group's factor on prefill steps."""
    waits, served, owner = [], [], []
    for index, (rows, made, old) in enumerate(groups):
        early = np.array([row.ttft_s < _QUEUED_S for row in rows]) & _ranked_alike(rows, made)
        for row, counts in zip(rows, early, strict=True):
            if counts:
                waits.append(row.ttft_s)
                served.append((made[row.id].ttft_s - old.request_s) / old.prefill)
                owner.append(index)
    measured, plain, of = np.array(waits), np.array(served), np.array(owner)
    columns = [np.where(of == index, plain, 0.0) for index in range(len(groups))]
    request, *factors = least_relative(np.column_stack([np.ones(len(plain)), *columns]), measured, measured)
    bounded = [min(max(float(factor), 1.0), _MOST_PREFILL) for factor in factors]
    if any(factor in {1.0, _MOST_PREFILL} for factor in bounded):
        # a factor may not go there: the constant takes what it can
        rest = measured - plain * np.array(bounded)[of]
        request = least_relative(np.ones((len(rest), 1)), rest, measured)[0]
    return float(request), bounded


def _completed(fitted: dict[Key, Overhead]) -> dict[Key, Overhead]:
    """Return terms for every engine under every client on every generation: the nearest ones where there are none.

    Nearest is the engine on the same devices under another client: between clients the request term of one engine
    differs by 20 ms, between engines by 100 ms. Then the engine on other devices, its factor on prefill steps scaled
    by what the generations differ by in other engines: clocks under load are the devices', whatever the engine.
    """
    found = dict(fitted)
    backends, clients, kinds = (sorted({key[i] for key in fitted}) for i in range(3))
    for backend in backends:
        own = {key: terms for key, terms in sorted(fitted.items()) if key[0] == backend}
        for client in clients:
            for kind in kinds:
                if (backend, client, kind) in found:
                    continue
                same = next((t for k, t in own.items() if k[2] == kind), None)
                if same is None:
                    key, other = min(own.items(), key=lambda item: item[0][1] != client)
                    prefill = other.prefill * _apart(fitted, kind, key[2])
                    same = replace(other, prefill=min(max(prefill, 1.0), _MOST_PREFILL))
                found[backend, client, kind] = same
    return found


def _apart(fitted: Mapping[Key, Overhead], kind: str, other: str) -> float:
    """Return the factor on prefill steps of one generation over another's, geometric mean over engines with both."""
    ratios = [
        terms.prefill / fitted[backend, client, other].prefill
        for (backend, client, of), terms in fitted.items()
        if of == kind and (backend, client, other) in fitted
    ]
    return float(np.exp(np.mean(np.log(ratios)))) if ratios else 1.0


def _ranked_alike(rows: Sequence[ServingRow], made: Mapping[str, Prediction]) -> npt.NDArray[np.bool_]:
    """Tell which rows [n] belong to a (model, version) whose TTFT the replay ranks at least roughly right.

    What a client did is not stated; where the replay does not even order its runs, it did something else, and the
    difference is no host's.
    """
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        groups[row.model, row.version].append(index)
    kept = np.zeros(len(rows), dtype=np.bool_)
    for members in groups.values():
        rank = errors([made[rows[i].id].ttft_s for i in members], [rows[i].ttft_s for i in members]).spearman
        kept[members] = rank >= _RANKED or len(members) < _FEW
    return kept if kept.any() else ~kept


def _table(
    fitted: Mapping[Key, Overhead], groups: Mapping[Key, list[ServingRow]], stamp: str
) -> OverheadTable:
    rules = []
    for (backend, client, kind), terms in sorted(fitted.items()):
        own = len(groups.get((backend, client, kind), ())) >= _FEWEST
        members = (groups[backend, client, kind] if own else None) or [
            row for (other, _, _), rows in groups.items() if other == backend for row in rows
        ]
        models = ", ".join(sorted({row.model for row in members}))
        rules.append(
            {
                "backend": backend,
                "client": client,
                "architecture": kind,
                "step": f"{terms.step_s * 1e6:.4g} us",
                "sequence": f"{terms.sequence_s * 1e6:.4g} us",
                "request": f"{terms.request_s * 1e3:.4g} ms",
                "prefill": round(terms.prefill, 4),
                "versions": sorted({row.version or "not stated" for row in members}),
                "rows": len(members),
                "source": {
                    "fields": ["*"],
                    "cite": f"fitted on measured runs of {models} (silicon_sample.csv of aiconfigurator-core)",
                    "note": f"beside kernel times: {stamp}"
                    + ("" if own else f"; too few dense runs under {client} on {kind}: its nearest terms"),
                },
            }
        )
    return OverheadTable.model_validate({"kind": "overheads", "rules": rules, "estimators": stamp})


def overheads_yaml(table: OverheadTable) -> str:
    """Return the table as a file for ``validation/fits``."""
    rules: list[dict[str, Any]] = [_readable(rule) for rule in table.rules]
    intervals = {name: [round(end, 4) for end in ends] for name, ends in table.intervals.items()}
    head: dict[str, Any] = {"kind": "overheads", "estimators": table.estimators}
    return dump_yaml(head | ({"intervals": intervals} if intervals else {}) | {"rules": rules})


def _readable(rule: OverheadRule) -> dict[str, Any]:
    data = rule.model_dump(mode="json", exclude_defaults=True)
    for name, unit, factor in (("step", "us", 1e6), ("sequence", "us", 1e6), ("request", "ms", 1e3)):
        data[name] = f"{getattr(rule, name) * factor:.4g} {unit}"
    return data
