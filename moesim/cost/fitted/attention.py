"""Attention: grids of measured time over bound, on which the simulator prices each step's own point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from moesim.cost.attention import AttentionShape, bound_term
from moesim.cost.fitted.artifact import Group, GroupKey
from moesim.cost.fitted.features import attention_features, machine_of
from moesim.cost.pricing import GRID

if TYPE_CHECKING:
    from moesim.cost.pricing import AttentionTerm, FloatArray
    from moesim.cost.roofline import Place

__all__ = ["attention_term"]

Find = Callable[[str, str, str], tuple[GroupKey, Group] | None]
_FAMILIES = {"gqa": ("generation_attention", "context_attention"), "mla": ("generation_mla", "context_mla")}


def attention_term(find: Find, shape: AttentionShape, place: Place) -> AttentionTerm | None:
    """Return ``bound_term`` with the fitted grids, or None where no measured kernel is like ``shape``.

    Parameters
    ----------
    find : (family, dtype, device) -> group
    shape : ``gqa`` or ``mla``; other kinds were not measured as kernels
    """
    if shape.kind not in _FAMILIES:
        return None
    cached = shape.decode_key_bytes / _key_values(shape)
    kv = {2: "bf16", 1: "fp8"}.get(round(cached))
    machine = machine_of(place.device, shape.dtype)
    core = {"fp16": "bf16"}.get(shape.dtype, shape.dtype)
    if kv is None or machine is None:
        return None
    term = bound_term(shape, place.device, place.launch.decode_s)
    grids: dict[str, FloatArray] = {}
    for name, family, grid in zip(
        ("decode", "prefill"), _FAMILIES[shape.kind], (_decode, _prefill), strict=True
    ):
        found = find(family, f"{core}_kv_{kv}", place.device.name)
        if found is None:
            continue
        count, keys, flop, size, bound = grid(shape, term)
        ones = np.ones(count.size)
        features = attention_features(
            *_sequences(count, keys, prefill=name == "prefill"), shape.heads * ones,
            (1 if shape.kind == "mla" else shape.kv_heads) * ones,
            (576 if shape.kind == "mla" else shape.head_dim) * ones, max(shape.window, 0) * ones, flop, size,
            machine, decode=name == "decode",
        )  # fmt: skip
        seconds = shape.layers * found[1].seconds(features, place.device.name, float(machine.clock))
        launched = np.maximum(seconds, term.launch_s)
        grids[f"{name}_grid"] = (launched / bound).reshape(GRID)
    if not grids:
        return None
    return replace(
        term, source="fitted", decode_grid=grids.get("decode_grid"), prefill_grid=grids.get("prefill_grid")
    )


def _key_values(shape: AttentionShape) -> float:
    """Return how many values one cached key and its value hold on this device."""
    return float(shape.head_dim if shape.kind == "mla" else 2 * shape.kv_heads * shape.head_dim)


def _nodes() -> tuple[FloatArray, FloatArray]:
    count, keys = np.meshgrid(2.0 ** np.arange(GRID[0]), 2.0 ** np.arange(GRID[1]), indexing="ij")
    return count.reshape(-1), keys.reshape(-1)


def _sequences(count: FloatArray, keys: FloatArray, *, prefill: bool) -> tuple[FloatArray, FloatArray]:
    """Return (sequences, context) as the tables count them.

    ``count`` prefill tokens that attend to ``keys`` on average are ``count / length`` prompts of ``length =
    2 keys - 1``; less than one prompt is a chunk of one: the same tiles of queries over the same keys.
    """
    if not prefill:
        return count, keys
    length = np.maximum(2 * keys - 1, 1.0)
    return count / length, length


def _decode(
    shape: AttentionShape, term: AttentionTerm
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]:
    n, keys = _nodes()
    total = n * keys
    bound = term.launch_s + np.maximum(
        total * term.decode_flop_s, total * term.decode_kv_s + n * term.decode_seq_s
    )
    size = total * shape.decode_key_bytes + n * shape.sequence_bytes
    return n, keys, total * shape.decode_pair_flop, size, bound


def _prefill(
    shape: AttentionShape, term: AttentionTerm
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]:
    tokens, keys = _nodes()
    pairs = tokens * keys
    read = np.maximum(tokens, keys + (tokens - 1) / 2)  # whole prompts, or one chunk behind its history
    bound = term.launch_s + np.maximum(
        pairs * term.prefill_flop_s, read * term.prefill_kv_s + tokens * term.prefill_token_s
    )
    # the tables' bytes: a prompt's own keys are in its tokens; history is read on top
    size = tokens * shape.token_bytes + np.maximum(read - tokens, 0.0) * shape.prefill_key_bytes
    return tokens, keys, pairs * shape.prefill_pair_flop, size, bound
