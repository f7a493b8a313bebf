"""Caches: what a sequence keeps in memory - keys and values, compressed latents, recurrent states."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from moesim.spec.mixers import attention_named, convolution_channels
from moesim.spec.model import GroupedQuery, LinearAttention, ModelSpec, MultiLatent

__all__ = [
    "CacheBytes",
    "KvDtype",
    "bytes_per_kv_value",
    "cache_bytes",
    "kv_bytes_per_token",
    "state_bytes_per_sequence",
]

KvDtype = Literal["bf16", "fp16", "fp8", "int8", "fp4"]

_KV_BYTES: dict[KvDtype, float] = {"bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "fp4": 0.5 + 1 / 16}


@dataclass(frozen=True, slots=True)
class CacheBytes:
    """What one sequence keeps in memory, all decoder layers.

    Attributes
    ----------
    per_token : bytes per token in layers that keep every token
    per_window_token : (window in tokens, bytes per token while inside the window), ascending
    per_sequence : bytes of recurrent state, whatever the length
    per_encoder_token : cross-attention bytes per encoder token
    """

    per_token: float
    per_window_token: tuple[tuple[int, float], ...]
    per_sequence: float
    per_encoder_token: float

    def sequence_bytes(self, tokens: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Bytes of sequences of ``tokens`` tokens, any shape; encoder tokens are not in it."""
        length = np.asarray(tokens, dtype=np.float64)
        windowed = sum(
            (size * np.minimum(length, window) for window, size in self.per_window_token),
            np.zeros_like(length),
        )
        return np.asarray(self.per_sequence + self.per_token * length + windowed, dtype=np.float64)


def bytes_per_kv_value(dtype: KvDtype) -> float:
    """Return the stored bytes of one cached value; ``fp4`` carries one fp8 scale per 16 values."""
    return _KV_BYTES[dtype]


def kv_bytes_per_token(model: ModelSpec, attention: str, kv_dtype: KvDtype | None = None) -> float:
    """Return the KV-cache bytes of one token in one layer of the attention ``attention``.

    Grouped-query: keys and values of every KV head. Latent: the compressed vector and its rope part, once.
    The indexer of sparse attention keeps one fp8 key per token with an fp32 scale per 128 values, whatever
    ``kv_dtype`` is (DeepSeek-V3.2-Exp). Recurrent mixers and layers that reuse another's cache: 0.

    Raises
    ------
    SpecError : no such attention
    """
    mixer = attention_named(model, attention)
    size = bytes_per_kv_value(kv_dtype or model.weights.kv_cache)
    if isinstance(mixer, GroupedQuery):
        if mixer.shares_kv:
            return 0.0
        # one projection for both (k_equals_v) still caches two vectors: norms and rope come after it
        widths = mixer.head_dim + (mixer.v_head_dim or mixer.head_dim)
        return mixer.kv_heads * widths * size + _index_bytes(mixer)
    if isinstance(mixer, MultiLatent):
        return (mixer.kv_lora_rank + mixer.qk_rope_head_dim) * size + _index_bytes(mixer)
    return 0.0


def state_bytes_per_sequence(model: ModelSpec, attention: str, state_bytes: float = 4.0) -> float:
    """Return the recurrent state of one sequence in one layer: key x value per head, convolution tail.

    Parameters
    ----------
    model, attention : model and name of the attention
    state_bytes : bytes per state value; fp32 is what ``mamba_ssm_dtype`` of Qwen3.5 and Nemotron-H asks
    for;
        the convolution's last inputs are bf16

    Raises
    ------
    SpecError : no such attention
    """
    mixer = attention_named(model, attention)
    if not isinstance(mixer, LinearAttention):
        return 0.0
    state = mixer.heads * mixer.head_dim * mixer.key_dim
    tail = convolution_channels(mixer) * max(mixer.conv_kernel - 1, 0)
    return state * state_bytes + tail * 2.0


def cache_bytes(model: ModelSpec, kv_dtype: KvDtype | None = None, state_bytes: float = 4.0) -> CacheBytes:
    """Return what a sequence keeps in memory over all decoder layers, full and sliding-window layers apart.

    DeepSeek-V3 in bf16: 61 layers x (512 + 64) x 2 = 70,272 bytes per token (arXiv:2412.19437).
    """
    full = state = 0.0
    sizes: dict[int, float] = {}
    for name, count in Counter(attention for attention, _ in model.blocks()).items():
        mixer = model.attentions[name]
        size = count * kv_bytes_per_token(model, name, kv_dtype)
        window = getattr(mixer, "window", None)
        if window and size:
            sizes[window] = sizes.get(window, 0.0) + size
        else:
            full += size
        state += count * state_bytes_per_sequence(model, name, state_bytes)
    cross = kv_bytes_per_token(model, model.cross_attention, kv_dtype) if model.cross_attention else 0.0
    return CacheBytes(full, tuple(sorted(sizes.items())), state, cross * len(model.blocks()))


def _index_bytes(mixer: GroupedQuery | MultiLatent) -> float:
    if not mixer.index_heads or mixer.index_shared:
        return 0.0
    return mixer.index_head_dim + 4.0 * -(-mixer.index_head_dim // 128)
