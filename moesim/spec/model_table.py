"""Model table: the overview of the model catalog, as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesim.spec.model import ModelSpec, MoeFfn
from moesim.spec.parameters import cache_bytes, parameter_count, weight_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["model_table"]

_HEAD = (
    "| name | total | active | layers | experts | top-k | KV bytes/token | weights | weight bytes | source |",
    "|---|--:|--:|--:|--:|--:|--:|---|--:|---|",
)


def model_table(models: Iterable[ModelSpec]) -> str:
    """Return one row per model, in the given order, with a head line.

    Columns: parameters in total and used per token (both with embedding and head, without multi-token
    prediction), decoder layers with the mixers that keep every token's keys, routed experts, experts per
    token, bytes a token adds to the cache in the checkpoint's cache type (``+`` what sliding-window layers
    add while inside their window), storage types, stored bytes, and where the dimensions come from.
    """
    return "\n".join([*_HEAD, *(_row(model) for model in models)]) + "\n"


def _row(model: ModelSpec) -> str:
    count, cache = parameter_count(model), cache_bytes(model)
    moe = [ffn for ffn in model.ffns.values() if isinstance(ffn, MoeFfn)]
    layers = str(len(model.blocks()))
    if model.encoder:
        layers = f"{len(model.blocks('encoder'))}+{layers}"
    window = "".join(f" + {size:.0f} ({tokens})" for tokens, size in cache.per_window_token)
    types: list[str] = [model.weights.default]
    if model.weights.experts:
        types.append(f"experts {model.weights.experts}")
    if model.weights.attention:
        types.append(f"attention {model.weights.attention}")
    source = model.sources[0]
    cite = f"[{source.cite}]({source.url})" if source.url else source.cite
    cells = (
        model.name,
        _parameters(count.total),
        _parameters(count.active),
        layers,
        str(moe[0].experts) if moe else "-",
        str(moe[0].top_k) if moe else "-",
        f"{cache.per_token:.0f}{window}",
        ", ".join(types),
        f"{weight_bytes(model) / 1e9:.1f} GB",
        cite,
    )
    return f"| {' | '.join(cells)} |"


def _parameters(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count < 100e9 else f"{count / 1e9:.1f} B"
