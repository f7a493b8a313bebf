"""The event stream: what a JSON parser reads, at any chunk size, and one clear line for every broken trace."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.calibrate.profiles import events
from moesim.calibrate.profiles.events import EventStream, opened_text
from moesim.calibrate.profiles.kineto import read_kineto
from moesim.errors import SpecError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"traceEvents": [{"ph": "X", "name": "a"', "ends inside a value"),
        ('{"traceEvents": [{"ph": "X"},', "ends inside the trace"),
        ('{"traceEvents": [{"ph": "X" "cat": 1}]}', r"t\.json:1 .*expected JSON"),
        (
            '{\n"a": 1,\n"traceEvents":\n[\n{"ph": inf,                    "x": 1}]}',
            r"t\.json:5 .*expected JSON",
        ),
        ('{"a": 1}', "expected the key traceEvents"),
        ('{"traceEvents": {}}', "expected an array"),
        ("[[1]]", r"\[1\]: expected an event"),
        ("hello", "expected a Chrome trace"),
        ("", "ends inside the trace"),
        ('{"traceEvents": []}', "at least one measurement"),
    ],
)
def test_broken_traces_end_in_one_clear_line(tmp_path, text, message):
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(SpecError, match=message) as caught:
        read_kineto(path)
    assert len(str(caught.value).splitlines()) == 1


@settings(max_examples=40)
@given(st.lists(st.text(max_size=40), max_size=30), st.integers(1, 50), st.sampled_from([None, 0, 2]))
def test_the_stream_reads_what_json_reads_at_any_chunk_size(tmp_path_factory, names, chunk, indent):
    data = {
        "head": {"a": names},
        "traceEvents": [{"name": n, "dur": 0.25, "args": {"x": [[1, 2], []]}} for n in names],
    }
    path = tmp_path_factory.mktemp("s") / "t.json"
    path.write_text(json.dumps(data, indent=indent), encoding="utf-8")
    before, events._CHUNK = events._CHUNK, chunk
    try:
        with opened_text(path, "t") as file:
            stream = EventStream(file, "t")
            found = list(stream)
    finally:
        events._CHUNK = before
    assert [event for _, event in found] == data["traceEvents"]
    assert stream.head == {"head": data["head"]}
    if indent is not None:
        lines = path.read_text(encoding="utf-8").split("\n")
        assert all(lines[line - 1].strip().startswith("{") for line, _ in found)
