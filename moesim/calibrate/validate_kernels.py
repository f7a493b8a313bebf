"""Validate kernels: the hold-out errors that the shipped fits carry, as tables, metrics and bands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from moesim.cost.fitted.artifact import Artifact, load_artifact, shipped

__all__ = ["HOLDOUTS", "kernel_errors", "kernel_metrics", "markdown", "run"]

HOLDOUTS = ("points", "shapes", "device")
"""``points``: random rows. ``shapes``: whole shapes, e.g. all m of one (n, k). ``device``: all rows of one device."""

_HOPPER = frozenset({"h100-sxm", "h200-sxm"})
_GEMM_DEVICES = frozenset({"h100-sxm", "h200-sxm", "b200-sxm", "a100-80-sxm"})
_ATTENTION = frozenset({"context_attention", "generation_attention", "context_mla", "generation_mla"})
_COLLECTIVES = frozenset({"all_reduce", "nccl"})

_METRICS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "gemm_shapes": lambda g: g["family"] == "gemm" and g["holdout"] == "shapes",
    "gemm_bf16_device": lambda g: (
        g["family"] == "gemm"
        and g["dtype"] == "bf16"
        and g["holdout"] == "device"
        and g["device"] in _GEMM_DEVICES
    ),
    "gemm_device": lambda g: g["family"] == "gemm" and g["holdout"] == "device",
    "moe_shapes_hopper": lambda g: (
        g["family"] == "moe" and g["holdout"] == "shapes" and g["device"] in _HOPPER
    ),
    "moe_shapes_other": lambda g: (
        g["family"] == "moe" and g["holdout"] == "shapes" and g["device"] not in _HOPPER
    ),
    "moe_device": lambda g: g["family"] == "moe" and g["holdout"] == "device",
    "attention_shapes": lambda g: g["family"] in _ATTENTION and g["holdout"] == "shapes",
    "attention_device": lambda g: g["family"] in _ATTENTION and g["holdout"] == "device",
    "collectives_points": lambda g: g["family"] in _COLLECTIVES and g["holdout"] == "points",
    "exchange_shapes": lambda g: g["family"] == "expert_exchange" and g["holdout"] == "shapes",
    "quantise_shapes": lambda g: g["family"] == "quantise" and g["holdout"] == "shapes",
}


def kernel_errors(artifact: Artifact) -> list[dict[str, Any]]:
    """Return one entry per family, engine, types, kernel, device and hold-out, worst first.

    Returns
    -------
    ``{family, framework, dtype, kernel, device, holdout, n, mape, median_ape, p90_ape, bias, coverage}``; errors are
    fractions; ``coverage`` is that of 90 % intervals made from other shapes, where measured
    """
    found = []
    for (family, framework, dtype, kernel), group in artifact.groups.items():
        base = {"family": family, "framework": framework, "dtype": dtype, "kernel": kernel}
        for device, fit in group.devices.items():
            found += [{**base, "device": device, "holdout": kind, **fit.errors[kind]} for kind in fit.errors]
        found += [{**base, "device": device, "holdout": "device", **e} for device, e in group.errors.items()]
    for (family, framework, dtype, kernel), curve in artifact.curves.items():
        base = {"family": family, "framework": framework, "dtype": dtype, "kernel": kernel}
        for kind, devices in curve.errors.items():
            found += [{**base, "device": device, "holdout": kind, **e} for device, e in devices.items()]
    return sorted(found, key=lambda entry: -entry["mape"])


def _mean(entries: Sequence[dict[str, Any]], figure: str) -> float:
    """Return the mean over rows of a figure that is itself a mean over rows."""
    known = [e for e in entries if e.get(figure) is not None and e[figure] == e[figure]]
    rows = sum(e["n"] for e in known)
    return sum(e[figure] * e["n"] for e in known) / rows if rows else float("nan")


def kernel_metrics(groups: Iterable[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return ``{metric: {n, mape, median_ape, p90_ape, bias, worst_mape}}`` and the achieved interval coverage.

    ``median_ape`` and ``p90_ape`` are means of the groups' own, weighted by rows.
    """
    groups = list(groups)
    metrics: dict[str, dict[str, float]] = {}
    for name, chosen in _METRICS.items():
        mine = [g for g in groups if chosen(g)]
        if mine:
            metrics[name] = {
                "n": sum(g["n"] for g in mine),
                **{figure: _mean(mine, figure) for figure in ("mape", "median_ape", "p90_ape", "bias")},
                "mean_of_groups": sum(g["mape"] for g in mine) / len(mine),
                "worst_mape": max(g["mape"] for g in mine),
            }
    covered = [g for g in groups if g["holdout"] == "shapes" and "coverage" in g]
    if covered:
        metrics["interval_coverage"] = {
            "n": sum(g["n"] for g in covered),
            "coverage": _mean(covered, "coverage"),
        }
    return metrics


