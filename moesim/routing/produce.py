"""Make a routing file from a trace: fit on one half, check on the other, write both files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from moesim.errors import SpecError
from moesim.files import dump_yaml, write_atomic
from moesim.routing.calibrate import match_moments
from moesim.routing.describe import describe
from moesim.routing.fit import fit_likelihood
from moesim.routing.model import pack, unpack
from moesim.routing.trace import read_trace
from moesim.spec.base import Source
from moesim.spec.routing import Fitted, RoutingSpec, Tables

__all__ = ["fit_routing"]


def fit_routing(
    trace_path: Path,
    out_path: Path,
    *,
    source: Source,
    model: str = "",
    phase: Literal["prefill", "decode"] = "decode",
    experts: int | None = None,
    skipped: int = 0,
    rounds: int = 40,
    seed: int = 0,
) -> RoutingSpec:
    """Fit a routing model on one half of a trace's sequences, check it on the other, and write both files.

    The halves hold equal shares of every group. Only the first is used for fitting and calibration; the table of
    recorded against sampled statistics in the file comes from the second.

    Parameters
    ----------
    trace_path : recorded trace (see ``read_trace``)
    out_path : the .yaml file to write; the tables go beside it as .npz
    source : where the trace comes from
    model : name of the network
    phase : whether the trace recorded prompt tokens or generated ones
    experts : experts per layer, where the trace may not show them all
    skipped : tokens to leave out at the head of every sequence
    rounds : calibration rounds; each samples as many tokens as the first half has
    seed : of split and samples; the same inputs give the same files

    Raises
    ------
    SpecError : the trace is wrong, or has no two sequences of one group
    """
    if out_path.suffix not in {".yaml", ".yml"}:
        raise SpecError(f"{out_path}: expected a .yaml file to write")
    trace = read_trace(trace_path, experts)
    if skipped:
        trace = trace.skip(skipped)
    if len(trace.length) < 2:
        raise SpecError(f"{trace_path}: expected at least two sequences of more than {skipped} tokens")
    fitting, held_out = trace.split(seed)
    if len(held_out.length) == 0:
        raise SpecError(
            f"{trace_path}: expected two sequences of at least one group, to keep one out of the fit"
        )
    fitted = match_moments(fit_likelihood(fitting), fitting, rounds, seed)
    data = pack(fitted)
    tables_path = out_path.with_suffix(".npz")
    write_atomic(tables_path, data)
    digest = hashlib.sha256(data).hexdigest()
    table = describe(held_out, unpack(tables_path, digest), seed)  # as read back: after rounding to 8 bits
    summary = {
        str(row.statistic): (float(f"{row.recorded:.4g}"), float(f"{row.sampled:.4g}"))
        for row in table.itertuples()
    }
    spec = RoutingSpec(
        kind="routing",
        name=out_path.stem,
        model=model,
        experts=trace.total,
        top_k=trace.top_k,
        router=Fitted(
            kind="fitted",
            tables=Tables(path=tables_path.name, sha256=digest),
            layers=trace.layers,
            phase=phase,
            skipped=skipped,
            sequences=len(fitting.length),
            tokens=len(fitting.experts),
            summary=summary,
        ),
        sources=(source,),
    )
    write_atomic(out_path, dump_yaml(_plain(spec)))
    return spec


def _plain(spec: RoutingSpec) -> dict[str, Any]:
    data: dict[str, Any] = spec.model_dump(mode="json", exclude_defaults=True)
    data["router"] = {"kind": spec.router.kind, **{k: v for k, v in data["router"].items() if k != "kind"}}
    return data
