"""Parameters: what a model's dimensions imply - parameter counts, weight bytes, KV-cache and state bytes.

Conventions, kept by every caller: a *total* is the main network (no multi-token-prediction layers; vision
tower and projector where the file states them); *active* is the language model without the routed experts
that a token does not choose, so it counts embedding and head. Routers and norms are stored in bf16 whatever
the rest is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moesim.errors import SpecError
from moesim.files import nearest
from moesim.spec.caches import (
    CacheBytes,
    KvDtype,
    bytes_per_kv_value,
    cache_bytes,
    kv_bytes_per_token,
    state_bytes_per_sequence,
)
from moesim.spec.mixers import attention_named, mixer_parameters, mlp_parameters
from moesim.spec.model import (
    DenseFfn,
    Ffn,
    ModelSpec,
    WeightDtype,
    Weights,
)

if TYPE_CHECKING:
    from moesim.spec.deployment import PrecisionChoice

__all__ = [
    "CacheBytes",
    "FfnParameters",
    "KvDtype",
    "LayerParameters",
    "ParameterCount",
    "WeightBytes",
    "attention_parameters",
    "bytes_per_kv_value",
    "bytes_per_value",
    "cache_bytes",
    "expert_bytes",
    "ffn_parameters",
    "kv_bytes_per_token",
    "layer_parameters",
    "parameter_count",
    "state_bytes_per_sequence",
    "stored_weights",
    "weight_bytes",
    "weight_bytes_by_group",
]

_BYTES_PER_VALUE: dict[WeightDtype, float] = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,  # one scale per tensor or channel: less than 0.1 %
    "fp8_block": 1 + 4 / 128**2,  # one fp32 scale per 128 x 128 block (DeepSeek-V3, arXiv:2412.19437)
    "int8": 1.0,
    "nvfp4": 0.5 + 1 / 16,  # one fp8 scale per 16 values (NVIDIA NVFP4)
    "mxfp4": 0.5 + 1 / 32,  # one e8m0 scale per 32 values (OCP MX 1.0)
    "int4": 0.5 + 2 / 128,  # one 16-bit scale per group, 128 unless the checkpoint says otherwise
}


@dataclass(frozen=True, slots=True)
class FfnParameters:
    """Parameters of one FFN block, one layer.

    Attributes
    ----------
    routed_per_expert : one routed expert (0 for a dense FFN)
    routed : all routed experts
    shared : shared experts, their gate, and the projections in and out of a latent expert space
    router : routing matrix and bias
    dense : dense FFN, also one in parallel to the experts
    """

    routed_per_expert: int = 0
    routed: int = 0
    shared: int = 0
    router: int = 0
    dense: int = 0

    @property
    def total(self) -> int:
        """Everything in the block."""
        return self.routed + self.shared + self.router + self.dense


@dataclass(frozen=True, slots=True)
class LayerParameters:
    """Parameters of one layer: mixer, FFN, and norms of width ``hidden``."""

    attention: int
    ffn: FfnParameters
    norms: int

    @property
    def total(self) -> int:
        """Everything in the layer."""
        return self.attention + self.ffn.total + self.norms


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Parameters by group; ``total`` is their sum without ``mtp``, ``active`` what one token uses."""

    total: int
    active: int
    embedding: int
    head: int
    attention: int
    dense_ffn: int
    routed_experts: int
    shared_experts: int
    router: int
    norms: int
    mtp: int
    extra: int


@dataclass(frozen=True, slots=True)
class WeightBytes:
    """Stored bytes of a model by group, scales included; ``total`` is their sum without ``mtp``."""

    total: float
    embedding: float
    head: float
    attention: float
    dense_ffn: float
    routed_experts: float
    shared_experts: float
    router: float
    norms: float
    mtp: float
    extra: float


