"""Readers: row counts of the real traces, every kind of bad row, bounded memory."""

import gzip
import json
import resource
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moesim.errors import DataMissing, SpecError
from moesim.spec.traffic import TraceColumns, TraceFile
from moesim.traffic import read_trace
from moesim.traffic.readers import MAX_LINE_BYTES

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
ROW = "2023-11-16 18:15:46.6805900,374,44\r\n"


@pytest.fixture
def write(tmp_path):
    def make(text, name="t.csv", **fields):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return TraceFile(path=str(path), **({"format": "azure"} | fields))

    return make


@pytest.mark.shared
@pytest.mark.parametrize(
    ("file", "style", "rows", "tokens"),
    [
        ("AzureLLMInferenceTrace_conv.csv", "azure", 19_366, (22_361_870, 4_088_665)),
        ("AzureLLMInferenceTrace_code.csv", "azure", 8_819, (18_059_974, 245_896)),
        ("mooncake_conversation.jsonl.gz", "mooncake", 12_031, (144_793_823, 4_122_048)),
    ],
)
def test_real_traces_are_read_whole(traces, file, style, rows, tokens):
    trace = read_trace(TraceFile(format=style, path=str(traces / file)))
    assert (len(trace), trace.read, dict(trace.dropped)) == (rows, rows, {})
    assert (int(trace.input_tokens.sum()), int(trace.output_tokens.sum())) == tokens
    assert trace.arrival_s[0] == 0
    assert 3400 < trace.arrival_s[-1] < 3600


