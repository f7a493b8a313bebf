"""Dataflow: fusion by hand-counted traffic, steps against arithmetic on paper, facts only where stated."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.cost.composition import (
    batch_seconds,
    lru_hit_share,
    nodes_needed,
    resident_experts,
    stored_experts,
)
from moesim.cost.dataflow import (
    Execution,
    GraphOp,
    OperatorGraph,
    copy_bandwidth,
    execution_of,
    kernel_calls,
    kernel_traffic,
    kernels_per_decoder,
    monarch_stages,
    operational_intensity,
    pass_seconds,
    run_seconds,
)
from moesim.cost.layout import Layout
from moesim.errors import NoResult, SpecError
from moesim.spec.base import load_spec
from moesim.spec.deployment import Parallelism
from moesim.spec.model import ModelSpec
from moesim.spec.topology import resolve_cluster


def on(node, model="llama-2-7b"):
    topology = resolve_cluster(node)
    known = load_spec(ModelSpec, model, "model")
    return Layout.of(known, topology, Parallelism(tp=topology.devices_per_node)), topology.device


CHAIN = OperatorGraph(
    (
        GraphOp("a", 100.0, ("x", "w"), "y"),
        GraphOp("b", 10.0, ("y", "x"), "z"),
        GraphOp("c", 1.0, ("z", "y"), "out"),
    ),
    {"x": 2.0, "w": 3.0, "y": 5.0, "z": 7.0, "out": 11.0},
)


@pytest.mark.parametrize(
    ("kernels", "traffic"),
    [
        ([[0], [1], [2]], [10.0, 14.0, 23.0]),
        ([[0, 1], [2]], [2 + 3 + 5 + 7.0, 7 + 5 + 11.0]),  # y leaves too: c reads it
        ([[0], [1, 2]], [10.0, 5 + 2 + 11.0]),  # z stays inside
        ([[0, 1, 2]], [2 + 3 + 11.0]),
    ],
)
def test_a_kernel_moves_what_crosses_its_border(kernels, traffic):
    assert kernel_traffic(CHAIN, kernels).tolist() == traffic


def test_fewer_kernels_never_move_more_and_every_operator_is_in_one():
    graph = monarch_stages(stages=3)
    whole = operational_intensity(graph, [range(9)])
    halves = operational_intensity(graph, [range(5), range(5, 9)])
    assert operational_intensity(graph, [[i] for i in range(9)]) < halves < whole
    for wrong in ([[0, 1]], [range(9), [0]]):
        with pytest.raises(SpecError, match="exactly one kernel"):
            kernel_traffic(graph, wrong)


def test_the_papers_three_intensities():
    graph = monarch_stages()
    cuts = ([[i] for i in range(12)], [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(4)], [range(12)])
    assert [round(operational_intensity(graph, cut), 1) for cut in cuts] == [39.5, 102.6, 410.4]


def test_tensors_need_sizes_and_one_writer():
    with pytest.raises(SpecError, match="'x' has no size"):
        OperatorGraph((GraphOp("a", 1.0, ("x",), "y"),), {"y": 1.0})
    with pytest.raises(SpecError, match="written twice"):
        OperatorGraph((GraphOp("a", 1.0, (), "y"), GraphOp("b", 1.0, (), "y")), {"y": 1.0})


def test_a_decoder_is_eleven_kernels_or_one():
    layout, _ = on("sn40l-8")
    assert kernels_per_decoder(layout) == 11
    assert kernel_calls(layout, fused=True) == 34
    assert (
        kernel_calls(layout, fused=False) == 32 * 11 + 7
    )  # embedding and its sum, norm, head, gather, two of sampling


def test_a_fused_step_reads_the_weights_once_by_hand():
    layout, device = on("sn40l-8")
    free = Execution(fused=True, bandwidth=0.85, launch_s=0.0)
    hidden, vocab, context = 4096, 32000, 1000
    decoder = 32 * (4 * hidden**2 + 3 * hidden * 11008) * 2 / 8
    cache = 2 * 32 * 2 * hidden * (context + 1) / 8
    border = 32 * 4 * hidden
    # outside the layers: rows in and out of embedding, norm and head, sampled logits
    rest = (
        2 * hidden * 2
        + 4 * hidden * 2
        + (vocab * hidden + vocab) * 2 / 8
        + hidden * 2
        + 2 * 5 * vocab * 2 / 2
    )
    least = (decoder + cache + border) / (0.85 * 1.8e12)
    most = (decoder + cache + border + rest) / (0.85 * 1.8e12)
    hops = 65 * 1e-6 + 10e-6  # one per all-reduce, and the gather of the logits
    made = float(pass_seconds(layout, free, device, 1, context))
    assert least < made < most + hops
    launched = Execution(fused=True, bandwidth=0.85, launch_s=1e-5)
    assert float(pass_seconds(layout, launched, device, 1, context)) - made == pytest.approx(34e-5)


def test_fusion_and_the_faster_launch_never_cost():
    layout, device = on("sn40l-8")
    tokens = np.array([1, 4, 64, 4096])
    hardware, software = (execution_of(device, orchestration=how) for how in ("hardware", "software"))
    apart = execution_of(device, fused=False, orchestration="software")
    times = [pass_seconds(layout, how, device, tokens, 100) for how in (hardware, software, apart)]
    assert np.all(times[0] < times[1])
    assert np.all(times[1] < times[2])
    gain = times[1] / times[0]
    assert np.all(np.diff(gain) < 0)  # long kernels hide who starts them
    assert pass_seconds(layout, hardware, device, 0).tolist() == 0.0


def test_a_run_is_its_passes():
    layout, device = on("sn40l-8")
    how = execution_of(device)
    steps = [float(pass_seconds(layout, how, device, 2, 7 + t, 2)) for t in range(1, 5)]
    first = float(pass_seconds(layout, how, device, 14, 0, 2))
    assert run_seconds(layout, how, device, 7, 5, 2) == pytest.approx(first + sum(steps), rel=1e-12)
    with pytest.raises(SpecError, match="at least one"):
        run_seconds(layout, how, device, 7, 0)


def test_only_devices_that_state_it_fuse_and_only_dense_models_are_priced():
    _, gpu = on("dgx-h100")
    with pytest.raises(NoResult, match="cannot fuse"):
        execution_of(gpu)
    with pytest.raises(NoResult, match="name the share"):
        execution_of(gpu, fused=False)
    assert execution_of(gpu, fused=False, bandwidth=0.2, orchestration="software").launch_s == 4e-6
    layout, device = on("sn40l-8", "mixtral-8x7b")
    with pytest.raises(NoResult, match="only dense"):
        pass_seconds(layout, execution_of(device), device, 1)


def test_copies_take_the_measured_rate_or_the_narrower_of_tier_and_links():
    assert copy_bandwidth(resolve_cluster("sn40l-8"), "ddr") == 1e12
    gpu = resolve_cluster("dgx-h100")
    assert [copy_bandwidth(gpu, "ddr", links) for links in (1, 8, None)] == [64e9, 512e9, 512e9]
    assert copy_bandwidth(gpu, "nvme") == 56e9
    with pytest.raises(SpecError, match="9 host links, it has 8"):
        copy_bandwidth(gpu, "ddr", 9)
    with pytest.raises(SpecError, match="no memory tier 'drr', did you mean 'ddr'"):
        copy_bandwidth(gpu, "drr")


@given(
    st.lists(st.tuples(st.floats(0, 5), st.floats(0.1, 5)), min_size=1, max_size=8),
)
def test_overlapping_copies_lies_between_the_longer_sum_and_both_sums(parts):
    switch, run = (np.array(column) for column in zip(*parts, strict=True))
    over = batch_seconds(1.0, switch, run, overlapped=True) - 1
    assert max(switch.sum(), run.sum()) - 1e-9 <= over <= switch.sum() + run.sum() + 1e-9
    assert batch_seconds(1.0, switch, run) == pytest.approx(1 + switch.sum() + run.sum())


def test_counts():
    assert resident_experts(100.0, 30.0, 15.0) == 2
    assert stored_experts(100.0, 95.0, 30.0, 15.0) == 3
    assert stored_experts(100.0, 95.0, 30.0, 15.0, spill=True) == 5
    assert (nodes_needed(850, 45), nodes_needed(850, 850)) == (19, 1)
    with pytest.raises(SpecError, match="never holds"):
        nodes_needed(1, 0)


def test_lru_of_equal_experts_hits_its_share_and_skew_helps():
    assert lru_hit_share(np.full(20, 0.05), 5) == pytest.approx(0.25, abs=1e-9)
    zipf = np.arange(1, 21) ** -1.0
    assert 0.25 < lru_hit_share(zipf / zipf.sum(), 5) < zipf[:5].sum() / zipf.sum()
    assert lru_hit_share(zipf / zipf.sum(), 20) == 1.0
    assert lru_hit_share(zipf / zipf.sum(), 0) == 0.0
