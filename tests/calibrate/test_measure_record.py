"""Records: what is written is read, damaged files are refused or measured again."""

import dataclasses
import math

import pyarrow.parquet as pq
import pytest

from moesim.calibrate.measure.record import (
    COLUMNS,
    DIMS,
    Measurement,
    Point,
    read_measurements,
    read_point,
    write_measurements,
    write_point,
)
from moesim.errors import SpecError

POINT = Point("gemm", "torch", "cpu", "fp32", (("m", 4), ("n", 8), ("k", 16)))
DONE = Measurement(POINT, 2e-3, 1e-3, 4e-3, 9e-4, 15, 1024.0, 896.0, 1e-7, 1e-6, "monotonic", 1e-3)
LOST = Measurement.untimed(
    Point("moe_ffn", "loop", "cpu", "fp32", (("tokens", 3),), "skewed"), "wrong_result", "off", 0.5
)


def same(one, other):
    """Equal, where NaN equals NaN."""
    pairs = zip(dataclasses.astuple(one), dataclasses.astuple(other), strict=True)
    return all(a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b)) for a, b in pairs)


def test_a_table_gives_back_what_was_written(tmp_path):
    write_measurements(tmp_path / "x.parquet", [DONE, LOST])
    first, second = read_measurements(tmp_path / "x.parquet")
    assert same(first, DONE)
    assert same(second, LOST)


def test_the_schema_is_the_documented_one(tmp_path):
    write_measurements(tmp_path / "x.parquet", [DONE])
    schema = pq.read_schema(tmp_path / "x.parquet")
    assert schema.names == list(COLUMNS)
    assert {str(schema.field(dim).type) for dim in DIMS} == {"int64"}
    assert schema.field("flop").metadata[b"meaning"] == COLUMNS["flop"].encode()


def test_a_point_file_gives_back_its_record_with_sizes_found_on_the_way(tmp_path):
    richer = dataclasses.replace(
        LOST, point=dataclasses.replace(LOST.point, dims=(("tokens", 3), ("distinct", 2)))
    )
    write_point(tmp_path, LOST.point, richer)
    assert same(read_point(tmp_path, LOST.point), richer)
    assert read_point(tmp_path, POINT) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"op": "gemm"}'])
def test_a_damaged_point_is_measured_again(tmp_path, text):
    (tmp_path / f"{POINT.key}.json").write_text(text)
    assert read_point(tmp_path, POINT) is None


def test_keys_tell_points_apart_and_ignore_the_order_of_sizes():
    turned = dataclasses.replace(POINT, dims=POINT.dims[::-1])
    assert turned.key == POINT.key
    others = [
        dataclasses.replace(POINT, **{name: value})
        for name, value in (
            ("op", "copy"),
            ("kernel", "triton"),
            ("device", "cuda"),
            ("dtype", "bf16"),
            ("variant", "x"),
            ("dims", (("m", 5), ("n", 8), ("k", 16))),
        )
    ]
    assert len({POINT.key, *(p.key for p in others)}) == 7


def test_faster_than_the_datasheet_is_flagged_and_an_unknown_device_never():
    assert not DONE.faster_than_bound
    assert dataclasses.replace(DONE, bound_s=3e-3).faster_than_bound
    assert not dataclasses.replace(DONE, bound_s=math.nan).faster_than_bound
    assert not LOST.faster_than_bound


def test_no_table_and_a_table_of_something_else(tmp_path):
    with pytest.raises(SpecError, match="expected a parquet file"):
        read_measurements(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(SpecError, match="expected a parquet file"):
        read_measurements(tmp_path / "text.parquet")
    table = pq.read_table(written(tmp_path)).drop_columns(["flop"])
    pq.write_table(table, tmp_path / "less.parquet")
    with pytest.raises(SpecError, match="flop: expected this column"):
        read_measurements(tmp_path / "less.parquet")


def written(folder):
    write_measurements(folder / "x.parquet", [DONE])
    return folder / "x.parquet"
