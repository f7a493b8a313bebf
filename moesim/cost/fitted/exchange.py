"""Exchange: collectives from measured curves, and expert dispatch and combine from fitted groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moesim.cost.fitted.features import exchange_features

if TYPE_CHECKING:
    from moesim.cost.fitted.artifact import Artifact, Group
    from moesim.cost.ops import Exchange, Op
    from moesim.cost.pricing import FloatArray
    from moesim.cost.roofline import Place

__all__ = ["exchange_seconds"]

_BULK = {"vllm": "deepep_ht", "sglang": "deepep_normal", "trtllm": "trtllm_deepep_ht"}
_QUICK = {"vllm": "deepep_ll", "sglang": "deepep_ll", "trtllm": "trtllm_deepep_ll"}
_SMS = {"deepep_ht": 20.0, "deepep_normal": 20.0}
"""Multiprocessors lent to the exchange: DeepEP's defaults in the measured engines."""
_MAX_RANKS_NVLINK = 8


def exchange_seconds(artifact: Artifact, framework: str, op: Op, place: Place) -> FloatArray | None:
    """Return seconds of one collective per layer, [tokens]; None where it was not measured.

    All-reduces are the engine's own kernels where its curve exists, NCCL's otherwise. Curves were measured inside one
    node, for 2, 4 and 8 ranks; others are unknown here.
    """
    exchange = op.exchange
    assert exchange is not None
    if exchange.group.ranks == 1:
        return np.zeros(op.tokens.shape)
    if exchange.pattern == "all_to_all":
        return _experts(artifact, framework, op, exchange, place)
    if exchange.group.nodes > 1 or exchange.pattern == "p2p":
        return None
    ranks = exchange.group.ranks
    rate = exchange.group.intra_bandwidth * ranks / (ranks - 1)
    keys = [("nccl", "nccl", "bf16", exchange.pattern)]
    if exchange.pattern == "all_reduce":
        keys.insert(0, ("all_reduce", framework, "bf16", "all_reduce"))
    for key in keys:
        curve = artifact.curves.get(key)
        fit = curve.fits.get((place.device.name, ranks)) if curve else None
        if fit is not None:
            return np.where(exchange.size > 0, fit.seconds(np.maximum(exchange.size, 1.0), rate), 0.0)
    for key in keys:
        curve = artifact.curves.get(key)
        fit = curve.pooled.get(ranks) if curve else None
        if fit is not None and exchange.group.topology == "switch":  # the common curve is of switched links
            return np.where(exchange.size > 0, fit.seconds(np.maximum(exchange.size, 1.0), rate), 0.0)
    return None


def _experts(
    artifact: Artifact, framework: str, op: Op, exchange: Exchange, place: Place
) -> FloatArray | None:
    """Return seconds of dispatch or combine: low-latency kernels where a captured graph runs, bulk ones beyond."""
    dims = dict(op.dims)
    group = exchange.group
    if "hidden" not in dims or (group.nodes == 1 and group.ranks > _MAX_RANKS_NVLINK):
        return None
    tokens = op.tokens / group.ranks
    value = float(np.max(exchange.size / np.maximum(tokens * dims["hidden"], 1e-9)))
    name = "bf16" if value > 1.5 else "fp8" if value > 0.8 else "nvfp4"
    quick, bulk = (
        _group(artifact, framework, kernels, name, place.device.name) for kernels in (_QUICK, _BULK)
    )
    if quick is None and bulk is None:
        return None
    small = op.tokens <= place.launch.graph_tokens
    parts = [_ask(found or quick or bulk, op, exchange, place, value) for found in (quick, bulk)]
    return np.where(op.tokens > 0, np.where(small, *parts), 0.0)


def _group(
    artifact: Artifact, framework: str, kernels: dict[str, str], dtype: str, device: str
) -> tuple[str, Group] | None:
    order = (framework, *(f for f in kernels if f != framework))
    for only_measured in (True, False):
        for engine in order:
            for form in dict.fromkeys((dtype, "bf16", "fp8")):
                group = artifact.groups.get(("expert_exchange", engine, form, kernels[engine]))
                if group is not None and (device in group.devices or not only_measured):
                    return kernels[engine], group
    return None


def _ask(
    found: tuple[str, Group] | None, op: Op, exchange: Exchange, place: Place, value: float
) -> FloatArray:
    assert found is not None
    kernel, group = found
    dims, ones = dict(op.dims), np.ones(op.tokens.shape)
    ranks, nodes = exchange.group.ranks, exchange.group.nodes
    features = exchange_features(
        np.maximum(op.tokens / ranks, 1.0), dims["hidden"] * ones, dims["top_k"] * ones, dims["experts"] * ones,
        ranks * ones, nodes * ones, _SMS.get(kernel, 0.0) * ones, value * ones,
        float(op.name.startswith("combine")) * ones, exchange.group.intra_bandwidth * ones,
    )  # fmt: skip
    clock = place.device.compute.clock or 1.9e9
    return group.seconds(features, place.device.name, clock)