def bytes_per_value(dtype: WeightDtype, int4_group: int = 128) -> float:
    """Return the stored bytes of one weight, its share of the scales included.

    Parameters
    ----------
    dtype : storage type
    int4_group : values per 16-bit scale, for ``int4`` only (AWQ, GPTQ: 128; Kimi-K2.5: 32)

    >>> bytes_per_value("nvfp4"), bytes_per_value("mxfp4"), bytes_per_value("int4", 32)
    (0.5625, 0.53125, 0.5625)
    """
    return 0.5 + 2 / int4_group if dtype == "int4" else _BYTES_PER_VALUE[dtype]


def attention_parameters(model: ModelSpec, name: str) -> int:
    """Return the parameters of one layer of the attention ``name``, inner norms and indexer included.

    Raises
    ------
    SpecError : no such attention
    """
    return mixer_parameters(model.hidden, attention_named(model, name))


def ffn_parameters(model: ModelSpec, name: str) -> FfnParameters:
    """Return the parameters of one layer of the FFN ``name``.

    Raises
    ------
    SpecError : no such FFN
    """
    d, ffn = model.hidden, _ffn(model, name)
    if isinstance(ffn, DenseFfn):
        return FfnParameters(dense=mlp_parameters(d, ffn.intermediate, gated=ffn.gated, bias=ffn.bias))
    width = ffn.latent or d
    expert = mlp_parameters(width, ffn.intermediate, gated=ffn.gated, bias=ffn.bias)
    shared = (
        mlp_parameters(d, ffn.shared_intermediate, gated=ffn.gated, bias=ffn.bias)
        if ffn.shared_experts
        else 0
    )
    shared += (d if ffn.shared_gate else 0) + 2 * d * ffn.latent
    router = d * ffn.experts + (ffn.experts if ffn.router_bias else 0)
    return FfnParameters(
        expert,
        ffn.experts * expert,
        shared,
        router,
        mlp_parameters(d, ffn.dense_residual, gated=True, bias=False),
    )


def layer_parameters(model: ModelSpec, attention: str, ffn: str) -> LayerParameters:
    """Return the parameters of one layer; each mixer and each FFN has one norm before it.

    Extra norms of some families (post-norms of Gemma, MiniMax's wide q/k norms) are left out: below 0.01 %.

    Raises
    ------
    SpecError : unknown attention or FFN name
    """
    mixer = attention_named(model, attention)
    feed = ffn_parameters(model, ffn)
    norms = model.hidden * ((mixer.kind != "none") + (feed.total > 0))
    return LayerParameters(mixer_parameters(model.hidden, mixer), feed, norms)


def parameter_count(model: ModelSpec) -> ParameterCount:
    """Count the parameters of ``model`` by group.

    Checked against the published totals of every model in the catalog, e.g. DeepSeek-V3: 671.03e9 in total,
    37.55e9 active (arXiv:2412.19437 says 671 and 37).
    """
    embedding = model.vocab * model.hidden
    head = 0 if model.tied_embeddings else embedding
    attention = dense = routed = chosen = shared = router = 0
    norms = model.hidden * (1 + bool(model.encoder))  # the last norm of each stack
    blocks = Counter(model.blocks("encoder") + model.blocks("decoder"))
    for (mixer_name, ffn_name), count in blocks.items():
        layer, ffn = layer_parameters(model, mixer_name, ffn_name), _ffn(model, ffn_name)
        attention += count * layer.attention
        norms += count * layer.norms
        dense += count * layer.ffn.dense
        shared += count * layer.ffn.shared
        router += count * layer.ffn.router
        routed += count * layer.ffn.routed
        chosen += count * layer.ffn.routed_per_expert * (0 if isinstance(ffn, DenseFfn) else ffn.top_k)
    if model.cross_attention:
        decoders = len(model.blocks())
        attention += decoders * attention_parameters(model, model.cross_attention)
        norms += decoders * model.hidden
    total = embedding + head + attention + dense + routed + shared + router + norms + model.extra_parameters
    return ParameterCount(
        total=total,
        active=total - routed + chosen - model.extra_parameters,
        embedding=embedding,
        head=head,
        attention=attention,
        dense_ffn=dense,
        routed_experts=routed,
        shared_experts=shared,
        router=router,
        norms=norms,
        mtp=sum(_mtp_layer(model)) * model.mtp_layers,
        extra=model.extra_parameters,
    )


