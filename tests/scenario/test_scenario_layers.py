"""Laws of layering: what is laid over what, in which order, and where each value came from."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import SpecError
from moesim.scenario.layers import Origin, Value, leaves, merge, plain

NAMES = st.sampled_from(["a", "b", "c", "from_", "rate"])
TREES = st.recursive(
    st.integers(0, 5) | st.none() | st.lists(st.integers(0, 3), max_size=2),
    lambda inner: st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
LAYERS = st.dictionaries(NAMES, TREES, max_size=3)


def value(data: object, where: str = "x") -> Value:
    origin = Origin(where, 1)
    if isinstance(data, dict):
        return Value({name: value(child, where) for name, child in data.items()}, origin)
    if isinstance(data, list):
        return Value([value(child, where) for child in data], origin)
    return Value(data, origin)


@given(LAYERS, LAYERS, LAYERS)
def test_merge_is_associative_without_fresh_starts(a: dict, b: dict, c: dict) -> None:
    left = merge(merge(value(a), value(b)), value(c))
    right = merge(value(a), merge(value(b), value(c)))
    # a scalar between two mappings hides the weaker one only when it is laid down before the stronger one
    if not _hides(a, b, c):
        assert plain(left) == plain(right)


def _hides(a: object, b: object, c: object) -> bool:
    """Whether somewhere a and c are mappings and b is not."""
    if isinstance(a, dict) and isinstance(c, dict):
        if not isinstance(b, dict):
            return True
        return any(_hides(a[k], b[k], c[k]) for k in a.keys() & b.keys() & c.keys())
    return False


@given(LAYERS, LAYERS)
def test_the_stronger_layer_wins_wherever_it_speaks(weak: dict, strong: dict) -> None:
    merged = merge(value(weak), value(strong, "strong"))
    for key, leaf in leaves(value(strong, "strong")):
        found: object = merged
        for step in key:
            found = found.data[step]
        if leaf.data != {}:
            assert found.data == leaf.data or plain(found) == plain(leaf)
            assert found.origin.where == "strong"


@given(LAYERS)
def test_an_empty_layer_changes_nothing(layer: dict) -> None:
    assert plain(merge(value(layer), value({}))) == layer
    assert plain(merge(value({}), value(layer))) == layer


@given(LAYERS)
def test_a_layer_over_itself_changes_nothing(layer: dict) -> None:
    assert plain(merge(value(layer), value(layer))) == layer


def test_lists_are_replaced_whole_and_elements_by_number() -> None:
    weak = value({"faults": [{"at": 1, "n": 0}, {"at": 2, "n": 1}]})
    assert plain(merge(weak, value({"faults": [{"at": 3}]}))) == {"faults": [{"at": 3}]}
    changed = merge(weak, value({"faults": {"1": {"at": 9}}}))
    assert plain(changed) == {"faults": [{"at": 1, "n": 0}, {"at": 9, "n": 1}]}
    with pytest.raises(SpecError, match=r"faults\.2: expected an index below 2"):
        merge(weak, value({"faults": {"2": {"at": 9}}}))


@pytest.mark.parametrize(
    ("weak", "strong", "expected"),
    [
        ({"kind": "a", "x": 1}, {"y": 2}, {"kind": "a", "x": 1, "y": 2}),
        ({"kind": "a", "x": 1}, {"kind": "a", "y": 2}, {"kind": "a", "x": 1, "y": 2}),
        ({"kind": "a", "x": 1}, {"kind": "b", "y": 2}, {"kind": "b", "y": 2}),
        ({"from": "m", "x": 1}, {"y": 2}, {"from": "m", "x": 1, "y": 2}),
        ({"from": "m", "x": 1}, {"from": "n"}, {"from": "n"}),
        ({"from": "m", "x": 1}, {"kind": "model", "y": 2}, {"kind": "model", "y": 2}),
        ({"x": 1}, None, None),
    ],
)
def test_another_kind_or_reference_starts_afresh(weak: object, strong: object, expected: object) -> None:
    assert plain(merge(value(weak), value(strong))) == expected


def test_origins_say_what_the_place_is_for() -> None:
    assert str(Origin("a.yaml", 3)) == "a.yaml:3"
    assert str(Origin("a.yaml", 3, "variant fast")) == "variant fast (a.yaml:3)"
    assert str(Origin("hardware/x.yaml", 3, "catalog")) == "catalog hardware/x.yaml:3"
    assert str(Origin("--set", 0, "", Path("y"))) == "--set"
