"""Tables of one run, declared once: column, unit, meaning. Report, docs and parquet schema read this file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moesim.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["TABLES", "Column", "Result", "Tables", "conform", "rows"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column: name (with its unit as suffix where it has one), numpy dtype, meaning."""

    name: str
    dtype: str
    meaning: str


_REQUESTS = (
    Column("request", "int64", "index in order of arrival (closed loop: order of sending)"),
    Column("arrival_s", "float64", "when the request reached the front door"),
    Column("input_tokens", "int64", "prompt length"),
    Column("output_tokens", "int64", "tokens to generate"),
    Column("priority", "int64", "higher goes first where the engine schedules by priority"),
    Column("session", "int64", "conversation, -1 for none"),
    Column(
        "status",
        "object",
        "finished, rejected (does not fit the engine) or in_flight (cut off by the stop rule)",
    ),
    Column(
        "replica",
        "int64",
        "replica that produced the first token (its pool: serve or prefill), -1 if none did",
    ),
    Column("decode_replica", "int64", "replica that decoded, -1 if the pool is not split"),
    Column("cached_tokens", "int64", "prompt tokens found in the prefix cache at first admission"),
    Column("scheduled_s", "float64", "start of the first step that worked on the request, NaN if none"),
    Column("first_token_s", "float64", "end of the step that produced the first token, NaN if none"),
    Column(
        "kv_transfer_s", "float64", "seconds from leaving prefill to being ready to decode, 0 if not split"
    ),
    Column("finish_s", "float64", "end of the step that produced the last token, NaN if unfinished"),
    Column("generated_tokens", "int64", "tokens produced by the end of the run"),
    Column("preemptions", "int64", "times the request lost its KV blocks"),
    Column("restarts", "int64", "times the request was moved by a replica failure"),
    Column("measured", "bool", "inside the measured window (not warm-up, not cool-down)"),
)
_TIMELINE = (
    Column("time_s", "float64", "end of the sampled step"),
    Column("pool", "object", "serve, prefill or decode"),
    Column("replica", "int64", "replica of the pool"),
    Column("waiting", "int64", "requests queued on the replica"),
    Column("running", "int64", "requests admitted on the replica"),
    Column("kv_used", "float64", "share of KV blocks held by requests, 0..1"),
    Column("step_tokens", "int64", "tokens of the sampled step"),
    Column("step_s", "float64", "duration of the sampled step"),
)
_OPS = (
    Column("pool", "object", "serve, prefill or decode"),
    Column("op", "object", "name of the op"),
    Column("phase", "object", "lane, group, head, attention or overhead"),
    Column("kind", "object", "gemm, grouped_gemm, attention, collective, memory or overhead"),
    Column("source", "object", "measured, fitted or bound"),
    Column("seconds", "float64", "seconds of engine time, summed over replicas"),
)
_REPLICAS = (
    Column("pool", "object", "serve, prefill or decode"),
    Column("replica", "int64", "replica of the pool"),
    Column("devices", "int64", "devices of the replica"),
    Column("kv_blocks", "int64", "KV blocks of one attention rank"),
    Column("kv_block_tokens", "int64", "tokens in one block"),
    Column("steps", "int64", "engine steps"),
    Column("busy_s", "float64", "time with a step in progress"),
    Column(
        "step_s",
        "float64",
        "sum of step times; with pipeline stages, steps overlap and this exceeds busy_s",
    ),
    Column("alive_s", "float64", "time in service (not failed, not scaled away)"),
    Column("prefill_tokens", "int64", "prompt tokens computed (recomputation included)"),
    Column("decode_tokens", "int64", "tokens generated"),
    Column("cached_tokens", "int64", "prompt tokens taken from the prefix cache"),
    Column("preemptions", "int64", "times a request lost its blocks"),
    Column("kv_peak", "float64", "largest share of KV blocks held, 0..1"),
    Column("requests_s", "float64", "integral of requests present over time (Little's law)"),
    Column("energy_J", "float64", "energy of the replica's devices and its share of the node"),
)
_ITL = (
    Column("pool", "object", "pool that decodes"),
    Column("low_s", "float64", "lower edge of the bin"),
    Column("high_s", "float64", "upper edge of the bin"),
    Column("tokens", "int64", "gaps between consecutive tokens of one request that fell in the bin"),
)
_EXPERTS = (
    Column("layer", "int64", "MoE layer"),
    Column("expert", "int64", "expert"),
    Column("rank", "int64", "expert-parallel rank that holds it"),
    Column("load", "float64", "share of the layer's (token, expert) pairs"),
)

