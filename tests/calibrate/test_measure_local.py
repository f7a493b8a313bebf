"""Local: the model is right, the predictor counts what the model does, and a prediction hits a known machine."""

from collections import Counter

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")

from moesim.calibrate.kernels import reference  # noqa: E402
from moesim.calibrate.local import (  # noqa: E402
    SCOPES,
    micro,
    model,
    ops,
    predict,
    targets,
    validate,
    validate_local,
)
from moesim.calibrate.local.model import Architecture, build, forward, moe_layer  # noqa: E402
from moesim.calibrate.local.store import write_validation  # noqa: E402
from moesim.calibrate.local.validate import Scope  # noqa: E402
from moesim.errors import DataMissing, SpecError  # noqa: E402

SIZES = Architecture(hidden=128, inner=48, experts=5, top_k=2, vocabulary=64)

# what the arguments of an op say about its sizes, in the order of MICRO's dims
SEEN = {
    "product": lambda a: (a[0].shape[0], a[1].shape[0], a[1].shape[1]),
    "norm": lambda a: tuple(a[0].shape),
    "add": lambda a: tuple(a[0].shape),
    "clear": lambda a: tuple(a[0].shape),
    "glu": lambda a: (a[0].shape[0], a[0].shape[1] // 2),
    "attend": lambda a: (a[1], a[0].shape[0] // a[1], a[0].shape[1] // 3 // a[2]),
    "select": lambda a: (*a[0].shape, a[1]),
    "collect": lambda a: (a[3], a[0].shape[1]),
    "combine": lambda a: tuple(a[2].shape),
}


@pytest.fixture
def seen(monkeypatch):
    """Count every op call of the model with its sizes."""
    calls = Counter()

    def watch(name):
        right = getattr(ops, name)

        def watched(*args):
            calls[name, SEEN[name](args)] += 1
            return right(*args)

        monkeypatch.setattr(model, name, watched)

    for name in SEEN:
        watch(name)
    return calls


def as_product(work):
    """Router products are counted apart by the predictor; in the model they are products."""
    merged = Counter()
    for (name, dims), times in work.items():
        merged["product" if name == "score" else name, dims] += times
    return merged


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 7), (2, 40)])
def test_the_predictor_counts_exactly_the_calls_of_the_model(seen, batch, length):
    network = build(SIZES, 0)
    tokens = torch.randint(0, 64, (batch, length), generator=torch.Generator().manual_seed(1))
    loads = []
    forward(network, tokens, ops.rotations(length, 64), loads)
    assert seen == as_product(predict.forward_work(SIZES, batch, length, loads))
    assert [sum(load) for load in loads] == [batch * length * 2] * 2
    seen.clear()
    x = torch.randn(batch * length, 128)
    loads.clear()
    moe_layer(x, network.layers[0], 2, loads)
    assert seen == as_product(predict.moe_work(SIZES, batch * length, loads[0]))


def test_the_moe_layer_is_the_reference():
    layer = build(SIZES, 3).layers[0]
    x = torch.randn(9, 128, generator=torch.Generator().manual_seed(2))
    weights, ids = reference.softmax_topk(x @ layer.router.T, 2)
    want = reference.moe_ffn(x, layer.gate_up, layer.down, weights, ids)
    assert torch.allclose(moe_layer(x, layer, 2).double(), want, atol=1e-5)


def test_attention_is_the_reference_and_sees_relative_positions_only():
    generator = torch.Generator().manual_seed(4)
    qkv = torch.randn(2 * 6, 3 * 2 * 64, generator=generator, dtype=torch.float64)
    still = torch.ones(6, 32, dtype=torch.float64), torch.zeros(6, 32, dtype=torch.float64)
    q, k, v = qkv.view(2, 6, 3, 2, 64).permute(2, 0, 3, 1, 4)
    want = reference.attention(q, k, v, causal=True).transpose(1, 2).reshape(12, 128)
    assert torch.allclose(ops.attend(qkv, 2, 64, still), want)
    late = tuple(part.double()[5:] for part in ops.rotations(11, 64))
    early = tuple(part.double() for part in ops.rotations(6, 64))
    assert torch.allclose(ops.attend(qkv, 2, 64, early), ops.attend(qkv, 2, 64, late), atol=1e-5)
    assert not torch.allclose(ops.attend(qkv, 2, 64, early), want, atol=1e-2)


def test_future_tokens_do_not_change_the_past():
    network = build(SIZES, 0)
    tokens = torch.arange(10)[None]
    whole = forward(network, tokens, ops.rotations(10, 64))
    other = forward(network, tokens.flip(1), ops.rotations(10, 64))
    assert whole.shape == (1, 64)
    assert not torch.allclose(whole, other)  # order matters


