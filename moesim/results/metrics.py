"""Metrics: what a run achieved. Definitions are here, in ``latency`` and ``targets``, and travel along."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.errors import SpecError
from moesim.results.latency import e2e_s, histogram_spread, pooled_tpot_s, queue_s, spread, tpot_s, ttft_s
from moesim.results.targets import good_requests, verdicts
from moesim.units import parse_quantity

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from moesim.results.tables import Result

__all__ = [
    "DEFINITIONS",
    "cost",
    "counts",
    "energy",
    "goodput",
    "prices",
    "source_shares",
    "summary",
    "throughput",
    "utilisation",
    "window_s",
]

DEFINITIONS = {
    "requests": (
        "all requests of the run, warm-up and cool-down included; measured: those inside the measured window"
    ),
    "window_s": "from the first measured arrival to the last measured finish",
    "ttft_s": (
        "time to first token: first token minus arrival, queueing included; measured requests with a first "
        "token"
    ),
    "tpot_s": (
        "time per output token of each finished measured request: (e2e - ttft) / (output tokens - 1), as "
        "vLLM's benchmark defines it; requests for one token are left out"
    ),
    "tpot_pooled_s": "sum of decode time over sum of (output tokens - 1), finished measured requests",
    "itl_s": (
        "gap between two consecutive tokens of one request, from a histogram of the whole run (warm-up "
        "included); a value is off by at most its bin's width"
    ),
    "e2e_s": "finish minus arrival, finished measured requests",
    "queue_s": "first scheduled minus arrival, measured requests",
    "percentiles": "linear interpolation between order statistics (numpy 'linear')",
    "throughput": (
        "finished measured requests and their tokens over window_s; total counts prompt and output tokens"
    ),
    "goodput": (
        "measured requests that met every target: over those decided, and per second of window_s; rejected "
        "requests miss, requests cut off before their outcome are left out"
    ),
    "verdict": (
        "the stated percentile of decided measured requests is at most the limit; rejected requests miss"
    ),
    "utilisation": "busy time over time in service, per pool, whole run",
    "kv_occupancy": "share of KV blocks held: mean over timeline samples, and peak, whole run",
    "energy_J": "devices and their share of the node, whole run; per output token of the whole run",
    "cost_usd": (
        "device-hours times the rental price of a device, whole run: rented for the whole run, or for the "
        "time in service under autoscaling; a rental price includes power; null when no price is known"
    ),
    "electricity_usd": (
        "energy times PUE times the electricity price, whole run; part of a rental price, so never added to"
        " cost_usd"
    ),
    "usd_per_million_tokens": (
        "the whole cost_usd over the output (input) tokens of the whole run, in millions"
    ),
    "carbon_g": "energy times PUE times the grid's carbon intensity, whole run; null when none is stated",
    "preemptions": "times a request lost its KV blocks, whole run",
    "sources": "share of engine seconds whose price came from measured points, fits or roofline bounds",
    "intervals": "factors on a simulated mean latency between which nine of ten measured deployments lie",
}


def window_s(requests: pd.DataFrame) -> tuple[float, float] | None:
    """Return (first measured arrival, last measured finish) in seconds; None when none finished."""
    measured = requests.loc[requests["measured"]]
    finishes = measured["finish_s"].dropna()
    return (float(measured["arrival_s"].min()), float(finishes.max())) if len(finishes) else None


def counts(requests: pd.DataFrame) -> dict[str, int]:
    """Count requests by outcome over the whole run, and the measured ones."""
    by_status = requests["status"].value_counts()
    outcomes = {status: int(by_status.get(status, 0)) for status in ("finished", "rejected", "in_flight")}
    return {"arrived": len(requests), **outcomes, "measured": int(requests["measured"].sum())}


def throughput(result: Result) -> dict[str, float | None]:
    """Rates over the measured window: requests/s, tokens/s, and tokens/s per device (see ``DEFINITIONS``)."""
    requests = result.tables.requests
    window = window_s(requests)
    names = ("requests_per_s", "output_tokens_per_s", "output_tokens_per_s_per_device", "total_tokens_per_s")
    if window is None or window[1] <= window[0]:
        return dict.fromkeys(names)
    seconds = window[1] - window[0]
    done = requests.loc[requests["measured"] & (requests["status"] == "finished")]
    output = float(done["generated_tokens"].sum()) / seconds
    total = output + float(done["input_tokens"].sum()) / seconds
    return dict(
        zip(names, (len(done) / seconds, output, _ratio(output, _devices(result)), total), strict=True)
    )


def goodput(result: Result) -> dict[str, float | int | None] | None:
    """Share and rate of requests that met every target (see ``DEFINITIONS``); None without targets."""
    counted = good_requests(result)
    if counted is None:
        return None
    good, decided = counted
    window = window_s(result.tables.requests)
    rate = None if window is None else _ratio(good, window[1] - window[0])
    return {"share": _ratio(good, decided), "requests_per_s": rate, "good": good, "decided": decided}


def utilisation(result: Result) -> dict[str, dict[str, float | None]]:
    """Return per pool: busy share of time in service, mean and peak share of KV blocks held, all 0..1."""
    replicas, samples = result.tables.replicas, result.tables.timeline
    found = {}
    for pool, rows in replicas.groupby("pool", sort=False):
        held = samples.loc[samples["pool"] == pool, "kv_used"]
        found[str(pool)] = {
            "busy": _ratio(float(rows["busy_s"].sum()), float(rows["alive_s"].sum())),
            "kv_mean": float(held.mean()) if len(held) else None,
            "kv_peak": _finite(rows["kv_peak"].max()),
        }
    return found


def energy(result: Result) -> dict[str, float | None]:
    """Joules of the whole run and per output token; None when a replica's power is not known."""
    joules = result.tables.replicas["energy_J"].to_numpy(dtype=np.float64)
    total = _finite(joules.sum()) if joules.size else None
    generated = float(result.tables.requests["generated_tokens"].sum())
    return {"total_J": total, "J_per_output_token": None if total is None else _ratio(total, generated)}


