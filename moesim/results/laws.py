"""Laws: what bookkeeping and physics forbid, one function each. A broken one is our bug, not the user's."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from moesim.errors import LawBroken
from moesim.results.latency import PERCENTILES, e2e_s, histogram_spread, queue_s, spread, tpot_s, ttft_s
from moesim.results.tables import Result, rows

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

__all__ = [
    "LAWS",
    "busy_within_service",
    "causality",
    "check",
    "expert_load",
    "gaps_between_tokens",
    "kv_within_memory",
    "little",
    "ops_are_busy_time",
    "percentiles_in_order",
    "preemptions_agree",
    "prompts_are_read",
    "request_conservation",
    "timeline_bounds",
    "token_conservation",
]

TOLERANCE = 1e-9


def request_conservation(result: Result) -> None:
    """Conserve requests: every arrival finished, was rejected, or is in flight; none is counted twice."""
    requests = result.tables.requests
    arrived = int(result.manifest.get("arrived", len(requests)))
    by_status = requests["status"].value_counts().to_dict()
    known = sum(by_status.get(s, 0) for s in ("finished", "rejected", "in_flight"))
    if known != arrived or len(requests) != arrived:
        _broken(result, "request_conservation", f"{arrived} arrived, {len(requests)} recorded: {by_status}")
    if requests["request"].duplicated().any():
        _broken(result, "request_conservation", "a request is recorded twice")


def token_conservation(result: Result) -> None:
    """Conserve tokens: those of requests plus those lost to failures are those that replicas made."""
    requests = result.tables.requests
    got, asked = _numbers(requests, "generated_tokens"), _numbers(requests, "output_tokens")
    status = requests["status"].to_numpy()
    wrong = np.where(
        status == "finished", got != asked, (got < 0) | (got > np.where(status == "rejected", 0, asked))
    )
    if wrong.any():
        row = int(np.argmax(wrong))
        _broken(
            result,
            "token_conservation",
            f"request {requests['request'].iloc[row]} is {status[row]} with "
            f"{got[row]:.0f} of {asked[row]:.0f} tokens",
        )
    made, kept = float(result.tables.replicas["decode_tokens"].sum()), float(got.sum())
    lost = result.manifest.get("lost_tokens")
    if lost is None and requests["restarts"].any():
        if kept > made:
            _broken(
                result, "token_conservation", f"requests hold {kept:.0f} tokens, replicas made {made:.0f}"
            )
    elif kept + (lost or 0) != made:
        _broken(
            result,
            "token_conservation",
            f"requests hold {kept:.0f} tokens, {lost or 0} were lost, replicas made {made:.0f}",
        )


def causality(result: Result) -> None:
    """Keep order: arrival, first work, first token, finish, inside the run, each only if it was reached."""
    requests = result.tables.requests
    end = float(result.manifest["simulated_s"])
    names = ("arrival_s", "scheduled_s", "first_token_s", "finish_s")
    times = np.column_stack([_numbers(requests, n) for n in names]) if len(requests) else np.zeros((0, 4))
    missing = np.isnan(times)
    late = np.where(missing, -np.inf, times) > end * (1 + TOLERANCE)
    disorder = (np.diff(times, axis=1) < 0).any(axis=1) | (missing[:, :-1] & ~missing[:, 1:]).any(axis=1)
    finished = (requests["status"] == "finished").to_numpy()
    rejected = (requests["status"] == "rejected").to_numpy()
    # a token exists exactly when its time does
    token = _numbers(requests, "generated_tokens") > 0
    status = (finished == missing[:, 3]) | (rejected & ~missing[:, 2]) | (token == missing[:, 2])
    wrong = disorder | late.any(axis=1) | status | missing[:, 0] | (times[:, 0] < 0)
    if wrong.any():
        row = int(np.argmax(wrong))
        shown = ", ".join(f"{n} {v!r}" for n, v in zip(names, times[row].tolist(), strict=True))
        _broken(
            result,
            "causality",
            f"request {requests['request'].iloc[row]} ({requests['status'].iloc[row]}): {shown}"
            f", run ends {end!r}",
        )


def little(result: Result) -> None:
    """Hold Little's law exactly: request-seconds in pools plus outside them are the sum of times in system.

    A request is in the system from arrival to finish, or to the end of the run; a rejected one spends no
    time.
    """
    requests = result.tables.requests
    kept = requests.loc[requests["status"] != "rejected"]
    leave = np.nan_to_num(_numbers(kept, "finish_s"), nan=float(result.manifest["simulated_s"]))
    in_system = float((leave - _numbers(kept, "arrival_s")).sum())
    outside = float(result.manifest.get("outside_s", kept["kv_transfer_s"].sum()))
    present = float(result.tables.replicas["requests_s"].sum()) + outside
    if not _close(present, in_system):
        _broken(
            result,
            "little",
            f"integral of requests present {present!r} s, sum of times in system {in_system!r} s",
        )


def busy_within_service(result: Result) -> None:
    """Bound busy time: a replica is busy at most while in service, and in service at most for the run."""
    end = float(result.manifest["simulated_s"])
    for row in rows(result.tables.replicas):
        if not 0 <= row.busy_s <= row.alive_s * (1 + TOLERANCE) <= end * (1 + TOLERANCE) ** 2:
            _broken(
                result,
                "busy_within_service",
                f"{row.pool} {row.replica}: busy {row.busy_s!r} s, in service "
                f"{row.alive_s!r} s, run {end!r} s",
            )


def kv_within_memory(result: Result) -> None:
    """Bound memory: no replica ever held more KV blocks than it has."""
    for row in rows(result.tables.replicas):
        if not 0 <= row.kv_peak <= 1 + TOLERANCE:
            _broken(
                result,
                "kv_within_memory",
                f"{row.pool} {row.replica}: peak share {row.kv_peak!r} of KV blocks",
            )


def gaps_between_tokens(result: Result) -> None:
    """Count gaps: a request with g tokens has g - 1 of them, and the histogram holds them all."""
    gaps = float(np.maximum(_numbers(result.tables.requests, "generated_tokens") - 1, 0).sum())
    counted = float(result.tables.itl["tokens"].sum())
    restarted = bool(result.tables.requests["restarts"].any())
    made = float(result.tables.replicas["decode_tokens"].sum())
    if counted != gaps and not (restarted and gaps <= counted <= made):
        _broken(
            result, "gaps_between_tokens", f"histogram counts {counted:.0f} gaps, requests have {gaps:.0f}"
        )


def ops_are_busy_time(result: Result) -> None:
    """Add up: the ops of a pool, host overhead included, take as long as the steps of its replicas."""
    spent = result.tables.ops.groupby("pool")["seconds"].sum().to_dict()
    busy = result.tables.replicas.groupby("pool")["step_s"].sum().to_dict()
    for pool in sorted({*spent, *busy}, key=str):
        if not _close(spent.get(pool, 0.0), busy.get(pool, 0.0)):
            _broken(
                result,
                "ops_are_busy_time",
                f"{pool}: ops take {spent.get(pool, 0.0)!r} s, steps take {busy.get(pool, 0.0)!r} s",
            )
    if (result.tables.ops["seconds"] < 0).any():
        _broken(result, "ops_are_busy_time", "an op takes negative time")


def timeline_bounds(result: Result) -> None:
    """Bound samples: a replica's come in order of time, inside the run, with counts and shares in bounds."""
    samples, end = result.tables.timeline, float(result.manifest["simulated_s"])
    start = _numbers(samples, "time_s") - _numbers(samples, "step_s")
    wrong = (
        (start < -TOLERANCE * max(end, 1.0))
        | (_numbers(samples, "time_s") > end * (1 + TOLERANCE))
        | (_numbers(samples, "step_s") < 0)
        | (_numbers(samples, "waiting") < 0)
        | (_numbers(samples, "running") < 0)
        | (_numbers(samples, "step_tokens") < 0)
        | ~((_numbers(samples, "kv_used") >= 0) & (_numbers(samples, "kv_used") <= 1 + TOLERANCE))
    )
    if wrong.any():
        _broken(result, "timeline_bounds", f"out of bounds: {samples.iloc[int(np.argmax(wrong))].to_dict()}")
    peaks = result.tables.replicas.set_index(["pool", "replica"])["kv_peak"]
    for key, group in samples.groupby(["pool", "replica"], sort=False):
        place: Any = key
        if not group["time_s"].is_monotonic_increasing:
            _broken(result, "timeline_bounds", f"samples of {place} are not in order of time")
        if place not in peaks.index:
            _broken(result, "timeline_bounds", f"samples of {place}, which is no replica")
        if group["kv_used"].max() > peaks[place] * (1 + TOLERANCE):
            _broken(
                result,
                "timeline_bounds",
                f"{place} held {group['kv_used'].max()!r} of KV blocks, peak {peaks[place]!r}",
            )