def run(
    *,
    shared: Path | None = None,  # noqa: ARG001 - the suites' common signature
    cache: Path | None = None,
    bands: Iterable[Any] = (),
    quick: int = 0,  # noqa: ARG001
    bound: bool = False,  # noqa: ARG001
    progress: Callable[[float, str], None] | None = None,  # noqa: ARG001
) -> dict[str, Any]:
    """Return ``{suite, rows, covered, metrics, groups, bands}`` of the shipped fits' own hold-outs.

    Parameters
    ----------
    cache : artifact to look at instead of the shipped one, without suffix
    bands : limits; see ``validation/bands.yaml``

    Raises
    ------
    DataMissing : this installation ships no fits
    """
    artifact = load_artifact(cache) if cache else shipped()
    groups = kernel_errors(artifact)
    metrics = kernel_metrics(groups)
    imports = artifact.meta.get("imports", {})
    return {
        "suite": "silicon-kernels",
        "rows": sum(entry["read"] for entry in imports.values()),
        "covered": sum(entry["kept"] for entry in imports.values()),
        "source": artifact.meta.get("source", ""),
        "metrics": metrics,
        "groups": groups,
        "imports": imports,
        "bands": [_checked(band, metrics) for band in bands],
    }


def _checked(band: Any, metrics: dict[str, dict[str, float]]) -> dict[str, Any]:
    metric, _, figure = band.name.partition(".")
    value = float(metrics.get(metric, {}).get(figure, float("nan")))
    ok = value >= band.limit if band.least else abs(value) <= band.limit
    return {"name": band.name, "value": value, "limit": band.limit, "ok": bool(ok)}


def markdown(answer: dict[str, Any]) -> str:
    """Return the section of ``validation/README.md``: protocol, metrics, per family and device, worst groups."""
    lines = [
        "## Kernels",
        "",
        f"Source: {answer['source']}. {answer['rows']:,} rows read, {answer['covered']:,} fitted.",
        "Errors are those of rows that a fit has not seen: `points` a tenth of the rows at random, `shapes` whole",
        "shapes (all rows of one (n, k), or one (hidden, intermediate, experts, top-k), or one (heads, kv heads, head size,",
        "window)), `device` all rows of one device. Collectives: every second size, and each device.",
        "",
        "| metric | rows | MAPE | median | P90 | bias | worst group |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, figures in answer["metrics"].items():
        if "mape" in figures:
            cells = " | ".join(
                _percent(figures[f]) for f in ("mape", "median_ape", "p90_ape", "bias", "worst_mape")
            )
            lines.append(f"| {name} | {figures['n']:,} | {cells} |")
    coverage = answer["metrics"].get("interval_coverage", {}).get("coverage")
    if coverage is not None:
        lines += ["", f"90 % intervals made from other shapes cover {_percent(coverage)} % of the rows."]
    lines += ["", "MAPE in % by family, engine and device: points / shapes / device", ""]
    lines += _by_device(answer["groups"])
    lines += ["", "Where it is still wrong (worst groups, unseen shapes):", ""]
    lines += [
        "| family | engine | types | kernel | device | rows | MAPE | bias |",
        "|---|---|---|---|---|--:|--:|--:|",
    ]
    worst = [g for g in answer["groups"] if g["holdout"] == "shapes"][:15]
    lines += [
        f"| {g['family']} | {g['framework']} | {g['dtype']} | {g['kernel']} | {g['device']} | {g['n']:,} | "
        f"{_percent(g['mape'])} | {_percent(g['bias'])} |"
        for g in worst
    ]
    lines += ["", "Rows left out, and why:", "", "| family | reason | rows |", "|---|---|--:|"]
    for family, entry in answer["imports"].items():
        reasons: dict[str, int] = {}
        for drop in entry["dropped"]:
            reasons[drop["reason"]] = reasons.get(drop["reason"], 0) + drop["rows"]
        faster = sum(drop["rows"] for drop in entry["faster_than_bound"])
        if faster:
            reasons["faster than the physical bound (weights or keys sat in the cache)"] = faster
        lines += [f"| {family} | {reason} | {rows:,} |" for reason, rows in sorted(reasons.items())]
    return "\n".join(lines) + "\n"


def _by_device(groups: list[dict[str, Any]]) -> list[str]:
    families = sorted({(g["family"], g["framework"]) for g in groups})
    devices = sorted({g["device"] for g in groups})
    lines = [
        "| family | engine | " + " | ".join(devices) + " |",
        "|---|---|" + "--:|" * len(devices),
    ]
    for family, framework in families:
        cells = []
        for device in devices:
            mine = [
                g for g in groups if (g["family"], g["framework"], g["device"]) == (family, framework, device)
            ]
            values = [_mean([g for g in mine if g["holdout"] == kind], "mape") for kind in HOLDOUTS]
            cells.append(" / ".join(_percent(v) for v in values) if mine else "")
        lines.append(f"| {family} | {framework} | " + " | ".join(cells) + " |")
    return lines


def _percent(value: float) -> str:
    return "-" if value != value else f"{100 * value:.1f}"  # noqa: PLR0124 - NaN differs from itself
