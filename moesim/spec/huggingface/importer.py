"""Importer: from a Hugging Face ``config.json`` and its quantisation companion to a ModelSpec and YAML."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from moesim.errors import Problem, SpecError
from moesim.files import Document, dump_yaml, read_text
from moesim.spec.base import validate
from moesim.spec.huggingface.config import Config
from moesim.spec.huggingface.parts import layer_runs
from moesim.spec.huggingface.quantization import read_weights
from moesim.spec.huggingface.registry import family_of
from moesim.spec.model import ModelSpec

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["import_config", "import_model", "load_config", "model_data"]


def import_config(
    config: dict[str, Any], name: str, where: str, quant: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the data of a model file, validated, defaults left out.

    Parameters
    ----------
    config : parsed ``config.json``; a vision-language wrapper's ``text_config`` is read in its place
    name : name of the model in the catalog
    where : file name for messages
    quant : parsed ``hf_quant_config.json``, which wins over ``quantization_config``

    Raises
    ------
    SpecError : unknown architecture (by name), missing or odd keys, keys that matter and are not understood
    """
    architecture = _architecture(config, where)
    family = family_of(architecture, where)
    data = _lifted(config, where)
    c = Config(data, where)
    parts = family.read(c)
    if not parts.blocks:
        raise SpecError(Problem(where, 0, "", "", "expected at least one layer"))
    tied = c.flag("tie_word_embeddings", default=family.tied)
    hidden = c.integer("hidden_size", "d_model")
    vocab = c.integer("vocab_size")
    context = c.integer("max_position_embeddings", "max_seq_len", "n_positions")
    c.refuse_unread(architecture)
    weights = read_weights(data, quant, parts, where)
    notes = [*parts.notes, *weights.pop("notes")]
    if "vision_config" in config or "text_config" in config:
        notes.append("Vision and audio parts are not counted.")
    raw: dict[str, Any] = {
        "kind": "model",
        "name": name,
        "architecture": architecture,
        "hidden": hidden,
        "vocab": vocab,
        "tied_embeddings": tied,
        "context": context,
        "attentions": _used(
            parts.attentions, [b[0] for b in parts.blocks + parts.encoder], parts.cross_attention
        ),
        "ffns": _used(parts.ffns, [b[1] for b in parts.blocks + parts.encoder]),
        "layers": layer_runs(parts.blocks),
        "encoder": layer_runs(parts.encoder),
        "cross_attention": parts.cross_attention,
        "mtp_layers": parts.mtp_layers,
        "mtp_block": list(parts.mtp_block) if parts.mtp_block else None,
        "weights": weights,
        "sources": [{"fields": ["*"], "cite": f"config.json of {name}", "note": " ".join(notes)}],
    }
    return model_data(validate(ModelSpec, Document(raw, where)))


def model_data(spec: ModelSpec) -> dict[str, Any]:
    """Return what a YAML file holds of ``spec``: values that differ from their defaults, in file order."""
    data = spec.model_dump(mode="json", exclude_defaults=True)
    return {field: data[field] for field in ModelSpec.model_fields if field in data}


def load_config(path: Path, name: str | None = None) -> ModelSpec:
    """Read a ``config.json``, and ``hf_quant_config.json`` beside it, as a ModelSpec.

    Raises
    ------
    SpecError : see ``import_config``; also for a file that is not a JSON object
    """
    return _imported(path, name)[0]


def import_model(path: Path, name: str | None = None) -> tuple[ModelSpec, str]:
    """Import a model: its spec, and the text of a file for ``workloads/models/``.

    Parameters
    ----------
    path : ``config.json`` or ``ORG--MODEL_config.json``; a companion ``..hf_quant_config.json`` is found
    beside it name : name to give; from the file or its folder when None

    Raises
    ------
    SpecError : see ``load_config``
    """
    spec, data = _imported(path, name)
    return spec, dump_yaml(data)


def _imported(path: Path, name: str | None) -> tuple[ModelSpec, dict[str, Any]]:
    where = str(path)
    config = _json(path, where)
    companion = path.with_name(path.name.removesuffix("config.json") + "hf_quant_config.json")
    quant = _json(companion, str(companion)) if companion.is_file() and companion != path else None
    data = import_config(config, name or _name(path), where, quant)
    return validate(ModelSpec, Document(data, where)), data


def _name(path: Path) -> str:
    stem = path.name.removesuffix("config.json").rstrip("_-.") or path.resolve().parent.name
    return stem.rsplit("--", 1)[-1].removesuffix(".json").lower()


def _json(path: Path, where: str) -> dict[str, Any]:
    try:
        data = json.loads(read_text(path, where))
    except json.JSONDecodeError as error:
        raise SpecError(Problem(where, error.lineno, "", "", f"expected JSON: {error.msg}")) from None
    except RecursionError:
        raise SpecError(Problem(where, 0, "", "", "expected JSON of sane depth")) from None
    if not isinstance(data, dict):
        raise SpecError(Problem(where, 1, "", "", "expected a JSON object"))
    return data


def _architecture(config: dict[str, Any], where: str) -> str:
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise SpecError(
            Problem(where, 0, "architectures", "", "expected a list with the name of the model class")
        )
    return names[0]


def _lifted(config: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the language model's keys; the wrapper's quantisation, ties and type fill the gaps."""
    text = config.get("text_config")
    if text is None:
        return dict(config)
    if not isinstance(text, dict):
        raise SpecError(Problem(where, 0, "text_config", repr(text)[:60], "expected a mapping"))
    outer = {
        k: config[k]
        for k in ("quantization_config", "tie_word_embeddings", "torch_dtype", "dtype")
        if k in config
    }
    return {**outer, **{key: value for key, value in text.items() if value is not None}}


def _used(known: dict[str, dict[str, Any]], names: list[str], extra: str = "") -> dict[str, dict[str, Any]]:
    return {name: fields for name, fields in known.items() if name in names or name == extra}
