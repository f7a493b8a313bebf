"""Config: typed access to a Hugging Face ``config.json`` that remembers which keys were understood."""

from __future__ import annotations

import re
from typing import Any

from moesim.errors import Problem, SpecError

__all__ = ["Config"]

_MISSING = object()

# A key of this shape changes weights or work; one that nobody read is an architecture we do not understand.
_MATTERS = re.compile(
    r"(size|dim|rank|heads|layers|expert|window|spars|index|pattern|ratio|compress|stride|chunk|share|latent|block"
    r"|mixer|mamba|ssm|conv|lora|freq|interval|topk|top_k|group|mtp|nextn|hc_|_mult|residual|bias|linear|gate)"
)

# Keys of that shape which change neither weights nor work.
_HARMLESS = re.compile(
    r"(initializer|rope|mrope|_token_(id|index)|^(vision|audio|image|video|img)_|_loss|aux|^id2label|^label2id"
    r"|chunk_size_feed_forward|ngram_size|^top_k$|num_beam|num_return|^ep_size$|max_window_layers|ignore_index"
    r"|^tie_|use_sliding_window|router_(jitter|dtype|scaling)|score|seq_aux|^time_step|residual_in_fp32"
    r"|rescale_prenorm|^chunk_size$|use_(mamba|conv)|_overlap$|mamba_(hidden_act|proj_bias|ssm_cache_dtype|ssm_dtype)"
    r"|indexer_rope|index_share_for_mtp|projector_hidden|reward|layer_scale|head_dropout|linear_bias$"
    r"|cross_attention_hidden|tokenizer|activation_situ|gate_lower_bound|sparse_(init|local)_block|disable_index_value"
    r"|logits_to_keep|dropout|norm_topk|partial_rotary|use_grouped_topk|routed_scaling|topk_method|multimodal"
    r"|scale_(depth|emb)|mtp_use_dedicated)"
)


class Config:
    """A mapping read key by key.

    Parameters
    ----------
    data : the parsed JSON, with ``text_config`` already lifted
    where : file name for messages
    """

    def __init__(self, data: dict[str, Any], where: str, prefix: str = "") -> None:
        self.data = data
        self.where = where
        self._prefix = prefix
        self._read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return self.data.get(key) is not None

    def error(self, key: str, expected: str) -> SpecError:
        """Return the error for ``key``, with its value."""
        value = self.data.get(key)
        shown = "" if value is None else repr(value)
        shown = shown if len(shown) <= 60 else shown[:59] + "…"
        return SpecError(Problem(self.where, 0, self._prefix + key, shown, expected))

    def raw(self, *names: str, default: Any = _MISSING) -> Any:
        """Return the first of ``names`` that is written and not null; without default one is needed."""
        self._read.update(names)
        for name in names:
            if self.data.get(name) is not None:
                return self.data[name]
        if default is _MISSING:
            other = f" (or {', '.join(names[1:])})" if len(names) > 1 else ""
            raise self.error(names[0], f"expected a value, the key is missing{other}")
        return default

    def integer(self, *names: str, default: Any = _MISSING) -> int:
        """Return a whole number from 0 to 10^9; layers are at most 1000, because lists are made of them."""
        value = self.raw(*names, default=default)
        name = next((n for n in names if n in self), names[0])
        most = 1000 if name.endswith("layers") else 10**9
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            raise self.error(name, f"expected a whole number from 0 to {most}")
        return value

    def number(self, name: str) -> float:
        """Return a positive number."""
        value = self.raw(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
            raise self.error(name, "expected a positive number")
        return float(value)

    def flag(self, *names: str, default: bool = False) -> bool:
        """Return true or false."""
        value = self.raw(*names, default=default)
        if not isinstance(value, bool):
            raise self.error(names[0], "expected true or false")
        return value

    def items(self, key: str, length: int | None = None, default: Any = _MISSING) -> list[Any]:
        """Return a list, of ``length`` where given and the key is written."""
        value = self.raw(key, default=default)
        length = length if key in self and (value or default is _MISSING) else None
        if not isinstance(value, list) or any(isinstance(item, list) for item in value):
            raise self.error(key, "expected a list")
        if length is not None and len(value) != length:
            raise self.error(key, f"expected {length} items, one per layer, found {len(value)}")
        return value

    def part(self, key: str) -> Config:
        """Return the mapping at ``key``; its keys are checked apart."""
        value = self.raw(key)
        if not isinstance(value, dict):
            raise self.error(key, "expected a mapping")
        return Config(value, self.where, f"{self._prefix}{key}.")

    def skip(self, *names: str) -> None:
        """Declare keys as understood: they repeat what other keys say."""
        self._read.update(names)

    def refuse_unread(self, architecture: str) -> None:
        """Raise for every key that looks as if it matters, has a value, and was not read.

        Raises
        ------
        SpecError : one problem per key
        """
        unread = [
            key
            for key, value in self.data.items()
            if key not in self._read
            and value not in (None, False, 0, "", [], {})
            and not isinstance(value, dict)
            and _MATTERS.search(key)
            and not _HARMLESS.search(key)
        ]
        if unread:
            problems = self.error
            raise SpecError(
                *(
                    problem
                    for key in unread
                    for problem in problems(key, f"this key of {architecture} is not understood").problems
                )
            )