def percentiles_in_order(result: Result) -> None:
    """Order percentiles: they rise with their rank, and nothing takes negative time."""
    requests, itl = result.tables.requests, result.tables.itl
    if (itl["tokens"] < 0).any() or (itl["low_s"] < 0).any() or (itl["high_s"] < itl["low_s"]).any():
        _broken(result, "percentiles_in_order", "a bin of gaps has a negative count, time or width")
    times = {"ttft": ttft_s, "tpot": tpot_s, "e2e": e2e_s, "queue": queue_s}
    values = {name: of(requests) for name, of in times.items()}
    for name, found in values.items():
        if (found < 0).any():
            _broken(result, "percentiles_in_order", f"{name}: a request took {found[found < 0][0]!r} s")
    spreads = {name: spread(found) for name, found in values.items()} | {"itl": histogram_spread(itl)}
    for name, summed in spreads.items():
        ranks = [v for v in (summed[f"p{p}"] for p in PERCENTILES) if v is not None]
        if any(b < a * (1 - 1e-12) for a, b in itertools.pairwise(ranks)):
            _broken(result, "percentiles_in_order", f"{name}: {summed}")


def preemptions_agree(result: Result) -> None:
    """Agree on preemptions: requests and replicas count the same."""
    lost, taken = (int(t["preemptions"].sum()) for t in (result.tables.requests, result.tables.replicas))
    if lost != taken:
        _broken(
            result,
            "preemptions_agree",
            f"requests lost their blocks {lost} times, replicas took them {taken} times",
        )