def prices(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the prices a run is counted with, and where they come from.

    Read from the resolved scenario: rental of one device per hour from ``economics.rental``, else
    ``device.price.rental``, else ``node.price.rental`` over the node's devices; ``electricity``, ``pue`` and
    ``carbon_g_per_kwh`` from ``economics``. Keys of ``manifest["prices"]`` replace them; ``rental_usd_per_h``
    may be a mapping from pool to price, for pools on different hardware.
    """
    scenario = manifest["scenario"]
    economics, device, node = (scenario.get(key) or {} for key in ("economics", "device", "node"))
    rental, source = None, "none stated"
    for place, part, devices in (
        ("economics.rental", {"price": economics}, 1),
        ("device.price.rental", device, 1),
        ("node.price.rental over its devices", node, node.get("devices", 1)),
    ):
        rental = _money(part.get("price") or {}, "rental", "USD/h")
        if rental is not None:
            rental, source = rental / devices, place
            break
    return {
        "rental_usd_per_h": rental,
        "electricity_usd_per_kwh": _money(economics, "electricity", "USD/(kW*h)"),
        "pue": float(economics.get("pue", 1.0)),
        "carbon_g_per_kwh": economics.get("carbon_g_per_kwh"),
        "source": source,
        **(manifest.get("prices") or {}),
    }


def cost(result: Result) -> dict[str, float | None]:
    """US dollars of the whole run, per million output and input tokens, and the electricity inside it."""
    known = prices(result.manifest)
    replicas, requests = result.tables.replicas, result.tables.requests
    deployment = result.manifest["scenario"].get("deployment") or {}
    span = replicas["alive_s"] if deployment.get("autoscaling") else float(result.manifest["simulated_s"])
    hours = (replicas["devices"] * span / 3600.0).groupby(replicas["pool"]).sum()
    rental = known["rental_usd_per_h"]
    rates = {pool: rental.get(pool) if isinstance(rental, dict) else rental for pool in map(str, hours.index)}
    priced = bool(rates) and None not in rates.values()
    usd = float(sum(hours[pool] * rate for pool, rate in rates.items())) if priced else None
    joules = energy(result)["total_J"]
    facility_kwh = None if joules is None else joules * known["pue"] / 3.6e6
    output = float(requests["generated_tokens"].sum())
    # a prompt counts once its first token exists: then it was read whole
    read = float(requests.loc[requests["first_token_s"].notna(), "input_tokens"].sum())
    return {
        "usd": usd,
        "usd_per_million_output_tokens": None if usd is None else _ratio(usd * 1e6, output),
        "usd_per_million_input_tokens": None if usd is None else _ratio(usd * 1e6, read),
        "electricity_usd": _times(facility_kwh, known["electricity_usd_per_kwh"]),
        "carbon_g": _times(facility_kwh, known["carbon_g_per_kwh"]),
        "device_hours": float(hours.sum()),
    }


def source_shares(result: Result) -> dict[str, float]:
    """Return the share of engine seconds by source of the price, largest first; the shares sum to 1."""
    seconds = result.tables.ops.groupby("source")["seconds"].sum().sort_values(ascending=False, kind="stable")
    total = float(seconds.sum())
    return {str(k): float(v) / total for k, v in seconds.items()} if total > 0 else {}


def summary(result: Result, report: str | None = None) -> dict[str, Any]:
    """Sum a run up: the stable JSON of ``moesim run --json``.

    Names carry units; ``definitions`` says what each number is. Unknown numbers are None, never NaN.

    Parameters
    ----------
    result : one run
    report : path of its HTML report, where one was written

    Returns
    -------
    JSON-ready dict

    Raises
    ------
    SpecError : a target or price in the scenario is not readable
    """
    manifest, requests = result.manifest, result.tables.requests
    measured = requests.loc[requests["measured"]]
    window, joules, money = window_s(requests), energy(result), cost(result)
    judged = verdicts(result)
    return {
        "scenario": str(manifest["scenario"].get("name", "unnamed")),
        "version": manifest.get("version"),
        "seed": manifest.get("seed"),
        "verdict": {v.metric: _without(asdict(v), "metric") for v in judged},
        "requests": counts(requests),
        "window_s": None if window is None else list(window),
        "simulated_s": _finite(manifest["simulated_s"]),
        "ttft_s": spread(ttft_s(measured)),
        "tpot_s": spread(tpot_s(measured)),
        "tpot_pooled_s": pooled_tpot_s(measured),
        "itl_s": histogram_spread(result.tables.itl),
        "e2e_s": spread(e2e_s(measured)),
        "queue_s": spread(queue_s(measured)),
        "throughput": throughput(result),
        "goodput": goodput(result),
        "devices": _devices(result),
        "utilisation": utilisation(result),
        "preemptions": int(requests["preemptions"].sum()),
        "restarts": int(requests["restarts"].sum()),
        "energy_J": joules["total_J"],
        "energy_J_per_output_token": joules["J_per_output_token"],
        "cost_usd": money["usd"],
        "usd_per_million_output_tokens": money["usd_per_million_output_tokens"],
        "usd_per_million_input_tokens": money["usd_per_million_input_tokens"],
        "electricity_usd": money["electricity_usd"],
        "carbon_g": money["carbon_g"],
        "device_hours": money["device_hours"],
        "sources": source_shares(result),
        "intervals": dict(manifest.get("intervals") or {}),
        "events": manifest.get("events"),
        "steps": manifest.get("steps"),
        "wall_s": manifest.get("wall_s"),
        "laws": dict(manifest.get("laws") or {}),
        "report": report,
        "definitions": dict(DEFINITIONS),
    }


def _devices(result: Result) -> int:
    stated = result.manifest.get("devices")
    return int(stated if stated is not None else result.tables.replicas["devices"].sum())


def _money(economics: Mapping[str, Any], field: str, unit: str) -> float | None:
    value = economics.get(field)
    try:
        return (
            None if value is None else parse_quantity(value, unit) if isinstance(value, str) else float(value)
        )
    except (TypeError, ValueError):
        raise SpecError(f"price {field}  {value!r}: expected {unit}") from None


def _ratio(over: float, under: float) -> float | None:
    return float(over) / float(under) if under > 0 else None


def _times(quantity: float | None, rate: float | None) -> float | None:
    return None if quantity is None or rate is None else quantity * float(rate)


def _finite(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _without(values: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k != key}
