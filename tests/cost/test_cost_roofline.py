"""Roofline, cost combinators, estimator chain, formats."""

import numpy as np
import pytest
from cost_nouns import deepseek, device, llama
from hypothesis import given
from hypothesis import strategies as st

from moesim.cost.ops import gemm, memory_op
from moesim.cost.precision import Format, peak, resolve_formats
from moesim.cost.roofline import Chain, Cost, Launch, Place, Roofline, roofline_seconds
from moesim.errors import DataMissing, NoResult
from moesim.spec.deployment import PrecisionChoice

BF16 = Format("bf16", 2.0, "bf16", 2.0)
PLACE = Place(device(), Launch(4e-6, 1e-6, 512))
TOKENS = np.array([0, 1, 512, 513, 100_000])


def test_a_product_is_its_roofline():
    op = gemm("p", "lane", TOKENS, 1000, 3000, BF16, layers=7)
    seconds = roofline_seconds(op, PLACE)
    assert seconds[0] == 0
    for t, s in zip(TOKENS[1:], seconds[1:], strict=True):
        memory = (3e6 * 2 + t * (3000 * 2 + 1000 * 2)) / 2.039e12
        launch = 1e-6 if t <= 512 else 4e-6
        assert s == pytest.approx(7 * (launch + max(2 * t * 3e6 / 312e12, memory)), rel=1e-12)
    assert seconds[1] > 7 * 1e-6 + 7 * 6e6 / 2.039e12  # weights are read for one token
    assert seconds[-1] == pytest.approx(7 * (4e-6 + 2 * 100_000 * 3e6 / 312e12))  # bound by arithmetic


def test_memory_ops_have_no_arithmetic():
    op = memory_op("norm", "lane", TOKENS, 8192.0, "bf16", 2)
    assert roofline_seconds(op, PLACE)[4] == pytest.approx(2 * (4e-6 + 100_000 * 8192 / 2.039e12))


def test_missing_peak_names_device_type_and_way_out():
    fp8 = gemm("p", "lane", TOKENS, 8, 8, Format("fp8", 1.0, "fp8", 1.0), 1)
    with pytest.raises(NoResult, match=r"a100 has no fp8 peak \(it has bf16, fp16, int8\): choose another"):
        roofline_seconds(fp8, PLACE)


def test_cost_combinators():
    a = Cost(2.0, 10.0, 4.0, (("measured", 2.0),))
    b = Cost(3.0, 1.0, 8.0, (("bound", 3.0),))
    assert a.then(b) == Cost(5.0, 11.0, 12.0, (("measured", 2.0), ("bound", 3.0)))
    assert a.overlapped(b) == Cost(3.0, 11.0, 12.0, (("bound", 3.0),))
    assert a.repeated(3) == Cost(6.0, 30.0, 12.0, (("measured", 6.0),))
    assert a.then(b).share("measured") == pytest.approx(0.4)
    assert Cost().then(a) == a
    assert Cost().share("bound") == 0.0


costs = st.builds(
    lambda s, f, o: Cost(s, f, f / 2, ((o, s),)),
    st.floats(0, 1e3), st.floats(0, 1e15), st.sampled_from(["measured", "fitted", "bound"]),
)  # fmt: skip


@given(costs, costs, costs)
def test_sources_always_add_up(a, b, c):
    total = a.then(b).overlapped(c).repeated(2)
    assert sum(s for _, s in total.sources) == pytest.approx(total.seconds)
    assert total.seconds <= 2 * (a.seconds + b.seconds + c.seconds)
    assert a.then(b).then(c).seconds == pytest.approx(a.then(b.then(c)).seconds)


class Table:
    """Knows some token counts exactly."""

    origin = "measured"

    def __init__(self, points):
        self.points = points

    def seconds(self, op, _place):
        return np.array([self.points.get(int(t), np.nan) for t in op.tokens])

    def attention(self, _shape, _place):
        return None


