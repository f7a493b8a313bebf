"""Model: the neural network. Dimensions are facts; parameters and bytes are derived (``spec.parameters``)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from moesim.spec.base import Source, Spec

__all__ = [
    "Attention",
    "DenseFfn",
    "Ffn",
    "GroupedQuery",
    "LayerRun",
    "LinearAttention",
    "ModelSpec",
    "MoeFfn",
    "MultiLatent",
    "NoMixer",
    "Published",
    "WeightDtype",
    "Weights",
]

WeightDtype = Literal["fp32", "bf16", "fp16", "fp8", "fp8_block", "int8", "nvfp4", "mxfp4", "int4"]
"""Storage type of weights: bytes per value and scale bytes are in ``spec.parameters.bytes_per_value``."""


class GroupedQuery(Spec):
    """Multi-head, grouped-query or multi-query attention, full or sliding-window."""

    kind: Literal["gqa"]
    heads: PositiveInt
    kv_heads: PositiveInt
    head_dim: PositiveInt
    v_head_dim: PositiveInt | None = None
    """Width of a value head where it differs from ``head_dim``."""
    window: PositiveInt | None = None
    """Sliding window in tokens; none: full attention."""
    causal: bool = True
    """False for an encoder."""
    bias: bool = False
    """q, k, v carry a bias."""
    output_bias: bool = False
    gate: bool = False
    """An output gate as wide as the queries (Qwen3-Next, Qwen3.5)."""
    qk_norm: bool = False
    qk_norm_whole: bool = False
    """The norm spans all heads of a token at once (MiniMax-M2, OLMoE): cut over devices, its sums are all-reduced."""
    sinks: bool = False
    """One learned sink per head (gpt-oss)."""
    shares_kv: bool = False
    """Reuses the KV cache of an earlier layer: computes attention, stores nothing."""
    k_equals_v: bool = False
    """Keys and values share one projection."""
    index_heads: NonNegativeInt = 0
    """Heads of a block-sparse attention's indexer (MiniMax-M3); 0: dense attention."""
    index_head_dim: NonNegativeInt = 0
    index_top_k: NonNegativeInt = 0
    """Positions kept per query: blocks times block size."""
    index_shared: bool = False
    """This layer reuses the positions chosen by an earlier layer's indexer."""


class MultiLatent(Spec):
    """Multi-head latent attention (DeepSeek-V2 and later, Kimi-K2, GLM-5)."""

    kind: Literal["mla"]
    heads: PositiveInt
    q_lora_rank: NonNegativeInt
    """0: queries are projected directly."""
    kv_lora_rank: PositiveInt
    qk_nope_head_dim: PositiveInt
    qk_rope_head_dim: NonNegativeInt
    v_head_dim: PositiveInt
    window: PositiveInt | None = None
    causal: bool = True
    gate: bool = False
    """An output gate (Kimi-Linear and later)."""
    index_heads: NonNegativeInt = 0
    """Heads of the lightning indexer of sparse attention (DSA); 0: dense attention."""
    index_head_dim: NonNegativeInt = 0
    index_top_k: NonNegativeInt = 0
    """Positions kept per query by the indexer."""
    index_shared: bool = False
    """This layer reuses the positions chosen by an earlier layer's indexer."""


class LinearAttention(Spec):
    """Recurrent mixer with a fixed state per sequence: gated delta net, Mamba-2, lightning, KDA."""

    kind: Literal["linear"]
    flavor: Literal["gated_delta", "mamba2", "lightning", "kda"]
    heads: PositiveInt
    """Value heads."""
    head_dim: PositiveInt
    """Value head width."""
    key_heads: PositiveInt
    """Key heads (groups, for Mamba-2)."""
    key_dim: PositiveInt
    """Key head width (state size, for Mamba-2)."""
    conv_kernel: NonNegativeInt = 0
    """Width of the causal convolution, 0 for none."""
    gate: bool = True
    full_rank_gate: bool = False
    """KDA: the output gate is one full matrix, not a low-rank pair (Kimi-K3)."""


class NoMixer(Spec):
    """A layer without attention (only an FFN), as in Nemotron-H."""

    kind: Literal["none"]


Attention = Annotated[GroupedQuery | MultiLatent | LinearAttention | NoMixer, Field(discriminator="kind")]


class DenseFfn(Spec):
    """A feed-forward network that every token passes. ``intermediate: 0`` is none."""

    kind: Literal["dense"]
    intermediate: NonNegativeInt
    gated: bool = True
    """Three matrices (SwiGLU) or two."""
    bias: bool = False


