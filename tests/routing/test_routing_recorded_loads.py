"""Recorded loads: files as the engines' recorders write them, with and without replicas, and broken ones."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.errors import SpecError
from moesim.routing.recorded_loads import read_loads
from moesim.routing.torch_file import read_torch_file

COUNTS = np.arange(24).reshape(2, 3, 4)


@pytest.mark.parametrize(
    "dtype", ["int32", "int64", "float32", "bool", "uint8", "float16", "float64", "int16", "int8"]
)
def test_a_torch_file_is_read_without_torch(tmp_path: Path, dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    made = torch.tensor(COUNTS).to(getattr(torch, dtype))
    data = {
        "rank": 0,
        "logical_count": made,
        "turned": made[1].T,
        "part": made[1, 1:],
        "none": None,
        "text": "a",
    }
    torch.save(data, tmp_path / "d.pt")
    read = read_torch_file(tmp_path / "d.pt")
    assert set(read) == set(data)
    for name in ("logical_count", "turned", "part"):
        assert np.array_equal(read[name], data[name].numpy()), name
        assert read[name].dtype == data[name].numpy().dtype
    assert (read["rank"], read["none"], read["text"]) == (0, None, "a")


def test_what_a_pickle_could_run_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (print, ("owned",))

    with zipfile.ZipFile(tmp_path / "e.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"logical_count": Evil()}))
    with pytest.raises(SpecError, match=r"builtins.print is no tensor"):
        read_torch_file(tmp_path / "e.pt")


def test_a_tensor_outside_its_storage_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch.save({"logical_count": torch.arange(8)}, tmp_path / "d.pt")
    with zipfile.ZipFile(tmp_path / "d.pt") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "short.pt", "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data[:32] if name.endswith("/data/0") else data)
    with pytest.raises(SpecError, match="outside its storage"):
        read_torch_file(tmp_path / "short.pt")


def test_sglangs_recorder(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch.save({"rank": 0, "logical_count": torch.tensor(COUNTS, dtype=torch.int32),
                "average_utilization_rate_over_window": None}, tmp_path / "r.pt")  # fmt: skip
    assert read_loads(tmp_path / "r.pt").tolist() == COUNTS.tolist()
    (tmp_path / "r.json").write_text(json.dumps({"logical_count": COUNTS[0].tolist()}))
    assert read_loads(tmp_path / "r.json", experts=4).tolist() == COUNTS[:1].tolist()


def test_vllms_lines_add_up_replicas(tmp_path: Path) -> None:
    meta = {"record_type": "eplb_load_meta", "version": 1}
    line = {"record_type": "eplb_load_stats", "version": 1, "step": 7, "num_ranks": 2,
            "expert_load": [[10, 1, 5, 2], [2, 8, 1, 3]], "p2l_map": [[0, 1, 2, 0], [2, 1, 0, 1]]}  # fmt: skip
    (tmp_path / "s.jsonl").write_text(f"{json.dumps(meta)}\n\n{json.dumps(line)}\n{json.dumps(line)}\n")
    found = read_loads(tmp_path / "s.jsonl")
    assert found.tolist() == [[[12, 1, 5], [1, 11, 2]]] * 2


def test_a_trace_is_counted(tmp_path: Path) -> None:
    chosen = np.array([[[0, 1], [2, 0]], [[1, 3], [2, 1]], [[3, 1], [0, 1]]])
    np.savez(tmp_path / "t.npz", experts=chosen, sequence_offset=[0, 2], sequence_length=[2, 1])
    assert read_loads(tmp_path / "t.npz").tolist() == [[[1, 3, 0, 2], [2, 2, 2, 0]]]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "a.json:1: expected JSON"),
        ("a.json", '{"physical_to_logical_map": []}', "found physical_to_logical_map"),
        ("a.json", "[1]", "found list"),
        ("a.json", '{"logical_count": [[1, 2], [3]]}', "expected numbers in rows of one length"),
        ("a.json", '{"logical_count": [[1, -2]]}', "not negative"),
        ("a.json", '{"logical_count": [[0, 0]]}', "the recording is empty"),
        ("a.json", '{"logical_count": [1, 2]}', r"expected loads \[step, layer, expert\]"),
        ("a.json", '{"logical_count": [[1, 2]]}', "expected 3 experts per layer"),
        ("a.jsonl", '{"record_type": "other"}', "expected lines of record_type eplb_load_stats"),
        ("a.jsonl", '\n{"record_type": "eplb_load_stats"', "a.jsonl:2: expected JSON"),
        ("a.jsonl", '{"record_type": "eplb_load_stats", "expert_load": [[1]], "p2l_map": [[0, 1]]}',
         "a.jsonl:1  expert_load"),
        ("a.jsonl", '{"record_type": "eplb_load_stats", "expert_load": [[1]], "p2l_map": [[3]]}',
         "a.jsonl:1  p2l_map: expected experts 0..2"),
        ("a.pt", "no zip", "expected tensors written by torch.save"),
        ("a.csv", "1", "expected a file ending in"),
    ],
)  # fmt: skip
def test_mistakes_name_the_file_and_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SpecError, match=message):
        read_loads(tmp_path / name, experts=3)


def test_no_such_file(tmp_path: Path) -> None:
    for name in ("a.pt", "a.json", "a.jsonl", "a.npz"):
        with pytest.raises(SpecError, match="no such file"):
            read_loads(tmp_path / name)
