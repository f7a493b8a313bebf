"""Reading, validating, cutting and splitting traces."""

import numpy as np
import pytest
from routing_traces import independent_trace, make_trace

from moesim.errors import SpecError
from moesim.routing.trace import read_trace

GOOD = {
    "experts": np.array([[[2, 0]], [[1, 3]], [[3, 2]]], dtype=np.uint8),
    "weights": np.array([[[0.2, 0.7]], [[0.6, 0.1]], [[0.5, 0.5]]], dtype=np.float16),
    "sequence_offset": np.array([0, 2]),
    "sequence_length": np.array([2, 1]),
    "sequence_group": np.array(["law", "code"]),
}


def write(path, **changes):
    np.savez(path, **{k: v for k, v in {**GOOD, **changes}.items() if v is not None})
    return path


def test_experts_are_ordered_by_weight(tmp_path):
    trace = read_trace(write(tmp_path / "t.npz"))
    assert trace.experts.tolist() == [[[0, 2]], [[1, 3]], [[3, 2]]]
    assert trace.total == 4
    assert (trace.layers, trace.top_k) == (1, 2)
    assert trace.sequence.tolist() == [0, 0, 1]
    assert read_trace(write(tmp_path / "u.npz", weights=None, sequence_group=None), 8).total == 8


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"experts": None}, "experts: expected this array"),
        ({"experts": GOOD["experts"].astype(float)}, "expected integers"),
        ({"experts": np.array([[[2, 2]], [[1, 3]], [[3, 2]]])}, r"experts\[0\]: expected different experts"),
        ({"experts": np.array([[[2, -1]], [[1, 3]], [[3, 2]]])}, "expected experts 0..3"),
        ({"weights": np.ones((3, 1, 1))}, "expected the shape of experts"),
        ({"weights": np.full((3, 1, 2), np.nan)}, "finite"),
        ({"sequence_offset": np.array([0, 1])}, "follow one another"),
        ({"sequence_length": np.array([2, 2])}, "add up to 3 tokens"),
        ({"sequence_length": np.array([2, 1, 0])}, "one entry per sequence"),
    ],
)
def test_wrong_arrays_are_named(tmp_path, changes, words):
    with pytest.raises(SpecError, match=words):
        read_trace(write(tmp_path / "t.npz", **changes))


def test_wrong_files(tmp_path):
    with pytest.raises(SpecError, match="no such file"):
        read_trace(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("not a zip")
    with pytest.raises(SpecError, match="npz file of plain arrays"):
        read_trace(tmp_path / "text.npz")
    with pytest.raises(SpecError, match=r"expected experts 0\.\.2"):
        read_trace(write(tmp_path / "t.npz"), experts=3)


def test_skip_and_take_keep_tokens_with_their_sequence():
    trace = make_trace(np.arange(12).reshape(6, 1, 2), [3, 1, 2], 12, ["a", "b", "c"])
    cut = trace.skip(1)
    assert cut.experts[:, 0, 0].tolist() == [2, 4, 10]
    assert cut.group.tolist() == ["a", "c"]
    taken = trace.take([2, 0])
    assert taken.experts[:, 0, 0].tolist() == [8, 10, 0, 2, 4]
    assert taken.offset.tolist() == [0, 2]


def test_split_is_stratified_disjoint_and_repeatable():
    base = independent_trace(400, 1, 2, 8, sequences=40)
    trace = make_trace(
        np.arange(400)[:, None, None] % 8 + np.array([0, 8]), [10] * 40, 16, ["x"] * 30 + ["y"] * 10
    )
    first, second = trace.split(3)
    assert sorted(first.group.tolist()) == ["x"] * 15 + ["y"] * 5
    assert sorted(second.group.tolist()) == ["x"] * 15 + ["y"] * 5
    tagged = make_trace(np.arange(400)[:, None, None] * 2 + np.array([0, 1]), [10] * 40, 800, ["x"] * 40)
    one, two = (set(half.experts.ravel().tolist()) for half in tagged.split(3))
    assert not one & two
    assert len(one | two) == 800
    assert np.array_equal(tagged.split(3)[0].experts, tagged.split(3)[0].experts)
    assert not np.array_equal(tagged.split(3)[0].experts, tagged.split(4)[0].experts)
    assert base.total == 8