@pytest.mark.shared
def test_mooncake_blocks_are_dense_and_complete(traces):
    trace = read_trace(TraceFile(format="mooncake", path=str(traces / "mooncake_conversation.jsonl.gz")))
    assert (trace.block_tokens, len(trace.block_hash), int(trace.block_hash.max()) + 1) == (
        512,
        288_500,
        182_790,
    )
    assert np.array_equal(np.diff(trace.block_offset), -(-trace.input_tokens // 512))
    with gzip.open(traces / "mooncake_conversation.jsonl.gz") as file:
        first = json.loads(file.readline())
    assert len(first["hash_ids"]) == trace.block_offset[1]


def test_azure_times_are_relative_and_keep_microseconds(write):
    trace = read_trace(write(AZURE + ROW + "2023-11-16 18:15:50.9951690,396,109\r\n2023-11-17 00:15:51,1,1"))
    assert trace.arrival_s == pytest.approx([0, 4.314579, 21604.31941], abs=2e-6)
    assert trace.summary == "3 rows read, 3 kept"


def test_rows_without_work_are_dropped_and_counted(write):
    trace = read_trace(write(AZURE + ROW + "2023-11-16 18:15:47,5,0\n\n2023-11-16 18:15:48,0,5\n"))
    assert trace.summary == "3 rows read, 1 kept, dropped: 1 without output tokens, 1 without input tokens"
    with pytest.raises(SpecError, match="expected at least one request, 1 rows read"):
        read_trace(write(AZURE + "2023-11-16 18:15:47,5,0\n"))


BAD_AZURE = {
    "negative": ("2023-11-16 18:15:47,-3,5", r"t\.csv:3  ContextTokens  '-3': .*at least 0"),
    "nan": (
        "2023-11-16 18:15:47,3,nan",
        r"t\.csv:3  GeneratedTokens  'nan': expected tokens as a whole number",
    ),
    "half": ("2023-11-16 18:15:47,3,1.5", r"GeneratedTokens  '1\.5': expected tokens as a whole number"),
    "huge": ("2023-11-16 18:15:47,3,9999999999", r"'9999999999': .*at most 2147483647"),
    "infinite": ("2023-11-16 18:15:47,inf,3", r"ContextTokens  'inf': expected tokens"),
    "empty": ("2023-11-16 18:15:47,,5", r"ContextTokens  '': expected tokens"),
    "date": ("yesterday,3,5", r"t\.csv:3  TIMESTAMP  'yesterday': expected a date and time"),
    "unsorted": (
        "2023-11-16 18:15:40,3,5",
        r"t\.csv:3  TIMESTAMP .*the row before is 6\.68059 s later \(sort",
    ),
    "short": ("2023-11-16 18:15:47,3", r"t\.csv:3 .*expected 3 fields as in the header, found 2"),
    "quote": ('2023-11-16 18:15:47,"3,5', r"t\.csv:3 .*expected CSV"),
}


@pytest.mark.parametrize("case", BAD_AZURE)
def test_bad_rows_name_line_column_and_value(write, case):
    row, message = BAD_AZURE[case]
    with pytest.raises(SpecError, match=message) as caught:
        read_trace(write(AZURE + ROW + row + "\r\n"))
    assert "\n" not in str(caught.value)


def test_bad_files(write, tmp_path):
    with pytest.raises(SpecError, match="the file is empty"):
        read_trace(write(""))
    with pytest.raises(SpecError, match="0 rows read"):
        read_trace(write(AZURE))
    with pytest.raises(
        SpecError, match="GeneratedTokens: no such column, the file has: TIMESTAMP, ContextTokens, X"
    ):
        read_trace(write("TIMESTAMP,ContextTokens,X\n"))
    with pytest.raises(SpecError, match=r"t\.csv:2: expected UTF-8 text"):
        read_trace(write(AZURE.encode() + b"\xff\xfe,1,2\n"))
    with pytest.raises(SpecError, match="cannot be read"):
        read_trace(write(b"no gzip", name="t.csv.gz"))
    with pytest.raises(SpecError, match="cannot be read"):
        read_trace(write(gzip.compress((AZURE + ROW * 500).encode())[:-30], name="u.csv.gz"))
    with pytest.raises(DataMissing, match=r"nowhere\.csv: no such trace file"):
        read_trace(TraceFile(format="azure", path="nowhere.csv"), tmp_path / "x.yaml")


def test_a_relative_path_is_beside_the_file_that_names_it(write, tmp_path, monkeypatch):
    write(AZURE + ROW)
    assert len(read_trace(TraceFile(format="azure", path="t.csv"), tmp_path / "scenario.yaml")) == 1
    monkeypatch.setenv("MY_TRACES", str(tmp_path))
    assert len(read_trace(TraceFile(format="azure", path="$MY_TRACES/t.csv"))) == 1


def test_a_changed_file_is_read_again(write):
    assert len(read_trace(write(AZURE + ROW))) == 1
    assert len(read_trace(write(AZURE + ROW + ROW))) == 2


def test_a_line_just_over_the_limit_is_refused(write):
    with pytest.raises(SpecError, match=r"t\.csv:2: expected lines of at most 1 MiB"):
        read_trace(write(AZURE + "1" * (MAX_LINE_BYTES + 1)))


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_AS"), reason="needs address-space limits")
def test_an_endless_line_does_not_fill_memory(tmp_path):
    # 4 GiB of one line in 4 MiB of gzip, read by a process that may not have that much
    path = tmp_path / "t.jsonl.gz"
    chunk = gzip.compress(b'{"timestamp": 0, "x": "' + b"a" * 2**26)
    path.write_bytes(chunk * 64)
    script = (
        "import resource; from moesim.spec.traffic import TraceFile; from moesim.traffic import read_trace\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))\n"
        f"read_trace(TraceFile(format='mooncake', path={str(path)!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert "t.jsonl.gz:1: expected lines of at most 1 MiB" in done.stderr


def mooncake(**change):
    return json.dumps({"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [7, 9]} | change)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (mooncake(hash_ids=[1, 2, 3]), "hash_ids .*3 blocks of 512 tokens are more than 600 tokens fill"),
        (mooncake(hash_ids="no"), "hash_ids  'no': expected a list of whole numbers"),
        (mooncake(hash_ids=[-1]), "expected a list of whole numbers, not negative"),
        (mooncake(timestamp=-5), "timestamp  -5: expected a time in ms, not negative"),
        (mooncake(timestamp=True), "timestamp  True: expected a time"),
        (mooncake(output_length=None), "output_length  missing: expected tokens"),
        (mooncake(output_length=True), "output_length  True: expected tokens"),
        (mooncake(output_length=float("nan")), "output_length  nan: expected tokens"),
        ("[1, 2]", "expected one JSON object per line"),
        ('{"a": ', "expected one JSON object per line"),
        ("[" * 100_000, "expected one JSON object per line"),
    ],
)
def test_bad_mooncake_lines(write, line, message):
    with pytest.raises(SpecError, match=message):
        read_trace(write(line + "\n", name="t.jsonl", format="mooncake"))


def test_generic_formats_agree(write, tmp_path):
    rows = [(1.5, 10, 3, 4, 1), (2.5, 20, 6, -1, 0)]
    names = ["when", "p", "d", "s", "c"]
    columns = TraceColumns(arrival="when", input="p", output="d", session="s", priority="c")
    text = ",".join(names) + "\n" + "\n".join(",".join(map(str, row)) for row in rows)
    lines = "\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in rows)
    pq.write_table(
        pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows]), tmp_path / "t.parquet"
    )
    made = [
        write(text, name="t.csv", format="generic", columns=columns),
        write(text.replace(",", "\t"), name="t.tsv", format="generic", columns=columns),
        write(gzip.compress(lines.encode()), name="t.jsonl.gz", format="generic", columns=columns),
        TraceFile(format="generic", path=str(tmp_path / "t.parquet"), columns=columns),
    ]
    for file in made:
        trace = read_trace(file)
        assert trace.arrival_s.tolist() == [0.0, 1.0]
        assert trace.input_tokens.tolist() == [10, 20]
        assert trace.output_tokens.tolist() == [3, 6]
        assert (trace.session.tolist(), trace.priority.tolist()) == ([4, -1], [1, 0])


def test_generic_units_limit_and_blocks(write):
    lines = "\n".join(json.dumps({"arrival": t, "input_tokens": 40, "output_tokens": 1, "h": h})
                      for t, h in ((0, [5, 8]), (2000, [5, 1]), (3000, [5])))  # fmt: skip
    columns = TraceColumns(blocks="h")
    file = write(lines, name="t.jsonl", format="generic", columns=columns, block_tokens=20, arrival_unit="ms")
    trace = read_trace(file.model_copy(update={"limit": 2}))
    assert trace.arrival_s.tolist() == [0, 2]
    assert trace.block_hash.tolist() == [0, 1, 0, 2]
    assert trace.read == 2


def test_parquet_problems(write, tmp_path):
    with pytest.raises(SpecError, match="expected parquet"):
        read_trace(write("nothing of that kind", name="t.parquet", format="generic"))
    pq.write_table(
        pa.table({"arrival": [0.0], "input_tokens": [None], "output_tokens": [3]}), tmp_path / "u.parquet"
    )
    with pytest.raises(SpecError, match=r"u\.parquet:1  input_tokens  missing: expected tokens"):
        read_trace(TraceFile(format="generic", path=str(tmp_path / "u.parquet")))
    with pytest.raises(SpecError, match=r"expected \.csv"):
        read_trace(write("x", name="t.xls", format="generic"))
