"""Quantisation: from ``quantization_config`` or ModelOpt's companion file to one storage type per group.

Checkpoints quantise module by module, the spec by group (attention, routed experts, everything else). Each
module of the network is looked up in the config's lists; a group has the type that most of its parameters
have, and a note says what share has another.
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from moesim.errors import Problem, SpecError
from moesim.files import nearest
from moesim.spec.huggingface.modules import model_modules

if TYPE_CHECKING:
    from moesim.spec.huggingface.parts import Parts

__all__ = ["read_weights"]

_PLAIN = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}

# ModelOpt's names: storage type, type the product runs in
_MODELOPT = {
    "FP8": ("fp8", "fp8"),
    "FP8_PER_CHANNEL_PER_TOKEN": ("fp8", "fp8"),
    "FP8_PB_WO": ("fp8_block", "bf16"),
    "FP8_BLOCK_SCALES": ("fp8_block", "fp8"),
    "MXFP8": ("fp8", "fp8"),
    "NVFP4": ("nvfp4", "fp4"),
    "W4A16_NVFP4": ("nvfp4", "bf16"),
    "NVFP4_AWQ": ("nvfp4", "fp4"),
    "MXFP4": ("mxfp4", "fp4"),
    "W4A16_MXFP4": ("mxfp4", "bf16"),
    "W4A16_AWQ": ("int4", "bf16"),
    "INT4_AWQ": ("int4", "bf16"),
    "W4A8_AWQ": ("int4", "fp8"),
    "W8A8_SQ_PER_CHANNEL": ("int8", "int8"),
    "W8A16": ("int8", "bf16"),
}
_KV = {"FP8": "fp8", "INT8": "int8", "NVFP4": "fp4"}
_PREFIX = re.compile(r"^((language_model|model|backbone|transformer|decoder)\.)+")


@dataclass
class _Scheme:
    """Which type a module is stored in."""

    plain: str
    default: tuple[str, str] | None = None
    excluded: dict[str | None, Any] = field(default_factory=dict)
    """Names of modules as a tree of their words; a name ends at ``None``."""
    patterns: tuple[re.Pattern[str], ...] = ()
    listed: dict[str, tuple[str, str]] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    int4_group: int = 128
    kv_cache: str = "bf16"
    notes: list[str] = field(default_factory=list)

    def of(self, names: tuple[str, ...], group: str) -> tuple[str, str]:
        """Return (storage, arithmetic) of the module that has one of ``names``."""
        plain = (self.plain, self.plain)
        for name in names if self.listed else ():
            for end in range(len(parts := name.split(".")), 1, -1):
                if (found := self.listed.get(".".join(parts[:end]))) is not None:
                    return found
        if self.default is None or (self.only and group not in self.only):
            return plain
        if any(_names_part(self.excluded, name) for name in names) or any(
            pattern.match(name) for pattern in self.patterns for name in names
        ):
            return plain
        return self.default


def read_weights(
    data: dict[str, Any], quant: dict[str, Any] | None, parts: Parts, where: str
) -> dict[str, Any]:
    """Return the fields of ``Weights``, plus ``notes``.

    Parameters
    ----------
    data : the config, ``text_config`` lifted
    quant : ModelOpt's companion file, None when there is none
    parts : the network whose modules are looked up
    where : file name for messages

    Raises
    ------
    SpecError : a quantisation method or algorithm that is not known, by name
    """
    dtype = str(data.get("torch_dtype") or data.get("dtype") or "bfloat16")
    if dtype not in _PLAIN:
        raise SpecError(Problem(where, 0, "torch_dtype", repr(dtype), f"expected one of {', '.join(_PLAIN)}"))
    config = (quant or {}).get("quantization", quant) or data.get("quantization_config")
    scheme = _Scheme(_PLAIN[dtype])
    if config:
        scheme = _scheme(_mapping(config, "quantization_config", where), _PLAIN[dtype], where)
    sizes: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    for module in model_modules(data, parts):
        sizes[module.group][scheme.of(module.names, module.group)] += module.parameters
    notes = list(scheme.notes)
    chosen = {group: count.most_common(1)[0][0] for group, count in sizes.items()}
    for group, count in sizes.items():
        for (kept, _), size in count.items():
            if kept != chosen[group][0]:
                share = 100 * size / sum(count.values())
                notes.append(
                    f"{group}: {share:.1f} % of the parameters are {kept}, counted as {chosen[group][0]}."
                )
    first = chosen.get("default") or chosen.get("attention") or (scheme.plain, scheme.plain)
    experts, mixers = chosen.get("experts", first), chosen.get("attention", first)
    quantised = [kind[1] for kind in (experts, first, mixers) if kind[0] != scheme.plain]
    weights: dict[str, Any] = {
        "default": first[0],
        "experts": experts[0] if experts[0] != first[0] else None,
        "attention": mixers[0] if mixers[0] != first[0] else None,
        "embedding": scheme.plain,
        "activations": quantised[0] if quantised else scheme.plain,
        "kv_cache": scheme.kv_cache,
        "int4_group": scheme.int4_group,
        "notes": notes,
    }
    if scheme.plain == "fp32":
        weights["kv_cache"] = "bf16"
    return weights


def _scheme(config: dict[str, Any], plain: str, where: str) -> _Scheme:
    scheme = _Scheme(plain)
    method = str(config.get("quant_method") or "modelopt").lower()
    keys = ("exclude_modules", "ignore", "modules_to_not_convert", "ignored_layers")
    lists = [config[key] for key in keys if isinstance(config.get(key), list)]
    names = [str(name) for entries in lists for name in entries]
    names = [name if name.startswith("re:") else _PREFIX.sub("", name) for name in names]
    wild = [name for name in names if name.startswith("re:") or any(mark in name for mark in "*?[")]
    scheme.excluded = _tree(set(names) - set(wild))
    scheme.patterns = _patterns(wild, where)
    scheme.kv_cache = _kv_cache(config, where)
    if "quant_algo" in config or (method == "modelopt" and "config_groups" not in config):
        _modelopt(config, scheme, where)
    elif "config_groups" in config:
        _groups(config, scheme, where)
    elif method == "fp8":
        block = config.get("weight_block_size")
        scheme.default = ("fp8_block" if block else "fp8", "fp8")
        if block and block != [128, 128]:
            scheme.notes.append(f"Blocks of {block} values share a scale, priced as 128 x 128.")
    elif method == "mxfp4":
        scheme.default, scheme.only = ("mxfp4", "bf16"), ("experts",)
    elif method in {"awq", "gptq"}:
        bits = config.get("bits", config.get("w_bit"))
        if bits not in (4, 8):
            raise SpecError(Problem(where, 0, "quantization_config.bits", repr(bits), "expected 4 or 8"))
        scheme.default = ("int4" if bits == 4 else "int8", "bf16")
        group = config.get("group_size", config.get("q_group_size", 128))
        scheme.int4_group = group if isinstance(group, int) and group > 0 else 128
    else:
        known = ("fp8", "mxfp4", "awq", "gptq", "modelopt", "compressed-tensors")
        message = f"expected a known quantisation method: {', '.join(known)}{nearest(method, known)}"
        raise SpecError(Problem(where, 0, "quantization_config.quant_method", repr(method), message))
    return scheme


def _modelopt(config: dict[str, Any], scheme: _Scheme, where: str) -> None:
    algorithm = str(config.get("quant_algo"))
    if algorithm == "MIXED_PRECISION":
        names = set()
        layers = _mapping(config.get("quantized_layers"), "quantized_layers", where)
        for name, entry in layers.items():
            kind = str(_mapping(entry, f"quantized_layers.{name}", where).get("quant_algo"))
            scheme.listed[_PREFIX.sub("", name)] = _algorithm(kind, where)
            names.add(kind)
        if "MXFP8" in names:
            scheme.notes.append("MXFP8 (one scale byte per 32 values) is priced as fp8.")
        if "lm_head" in scheme.listed:
            scheme.notes.append(
                f"The head is stored as {scheme.listed['lm_head'][0]}, counted like the embedding."
            )
        return
    scheme.default = _algorithm(algorithm, where)
    if not scheme.excluded and not scheme.patterns:
        scheme.notes.append(
            "The quantisation config excludes no module; embedding and head are taken as unquantised."
        )


def _algorithm(name: str, where: str) -> tuple[str, str]:
    try:
        return _MODELOPT[name]
    except KeyError:
        message = f"expected a known quantisation algorithm{nearest(name, _MODELOPT)}"
        raise SpecError(Problem(where, 0, "quant_algo", repr(name), message)) from None


_TYPES = {("8", "float"): "fp8", ("8", "int"): "int8", ("4", "float"): "fp4"}


def _bits(entry: dict[str, Any]) -> tuple[str, str]:
    return str(entry.get("num_bits")), str(entry.get("type"))


def _groups(config: dict[str, Any], scheme: _Scheme, where: str) -> None:
    """Read the ``config_groups`` of compressed-tensors; the targets are ``Linear`` or module names."""
    for name, entry in _mapping(config["config_groups"], "config_groups", where).items():
        place = f"config_groups.{name}"
        group = _mapping(entry, place, where)
        weights = _mapping(group.get("weights") or {}, f"{place}.weights", where)
        inputs = _mapping(group.get("input_activations") or {}, f"{place}.input_activations", where)
        size = weights.get("group_size")
        storage = {
            ("8", "float"): "fp8_block" if weights.get("strategy") == "block" else "fp8",
            ("8", "int"): "int8",
            ("4", "int"): "int4",
            ("4", "float"): "mxfp4" if size == 32 else "nvfp4",
        }.get(_bits(weights))
        if storage is None:
            raise SpecError(
                Problem(where, 0, place, repr(_bits(weights)), "expected 4 or 8 bits, int or float")
            )
        if storage == "int4" and isinstance(size, int) and size > 0:
            scheme.int4_group = size
        arithmetic = _TYPES.get(_bits(inputs), "bf16")
        targets = group.get("targets") or ["Linear"]
        if not isinstance(targets, list):
            raise SpecError(Problem(where, 0, f"{place}.targets", repr(targets)[:60], "expected a list"))
        if "Linear" in targets:
            scheme.default = (storage, arithmetic)
        else:
            scheme.listed |= {_PREFIX.sub("", str(target)): (storage, arithmetic) for target in targets}


def _kv_cache(config: dict[str, Any], where: str) -> str:
    value = config.get("kv_cache_quant_algo") or config.get("kv_cache_scheme")
    if not value:
        return "bf16"
    found = _TYPES.get(_bits(value)) if isinstance(value, dict) else _KV.get(str(value))
    if found is None:
        raise SpecError(
            Problem(where, 0, "kv_cache_quant_algo", repr(value)[:60], f"expected {', '.join(_KV)}")
        )
    return found


def _mapping(value: Any, field: str, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SpecError(Problem(where, 0, field, repr(value)[:60], "expected a mapping"))
    return value


def _tree(names: set[str]) -> dict[str | None, Any]:
    tree: dict[str | None, Any] = {}
    for name in names:
        node = tree
        for word in name.split("."):
            node = node.setdefault(word, {})
        node[None] = {}
    return tree


def _names_part(tree: dict[str | None, Any], name: str) -> bool:
    """Return whether whole words of a dotted name are in the tree: an exclusion names a module or one that holds it."""
    words = name.split(".")
    for start, word in enumerate(words):
        node = tree.get(word)
        for following in words[start + 1 :]:
            if node is None or None in node:
                break
            node = node.get(following)
        if node is not None and None in node:
            return True
    return False


def _patterns(names: list[str], where: str) -> tuple[re.Pattern[str], ...]:
    """Compile exclusions: all wildcards to one expression, each regular expression (``re:``) alone."""
    wild = [name for name in names if not name.startswith("re:")]
    both = [fnmatch.translate(text) for name in wild for text in (name, f"{name}.*")]
    alone = tuple(_pattern(name, where) for name in names if name.startswith("re:"))
    return (*([re.compile("|".join(both))] if both else []), *alone)


def _pattern(text: str, where: str) -> re.Pattern[str]:
    try:
        return re.compile(text[3:])
    except re.error:
        raise SpecError(
            Problem(where, 0, "quantization_config", repr(text), "expected a regular expression")
        ) from None