def stored_weights(model: ModelSpec, precision: PrecisionChoice | None = None) -> Weights:
    """Return the storage types that hold after ``precision``.

    Its ``weights`` replaces default, attention and experts, its ``experts`` the routed experts only;
    embedding and head keep the checkpoint's type.
    """
    if precision is None:
        return model.weights
    change: dict[str, str] = {}
    if precision.weights is not None:
        change = {"default": precision.weights, "experts": precision.weights, "attention": precision.weights}
    if precision.experts is not None:
        change["experts"] = precision.experts
    if precision.activations is not None:
        change["activations"] = precision.activations
    if precision.kv_cache is not None:
        change["kv_cache"] = precision.kv_cache
    return model.weights.model_copy(update=change)


def weight_bytes(model: ModelSpec, precision: PrecisionChoice | None = None) -> float:
    """Return the stored bytes of the main network (no MTP layers), scales included."""
    return weight_bytes_by_group(model, precision).total


def weight_bytes_by_group(model: ModelSpec, precision: PrecisionChoice | None = None) -> WeightBytes:
    """Return the stored bytes by group; vision towers (``extra``) are taken as bf16."""
    count, types = parameter_count(model), stored_weights(model, precision)
    default = bytes_per_value(types.default, types.int4_group)
    mixer = bytes_per_value(types.attention or types.default, types.int4_group)
    experts = bytes_per_value(types.experts or types.default, types.int4_group)
    ends = bytes_per_value(types.embedding, types.int4_group)
    kept = bytes_per_value("bf16")
    mtp_mixer, mtp_default, mtp_experts, mtp_kept = _mtp_layer(model)
    groups = {
        "embedding": count.embedding * ends,
        "head": count.head * ends,
        "attention": count.attention * mixer,
        "dense_ffn": count.dense_ffn * default,
        "routed_experts": count.routed_experts * experts,
        "shared_experts": count.shared_experts * default,
        "router": count.router * kept,
        "norms": count.norms * kept,
        "extra": count.extra * kept,
    }
    mtp = mtp_mixer * mixer + mtp_default * default + mtp_experts * experts + mtp_kept * kept
    return WeightBytes(total=sum(groups.values()), mtp=model.mtp_layers * mtp, **groups)


def expert_bytes(model: ModelSpec, ffn: str, precision: PrecisionChoice | None = None) -> float:
    """Return the stored bytes of one routed expert of the FFN ``ffn``.

    Raises
    ------
    SpecError : no such FFN, or one without experts
    """
    size = ffn_parameters(model, ffn).routed_per_expert
    if not size:
        raise SpecError(f"{model.name}: the ffn {ffn!r} has no routed experts")
    types = stored_weights(model, precision)
    return size * bytes_per_value(types.experts or types.default, types.int4_group)


def _ffn(model: ModelSpec, name: str) -> Ffn:
    try:
        return model.ffns[name]
    except KeyError:
        raise SpecError(f"{model.name}: no ffn {name!r}{nearest(name, model.ffns)}") from None


def _mtp_layer(model: ModelSpec) -> tuple[int, int, int, int]:
    """Return the parameters of one MTP layer: (mixer, plain matrices, routed experts, router and norms).

    Embedding and head are the main network's. The draft takes [hidden state, token embedding], norms both,
    projects 2 d -> d, then runs one block and a last norm (DeepSeek-V3, arXiv:2412.19437 section 2.2).
    """
    if not model.mtp_layers:
        return 0, 0, 0, 0
    attention, ffn = model.mtp_block or model.blocks()[-1]
    layer, d = layer_parameters(model, attention, ffn), model.hidden
    plain = layer.ffn.dense + layer.ffn.shared + 2 * d * d
    return layer.attention, plain, layer.ffn.routed, layer.ffn.router + layer.norms + 3 * d