class MoeFfn(Spec):
    """Routed experts, with shared experts beside them."""

    kind: Literal["moe"]
    experts: PositiveInt
    top_k: PositiveInt
    intermediate: PositiveInt
    """Width of one routed expert."""
    gated: bool = True
    bias: bool = False
    router_bias: bool = False
    shared_experts: NonNegativeInt = 0
    shared_intermediate: NonNegativeInt = 0
    """Width of all shared experts together."""
    shared_gate: bool = False
    """A sigmoid gate on the shared expert (Qwen2-MoE)."""
    groups: PositiveInt = 1
    """Expert groups for node-limited routing."""
    top_groups: PositiveInt = 1
    """Groups a token may use."""
    dense_residual: NonNegativeInt = 0
    """Width of a dense FFN in parallel on the same layer (Arctic)."""
    latent: NonNegativeInt = 0
    """Routed experts work at this width, with one shared projection in and one out; 0: model width."""

    @model_validator(mode="after")
    def _routable(self) -> MoeFfn:
        if self.top_k > self.experts:
            raise ValueError(f"top_k {self.top_k} is more than the {self.experts} experts")
        if self.experts % self.groups or self.top_groups > self.groups:
            raise ValueError("groups must divide experts, and top_groups be at most groups")
        if self.groups > 1 and self.top_k > self.top_groups * (self.experts // self.groups):
            raise ValueError("top_groups groups hold fewer experts than top_k")
        return self


Ffn = Annotated[DenseFfn | MoeFfn, Field(discriminator="kind")]


class LayerRun(Spec):
    """``repeat`` times the sequence of blocks ``layers``; each block names one attention and one FFN."""

    repeat: PositiveInt = 1
    layers: tuple[tuple[str, str], ...] = Field(min_length=1)
    """Pairs [attention, ffn]."""


class Weights(Spec):
    """Storage type of each group of weights in the checkpoint."""

    default: WeightDtype = "bf16"
    """Attention projections, dense FFN, shared experts."""
    experts: WeightDtype | None = None
    """Routed experts; none: as default."""
    attention: WeightDtype | None = None
    embedding: WeightDtype = "bf16"
    """Embedding and head."""
    int4_group: PositiveInt = 128
    """Values per 16-bit scale of ``int4`` weights."""
    activations: Literal["fp32", "bf16", "fp16", "fp8", "int8", "fp4"] = "bf16"
    """Type that quantised matrix products run in: ``bf16`` is weight-only quantisation."""
    kv_cache: Literal["bf16", "fp16", "fp8", "int8", "fp4"] = "bf16"


class Published(Spec):
    """What the authors state, for checking the derived totals."""

    total: float | None = None
    """Parameters."""
    active: float | None = None
    """Parameters used per token."""
    active_excludes: Literal["nothing", "embedding", "embedding and head"] = "nothing"
    """What the authors leave out of ``active``; the derived active counts both."""
    tolerance: float = 0.005
    """How far the derived total may be off: the published figures are rounded."""
    active_tolerance: float = 0.05


class ModelSpec(Spec):
    """A decoder-only or encoder-decoder transformer, dense or MoE."""

    kind: Literal["model"]
    name: str
    architecture: str
    """Class in the checkpoint's ``architectures``."""
    hidden: PositiveInt
    vocab: PositiveInt
    tied_embeddings: bool = False
    context: PositiveInt
    """Longest sequence in tokens."""
    attentions: dict[str, Attention]
    ffns: dict[str, Ffn]
    layers: tuple[LayerRun, ...] = Field(min_length=1)
    """The decoder, first layer first."""
    encoder: tuple[LayerRun, ...] = ()
    """The encoder of an encoder-decoder model."""
    cross_attention: str = ""
    """Attention that every decoder layer has towards the encoder."""
    mtp_layers: NonNegativeInt = 0
    """Multi-token-prediction layers in the checkpoint: extra drafts, not part of the main pass."""
    mtp_block: tuple[str, str] | None = None
    """[attention, ffn] of an MTP layer; none: that of the last decoder layer."""
    extra_parameters: NonNegativeInt = 0
    """Weights outside the language model proper (vision tower, projector), counted in totals, not priced."""
    weights: Weights = Weights()
    published: Published = Published()
    sources: tuple[Source, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_exist(self) -> ModelSpec:
        drafts = [self.mtp_block] if self.mtp_block else []
        for attention, ffn in self.blocks("encoder") + self.blocks("decoder") + drafts:
            if attention not in self.attentions:
                known = ", ".join(self.attentions)
                raise ValueError(f"layers name the attention {attention!r}, known: {known}")
            if ffn not in self.ffns:
                raise ValueError(f"layers name the ffn {ffn!r}, known: {', '.join(self.ffns)}")
        if self.cross_attention and self.cross_attention not in self.attentions:
            raise ValueError(f"cross_attention {self.cross_attention!r} is not in attentions")
        return self

    def blocks(self, stack: Literal["encoder", "decoder"] = "decoder") -> list[tuple[str, str]]:
        """Return (attention, ffn) names of every layer in order."""
        runs = self.layers if stack == "decoder" else self.encoder
        return [block for run in runs for _ in range(run.repeat) for block in run.layers]

    @property
    def moe_layers(self) -> int:
        """Number of decoder layers with routed experts."""
        return sum(isinstance(self.ffns[ffn], MoeFfn) for _, ffn in self.blocks())
