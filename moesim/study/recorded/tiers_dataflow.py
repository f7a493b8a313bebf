"""Dataflow figures: operational intensity, kernel counts, fusion and orchestration, tokens per second of one user."""

from __future__ import annotations

from typing import Any

from moesim.cost.dataflow import (
    execution_of,
    kernels_per_decoder,
    monarch_stages,
    operational_intensity,
    pass_seconds,
)
from moesim.cost.layout import Layout
from moesim.spec.base import load_spec
from moesim.spec.deployment import Parallelism
from moesim.spec.hardware import DeviceSpec
from moesim.spec.model import ModelSpec
from moesim.spec.topology import resolve_cluster
from moesim.study.recorded.tiers_cases import off, ratio, tier_cases

__all__ = ["dataflow_figures"]

_MODELS = ("llama-2-7b", "llama-2-70b")
"""Benchmarks of the paper's Table III that the catalog has."""
_CONTEXT = 4096


def dataflow_figures() -> tuple[dict[str, dict[str, float]], list[dict[str, Any]]]:
    """Return figures and what is left out."""
    case = tier_cases().fusion
    figures: dict[str, dict[str, float]] = {}
    graph = monarch_stages()
    stages = len(graph.ops) // 3
    cuts = (
        [[i] for i in range(len(graph.ops))],
        [[3 * s, 3 * s + 1, 3 * s + 2] for s in range(stages)],
        [list(range(len(graph.ops)))],
    )
    for name, cut, published in zip(("unfused", "partly", "fused"), cuts, case.monarch, strict=True):
        figures[f"monarch_{name}"] = ratio(operational_intensity(graph, cut), published)
    figures["monarch"] = {"n": 0.0, "worst": max(f["error"] for f in figures.values())}
    gains = [_gains(name) for name in _MODELS]
    for what in ("decode_hardware", "prefill_hardware", "decode_fusion", "prefill_fusion"):
        values, (low, high) = [g[what] for g in gains], getattr(case, what)
        figures[what] = {
            "n": float(len(values)), "least": min(values), "most": max(values),
            "published_least": low, "published_most": high,
        }  # fmt: skip
    figures["kernels_per_decoder"] = off(kernels_per_decoder(_on("sn40l-8", "llama-2-7b")[0]), case.launches)
    speed = case.tokens_per_s
    layout, device = _on(speed.node, speed.model)
    step = float(pass_seconds(layout, execution_of(device), device, 1, speed.context))
    figures["sn40l_16_tokens_per_s"] = ratio(1 / step, speed.value)
    left = [
        {
            "rows": 2,
            "reason": "70B at 457 and 405B at 129 tokens/s draft tokens; acceptance rates are not stated",
        },
        {
            "rows": 6,
            "reason": "benchmarks of Table III whose models the catalog lacks; bar heights are images",
        },
    ]
    return figures, left


def _on(node: str, model: str) -> tuple[Layout, DeviceSpec]:
    topology = resolve_cluster(node)
    known = load_spec(ModelSpec, model, "model")
    tp = topology.devices_per_node
    return Layout.of(known, topology, Parallelism(tp=tp)), topology.device


def _gains(model: str) -> dict[str, float]:
    """Return what fusion gains under software orchestration, and hardware orchestration when fused."""
    layout, device = _on("sn40l-8", model)
    fused, started = (execution_of(device, orchestration=how) for how in ("hardware", "software"))
    unfused = execution_of(device, fused=False, orchestration="software")
    made: dict[str, float] = {}
    for phase, tokens, context in (("decode", 1, _CONTEXT), ("prefill", _CONTEXT, 0)):
        best, hosted, apart = (
            float(pass_seconds(layout, how, device, tokens, context)) for how in (fused, started, unfused)
        )
        made |= {f"{phase}_hardware": hosted / best, f"{phase}_fusion": apart / hosted}
    return made
