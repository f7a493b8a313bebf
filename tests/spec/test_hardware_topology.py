"""Topology: names to machines, groups to shapes, shapes to bandwidths and latencies."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import NoResult, SpecError
from moesim.files import catalog_names, catalog_root
from moesim.spec.topology import (
    GroupShape,
    crosses_leaf,
    group_shape,
    host_bandwidth,
    inter_bandwidth,
    inter_latency,
    intra_bandwidth,
    intra_latency,
    resolve_cluster,
    single_node_cluster,
)

# -- resolving----


@pytest.mark.parametrize("name", [*catalog_names("cluster"), *catalog_names("node")])
def test_every_cluster_and_node_resolves(name):
    topology = resolve_cluster(name)
    assert topology.node.device == topology.device.name
    assert topology.devices == topology.nodes * topology.devices_per_node


def test_cluster_by_name():
    topology = resolve_cluster("h800-18")
    assert (topology.devices, topology.devices_per_node, topology.nodes) == (144, 8, 18)
    assert topology.device.name == "h800-sxm"


def test_node_by_name_is_one_node():
    topology = resolve_cluster("dgx-h100")
    assert (topology.name, topology.devices, topology.nodes) == ("dgx-h100", 8, 1)
    assert topology == single_node_cluster("dgx-h100")


@pytest.mark.parametrize("text", ["4x dgx-h100", " 4x  dgx-h100 ", "4 x dgx-h100", "4X dgx-h100"])
def test_several_nodes_by_text(text):
    topology = resolve_cluster(text)
    assert (topology.name, topology.devices) == ("4x dgx-h100", 32)
    assert topology.cluster.fabric.kind == "fat_tree"
    assert topology.cluster.fabric.oversubscription == 1


def test_one_of_several_is_the_node():
    assert resolve_cluster("1x dgx-h100") == resolve_cluster("dgx-h100")


def test_topology_is_frozen():
    with pytest.raises(FrozenInstanceError):
        resolve_cluster("dgx-h100").cluster = None


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(SpecError, match=r"dgx-h10: no cluster or node of that name.*did you mean 'dgx-h100"):
        resolve_cluster("dgx-h10")


@pytest.mark.parametrize("text", ["0x dgx-h100", "4x dgx-h10", "4x rtx-3090-1"])
def test_bad_text_is_refused_in_one_line(text):
    with pytest.raises(SpecError) as caught:
        resolve_cluster(text)
    assert "\n" not in str(caught.value)


def test_files_beside_each_other(tmp_path):
    """A cluster file names a node file, that one a device file, each beside the file that mentions it."""
    hardware = catalog_root() / "hardware"
    (tmp_path / "parts").mkdir()
    device = (hardware / "devices" / "h100-sxm.yaml").read_text(encoding="utf-8")
    (tmp_path / "parts" / "gpu.yaml").write_text(device.replace("3.35 TB/s", "1 TB/s"), encoding="utf-8")
    node = (hardware / "nodes" / "dgx-h100.yaml").read_text(encoding="utf-8")
    (tmp_path / "parts" / "box.yaml").write_text(
        node.replace("device: h100-sxm", "device: gpu.yaml"), encoding="utf-8"
    )
    cluster = (hardware / "clusters" / "h100-2.yaml").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(
        cluster.replace("node: dgx-h100", "node: parts/box.yaml"), encoding="utf-8"
    )
    scenario = tmp_path / "scenario.yaml"
    for name, devices in (("mine.yaml", 16), ("parts/box.yaml", 8), ("3x parts/box.yaml", 24)):
        topology = resolve_cluster(name, beside=scenario)
        assert topology.devices == devices
        assert topology.device.main.bandwidth == 1e12


def test_several_nodes_without_network_are_refused(tmp_path):
    text = (catalog_root() / "hardware" / "clusters" / "h100-2.yaml").read_text(encoding="utf-8")
    (tmp_path / "c.yaml").write_text(text.replace("node: dgx-h100", "node: sn40l-8"), encoding="utf-8")
    with pytest.raises(SpecError, match="2 nodes, but the node sn40l-8 has no network"):
        resolve_cluster(str(tmp_path / "c.yaml"))


# -- groups


@given(st.integers(1, 96))
def test_group_shape_is_what_filling_gives(group):
    """Against brute force: put devices one by one, each node full before the next."""
    topology = resolve_cluster("h100-12")
    loads = [0] * topology.nodes
    for index in range(group):
        loads[index // topology.devices_per_node] += 1
    shape = group_shape(topology, group)
    assert shape == GroupShape(per_node=max(loads), nodes=sum(load > 0 for load in loads))


def test_group_too_large():
    with pytest.raises(NoResult, match="17 devices asked for, the cluster has 16"):
        group_shape(resolve_cluster("h100-2"), 17)
    with pytest.raises(ValueError, match="at least one"):
        group_shape(resolve_cluster("h100-2"), 0)


# -- bandwidth and latency


def test_switch_gives_any_group_its_full_rate():
    topology = resolve_cluster("dgx-h100")
    assert [intra_bandwidth(topology, g) for g in (2, 4, 8)] == [450e9] * 3
    assert intra_bandwidth(topology) == 450e9
    assert math.isinf(intra_bandwidth(topology, 1))


def test_mesh_gives_a_pair_one_link():
    """MI300X: seven links of 64 GB/s, one to each peer."""
    topology = resolve_cluster("mi300x-8")
    assert [intra_bandwidth(topology, g) for g in (2, 4, 8)] == [64e9, 192e9, 448e9]


def test_single_device_crosses_nothing():
    topology = resolve_cluster("rtx-3090-1")
    assert math.isinf(intra_bandwidth(topology))
    assert intra_latency(topology) == 0
    with pytest.raises(NoResult):
        intra_bandwidth(topology, 2)


def test_inter_bandwidth_is_adapters_over_devices():
    assert inter_bandwidth(resolve_cluster("h100-2")) == 50e9
    assert inter_bandwidth(resolve_cluster("2x dgx-a100")) == 25e9
    assert inter_bandwidth(resolve_cluster("2x l40s-8")) == 4 * 50e9 / 8
    assert inter_bandwidth(resolve_cluster("2x tpu-v5e-8")) == 2 * 12.5e9 / 8


def test_one_node_crosses_no_network():
    topology = resolve_cluster("h100-2")
    assert math.isinf(inter_bandwidth(topology, 1))
    assert inter_latency(topology, 1) == 0
    assert math.isinf(inter_bandwidth(resolve_cluster("sn40l-8")))
    with pytest.raises(NoResult, match="has no network"):
        inter_bandwidth(resolve_cluster("sn40l-8"), 2)


def oversubscribed(tmp_path, kind="fat_tree"):
    text = (catalog_root() / "hardware" / "clusters" / "h100-12.yaml").read_text(encoding="utf-8")
    text = text.replace("kind: rail_optimised", f"kind: {kind}").replace(
        "oversubscription: 1", "oversubscription: 4"
    )
    path = tmp_path / "c.yaml"
    path.write_text(text.replace("leaf_nodes: 32", "leaf_nodes: 6"), encoding="utf-8")
    return resolve_cluster(str(path))


def test_oversubscription_bites_only_across_leaves(tmp_path):
    topology = oversubscribed(tmp_path)
    assert inter_bandwidth(topology, 6) == 50e9
    assert inter_bandwidth(topology, 7) == 12.5e9
    assert inter_latency(topology, 6) == pytest.approx(2.8e-6)
    assert inter_latency(topology, 7) == pytest.approx(3.7e-6)


def test_rails_keep_equal_indices_on_a_leaf(tmp_path):
    topology = oversubscribed(tmp_path, "rail_optimised")
    assert inter_bandwidth(topology, 2) == 50e9
    assert inter_bandwidth(topology, 2, same_rail=False) == 12.5e9
    assert inter_latency(topology, 2, same_rail=False) == pytest.approx(3.7e-6)
    plain = oversubscribed(tmp_path)
    assert inter_bandwidth(plain, 2, same_rail=False) == 50e9


def test_one_switch_has_no_spine(tmp_path):
    topology = oversubscribed(tmp_path, "single_switch")
    assert not crosses_leaf(topology, 12)
    assert inter_bandwidth(topology) == 50e9


@given(st.integers(1, 12), st.booleans())
def test_more_nodes_are_never_faster(nodes, same_rail):
    topology = resolve_cluster("h100-12")
    rates = [inter_bandwidth(topology, n, same_rail=same_rail) for n in (nodes, nodes + 1)]
    waits = [inter_latency(topology, n, same_rail=same_rail) for n in (nodes, nodes + 1)]
    assert rates[1] <= rates[0]
    assert waits[1] >= waits[0]


# -- host


def test_host_bandwidth_is_the_smaller_of_links_and_tier():
    topology = resolve_cluster("dgx-h100")
    assert host_bandwidth(topology) == 64e9
    assert host_bandwidth(topology, "ddr") == 64e9
    assert host_bandwidth(topology, "nvme") == 56e9 / 8
    assert host_bandwidth(resolve_cluster("dgx-a100"), "ddr") == 32e9


def test_host_of_unified_boards():
    topology = resolve_cluster("jetson-tx2")
    assert math.isinf(host_bandwidth(topology))
    assert host_bandwidth(topology, "sata") == 550e6
    with pytest.raises(SpecError, match="no host tier 'ddr', it has sata"):
        host_bandwidth(topology, "ddr")


def test_expert_switch_ratio_of_the_samba_comparison():
    """One host link per DGX against 1 TB/s of DDR to HBM copy: 31x and 16x (arXiv 2405.07518, Table V)."""
    copied = 1e12
    sockets = resolve_cluster("sn40l-8")
    assert copied < sockets.device.memory["ddr"].bandwidth * sockets.devices
    for name, ratio in (("dgx-a100", 31.25), ("dgx-h100", 15.625)):
        topology = resolve_cluster(name)
        assert copied / topology.node.host.link_bandwidth == ratio
        assert copied / (host_bandwidth(topology) * topology.devices) == ratio / 8
