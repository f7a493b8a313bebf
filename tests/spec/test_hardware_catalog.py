"""The hardware catalog: every file loads, every number has a source, mistakes are named."""

from __future__ import annotations

import importlib.util
import re
import shutil
from typing import TYPE_CHECKING

import pytest

from moesim.errors import SpecError
from moesim.files import catalog_names, catalog_root
from moesim.spec.base import load_spec
from moesim.spec.hardware import ClusterSpec, DeviceSpec, NodeSpec, unsourced

if TYPE_CHECKING:
    from pathlib import Path

KINDS = {"device": DeviceSpec, "node": NodeSpec, "cluster": ClusterSpec}
ALL = [(kind, name) for kind in KINDS for name in catalog_names(kind)]

DEVICES = (
    "a100-40-sxm",
    "a100-80-sxm",
    "a100-40-pcie",
    "a100-80-pcie",
    "h100-sxm",
    "h100-pcie",
    "h100-nvl",
    "h800-sxm",
    "h20",
    "h200-sxm",
    "b200-sxm",
    "gb200",
    "b300-sxm",
    "gb300",
    "l4",
    "l40s",
    "a30",
    "rtx-3090",
    "rtx-4090",
    "rtx-pro-6000",
    "mi300x",
    "mi325x",
    "sn40l",
    "tpu-v5e",
    "tpu-v6e",
    "jetson-tx2",
    "jetson-agx-orin-64",
    "rpi-4b",
    "m2-ultra",
    "m4-max",
    "dgx-spark",
    "xeon-8480-amx",
    "epyc-9654",
)
NODES = (
    "dgx-a100",
    "dgx-a100-40",
    "dgx-h100",
    "dgx-h200",
    "dgx-b200",
    "dgx-b300",
    "hgx-h20",
    "hgx-h800",
    "gb200-nvl72",
    "gb300-nvl72",
    "sn40l-8",
    "sn40l-16",
    "a100-pcie-4",
    "mi300x-8",
    "mi325x-8",
    "l40s-8",
    "l4-1",
    "h100-pcie-1",
    "a100-80-1",
    "h100-sxm-1",
    "h200-1",
    "rtx-3090-1",
    "workstation-4090",
    "workstation-pro6000",
    "tpu-v5e-8",
    "tpu-v6e-8",
    "jetson-tx2",
    "jetson-agx-orin",
    "rpi-4b",
    "mac-m2-ultra",
    "mac-m4-max",
    "dgx-spark",
    "xeon-amx-2s",
    "epyc-2s",
)
CLUSTERS = ("h100-2", "h100-12", "h200-2", "h800-18", "b200-4", "nvl72-1", "sn40l-1", "dgx-h100-x1")


