"""Placements in the simulator: counted as the planner counts, priced by the same curves, felt in step times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moesim as ms
from moesim.cost.memory import memory_plan
from moesim.errors import SpecError
from moesim.routing.expected import straggler_factor
from moesim.routing.placed import imbalance, rank_loads, rank_of_slot, slot_shares
from moesim.routing.popularity import layer_popularity, popularity_of_layers
from moesim.sim.routing_load import _straggler, routing_load
from moesim.spec.placement import PlacementSpec
from moesim.spec.routing import RoutingSpec
from moesim.spec.scenario import ScenarioSpec

SETS = [
    "deployment.serve.parallelism={tp: 1, dp: 8, ep: 8}", "deployment.serve.engine.max_num_seqs=64",
    "deployment.serve.engine.max_num_batched_tokens=512", "model=deepseek-v2-lite", "cluster=dgx-h100-x1",
    "traffic={from: poisson-1k1k, arrivals: {kind: poisson, rate: 40 request/s}}",
    "run={requests: 200, warmup_requests: 0, cooldown_requests: 0}", "routing=null",
    "deployment.serve.replicas=1", "deployment.serve.engine.max_model_len=null", "deployment.calibration=none",
]  # fmt: skip
"""64 experts in 26 layers, top 6, on 8 ranks."""


def scenario(routing: str = "null") -> ScenarioSpec:
    sets = [s for s in SETS if not s.startswith("routing")]
    return ms.load("quickstart", sets=[*sets, f"routing={routing}"]).scenario


def placed(base: ScenarioSpec, slots: Any, ranks: int = 8) -> ScenarioSpec:
    rows = np.atleast_2d(slots).tolist()
    placement = PlacementSpec.model_validate(
        {"kind": "placement", "name": "test", "ranks": ranks, "ffns": {"moe": {"experts": 64, "slots": rows}}}
    )
    pool = base.deployment.serve
    assert pool is not None
    pool = pool.model_copy(update={"placement": placement})
    return base.model_copy(update={"deployment": base.deployment.model_copy(update={"serve": pool})})


def load_of(given: ScenarioSpec) -> Any:
    loads, _ = routing_load(given, given.topology(), given.deployment.serve)  # type: ignore[arg-type]
    assert loads is not None
    return loads["moe"]


def striped(share: np.ndarray, ranks: int, extra: int = 0) -> np.ndarray:
    """Hottest experts dealt out one per rank, forwards and back; the ``extra`` hottest get a second slot."""
    rows = []
    for load in share:
        order = np.argsort(-load)
        order = np.concatenate([order, order[:extra]])
        dealt = order.reshape(-1, ranks)
        dealt[1::2] = dealt[1::2, ::-1]
        rows.append(dealt.T.ravel())
    return np.array(rows)


def test_the_contiguous_placement_is_the_default() -> None:
    base = scenario()
    default, same = load_of(base), load_of(placed(base, np.arange(64)))
    assert same.distinct == pytest.approx(default.distinct, rel=1e-12)
    assert same.straggler == pytest.approx(default.straggler, rel=0.01)  # interpolated on another grid
    assert same.ranks_per_token == pytest.approx(default.ranks_per_token, rel=1e-9)
    assert same.slots_per_rank == default.slots_per_rank
    assert same.nodes_per_token == default.nodes_per_token == 1.0


def test_replicas_take_memory() -> None:
    base = scenario()
    hot = striped(np.ones((1, 64)), 8, extra=16)
    pool = base.deployment.serve
    more = placed(base, hot).deployment.serve
    plain = memory_plan(base.model, base.topology(), pool)  # type: ignore[arg-type]
    spare = memory_plan(base.model, base.topology(), more)  # type: ignore[arg-type]
    ffn = base.model.ffns["moe"]
    expert = 3 * base.model.hidden * ffn.intermediate * 2.0  # bf16
    assert spare.weight_bytes - plain.weight_bytes == pytest.approx(26 * 2 * expert)
    assert spare.kv_blocks_per_lane < plain.kv_blocks_per_lane


def test_the_long_run_is_the_planners_objective() -> None:
    base = scenario("deepseek-v2-lite")
    share = layer_popularity(base.routing, 64, 6)
    slots = striped(share, 8, extra=8)
    objective = imbalance(rank_loads(share, slots, 8))
    result = ms.simulate(placed(base, slots))
    experts = result.tables.experts
    counted = experts.groupby(["layer", "rank"])["load"].sum().unstack().to_numpy()
    assert counted.shape == (26, 8)
    assert imbalance(counted) == pytest.approx(objective, rel=1e-9)
    assert len(experts) == 26 * 72
    # the curve of finite steps comes down to it
    curve = load_of(placed(base, slots)).straggler
    assert curve[512 * 8] == pytest.approx(objective.mean(), rel=0.1)
    assert curve[1] > curve[64] > curve[4096]


def test_a_balanced_placement_makes_steps_shorter() -> None:
    base = scenario("deepseek-v2-lite")
    share = layer_popularity(base.routing, 64, 6)
    contiguous = placed(base, np.arange(64))
    balanced = placed(base, striped(share, 8))
    worst = placed(base, np.argsort(-share, axis=1))  # the hottest experts share a rank
    times = [ms.summary(ms.simulate(s))["tpot_s"]["mean"] for s in (balanced, contiguous, worst)]
    assert times[0] < times[1] < times[2]
    assert times[2] / times[0] > 1.01


def test_few_layers_and_powers_of_two_stand_for_all() -> None:
    base = scenario("deepseek-v2-lite")
    share = layer_popularity(base.routing, 64, 6)
    slots = striped(share, 8, extra=8)
    shares, rank = slot_shares(share, slots), rank_of_slot(72, 8)
    asked = np.array([0, 1, 3, 11, 100, 1500, 4096])
    found = _straggler(shares, 6, np.arange(4097), rank)[asked]
    assert found == pytest.approx(straggler_factor(shares, 6, asked, rank), rel=0.015)


def test_replicas_in_the_curve_are_those_of_sampled_tokens() -> None:
    rng = np.random.default_rng(3)
    base = scenario("deepseek-v2-lite")
    share = layer_popularity(base.routing, 64, 6)[:1]
    slots = striped(share, 8, extra=8)
    shares, rank = slot_shares(share, slots), rank_of_slot(72, 8)
    want = _straggler(shares, 6, np.array([0, 64]), rank)[1]
    # systematic sampling takes every expert with exactly its chance, and k of them
    busiest = []
    for _ in range(400):
        order = rng.permutation(64)
        ends = np.cumsum(share[0, order] * 6)
        picks = (rng.random(64)[:, None] + np.arange(6)[None, :]).ravel()
        chosen = order[np.minimum(np.searchsorted(ends, picks), 63)]
        load = np.zeros(8)
        for expert in chosen:
            load[rank[rng.choice(np.flatnonzero(slots[0] == expert))]] += 1
        busiest.append(load.max() * 8 / load.sum())
    assert want == pytest.approx(np.mean(busiest), rel=0.03)


def test_popularity_of_layers_says_which_row_each_layer_has() -> None:
    def spec(**router: Any) -> RoutingSpec:
        return RoutingSpec.model_validate(
            {"kind": "routing", "name": "r", "sources": [{"fields": ["*"], "cite": "made up"}],
             "router": {"kind": "popularity", **router}}
        )  # fmt: skip

    known = spec(shares=[[3, 1], [1, 3]], layers=[0, 2])
    assert popularity_of_layers(known, 2, 1, 4).tolist() == [
        [0.75, 0.25],
        [0.5, 0.5],
        [0.25, 0.75],
        [0.5, 0.5],
    ]
    assert popularity_of_layers(spec(shares=[[3, 1]]), 2, 1, 3).tolist() == [[0.75, 0.25]] * 3
    assert popularity_of_layers(None, 2, 1, 2).tolist() == [[0.5, 0.5]] * 2
    zipf = spec(zipf=1.0)
    assert popularity_of_layers(zipf, 8, 2, 20)[:16] == pytest.approx(layer_popularity(zipf, 8, 2))
    assert not np.allclose(
        popularity_of_layers(zipf, 8, 2, 20)[16:], popularity_of_layers(zipf, 8, 2, 20)[:4]
    )
    with pytest.raises(SpecError, match="describes MoE layer 2, the model has 2"):
        popularity_of_layers(known, 2, 1, 2)


def test_layers_of_a_trace_are_counted_exactly(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    chosen = np.argsort(rng.random((300, 26, 64)) * (1 + np.arange(64)), axis=2)[:, :, :6]
    np.savez(tmp_path / "t.npz", experts=chosen, sequence_offset=[0], sequence_length=[300])
    text = (
        "{kind: routing, name: t, experts: 64, top_k: 6, sources: [{fields: ['*'], cite: made up}], "
        f"router: {{kind: trace, path: {tmp_path / 't.npz'}}}}}"
    )
    base = scenario(text)
    slots = striped(layer_popularity(base.routing, 64, 6), 8)
    rank = rank_of_slot(64, 8)
    place = np.empty((26, 64), dtype=int)
    np.put_along_axis(place, slots, np.broadcast_to(rank, slots.shape), axis=1)
    distinct = [len(set(place[layer, chosen[t, layer]])) for t in range(300) for layer in range(26)]
    load = load_of(placed(base, slots))
    assert load.ranks_per_token == pytest.approx(np.mean(distinct), rel=1e-12)
    counts = np.stack([np.bincount(chosen[:, layer].ravel(), minlength=64) for layer in range(26)])
    by_hand = imbalance(rank_loads(counts, slots, 8))
    experts = ms.simulate(replace_requests(placed(base, slots))).tables.experts
    counted = experts.groupby(["layer", "rank"])["load"].sum().unstack().to_numpy()
    assert imbalance(counted) == pytest.approx(by_hand, rel=1e-9)


def replace_requests(given: ScenarioSpec) -> ScenarioSpec:
    return given.model_copy(update={"run": given.run.model_copy(update={"requests": 20})})
