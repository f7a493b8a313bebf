"""Engines: placements as the maps that SGLang, vLLM and vllm-ascend read, and those maps as placements.

Formats, as the engines' own code reads them:

- ``sglang``: JSON for ``--init-expert-location``, key ``physical_to_logical_map`` [layer, slot]
  (``sglang/srt/eplb/expert_location.py``). Its rows are all ``num_hidden_layers`` layers, so dense layers get the row
  of the trivial placement.
- ``vllm``: JSON list [MoE layer, slot] for ``initial_expert_map_path`` of ``--eplb-config`` (vllm-project/vllm#49572);
  ``expert_map_path`` for DeepSeek-V4 (#53022) has the same form and counts draft layers too.
- ``vllm-offline``: one JSON line ``record_type: eplb_initial_mapping`` for ``initial_mapping_path`` (#41141).
- ``vllm-ascend``: JSON for ``additional_config.eplb_config.expert_map_path``: ``moe_layer_count`` and ``layer_list`` of
  ``device_list`` of ``device_expert`` (``vllm_ascend/eplb/core/eplb_utils.py``). A device may hold an expert once.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from moesim.errors import NoResult, SpecError
from moesim.spec.model import ModelSpec, MoeFfn
from moesim.spec.placement import ExpertSlots, PlacementSpec, moe_layers

__all__ = ["ENGINES", "FILE_NAMES", "from_engine", "to_engine"]

Rows = list[list[int]]

ENGINES: Final = ("sglang", "vllm", "vllm-offline", "vllm-ascend")
FILE_NAMES: Final = {
    "sglang": "sglang-expert-location.json",
    "vllm": "vllm-expert-map.json",
    "vllm-offline": "vllm-initial-mapping.jsonl",
    "vllm-ascend": "vllm-ascend-expert-map.json",
}


def to_engine(placement: PlacementSpec, model: ModelSpec, engine: str) -> str:
    """Return a placement as the text of an engine's map.

    Raises
    ------
    NoResult : the engine's format cannot say it: layers of several sizes, or twice the same expert on one Ascend device
    SpecError : no such engine
    """
    rows, experts = _rows(placement, model)
    if engine == "sglang":
        return _sglang(rows, experts, model)
    if engine == "vllm":
        return _lines(rows)
    if engine == "vllm-offline":
        return _vllm_offline(rows, experts)
    if engine == "vllm-ascend":
        return _ascend(rows, placement.ranks)
    raise SpecError(f"{engine}: expected one of {', '.join(ENGINES)}")


def from_engine(text: str, model: ModelSpec, ranks: int, engine: str, name: str) -> PlacementSpec:
    """Return the placement that an engine's map describes.

    Parameters
    ----------
    text : contents of the map
    ranks : expert-parallel degree it is meant for; the map of vllm-ascend must agree
    engine : one of ``ENGINES``
    name : of the placement

    Raises
    ------
    SpecError : another format, another number of layers, experts or slots than model and ranks need
    """
    readers: dict[str, Callable[[str], Rows]] = {
        "sglang": lambda whole: _moe_only(json.loads(whole)["physical_to_logical_map"], model),
        "vllm": lambda whole: _shared(json.loads(whole), model),
        "vllm-offline": _read_offline,
        "vllm-ascend": lambda whole: _read_ascend(whole, ranks),
    }
    if engine not in readers:
        raise SpecError(f"{engine}: expected one of {', '.join(ENGINES)}")
    try:
        rows = readers[engine](text)
        if len(rows) != model.moe_layers:
            raise SpecError(
                f"{name}: {len(rows)} layers in the map, {model.name} has {model.moe_layers} MoE layers"
            )
        ffns = {}
        for ffn, layers in moe_layers(model).items():
            spec = model.ffns[ffn]
            assert isinstance(spec, MoeFfn)
            ffns[ffn] = ExpertSlots(experts=spec.experts, slots=tuple(tuple(rows[at]) for at in layers))
        return PlacementSpec(kind="placement", name=name, model=model.name, ranks=ranks, ffns=ffns)
    except json.JSONDecodeError as error:
        raise SpecError(f"{name}: expected JSON (line {error.lineno}: {error.msg})") from None
    except (KeyError, TypeError, IndexError) as error:
        raise SpecError(f"{name}: expected a map of {engine} ({type(error).__name__}: {error})") from None
    except ValueError as error:  # pydantic's, of a row that is no placement
        first = next((line.strip() for line in str(error).splitlines()[2:3]), str(error))
        raise SpecError(f"{name}: {first}") from None


def _rows(placement: PlacementSpec, model: ModelSpec) -> tuple[Rows, int]:
    """Return the slots of every MoE layer in the model's order, and the experts of a layer."""
    layers = moe_layers(model)
    sizes = {(part.experts, len(part.slots[0])) for part in placement.ffns.values()}
    if len(sizes) != 1 or set(placement.ffns) != set(layers):
        raise NoResult(
            f"{placement.name}: engines' maps hold layers of one size, {model.name} has {len(layers)} kinds"
        )
    rows: Rows = [[] for _ in range(model.moe_layers)]
    for name, at in layers.items():
        slots = placement.ffns[name].slots
        for index, layer in enumerate(at):
            rows[layer] = list(slots[index % len(slots)])
    return rows, sizes.pop()[0]


