"""Exclusions of quantisation configs: a module is excluded where whole words of its name are listed."""

from hypothesis import given
from hypothesis import strategies as st

from moesim.spec.huggingface.quantization import _names_part, _tree

WORDS = st.lists(st.sampled_from(["layers", "0", "1", "mlp", "gate", "head"]), min_size=1, max_size=5)


@given(st.lists(WORDS, max_size=6), WORDS)
def test_an_exclusion_names_whole_words(excluded: list[list[str]], words: list[str]) -> None:
    runs = {tuple(words[a:b]) for a in range(len(words)) for b in range(a + 1, len(words) + 1)}
    want = any(tuple(name) in runs for name in excluded)
    assert _names_part(_tree({".".join(name) for name in excluded}), ".".join(words)) == want
    assert not _names_part(_tree({"", "layers..0"}), ".".join(words))
