"""Engines' maps: round trips, the engines' own examples, and what a format cannot say."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from moesim.errors import NoResult, SpecError
from moesim.spec.base import load_spec
from moesim.spec.model import ModelSpec
from moesim.spec.placement import PlacementSpec
from moesim.study.plans.engines import ENGINES, FILE_NAMES, from_engine, to_engine

LITE = load_spec(ModelSpec, "deepseek-v2-lite", "model")  # 27 layers, the first dense, 64 experts


def placement(rows: Any, ranks: int = 8, experts: int = 64) -> PlacementSpec:
    rows = np.asarray(rows).tolist()
    data = {"kind": "placement", "name": "p", "model": LITE.name, "ranks": ranks,
            "ffns": {"moe": {"experts": experts, "slots": rows}}}  # fmt: skip
    return PlacementSpec.model_validate(data)


def rows(extra: int = 8) -> np.ndarray:
    """Random placements without twice the same expert on a rank."""
    rng, made = np.random.default_rng(0), []
    while len(made) < 26:
        row = rng.permutation(np.concatenate([np.arange(64), rng.permutation(64)[:extra]]))
        if all(len(set(held)) == len(held) for held in row.reshape(8, -1)):
            made.append(row)
    return np.array(made)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("extra", [0, 8])
def test_round_trip(engine: str, extra: int) -> None:
    made = placement(rows(extra))
    assert from_engine(to_engine(made, LITE, engine), LITE, 8, engine, "p") == made
    assert set(FILE_NAMES) == set(ENGINES)


@pytest.mark.parametrize("engine", ENGINES)
def test_one_row_for_all_layers_is_written_out(engine: str) -> None:
    back = from_engine(to_engine(placement(rows()[:1]), LITE, engine), LITE, 8, engine, "p")
    assert back.ffns["moe"].slots == (tuple(rows()[0].tolist()),) * 26


def test_sglang_counts_dense_layers() -> None:
    data = json.loads(to_engine(placement(rows()), LITE, "sglang"))
    (table,) = data.values()
    assert list(data) == ["physical_to_logical_map"]
    assert len(table) == 27
    assert table[0] == [slot % 64 for slot in range(72)]  # SGLang's trivial placement
    assert table[1:] == rows().tolist()


def test_vllms_offline_mapping() -> None:
    record = json.loads(to_engine(placement(rows()), LITE, "vllm-offline"))
    assert {key: record[key] for key in ("record_type", "version", "num_redundant_experts", "num_slots")} == {
        "record_type": "eplb_initial_mapping", "version": 1, "num_redundant_experts": 8, "num_slots": 72,
    }  # fmt: skip
    assert record["initial_global_assignments"]["25"] == rows()[25].tolist()


def test_vllms_short_form_is_read() -> None:
    back = from_engine(json.dumps(rows()[3].tolist()), LITE, 8, "vllm", "p")
    assert back.ffns["moe"].slots == (tuple(rows()[3].tolist()),) * 26


def test_ascends_devices() -> None:
    data = json.loads(to_engine(placement(rows()), LITE, "vllm-ascend"))
    assert data["moe_layer_count"] == 26
    layer = data["layer_list"][4]
    assert (layer["layer_id"], layer["device_count"]) == (4, 8)
    assert layer["device_list"][3] == {"device_id": 3, "device_expert": rows()[4].reshape(8, 9)[3].tolist()}


def test_ascend_keeps_one_copy_of_an_expert_per_device() -> None:
    twice = np.concatenate([[0], np.arange(64), np.arange(1, 8)])
    with pytest.raises(NoResult, match="layer 0 has expert 0 twice on rank 0"):
        to_engine(placement([twice]), LITE, "vllm-ascend")


@pytest.mark.parametrize(
    ("engine", "text", "message"),
    [
        ("sglang", "{", "expected JSON"),
        ("sglang", "[]", "expected a map of sglang"),
        ("sglang", '{"physical_to_logical_map": [[0]]}', "hold all 27 layers"),
        ("vllm", "[[0]]", "1 layers in the map, deepseek-v2-lite has 26"),
        ("vllm", "[0, 1]", "expected every expert in a slot"),
        ("vllm-offline", "{}", "record_type eplb_initial_mapping"),
        ("vllm-ascend", '{"layer_list": [{"layer_id": 0, "device_list": [{"device_expert": [0]}]}]}',
         "layer 0: expected 8 devices, the map has 1"),
        ("trt", "", "expected one of sglang"),
    ],
)  # fmt: skip
def test_broken_maps(engine: str, text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        from_engine(text, LITE, 8, engine, "p")