def _lines(rows: Rows) -> str:
    """Return a JSON list with one row per line: maps are long and people look into them."""
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"


def _sglang(rows: Rows, experts: int, model: ModelSpec) -> str:
    trivial = [slot % experts for slot in range(len(rows[0]))]
    moe = iter(rows)
    whole = [next(moe) if isinstance(model.ffns[ffn], MoeFfn) else trivial for _, ffn in model.blocks()]
    return f'{{"physical_to_logical_map": {_lines(whole).rstrip()}}}\n'


def _moe_only(rows: Rows, model: ModelSpec) -> Rows:
    blocks = model.blocks()
    if len(rows) != len(blocks):
        raise SpecError(f"SGLang maps hold all {len(blocks)} layers of {model.name}, this one {len(rows)}")
    return [row for row, (_, ffn) in zip(rows, blocks, strict=True) if isinstance(model.ffns[ffn], MoeFfn)]


def _shared(rows: Any, model: ModelSpec) -> Rows:
    """Open vLLM's short form, one row for all layers."""
    return rows if isinstance(rows[0], list) else [rows] * model.moe_layers


def _vllm_offline(rows: Rows, experts: int) -> str:
    record = {
        "record_type": "eplb_initial_mapping",
        "version": 1,
        "num_redundant_experts": len(rows[0]) - experts,
        "num_slots": len(rows[0]),
        "initial_global_assignments": {str(layer): row for layer, row in enumerate(rows)},
    }
    return json.dumps(record) + "\n"


def _read_offline(text: str) -> Rows:
    for line in text.splitlines():
        record = json.loads(line) if line.strip() else {}
        if record.get("record_type") == "eplb_initial_mapping":
            given = record["initial_global_assignments"]
            return [given[str(layer)] for layer in range(len(given))]
    raise SpecError("expected a line of record_type eplb_initial_mapping")


def _ascend(rows: Rows, ranks: int) -> str:
    size = len(rows[0]) // ranks
    layers = []
    for layer, row in enumerate(rows):
        devices = []
        for rank in range(ranks):
            held = row[rank * size : (rank + 1) * size]
            if len(set(held)) < size:
                twice = next(e for e in held if held.count(e) > 1)
                raise NoResult(
                    f"vllm-ascend keeps one copy of an expert per device: layer {layer} has expert {twice} twice on "
                    f"rank {rank}"
                )
            devices.append({"device_id": rank, "device_expert": held})
        layers.append({"layer_id": layer, "device_count": ranks, "device_list": devices})
    return json.dumps({"moe_layer_count": len(rows), "layer_list": layers}) + "\n"


def _read_ascend(text: str, ranks: int) -> Rows:
    rows = []
    for layer in json.loads(text)["layer_list"]:
        devices = [device["device_expert"] for device in layer["device_list"]]
        if len(devices) != ranks:
            raise SpecError(
                f"layer {layer['layer_id']}: expected {ranks} devices, the map has {len(devices)}"
            )
        rows.append([expert for held in devices for expert in held])
    return rows
