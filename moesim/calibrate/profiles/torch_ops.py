"""Torch ops: from an operator's name and input shapes, as a profiler records them, to what it does.

Argument order is that of the operators' published schemas: ``aten`` from PyTorch's ``native_functions.yaml``
(2.5 to 2.13), ``vllm``/``_C``/``_moe_C`` from vLLM (0.8 to 0.19), ``sgl_kernel``/``sglang`` from SGLang. An operator
that is not listed is not guessed from its name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from moesim.calibrate.profiles.frame import Call

__all__ = ["WEAK", "Inputs", "call_of", "kernel_class", "known", "short_kernel", "value_type"]

_TYPES = {
    "double": ("fp64", 8),
    "float": ("fp32", 4),
    "c10::bfloat16": ("bf16", 2),
    "c10::half": ("fp16", 2),
    "c10::float8_e4m3fn": ("fp8", 1),
    "c10::float8_e5m2": ("fp8", 1),
    "signed char": ("int8", 1),
    "float64": ("fp64", 8),
    "float32": ("fp32", 4),
    "bfloat16": ("bf16", 2),
    "float16": ("fp16", 2),
    "half": ("fp16", 2),
    "float8_e4m3fn": ("fp8", 1),
    "int8": ("int8", 1),
    "long": ("int64", 8),
    "long int": ("int64", 8),
    "int": ("int32", 4),
    "byte": ("uint8", 1),
}


def value_type(name: object) -> tuple[str, int] | None:
    """Return (type, bytes) of a value as the profiler names it; None where it is not a type of ours."""
    return _TYPES.get(str(name).lower())


class Inputs(NamedTuple):
    """What the profiler records of one call, argument by argument.

    Attributes
    ----------
    dims : shape of each tensor, empty for others
    types : ``c10::BFloat16``, ``Scalar``, ...
    concrete : text of each scalar, empty for tensors
    strides : as ``dims``; empty where not recorded
    """

    dims: Sequence[Any]
    types: Sequence[Any]
    concrete: Sequence[Any]
    strides: Sequence[Any]

    def shape(self, index: int, *ranks: int) -> tuple[int, ...] | None:
        """Return the shape of argument ``index`` if it is a tensor of one of ``ranks`` (none: any but 0)."""
        value = self.dims[index] if index < len(self.dims) else None
        if not isinstance(value, list) or not value or not all(type(x) is int and x >= 0 for x in value):
            return None
        return tuple(value) if not ranks or len(value) in ranks else None

    def dtype(self, index: int) -> str | None:
        """Return our name of the type of argument ``index``."""
        found = value_type(self.types[index]) if index < len(self.types) else None
        return found[0] if found else None

    def true(self, index: int) -> bool:
        """Tell whether the scalar at ``index`` is true; not recorded is false."""
        return index < len(self.concrete) and str(self.concrete[index]).lower() in {"true", "1"}

    def stride(self, index: int) -> tuple[int, ...] | None:
        """Return the strides of argument ``index`` where they are recorded."""
        value = self.strides[index] if index < len(self.strides) else None
        return tuple(value) if isinstance(value, list) and value else None


Rule = Callable[[Inputs], Call | str]
_NO_SHAPES = "without shapes (profile with record_shapes=True)"
_TYPE = "of a type that no op of ours runs"
_FLOATS = {"fp64", "fp32", "bf16", "fp16", "fp8", "int8"}


def _call(op: str, dtype: str | None, dims: dict[str, int], variant: str = "") -> Call | str:
    if dtype not in _FLOATS:
        return _TYPE
    if min(dims.values(), default=1) == 0:
        return "of no elements"
    return Call(op, dtype, tuple(dims.items()), variant)


def _product(a: int, b: int) -> Rule:
    """Return the rule of a product: argument ``a`` [m, k] times argument ``b`` [k, n]."""

    def rule(x: Inputs) -> Call | str:
        left, right = x.shape(a, 2), x.shape(b, 2)
        if left is None or right is None or left[1] != right[0]:
            return _NO_SHAPES
        return _call("gemm", x.dtype(a), {"m": left[0], "n": right[1], "k": left[1]})

    return rule


def _linear(x: Inputs) -> Call | str:
    left, weight = x.shape(0), x.shape(1, 2)
    if left is None or weight is None or left[-1] != weight[1]:
        return _NO_SHAPES
    return _call("gemm", x.dtype(0), {"m": math.prod(left[:-1]), "n": weight[0], "k": weight[1]})


def _batched(a: int, b: int) -> Rule:
    def rule(x: Inputs) -> Call | str:
        left, right = x.shape(a, 3), x.shape(b, 3)
        if left is None or right is None or left[0] != right[0] or left[2] != right[1]:
            return _NO_SHAPES
        if left[0] > 1 and 0 in {(x.stride(i) or (1,))[0] for i in (a, b)}:
            return "a product whose operand is broadcast"
        dims = {"batch": left[0], "m": left[1], "n": right[2], "k": left[2]}
        return _call("batched_gemm", x.dtype(a), dims)

    return rule


def _grouped(x: Inputs) -> Call | str:
    rows, weights = x.shape(0, 2), x.shape(1, 3)
    if rows is None or weights is None or rows[1] != weights[1]:
        return _NO_SHAPES
    dims = {"m": rows[0], "n": weights[2], "k": rows[1], "experts": weights[0]}
    return _call("grouped_gemm", x.dtype(0), dims)


def _experts(x: Inputs) -> Call | str:
    """(hidden states [t, h], w1 [e, ups i, h], w2 [e, h, i], weights [t, top_k], ids [t, top_k], ...)."""
    states, up, down, ids = x.shape(0, 2), x.shape(1, 3), x.shape(2, 3), x.shape(4, 2)
    if states is None or up is None or down is None or ids is None:
        return _NO_SHAPES
    if states[1] != up[2] or down[1] != up[2] or up[0] != down[0] or not down[2] or up[1] % down[2]:
        return "experts whose weights are packed"
    spread = any(
        value_type(x.types[i]) == ("int32", 4) and (x.shape(i, 1) or (0,))[0] > up[0]
        for i in range(5, min(len(x.types), len(x.dims)))
    )
    if spread:  # an expert map: which rows stay on this rank is not in the trace
        return "experts spread over ranks: rows of this rank are not recorded"
    dtype = x.dtype(1)
    if dtype == "fp8":
        scales = [x.shape(i, 3) for i in range(5, len(x.dims))]
        dtype = "fp8_block" if any(s and s[0] == up[0] for s in scales) else dtype
    dims = {"tokens": states[0], "hidden": up[2], "inner": down[2], "experts": up[0], "top_k": ids[1]}
    made = _call("moe_ffn", x.dtype(1), dims, "" if up[1] == 2 * down[2] else "nongated")
    return made if isinstance(made, str) else Call(made.op, dtype or made.dtype, made.dims, made.variant)


def _attention(causal: int, *, heads_last: bool = False) -> Rule:
    """Return the rule of attention on whole tensors: query, key, value [batch, heads, length, width]."""

    def rule(x: Inputs) -> Call | str:
        shapes = [x.shape(i, 4) for i in range(3)]
        if any(s is None for s in shapes):
            return _NO_SHAPES
        query, key, value = ((s[0], s[2], s[1], s[3]) if heads_last else s for s in shapes if s)
        dims = {
            "batch": query[0],
            "length": key[2],
            "heads": query[1],
            "kv_heads": key[1],
            "head_dim": query[3],
        }
        if value[3] != query[3]:
            dims["value_dim"] = value[3]
        if query[2] == 1:
            return _call("decode_attention", x.dtype(0), dims)
        if x.true(causal) and query[2] == key[2]:
            return _call("prefill_attention", x.dtype(0), dims)
        dims["queries"] = query[2]
        return _call("attention", x.dtype(0), dims, "causal" if x.true(causal) else "full")

    return rule


def _normed(op: str, index: int) -> Rule:
    """Return the rule of a row-wise op over the last dimension of argument ``index``."""

    def rule(x: Inputs) -> Call | str:
        rows = x.shape(index)
        if rows is None:
            return _NO_SHAPES
        return _call(op, x.dtype(index), {"m": math.prod(rows[:-1]), "hidden": rows[-1]})

    return rule


def _topk(x: Inputs) -> Call | str:
    weights, logits = x.shape(0, 2), x.shape(3, 2)
    if weights is None or logits is None:
        return _NO_SHAPES
    dims = {"tokens": logits[0], "experts": logits[1], "top_k": weights[1]}
    return _call("topk_routing", x.dtype(3), dims)


def _copy(x: Inputs) -> Call | str:
    to, source = x.shape(0), x.shape(1)
    if to is None or source is None:
        return _NO_SHAPES
    kinds = {value_type(t) for t in x.types[:2]}
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind is None or to != source or x.stride(0) != x.stride(1):
        return "a copy that changes layout or type"
    size = math.prod(to) * kind[1]
    return Call("copy", "bytes", (("size", size),)) if size else "of no elements"


def _paged(_: Inputs) -> Call | str:
    return "attention over a paged cache: its lengths are not recorded"


_SDPA = "aten::_scaled_dot_product_"
_RULES: dict[str, Rule] = {
    "aten::mm": _product(0, 1),
    "aten::addmm": _product(1, 2),
    "aten::_addmm_activation": _product(1, 2),
    "aten::_scaled_mm": _product(0, 1),
    "aten::_int_mm": _product(0, 1),
    "aten::linear": _linear,
    "aten::bmm": _batched(0, 1),
    "aten::baddbmm": _batched(1, 2),
    "aten::_grouped_mm": _grouped,
    "aten::_scaled_grouped_mm": _grouped,
    "_C::cutlass_scaled_mm": _product(1, 2),
    "vllm::inplace_fused_experts": _experts,
    "vllm::outplace_fused_experts": _experts,
    "sglang::inplace_fused_experts": _experts,
    "sglang::outplace_fused_experts": _experts,
    "aten::scaled_dot_product_attention": _attention(5),
    f"{_SDPA}flash_attention": _attention(4),
    f"{_SDPA}flash_attention_for_cpu": _attention(4),
    f"{_SDPA}efficient_attention": _attention(6),
    f"{_SDPA}cudnn_attention": _attention(6),
    "flash_attn::_flash_attn_forward": _attention(5, heads_last=True),
    "vllm::unified_attention": _paged,
    "vllm::unified_attention_with_output": _paged,
    "vllm::unified_mla_attention_with_output": _paged,
    "_vllm_fa2_C::varlen_fwd": _paged,
    "_vllm_fa3_C::fwd": _paged,
    "sgl_kernel::fwd": _paged,
    "flash_attn::_flash_attn_varlen_forward": _paged,
    "aten::layer_norm": _normed("layernorm", 0),
    "aten::native_layer_norm": _normed("layernorm", 0),
    "aten::rms_norm": _normed("rmsnorm", 0),
    "aten::_fused_rms_norm": _normed("rmsnorm", 0),
    "_C::rms_norm": _normed("rmsnorm", 1),
    "_C::fused_add_rms_norm": _normed("rmsnorm_residual", 0),
    "sgl_kernel::rmsnorm": _normed("rmsnorm", 1),
    "sgl_kernel::fused_add_rmsnorm": _normed("rmsnorm_residual", 0),
    "_moe_C::topk_softmax": _topk,
    "aten::copy_": _copy,
}
WEAK = frozenset({"aten::copy_"})
"""Ops that belong to the op they run inside, where there is one that is known."""


def known(name: str) -> bool:
    """Tell whether an operator is listed."""
    return name in _RULES


def call_of(name: str, inputs: Inputs) -> Call | str:
    """Return what a listed operator did, or why that cannot be said.

    >>> call_of("aten::mm", Inputs([[4, 8], [8, 2]], ["float", "float"], ["", ""], [])).dims
    (('m', 4), ('n', 2), ('k', 8))
    """
    return _RULES[name](inputs)


_CLASSES = tuple(
    (re.compile(pattern, re.IGNORECASE), kind)
    for pattern, kind in (
        (r"nccl|rccl|all_?reduce|all_?gather|reduce_?scatter|deep_?ep|multimem", "collective"),
        (r"attention|attn|fmha|flash|mla|paged", "attention"),
        (r"moe|expert|grouped|topk|top_k", "experts"),
        (r"gemm|nvjet|cublas|matmul|\bmm_|cijk|gemv|wgmma|splitk", "product"),
        (r"norm", "norm"),
        (r"sampl|softmax|argmax|sort|radix|cumsum|scan", "sampling"),
        (r"memset", "memset"),
        (r"memcpy|copy", "copy"),
        (r"elementwise|triton_(poi|red|per)|act_and_mul|silu|rotary|rope", "elementwise"),
        (r"index|gather|scatter|cat|fill|quant", "elementwise"),
    )
)


def kernel_class(name: str) -> str:
    """Return what kind of work a kernel's name speaks of, for counts only: never for sizes."""
    return next((kind for pattern, kind in _CLASSES if pattern.search(name)), "other")


def short_kernel(name: str, limit: int = 100) -> str:
    """Return a kernel's name without return type and arguments, cut to ``limit`` characters.

    >>> short_kernel("void at::native::vectorized_kernel<4, float>(int, float*)")
    'at::native::vectorized_kernel<4, float>'
    """
    text = name.strip().removeprefix("void ")
    if text.endswith(")"):
        depth = 0
        for at in range(len(text) - 1, -1, -1):
            depth += {")": 1, "(": -1}.get(text[at], 0)
            if depth == 0:
                text = text[:at] or text
                break
    return text if len(text) <= limit else text[: limit - 1] + "…"
