"""Registry: from the name in ``architectures`` to the reader of its family."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from moesim.errors import Problem, SpecError
from moesim.files import nearest
from moesim.spec.huggingface.encdec import switch, t5
from moesim.spec.huggingface.grouped import (
    arctic,
    dbrx,
    deci,
    llama,
    llama4,
    minimax_m2,
    minimax_m3,
    mixtral,
    qwen_moe,
)
from moesim.spec.huggingface.hybrid import kimi_linear, minimax_text, nemotron_h, qwen_next
from moesim.spec.huggingface.latent import deepseek, deepseek_moe
from moesim.spec.huggingface.windowed import gemma4, gpt_oss, mimo_v2, step3

if TYPE_CHECKING:
    from collections.abc import Callable

    from moesim.spec.huggingface.config import Config
    from moesim.spec.huggingface.parts import Parts

__all__ = ["ARCHITECTURES", "Family", "family_of"]


@dataclass(frozen=True, slots=True)
class Family:
    """How to read one architecture.

    Attributes
    ----------
    read : from config to parts
    tied : ``tie_word_embeddings`` where the config does not write it (the class's own default)
    """

    read: Callable[[Config], Parts]
    tied: bool = False


_LLAMA = Family(llama)
_QWEN2 = Family(partial(llama, bias=True))
_QWEN3 = Family(partial(llama, qk_norm=True))
_QWEN3_MOE = Family(qwen_moe)
_QWEN_NEXT = Family(qwen_next)
_DEEPSEEK = Family(deepseek)
_KIMI_LINEAR = Family(kimi_linear)
_M2 = Family(minimax_m2)
_M3 = Family(minimax_m3)

ARCHITECTURES: dict[str, Family] = {
    "ArcticForCausalLM": Family(arctic),
    "DbrxForCausalLM": Family(dbrx),
    "DeciLMForCausalLM": Family(deci),
    "DeepseekForCausalLM": Family(deepseek_moe),
    "DeepseekV2ForCausalLM": _DEEPSEEK,
    "DeepseekV32ForCausalLM": _DEEPSEEK,
    "DeepseekV3ForCausalLM": _DEEPSEEK,
    "Gemma4ForConditionalGeneration": Family(gemma4, tied=True),
    "GlmMoeDsaForCausalLM": _DEEPSEEK,
    "GptOssForCausalLM": Family(gpt_oss),
    "KimiK25ForConditionalGeneration": _DEEPSEEK,
    "KimiK3ForConditionalGeneration": _KIMI_LINEAR,
    "KimiLinearForCausalLM": _KIMI_LINEAR,
    "Llama4ForCausalLM": Family(llama4),
    "Llama4ForConditionalGeneration": Family(llama4),
    "LlamaForCausalLM": _LLAMA,
    "MiMoForCausalLM": _LLAMA,
    "MiMoV2FlashForCausalLM": Family(mimo_v2),
    "MiniMaxM2ForCausalLM": _M2,
    "MiniMaxM3ForCausalLM": _M3,
    "MiniMaxM3SparseForConditionalGeneration": _M3,
    "MiniMaxText01ForCausalLM": Family(minimax_text),
    "MistralForCausalLM": _LLAMA,
    "MixtralForCausalLM": Family(mixtral),
    "NemotronHForCausalLM": Family(nemotron_h),
    "OlmoeForCausalLM": Family(partial(mixtral, qk_norm=True)),
    "PhiMoEForCausalLM": Family(mixtral),
    "PhimoeForCausalLM": Family(mixtral),
    "Qwen2ForCausalLM": _QWEN2,
    "Qwen2MoeForCausalLM": Family(partial(qwen_moe, qk_norm=False, bias=True)),
    "Qwen3ForCausalLM": _QWEN3,
    "Qwen3MoeForCausalLM": _QWEN3_MOE,
    "Qwen3NextForCausalLM": _QWEN_NEXT,
    "Qwen3VLForConditionalGeneration": _QWEN3,
    "Qwen3VLMoeForConditionalGeneration": _QWEN3_MOE,
    "Qwen3_5ForConditionalGeneration": _QWEN_NEXT,
    "Qwen3_5MoeForConditionalGeneration": _QWEN_NEXT,
    "Step3p5ForCausalLM": Family(step3),
    "Step3p7FlashForCausalLM": Family(step3),
    "SwitchTransformersForConditionalGeneration": Family(switch, tied=True),
    "T5ForConditionalGeneration": Family(t5, tied=True),
}

# Known, and known not to fit the spec: say why instead of "unknown".
_REFUSED = {
    "DeepseekV4ForCausalLM": "its compressed key/value attention, grouped low-rank output and hyper-"
    "connections have no counterpart in the model spec",
    "JambaForCausalLM": "its Mamba-1 layers have no counterpart in the model spec",
}


def family_of(architecture: str, where: str) -> Family:
    """Return the family of ``architecture``.

    Raises
    ------
    SpecError : unknown or not representable; the message names it and the nearest known ones
    """
    if architecture in _REFUSED:
        message = f"this architecture is not supported: {_REFUSED[architecture]}"
        raise SpecError(Problem(where, 0, "architectures", repr(architecture), message))
    if architecture not in ARCHITECTURES:
        close = nearest(architecture, ARCHITECTURES, 3) or f" ({', '.join(ARCHITECTURES)})"
        raise SpecError(
            Problem(where, 0, "architectures", repr(architecture), f"expected a known architecture{close}")
        )
    return ARCHITECTURES[architecture]
