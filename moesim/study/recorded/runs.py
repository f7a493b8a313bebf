"""Runs: requests that a real engine served, replayed through the simulator one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import NonNegativeInt, PositiveInt

from moesim.cost.pricing import StepPricing
from moesim.errors import DataMissing, SpecError
from moesim.policies import make_replica_router
from moesim.sim.driver import Driver, Plan
from moesim.sim.pool import Pool, PoolSetup, block_records, request_records
from moesim.spec.base import Source, Spec
from moesim.spec.deployment import Engine
from moesim.streams import stream
from moesim.traffic.requests import Requests, make_requests

__all__ = ["RecordedRun", "RecordedRuns", "engine_of", "read_requests", "replay"]

_TIMES = ("arrival_time", "queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts")
_COUNTS = ("input_toks", "output_toks")


class RecordedRun(Spec):
    """One recorded run and the settings of its engine."""

    device: str
    """Device of the catalog."""
    folder: str
    """Where its tables and requests stand."""
    model: str
    max_num_seqs: PositiveInt
    max_model_len: PositiveInt | None = None
    kv_blocks: PositiveInt | None = None
    """As the engine's log states them; none: from memory accounting."""
    graph_tokens: NonNegativeInt = 0
    """Largest batch that runs in a captured graph."""
    reserves_prompt: bool = False
    """A request is admitted only where its whole prompt fits, not only the first chunk."""
    source: str


class RecordedRuns(Spec):
    """Recorded runs of one engine version."""

    kind: Literal["recorded_runs"]
    dtype: Literal["bf16"]
    block_tokens: PositiveInt
    max_num_batched_tokens: PositiveInt
    prefix_caching: bool
    async_scheduling: bool
    runs: tuple[RecordedRun, ...]
    sources: tuple[Source, ...]


def engine_of(runs: RecordedRuns, run: RecordedRun) -> Engine:
    """Return the scheduler settings of a run.

    vLLM's check that the whole prompt fits is what the simulator does for the flavour ``sglang``; the flavour decides
    nothing else here, the block count is given.
    """
    return Engine(
        flavor="sglang" if run.reserves_prompt else "vllm",
        max_num_seqs=run.max_num_seqs,
        max_num_batched_tokens=runs.max_num_batched_tokens,
        block_tokens=runs.block_tokens,
        prefix_caching=runs.prefix_caching,
        async_scheduling=runs.async_scheduling,
        kv_blocks=run.kv_blocks,
        max_model_len=run.max_model_len,
    )


def read_requests(path: Path) -> pd.DataFrame:
    """Read ``requests.jsonl`` of a run.

    ``arrival_time`` is the client's wall clock, the others are the engine's monotonic one. The offset between them is
    the least ``queued_ts - arrival_time``: at least one request met an engine that looked at once.

    Returns
    -------
    frame : by arrival: ``input_toks``, ``output_toks``, and in seconds since the first arrival ``arrival``, ``queued``,
        ``scheduled``, ``first``, ``last``

    Raises
    ------
    DataMissing : no such file
    SpecError : a field is missing or the times of a request run backwards
    """
    if not path.is_file():
        raise DataMissing(f"{path}: no such file; recorded requests are part of the shared data")
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        record = json.loads(line)
        missing = [name for name in (*_TIMES, *_COUNTS) if name not in record]
        if missing:
            raise SpecError(f"{path.name}:{number} {missing[0]}: expected in every request")
        stamps = [record[name] for name in _TIMES[1:]]
        if sorted(stamps) != stamps:
            raise SpecError(f"{path.name}:{number} {', '.join(_TIMES[1:])}: expected times that do not fall")
        records.append([record[name] for name in (*_TIMES, *_COUNTS)])
    frame = pd.DataFrame(records, columns=["arrival", "queued", "scheduled", "first", "last", *_COUNTS])
    frame["arrival"] += float((frame["queued"] - frame["arrival"]).min())
    begin = float(frame["arrival"].min())
    for name in ("arrival", "queued", "scheduled", "first", "last"):
        frame[name] -= begin
    return frame.sort_values("arrival", kind="stable").reset_index(drop=True)


def requests_of(frame: pd.DataFrame, block_tokens: int, *, prefix_caching: bool) -> Requests:
    """Return the requests as traffic: no two prompts share a block, but a preempted one may meet its own again."""
    blocks = frame["input_toks"].to_numpy(dtype=np.int64) // block_tokens
    offset = np.append(0, np.cumsum(blocks))
    return make_requests(
        frame["arrival"].to_numpy(dtype=np.float64),
        frame["input_toks"].to_numpy(dtype=np.int64),
        frame["output_toks"].to_numpy(dtype=np.int64),
        block_offset=offset if prefix_caching else None,
        block_hash=np.arange(offset[-1]) if prefix_caching else None,
        block_tokens=block_tokens if prefix_caching else 0,
    )


def replay(
    frame: pd.DataFrame, pricing: StepPricing, engine: Engine, *, kv_blocks: int, max_len: int
) -> pd.DataFrame:
    """Serve the recorded requests on one simulated replica.

    Parameters
    ----------
    frame : as ``read_requests`` returns it
    kv_blocks, max_len : of the engine

    Returns
    -------
    frame : one row per request, same order: ``ttft_s``, ``tpot_s``, ``e2e_s`` measured (from arrival) and
        ``predicted_ttft_s``, ``predicted_tpot_s``, ``predicted_e2e_s``, ``preemptions``. TPOT is NaN for one token
    """
    requests = requests_of(frame, engine.block_tokens, prefix_caching=engine.prefix_caching)
    setup = PoolSetup("serve", 1, pricing, engine, 1, kv_blocks, max_len)
    pool = Pool(setup, requests, request_records(requests), block_records(requests))
    router = make_replica_router("round_robin", stream(0, "router serve"))
    Driver({"serve": pool}, requests, {"serve": router}, Plan()).run()
    made = pd.DataFrame({name: pool.state.req[name] for name in ("first", "finish", "preemptions")})
    gaps = (frame["output_toks"] - 1).where(frame["output_toks"] > 1)
    return pd.DataFrame(
        {
            "ttft_s": frame["first"] - frame["arrival"],
            "tpot_s": (frame["last"] - frame["first"]) / gaps,
            "e2e_s": frame["last"] - frame["arrival"],
            "predicted_ttft_s": made["first"] - frame["arrival"],
            "predicted_tpot_s": (made["finish"] - made["first"]) / gaps,
            "predicted_e2e_s": made["finish"] - frame["arrival"],
            "preemptions": made["preemptions"],
        }
    )
