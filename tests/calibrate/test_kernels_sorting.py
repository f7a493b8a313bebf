"""Token sorting: every pair exactly once, each block one expert, no value needed on the host."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from moesim.calibrate.kernels.sorting import sort_tokens  # noqa: E402


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 70), st.integers(1, 4), st.integers(1, 9), st.sampled_from([1, 4, 16]), st.integers(0, 9)
)
def test_blocks_hold_every_pair_once_under_its_own_expert(tokens, top_k, experts, rows, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, experts, (tokens, top_k), generator=generator)
    blocks = sort_tokens(ids, experts, rows)
    slots = blocks.slots.view(-1, rows)
    seen = slots[slots < blocks.pairs]
    assert sorted(seen.tolist()) == list(range(tokens * top_k))
    for row, expert in zip(slots, blocks.experts.tolist(), strict=True):
        real = row[row < blocks.pairs].long()
        assert (expert == -1) == (len(real) == 0)
        assert all(ids.reshape(-1)[real] == expert)
    # padding is at most one partial block per expert that has rows
    used = int((blocks.experts >= 0).sum())
    counts = torch.bincount(ids.reshape(-1), minlength=experts)
    assert used == int(((counts + rows - 1) // rows).sum())


def test_pairs_of_one_expert_keep_token_order():
    blocks = sort_tokens(torch.tensor([[1], [0], [1], [1]]), 2, 4)
    assert blocks.slots.view(-1, 4)[:2].tolist() == [[1, 4, 4, 4], [0, 2, 3, 4]]
