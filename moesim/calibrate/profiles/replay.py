"""Replay: from a measured serving run to the scenario that repeats its traffic in the simulator."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pandas as pd

from moesim.calibrate.profiles.frame import ProfileImport
from moesim.errors import SpecError

__all__ = ["scenario_skeleton"]

_LEVELS = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
_FLAVORS = {"vllm": "vllm", "sglang": "sglang", "tensorrt-llm": "trtllm", "trt": "trtllm"}
"""The server, where the client names it; ``openai`` may be any."""
_NAME = re.compile(r"[^A-Za-z0-9._+-]+")


def scenario_skeleton(
    measured: ProfileImport, run: int = 0, *, cluster: str, model: str, name: str = ""
) -> dict[str, Any]:
    """Return a scenario file's data (for ``dump_yaml``) that offers the traffic of one measured run.

    Arrivals: a finite rate is Poisson, or gamma where the client's burstiness is not 1 (cv = burstiness ** -0.5); an
    infinite rate is a closed loop of ``max_concurrency``, or of all requests at once without a limit. Lengths: those
    of the requests where the file keeps them (fixed, or their measured distribution), else the random range that the
    client was asked for, else the mean. What the file does not say (parallelism, engine settings, routing) is left to
    the user: the deployment is one replica on one device.

    Parameters
    ----------
    measured : a serving import
    run : row of ``measured.frame``
    cluster, model : names in the catalog, or paths
    name : of the scenario; from client and load where empty

    Raises
    ------
    SpecError : not a serving import, no such run, a replayed or ramped arrival process, or unknown lengths
    """
    if measured.kind != "serving":
        raise SpecError(f"{measured.source}: expected a serving result to replay, not {measured.kind}")
    if not 0 <= run < len(measured.frame):
        raise SpecError(f"{measured.source}: run {run}: expected 0 to {len(measured.frame) - 1}")
    row = measured.frame.iloc[run]
    arrivals, about = _arrivals(row, measured.source)
    lengths, how = _lengths(row, measured.requests, run, measured.source)
    load = f"c{arrivals['concurrency']}" if "concurrency" in arrivals else f"{row['request_rate']:g}-per-s"
    pool: dict[str, Any] = {"replicas": 1, "parallelism": {"tp": 1}}
    flavor = next((ours for theirs, ours in _FLAVORS.items() if str(row["backend"]).startswith(theirs)), None)
    if flavor:
        pool["engine"] = {"flavor": flavor}
    return {
        "kind": "scenario",
        "name": name or _NAME.sub("-", f"{row['client']}-{model.rsplit('/', 1)[-1]}-{load}"),
        "title": f"Replay of a measured {row['client']} run",
        "description": (
            f"Traffic of {measured.source} (line {row['line']}, model {row['model_id'] or 'not stated'}): {about};"
            f" {how}. Parallelism, engine settings and routing are not in the file: fill them in."
        ),
        "cluster": cluster,
        "model": model,
        "traffic": {"kind": "traffic", "name": "measured", "arrivals": arrivals, "lengths": lengths},
        "deployment": {"serve": pool},
        "run": {"requests": int(row["prompts"])},
    }


def _arrivals(row: pd.Series, source: str) -> tuple[dict[str, Any], str]:
    rate, limit = float(row["request_rate"]), row["max_concurrency"]
    if math.isnan(rate):
        raise SpecError(
            f"{source}: line {row['line']}: arrivals were replayed or ramped up: their times are not kept"
        )
    if math.isinf(rate):
        slots = int(row["prompts"]) if pd.isna(limit) else min(int(limit), int(row["prompts"]))
        return {"kind": "closed_loop", "concurrency": slots}, f"closed loop of {slots}"
    about = f"{rate:g} requests/s offered"
    if not pd.isna(limit):
        about += (
            f", at most {int(limit)} in flight (the limit is not modelled: it matters only above capacity)"
        )
    shape = float(row["burstiness"])
    if shape == 1.0:
        return {"kind": "poisson", "rate": f"{rate!r} request/s"}, about
    return {"kind": "gamma", "rate": f"{rate!r} request/s", "cv": shape**-0.5}, about


def _lengths(
    row: pd.Series, requests: pd.DataFrame | None, run: int, source: str
) -> tuple[dict[str, Any], str]:
    own = None if requests is None else requests[requests["run"] == run]
    if own is not None and len(own):
        return _recorded(own)
    if (
        not math.isnan(row["range_ratio"])
        and not pd.isna(row["nominal_input"])
        and not pd.isna(row["nominal_output"])
    ):
        nominal = {"input": int(row["nominal_input"]), "output": int(row["nominal_output"])}
        lengths = {"kind": "uniform_range", **nominal, "range_ratio": float(row["range_ratio"])}
        return lengths, "lengths drawn from the random range that the client was asked for"
    means = [row[name] / row["completed"] for name in ("input_tokens", "output_tokens")]
    if any(math.isnan(mean) or mean < 1 for mean in means):
        raise SpecError(f"{source}: line {row['line']}: total_input_tokens or total_output_tokens is missing")
    nominal = {"input": round(means[0]), "output": round(means[1])}
    return {"kind": "fixed", **nominal}, "all lengths at the mean, the file keeps no more"


def _recorded(own: pd.DataFrame) -> tuple[dict[str, Any], str]:
    values = {name: own[f"{name}_tokens"].to_numpy() for name in ("input", "output")}
    if all(np.ptp(v) == 0 for v in values.values()):
        return {
            "kind": "fixed",
            **{name: int(v[0]) for name, v in values.items()},
        }, "fixed lengths, as recorded"
    lengths: dict[str, Any] = {"kind": "empirical"}
    for name, v in values.items():
        tokens = np.maximum(np.rint(np.quantile(v, _LEVELS)), 1).astype(int)
        lengths[name] = {"levels": list(_LEVELS), "tokens": tokens.tolist()}
    correlation = own["input_tokens"].corr(own["output_tokens"], method="spearman")
    if not math.isnan(correlation):
        lengths["rank_correlation"] = float(np.clip(round(correlation, 4), -0.99, 0.99))
    return lengths, f"lengths of the {len(own)} recorded requests"