def machine(name, dims, peak=5e10, bandwidth=1e10):
    """A made-up machine: a fixed time per call, then the slower of arithmetic and memory at 60 % efficiency."""
    op = micro.MICRO[name]
    return 3e-6 + max(op.flop(dims) / peak, op.bytes(dims) / bandwidth) / 0.6


def test_a_benchmarked_size_is_answered_with_its_measurement():
    measured = {point: machine(*point) for point in micro.points()}
    curves = predict.fit(measured)
    for (name, dims), seconds in measured.items():
        if dims != micro.MICRO[name].tiny:
            assert curves[name].seconds(dims) == pytest.approx(seconds, rel=1e-9)


def test_unseen_sizes_of_a_simple_machine_are_predicted():
    curves = predict.fit({point: machine(*point) for point in micro.points()})
    for target in targets(SCOPES["full"]):
        sizes, rows = target.sizes, target.batch * target.length
        share = [rows * sizes.top_k // sizes.experts] * sizes.experts
        work = predict.forward_work(sizes, target.batch, target.length, [share] * 2)
        want = sum(times * machine(*call) for call, times in work.items())
        assert predict.seconds(curves, work) == pytest.approx(want, rel=0.06)


def test_no_target_is_a_benchmarked_size():
    """The claim is about unseen shapes: no op of any target is one of the microbenchmarks."""
    known = set(micro.points())
    for scope in SCOPES.values():
        for target in targets(scope):
            sizes = target.sizes
            for count in (1, 7, 50):
                work = predict.forward_work(sizes, target.batch, target.length, [[count] * sizes.experts] * 2)
                assert not known & set(work)


def test_missing_microbenchmarks_are_named():
    measured = {point: machine(*point) for point in micro.points()}
    del measured["glu", micro.MICRO["glu"].tiny]
    with pytest.raises(DataMissing, match="glu"):
        predict.fit(measured)
    measured = {point: machine(*point) for point in micro.points()}
    del measured["norm", (1, 384)]
    with pytest.raises(DataMissing, match=r"norm \(1, 384\)"):
        predict.fit(measured)


def test_cold_memory_is_handed_out_in_turn():
    pool = micro.Pool(16)
    first = pool.weight(64, 64)
    total = 16 * 2**20 // 4
    for _ in range(total // 4096 - 1):
        assert pool.weight(64, 64).data_ptr() != first.data_ptr()
    assert pool.weight(64, 64).data_ptr() == first.data_ptr()
    assert pool.weight(3, 5).is_contiguous()
    assert pool.weight(2, 2).data_ptr() % 64 == 0


def test_a_drawn_routing_gives_every_token_distinct_experts():
    load = validate._drawn(Architecture(64, 8, 6, 3), 400, np.random.default_rng(0))
    assert sum(load) == 1200
    assert 140 < min(load) <= max(load) < 260  # mean 200, standard deviation 10
    assert validate._drawn(Architecture(64, 8, 4, 4), 7, np.random.default_rng(0)) == [7] * 4


def test_one_slow_moment_does_not_enter_the_mean():
    quiet = [[1.0, 3.0], [1.2, 3.2], [1.1, 3.1], [1.0, 3.0], [1.1, 3.1]]
    found = validate._over_calls(quiet)
    assert found.median == pytest.approx(2.1)
    assert (found.least, found.repeats) == (pytest.approx(2.0), 5)
    assert validate._over_calls([*quiet[:4], [50.0, 3.1]]).median == pytest.approx(2.1)


def test_an_unknown_scope_is_refused():
    with pytest.raises(SpecError, match="expected ci or full"):
        validate_local("night")


def test_a_small_scope_runs_and_is_written(tmp_path, monkeypatch):
    starts = [
        p for p in micro.points() if p[1] == micro.MICRO[p[0]].tiny or p[1][0] == micro.MICRO[p[0]].grid[0][0]
    ]
    monkeypatch.setattr(micro, "points", lambda: iter(starts))
    scope = Scope((Architecture(384, 64, 4, 1, vocabulary=64),), ((1, 5),), 9, 0.0)
    found = validate_local(scope)
    assert found.rounds == 5  # no budget: the least
    assert {c.target.part for c in found.comparisons} == {"forward", "moe_layer"}
    assert write_validation(found, tmp_path).read_text().count("\n") == 3
    assert {p.name for p in tmp_path.iterdir()} == {"comparison.csv", "microbenchmarks.csv", "meta.json"}