def prompts_are_read(result: Result) -> None:
    """Read prompts: tokens computed or found in a cache cover the prompts of requests that got a token."""
    requests, replicas = result.tables.requests, result.tables.replicas
    needed = int(requests.loc[requests["generated_tokens"] > 0, "input_tokens"].sum())
    read = int(replicas["prefill_tokens"].sum() + replicas["cached_tokens"].sum())
    if read < needed:
        _broken(result, "prompts_are_read", f"{read} prompt tokens were read, {needed} were needed")


def expert_load(result: Result) -> None:
    """Share load: the loads of a layer's experts are none negative, together one."""
    experts = result.tables.experts
    totals = experts.groupby("layer")["load"].sum()
    if (experts["load"] < 0).any() or not np.allclose(totals, 1.0, rtol=0, atol=1e-6):
        _broken(result, "expert_load", f"loads of a layer add up to {totals.min()!r} to {totals.max()!r}")


LAWS: dict[str, tuple[Callable[[Result], None], str]] = {
    "request_conservation": (request_conservation, "requests"),
    "token_conservation": (token_conservation, "replicas"),
    "causality": (causality, "requests"),
    "little": (little, "replicas"),
    "busy_within_service": (busy_within_service, "replicas"),
    "kv_within_memory": (kv_within_memory, "replicas"),
    "gaps_between_tokens": (gaps_between_tokens, "replicas"),
    "ops_are_busy_time": (ops_are_busy_time, "replicas"),
    "timeline_bounds": (timeline_bounds, "timeline"),
    "percentiles_in_order": (percentiles_in_order, "requests"),
    "preemptions_agree": (preemptions_agree, "replicas"),
    "prompts_are_read": (prompts_are_read, "replicas"),
    "expert_load": (expert_load, "experts"),
}
"""Law by name, and the table without which it says nothing."""


def check(result: Result) -> dict[str, str]:
    """Check every law: name -> ``holds``, or ``not checked`` where the run recorded no table for it.

    Raises
    ------
    LawBroken : with the numbers, the scenario and the seed to reproduce it
    """
    found = {}
    for name, (law, table) in LAWS.items():
        if getattr(result.tables, table).empty:
            found[name] = "not checked"
            continue
        law(result)
        found[name] = "holds"
    return found


def _numbers(frame: pd.DataFrame, name: str) -> npt.NDArray[np.float64]:
    return frame[name].to_numpy(dtype=np.float64)


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= TOLERANCE * max(abs(a), abs(b))


def _broken(result: Result, law: str, detail: str) -> NoReturn:
    scenario = result.manifest.get("scenario", {}).get("name", "unnamed")
    raise LawBroken(f"{law}: {detail} (scenario {scenario}, seed {result.manifest.get('seed')})")
