"""Suite ``vllm-rtx``: 300 real requests on each of two cards, replayed from the cards' own kernel tables."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moesim.errors import DataMissing
from moesim.files import read_yaml
from moesim.spec.base import load_spec, validate
from moesim.spec.model import ModelSpec
from moesim.study.recorded.kernels import attention_errors, product_errors, read_kernels, table_pricing
from moesim.study.recorded.runs import RecordedRun, RecordedRuns, engine_of, read_requests, replay
from moesim.study.serving.score import Band, check_bands, errors

__all__ = ["FOLDER", "recorded_runs", "replay_run", "run"]

FOLDER = Path("data/measured/vllm_rtx")
"""Where the recorded runs stand in the shared data folder."""
Progress = Callable[[float, str], None]


def recorded_runs() -> RecordedRuns:
    """Return the recorded runs and their settings."""
    path = Path(__file__).with_suffix(".yaml")
    return validate(RecordedRuns, read_yaml(path, path.name))


def run(
    *,
    shared: Path | None = None,
    cache: Path | None = None,  # noqa: ARG001 - the suite takes seconds
    bands: tuple[Band, ...] = (),
    quick: int = 0,
    bound: bool = False,  # noqa: ARG001 - measured kernels are the point
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return the suite's answer.

    Metrics by card: ``<device>_ttft``, ``_tpot``, ``_e2e`` over requests; ``<device>_ttft_mean`` ... the relative
    error of the mean (what simulators of this data quote). Hold-outs: ``attention_linear`` and ``attention_log``,
    mixed attention off the grid; ``product_next`` and ``product_linear``, products at counts left out.

    Parameters
    ----------
    shared : the shared data folder
    quick : every n-th request is reported; all are replayed

    Raises
    ------
    DataMissing : no shared data
    """
    if shared is None:
        raise DataMissing(
            "vllm-rtx: the recorded runs are part of the shared data: name its folder (--shared)"
        )
    known = recorded_runs()
    figures: dict[str, dict[str, float]] = {}
    groups: list[dict[str, Any]] = []
    rows = 0
    for done, one in enumerate(known.runs):
        if progress is not None:
            progress(done / len(known.runs), one.device)
        frame = replay_run(known, one, shared / FOLDER)[:: max(quick, 1)]
        rows += len(frame)
        for value in ("ttft", "tpot", "e2e"):
            figures |= _figures(
                f"{one.device}_{value}", frame[[f"predicted_{value}_s", f"{value}_s"]].dropna()
            )
            found = figures[f"{one.device}_{value}"]
            groups.append({"device": one.device, "model": one.model, "value": value, **found})
    figures |= _hold_out(known, shared / FOLDER)
    return {
        "suite": "vllm-rtx",
        "rows": rows,
        "covered": rows,
        "metrics": figures,
        "groups": groups,
        "bands": check_bands(bands, figures),
        "left_out": [],
    }


def replay_run(runs: RecordedRuns, run: RecordedRun, folder: Path) -> pd.DataFrame:
    """Replay one run from its tables; the frame of ``runs.replay``."""
    place = folder / run.folder
    model = load_spec(ModelSpec, run.model, "model")
    engine = engine_of(runs, run)
    pricing = table_pricing(
        read_kernels(place),
        model,
        max_tokens=engine.max_num_batched_tokens,
        max_seqs=engine.max_num_seqs,
        graph_tokens=run.graph_tokens,
    )
    frame = read_requests(place / "requests.jsonl")
    longest = int((frame["input_toks"] + frame["output_toks"]).max())
    # without a recorded count: enough for every seat, since no request of such a run ever waited for blocks
    blocks = run.kv_blocks or engine.max_num_seqs * math.ceil(longest / engine.block_tokens)
    return replay(frame, pricing, engine, kv_blocks=blocks, max_len=run.max_model_len or model.context)


def _figures(name: str, pairs: pd.DataFrame) -> dict[str, dict[str, float]]:
    predicted, measured = (pairs[column].to_numpy(dtype=np.float64) for column in pairs)
    means = float(predicted.mean()), float(measured.mean())
    return {
        name: errors(predicted, measured).as_dict(),
        f"{name}_mean": {
            "n": float(len(pairs)), "error": means[0] / means[1] - 1.0,
            "median_error": float(np.median(predicted) / np.median(measured)) - 1.0,
            "predicted_s": means[0], "measured_s": means[1],
        },
    }  # fmt: skip


def _hold_out(runs: RecordedRuns, folder: Path) -> dict[str, dict[str, float]]:
    """Score both ways to read between measurements, over both cards."""
    cards = [read_kernels(folder / one.folder) for one in runs.runs]
    tried = {
        "attention_linear": [attention_errors(card.attention, 1, "linear") for card in cards],
        "attention_log": [attention_errors(card.attention, 1, "log") for card in cards],
        "product_next": [product_errors(card, "next") for card in cards],
        "product_linear": [product_errors(card, "linear") for card in cards],
    }
    return {
        name: errors(np.concatenate([p for p, _ in parts]), np.concatenate([m for _, m in parts])).as_dict()
        for name, parts in tried.items()
    }
