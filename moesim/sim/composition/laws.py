"""Laws of a composition's run: nothing computes on absent weights, memory holds, every prompt is answered once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moesim.errors import LawBroken

if TYPE_CHECKING:
    import pandas as pd

    from moesim.sim.composition.run import CompositionResult

__all__ = ["check_composition"]

_CLOCK = 1e-9
"""Relative slack of floating-point clocks."""


def check_composition(result: CompositionResult) -> None:
    """Raise ``LawBroken`` where a run breaks a law; silent otherwise."""
    _answered(result)
    _memory(result)
    _present(result)
    for name, start, end in (("runs", "run_from_s", "run_to_s"), ("copies", "copy_from_s", "copy_to_s")):
        _one_at_a_time(result.runs, name, start, end)


def _answered(result: CompositionResult) -> None:
    table = result.prompts
    order = table[["arrival_s", "routed_s", "run_s", "finish_s"]].to_numpy()
    if np.any(order[:, 0] < 0) or np.any(order[:, 1:] < order[:, :-1] * (1 - _CLOCK)):
        raise LawBroken("composition: a prompt's times are out of order, or it was never answered")
    if np.any(table["node"] < 0):
        raise LawBroken("composition: a prompt ran nowhere")


def _memory(result: CompositionResult) -> None:
    most = float(result.resident["bytes"].max())
    if most > result.capacity * (1 + _CLOCK):
        raise LawBroken(
            f"composition: {most:.6g} B resident, main memory has {result.capacity:.6g} B for experts"
        )


def _present(result: CompositionResult) -> None:
    if np.any(result.runs["run_from_s"] < result.runs["copy_to_s"] * (1 - _CLOCK)):
        raise LawBroken("composition: a run began before its expert was there")


def _one_at_a_time(runs: pd.DataFrame, name: str, start: str, end: str) -> None:
    for node, part in runs[runs[start] >= 0].groupby("node"):
        spans = part[[start, end]].sort_values(start).to_numpy()
        if np.any(spans[1:, 0] < spans[:-1, 1] * (1 - _CLOCK)):
            raise LawBroken(f"composition: two {name} at once on node {node}")