def test_chain_takes_the_measured_point_and_bounds_the_rest():
    op = gemm("p", "lane", TOKENS, 1000, 3000, BF16, layers=1)
    chain = Chain((Table({1: 0.5, 512: 0.75}), Roofline()))
    seconds, origin = chain.seconds(op, PLACE)
    bound = roofline_seconds(op, PLACE)
    assert list(seconds) == [bound[0], 0.5, 0.75, bound[3], bound[4]]
    assert origin == "bound"
    costs = chain.cost(op, PLACE)
    assert [dict(c.sources) for c in costs[1:3]] == [{"measured": 0.5}, {"measured": 0.75}]
    assert dict(costs[3].sources) == {"bound": bound[3]}
    assert costs[2].flop == 2 * 512 * 3e6
    everything = Chain((Table(dict.fromkeys([0, 1, 512, 513, 100_000], 1.0)), Roofline()))
    assert everything.seconds(op, PLACE)[1] == "measured"


def test_a_miss_raises():
    op = gemm("p", "lane", TOKENS, 10, 10, BF16, layers=1)
    with pytest.raises(DataMissing, match="p at 513 tokens on a100: no estimator knows it"):
        Chain((Table({0: 0.0, 1: 0.5, 512: 0.75}),)).seconds(op, PLACE)


def test_formats_of_the_checkpoint():
    fp8 = resolve_formats(deepseek(), device("h100"))
    assert (fp8.attention.compute, fp8.experts.compute, fp8.ends.compute, fp8.core) == (
        "fp8",
        "fp8",
        "bf16",
        "bf16",
    )
    assert fp8.experts.value_bytes == pytest.approx(1 + 4 / 128**2)
    assert fp8.notes == ()


def test_fp8_weights_on_a_device_without_fp8_run_weight_only_and_say_so():
    formats = resolve_formats(deepseek(), device("a100"))
    assert formats.experts.compute == "bf16"
    assert formats.experts.value_bytes < 1.01  # still read as fp8
    assert not formats.experts.quantises
    assert "routed experts: fp8_block weights run weight-only in bf16, a100 has no fp8 peak" in formats.notes


def test_arithmetic_that_the_run_asks_for_is_not_replaced():
    with pytest.raises(NoResult, match="a100 has no fp8 peak"):
        resolve_formats(llama(), device("a100"), PrecisionChoice(weights="fp8", activations="fp8"))


def test_a_wider_type_that_the_run_implies_is_not_replaced_either():
    """fp8 weights with fp4 activations run in fp8, which this device lacks."""
    odd = device("h100", peaks={"bf16": "1 TFLOP/s", "fp4": "4 TFLOP/s"})
    with pytest.raises(NoResult, match="h100 has no fp8 peak"):
        resolve_formats(llama(), odd, PrecisionChoice(weights="fp8", activations="fp4"))


def test_weights_alone_are_weight_only_quantisation():
    formats = resolve_formats(llama(), device("h100"), PrecisionChoice(weights="int4"))
    assert formats.dense.compute == "bf16"
    assert formats.dense.value_bytes == pytest.approx(0.5 + 2 / 128)
    assert any("weight-only" in note for note in formats.notes)


def test_bf16_runs_in_fp16_where_that_is_what_there_is():
    old = device("a100", peaks={"fp16": "125 TFLOP/s"})
    formats = resolve_formats(llama(), old)
    assert formats.core == "fp16"
    assert any("bf16 runs in fp16" in note for note in formats.notes)
    with pytest.raises(NoResult, match="no bf16 peak"):
        resolve_formats(llama(), device("a100", peaks={"int8": "1 TFLOP/s"}))
    assert peak(old, "fp16") == 125e12


@pytest.mark.parametrize(
    ("weights", "activations", "compute"),
    [("nvfp4", "fp8", "fp8"), ("fp8", "fp4", "fp8"), ("int4", "int8", "int8"), ("int8", "int8", "int8")],
)
def test_the_wider_of_storage_and_activations_decides(weights, activations, compute):
    known = {"bf16": "1 TFLOP/s", "fp8": "2 TFLOP/s", "int8": "2 TFLOP/s", "fp4": "4 TFLOP/s"}
    formats = resolve_formats(
        llama(), device("h100", peaks=known), PrecisionChoice(weights=weights, activations=activations)
    )
    assert formats.dense.compute == compute
