"""Compare: two runs side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from moesim.results.metrics import summary

if TYPE_CHECKING:
    from moesim.results.tables import Result

__all__ = ["compare"]

_LEFT_OUT = {"scenario", "version", "seed", "laws", "report", "definitions", "wall_s", "events", "window_s"}


def compare(a: Result, b: Result) -> pd.DataFrame:
    """Lay the summaries of two runs side by side.

    Returns
    -------
    frame with columns ``metric`` (dotted name in ``summary``, with its unit), ``a``, ``b``, ``difference`` (b
    - a) and ``ratio`` (b / a), in the summary's order; NaN where a run has no such number or a is zero
    """
    left, right = ({k: v for k, v in summary(r).items() if k not in _LEFT_OUT} for r in (a, b))
    first, second = dict(_numbers(left)), dict(_numbers(right))
    names = [*first, *(name for name in second if name not in first)]
    frame = pd.DataFrame(
        {
            "metric": pd.Series(names, dtype="object"),
            "a": pd.Series([first.get(n) for n in names], dtype="float64"),
            "b": pd.Series([second.get(n) for n in names], dtype="float64"),
        }
    )
    frame = frame[frame["a"].notna() | frame["b"].notna()].reset_index(drop=True)
    frame["difference"] = frame["b"] - frame["a"]
    frame["ratio"] = frame["b"] / frame["a"].where(frame["a"] != 0)
    return frame


def _numbers(value: Any, path: str = "") -> list[tuple[str, float | None]]:
    """Flatten nested dicts to (dotted name, number)."""
    if isinstance(value, dict):
        return [
            pair
            for key, part in value.items()
            for pair in _numbers(part, f"{path}.{key}" if path else str(key))
        ]
    if value is None or isinstance(value, bool | int | float):
        return [(path, None if value is None else float(value))]
    return []