def edited(tmp_path: Path, kind: str, name: str, old: str, new: str) -> Path:
    """A copy of a catalog file with one passage changed; fails when the passage is not there exactly once."""
    text = (catalog_root() / "hardware" / f"{kind}s" / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.count(old) == 1, (old, text.count(old))
    path = tmp_path / f"{name}.yaml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    return path


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_loads_and_is_named_after_its_file(kind, name):
    spec = load_spec(KINDS[kind], name, kind)
    assert spec.name == name


def test_no_promised_entry_is_missing():
    assert set(DEVICES) == set(catalog_names("device"))
    assert set(NODES) <= set(catalog_names("node"))
    assert set(CLUSTERS) <= set(catalog_names("cluster"))


# -- law: every number has a source (DESIGN §1.5)


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_every_number_has_a_source(kind, name):
    spec = load_spec(KINDS[kind], name, kind)
    assert unsourced(spec) == ()
    assert all("*" not in source.fields for source in spec.sources), "name the fields, '*' hides gaps"


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_every_source_covers_something(kind, name):
    """A prefix that points nowhere is a misspelling, and its number goes without a source."""
    spec = load_spec(KINDS[kind], name, kind)
    stated = spec.model_dump(exclude_unset=True, exclude={"sources"})
    for source in spec.sources:
        assert source.cite
        for field in source.fields:
            cursor = stated
            for step in field.split("."):
                assert step in cursor, f"{name}: {field}"
                cursor = cursor[step]


def test_the_source_law_barks(tmp_path):
    old, new = "fields: [memory.hbm.bandwidth, power.peak]", "fields: [power.peak]"
    path = edited(tmp_path, "device", "h100-sxm", old, new)
    assert unsourced(load_spec(DeviceSpec, str(path), "device")) == ("memory.hbm.bandwidth",)


def test_a_prefix_covers_whole_steps_only(tmp_path):
    old, new = "fields: [compute]", "fields: [compute.peak, compute.units]"
    path = edited(tmp_path, "device", "h100-sxm", old, new)
    missing = unsourced(load_spec(DeviceSpec, str(path), "device"))
    assert "compute.peaks.bf16" in missing
    assert "compute.units" not in missing


# -- messages


def test_unknown_key_names_file_line_and_nearest(tmp_path):
    path = edited(tmp_path, "device", "h100-sxm", "launch_latency: 4 us\ngraph", "lunch_latency: 4 us\ngraph")
    line = path.read_text(encoding="utf-8").splitlines().index("lunch_latency: 4 us") + 1
    with pytest.raises(SpecError) as caught:
        load_spec(DeviceSpec, str(path), "device")
    text = str(caught.value)
    assert re.search(
        rf"h100-sxm\.yaml:{line}  lunch_latency: unknown key, did you mean 'launch_latency'\?", text
    )
    assert "launch_latency: expected a value, the key is missing" in text


def test_bits_are_not_bytes(tmp_path):
    path = edited(tmp_path, "device", "h100-sxm", "bandwidth: 3.35 TB/s", "bandwidth: 3.35 Tb/s")
    line = path.read_text(encoding="utf-8").splitlines().index("    bandwidth: 3.35 Tb/s") + 1
    with pytest.raises(SpecError) as caught:
        load_spec(DeviceSpec, str(path), "device")
    text = str(caught.value)
    assert "\n" not in text
    assert f"h100-sxm.yaml:{line}  memory.hbm.bandwidth  '3.35 Tb/s': expected bytes per second" in text


def test_a_bare_number_has_no_unit(tmp_path):
    path = edited(tmp_path, "device", "h100-sxm", "peak: 700 W", "peak: 700")
    with pytest.raises(SpecError, match=r"power\.peak  700: expected watts.*no unit"):
        load_spec(DeviceSpec, str(path), "device")


def test_main_memory_must_exist(tmp_path):
    path = edited(tmp_path, "device", "h100-sxm", "main_memory: hbm", "main_memory: vram")
    with pytest.raises(SpecError, match="main_memory 'vram' is not one of l2, hbm"):
        load_spec(DeviceSpec, str(path), "device")


def test_several_devices_need_a_link(tmp_path):
    path = edited(tmp_path, "node", "dgx-h100", "  bandwidth: 450 GB/s\n", "")
    with pytest.raises(SpecError, match=r"needs link\.bandwidth"):
        load_spec(NodeSpec, str(path), "node")


def test_the_kind_key_must_agree(tmp_path):
    source = catalog_root() / "hardware" / "nodes" / "dgx-h100.yaml"
    shutil.copy(source, tmp_path / "copy.yaml")
    with pytest.raises(SpecError, match="expected kind: device"):
        load_spec(DeviceSpec, str(tmp_path / "copy.yaml"), "device")


# -- generated page


def test_readme_is_up_to_date():
    script = catalog_root() / "hardware" / "make_readme.py"
    found = importlib.util.spec_from_file_location("make_readme", script)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    text = module.README.read_text(encoding="utf-8")
    assert text == module.render(), "run: python hardware/make_readme.py"
    for kind, name in ALL:
        assert f"| `{name}` |" in text, kind


def test_no_file_names_this_machine():
    here = str(catalog_root())
    for path in (catalog_root() / "hardware").rglob("*.*"):
        if path.suffix in {".yaml", ".md", ".py"}:
            assert here not in path.read_text(encoding="utf-8"), path