TABLES: dict[str, tuple[Column, ...]] = {
    "requests": _REQUESTS,
    "timeline": _TIMELINE,
    "ops": _OPS,
    "replicas": _REPLICAS,
    "itl": _ITL,
    "experts": _EXPERTS,
}


def conform(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Return ``frame`` with exactly the declared columns of table ``name``, in order and with their dtypes.

    Raises
    ------
    SpecError : a column is missing, unknown, or holds values that its dtype cannot represent
    """
    declared = {column.name: column for column in TABLES[name]}
    missing = [c for c in declared if c not in frame.columns]
    unknown = [str(c) for c in frame.columns if c not in declared]
    if missing or unknown:
        raise SpecError(
            *(f"table {name}  {c}: expected a column, it is missing" for c in missing),
            *(f"table {name}  {c}: unknown column" for c in unknown),
        )
    columns: dict[str, pd.Series[Any]] = {}
    for column in TABLES[name]:
        values = frame[column.name].reset_index(drop=True)
        if column.dtype == "object" and not all(isinstance(v, str) for v in values):
            raise SpecError(f"table {name}  {column.name}: expected text in every row")
        if column.dtype == "int64" and values.dtype.kind == "f" and not np.all(np.mod(values, 1) == 0):
            raise SpecError(f"table {name}  {column.name}: expected whole numbers")
        try:
            columns[column.name] = values.astype(np.dtype(column.dtype))
        except (TypeError, ValueError):
            raise SpecError(
                f"table {name}  {column.name}: expected {column.dtype}, found {values.dtype}"
            ) from None
    return pd.DataFrame(columns)


def rows(frame: pd.DataFrame) -> Iterator[Any]:
    """Iterate over rows as named tuples, one attribute per column (the stubs do not know their types)."""
    return iter(frame.itertuples())


def _empty(name: str) -> pd.DataFrame:
    return pd.DataFrame({c.name: pd.Series(dtype=c.dtype) for c in TABLES[name]})


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables of one run, as pandas frames with exactly the declared columns."""

    requests: pd.DataFrame
    timeline: pd.DataFrame = field(default_factory=lambda: _empty("timeline"))
    ops: pd.DataFrame = field(default_factory=lambda: _empty("ops"))
    replicas: pd.DataFrame = field(default_factory=lambda: _empty("replicas"))
    itl: pd.DataFrame = field(default_factory=lambda: _empty("itl"))
    experts: pd.DataFrame = field(default_factory=lambda: _empty("experts"))


@dataclass(frozen=True, slots=True)
class Result:
    """One run: what was asked, what happened.

    Attributes
    ----------
    manifest : JSON-ready. Keys: ``scenario`` (resolved, self-contained), ``origins`` (dotted path ->
        file:line or option), ``version``, ``seed``, ``events`` (simpy events), ``steps``, ``wall_s``,
        ``simulated_s`` (end of the run), ``arrived``, ``devices`` (in all pools), ``pricing_notes``,
        ``memory`` (per pool), ``laws`` (name -> "holds" | "not checked"), ``started`` is absent: equal inputs
        give equal bytes except ``wall_s``. Optional keys: ``prices`` (see ``metrics.prices``), ``outside_s``
        (seconds requests spent outside every pool, KV transfers included; absent: the sum of
        ``kv_transfer_s``), ``lost_tokens`` (tokens generated and thrown away by replica failures; absent: not
        known), ``command`` (the exact command line, as a list of words)
    tables : see ``TABLES``
    """

    manifest: dict[str, Any]
    tables: Tables
