"""Compositions in motion: closed forms where nothing contends, a brute-force cache, laws that bark, policies."""

from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.cost.composition import batch_seconds, lru_hit_share
from moesim.errors import LawBroken, NoResult, SpecError
from moesim.sim.composition import (
    check_composition,
    composition_setup,
    draw_prompts,
    make_prompts,
    simulate_composition,
)
from moesim.spec.base import load_spec
from moesim.spec.composition import CompositionServing, CompositionSpec
from moesim.spec.topology import resolve_cluster
from moesim.spec.traffic import TrafficSpec

SOURCE = [{"fields": ["*"], "cite": "made up for a test"}]
NODE = resolve_cluster("sn40l-8")
MAIN = 8 * 64 * 2**30


def spec(experts, **fields):
    return CompositionSpec.model_validate(
        {"kind": "composition", "name": "toy", "experts": experts, "sources": SOURCE, **fields}
    )


def small(name="e", size="10 GB", run="2 s", each="1 s", **fields):
    return {
        "name": name,
        "bytes": size,
        "run": {"kind": "measured", "fixed": run, "per_prompt": each},
        **fields,
    }


def world(experts, slots=None, size=10e9, **serving):
    """A node with room for ``slots`` experts of ``size`` bytes that copies one in 0.01 s per 10 GB."""
    fields = {} if slots is None else {"reserved": f"{MAIN - (slots + 0.5) * size} B"}
    return composition_setup(spec(experts), NODE, CompositionServing.model_validate(fields | serving))


def ran(setup, prompts):
    result = simulate_composition(setup, prompts)
    check_composition(result)
    return result


def test_a_cold_batch_is_the_closed_form():
    setup = world([small(copies=8)])
    result = ran(setup, make_prompts(np.zeros(5), [4, 1, 3, 0, 2]))
    assert result.makespan_s == pytest.approx(batch_seconds(0.0, np.full(5, 0.01), 3.0))
    assert result.switches == 5
    # in order, and none begins before its copy
    assert result.prompts["finish_s"].tolist() == pytest.approx([3.01 * k for k in (1, 2, 3, 4, 5)])


def test_copying_ahead_is_the_overlapped_closed_form():
    slow = replace(world([small(copies=8)], ahead=7), copy_bytes_per_s=10e9 / 4.0)
    result = ran(slow, make_prompts(np.zeros(6), np.arange(6)))
    assert result.makespan_s == pytest.approx(batch_seconds(0.0, np.full(6, 4.0), 3.0, overlapped=True))
    fast = replace(slow, copy_bytes_per_s=10e9 / 0.5)
    result = ran(fast, make_prompts(np.zeros(6), np.arange(6)))
    assert result.makespan_s == pytest.approx(0.5 + 6 * 3.0)


def test_the_router_runs_once_per_batch_and_before_the_experts():
    composition = spec(
        [small(copies=8)],
        router={"model": "llama-2-7b", "run": {"kind": "measured", "fixed": "5 s", "per_prompt": "0.5 s"}},
    )
    setup = composition_setup(composition, NODE, CompositionServing(router_batch=4))
    result = ran(setup, make_prompts(np.zeros(6), np.arange(6)))
    assert result.prompts["routed_s"].tolist() == pytest.approx([7.0] * 4 + [13.0] * 2)
    assert result.makespan_s == pytest.approx(7.0 + 6.0 + 6 * 3.01)
    assert setup.capacity < composition_setup(spec([small()]), NODE, CompositionServing()).capacity


@settings(max_examples=60)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=60), st.integers(1, 8))
def test_lru_switches_as_a_plain_cache_does(experts, slots):
    result = ran(world([small(copies=8)], slots), make_prompts(np.arange(len(experts)) * 100.0, experts))
    cache, misses = OrderedDict(), 0
    for expert in experts:
        misses += expert not in cache
        cache[expert] = None
        cache.move_to_end(expert)
        if len(cache) > slots:
            cache.popitem(last=False)
    assert result.switches == misses
    more = ran(world([small(copies=8)], slots + 1), make_prompts(np.arange(len(experts)) * 100.0, experts))
    assert more.switches <= result.switches  # inclusion


@settings(max_examples=60)
@given(st.data())
def test_laws_hold_whatever_the_policies(data):
    n = data.draw(st.integers(1, 30))
    at = np.cumsum(data.draw(st.lists(st.sampled_from([0.0, 0.1, 5.0]), min_size=n, max_size=n)))
    who = data.draw(st.lists(st.integers(0, 8), min_size=n, max_size=n))
    serving = {
        "batching": data.draw(st.sampled_from(["fcfs", "grouped"])),
        "eviction": data.draw(st.sampled_from(["lru", "lfu", "lfru", "usage_probability"])),
        "dispatch": data.draw(st.sampled_from(["least_busy", "resident", "home"])),
        "ahead": data.draw(st.integers(0, 3)),
        "max_batch": data.draw(st.integers(1, 4)),
        "nodes": data.draw(st.integers(1, 3)),
        "resident": data.draw(st.sampled_from(["cold", "probable"])),
    }
    experts = [small(copies=8), small("after", after="e", size="15 GB")]
    setup = replace(world(experts, data.draw(st.integers(2, 5)), **serving), copy_bytes_per_s=3e9)
    result = ran(setup, make_prompts(at, who))
    # every stage of every prompt ran once, and the work is what the batches cost
    stages = sum(len(setup.chain(e)) for e in who)
    assert result.runs["prompts"].sum() == stages
    assert result.nodes["busy_s"].sum() == pytest.approx(2 * len(result.runs) + stages)
    again = simulate_composition(setup, make_prompts(at, who))
    assert again.prompts.equals(result.prompts)


def test_each_law_barks():
    result = ran(world([small(copies=8)], 3), make_prompts(np.zeros(6), np.arange(6)))

    def changed(table, column, value, row=1):
        frame = getattr(result, table).copy()
        frame.loc[row, column] = value
        return replace(result, **{table: frame})

    for broken, said in (
        (changed("prompts", "finish_s", -1.0), "never answered"),
        (changed("prompts", "node", -1), "ran nowhere"),
        (changed("resident", "bytes", 9e12), "main memory has"),
        (changed("runs", "copy_to_s", 1e3), "before its expert"),
        (changed("runs", "run_to_s", 1e3), "two runs at once"),
        (replace(result, runs=result.runs.assign(copy_from_s=0.0)), "two copies at once"),
    ):
        with pytest.raises(LawBroken, match=said):
            check_composition(broken)


def test_groups_run_together_and_first_come_first_served_does_not():
    prompts = make_prompts(np.zeros(8), [0, 1, 0, 1, 0, 1, 0, 1])
    plain = ran(world([small(copies=2)], 1), prompts)
    grouped = ran(world([small(copies=2)], 1, batching="grouped", max_batch=4), prompts)
    assert (plain.switches, grouped.switches) == (8, 2)
    assert grouped.makespan_s == pytest.approx(2 * (0.01 + 2 + 4))
    halved = ran(world([small(copies=2)], 1, batching="grouped", max_batch=2), prompts)
    assert len(halved.runs) == 4
    assert halved.switches == 2  # what is resident goes on


def test_usage_probability_keeps_what_is_asked_for_and_lru_what_was_last():
    experts = [small("often", share=9.0), small("rare", share=0.5), small("seldom", share=0.5)]
    prompts = make_prompts(np.arange(6) * 100.0, [0, 1, 2, 0, 1, 2])
    assert ran(world(experts, 2), prompts).switches == 6
    assert ran(world(experts, 2, eviction="usage_probability"), prompts).switches == 5


def test_probable_experts_are_there_from_the_start():
    prompts = make_prompts(np.arange(4) * 100.0, [0, 1, 2, 3])
    assert ran(world([small(copies=4, skew=1.0)], 2, resident="probable"), prompts).switches == 2


def test_lru_under_random_prompts_meets_ches_approximation():
    setup = world([small(copies=40, skew=0.8)], 10)
    experts = np.random.default_rng(1).choice(40, 6000, p=setup.share)
    result = ran(setup, make_prompts(np.arange(6000) * 100.0, experts))
    assert result.hit_share == pytest.approx(lru_hit_share(setup.share, 10), abs=0.02)


def test_prompts_go_where_their_expert_is():
    prompts = make_prompts(np.repeat(np.arange(20) * 100.0, 4), np.tile([0, 1, 2, 3], 20))
    fields = {"slots": 1, "nodes": 4}
    aware = ran(world([small(copies=4)], **fields, dispatch="resident"), prompts)
    home = ran(world([small(copies=4)], **fields, dispatch="home"), prompts)
    blind = ran(
        world([small(copies=4)], **fields, dispatch="least_busy"),
        make_prompts(np.arange(80) * 100.0, np.tile([0, 1, 2, 3], 20)),
    )
    assert aware.switches == home.switches == 4
    assert blind.switches == 80  # idle nodes look alike: the first one answers everything
    assert set(aware.prompts["node"]) == {0, 1, 2, 3}


def test_experts_that_do_not_fit_one_node_are_dealt_out_or_refused():
    size = "3 TB"  # a node's DDR keeps four
    experts = [{**small(size=size), "copies": 7}]
    with pytest.raises(NoResult, match="3 TB of weights, the node has"):
        world(experts)
    wide = replace(NODE, device=NODE.device.model_copy(update={"memory": {
        **NODE.device.memory, "hbm": NODE.device.memory["hbm"].model_copy(update={"capacity": 4e12})}}))  # fmt: skip
    with pytest.raises(NoResult, match="do not fit 1 x sn40l-8"):
        composition_setup(spec(experts), wide, CompositionServing())
    setup = composition_setup(spec(experts), wide, CompositionServing(nodes=2))
    assert setup.held.sum(axis=0).tolist() == [1] * 7
    result = ran(setup, make_prompts(np.arange(7) * 1e4, np.arange(7)))
    assert all(
        setup.held[node, e] for node, e in zip(result.prompts["node"], result.prompts["expert"], strict=True)
    )


def test_categories_name_experts_and_the_unsure_go_to_the_general_one():
    composition = spec(
        [small("a", copies=2, skew=1.0), small("b")],
        categories=[
            {"name": "code", "share": 0.6, "expert": "a"},
            {"name": "talk", "share": 0.4, "expert": "b"},
        ],
        general="talk",
        unsure=0.25,
    )
    setup = composition_setup(composition, NODE, CompositionServing())
    assert setup.share.tolist() == pytest.approx([0.45 * 2 / 3, 0.45 / 3, 0.55])
    drawn = draw_prompts(setup, load_spec(TrafficSpec, "poisson-1k1k", "traffic"), 3, requests=20_000)
    seen = np.bincount(drawn.expert, minlength=3) / 20_000
    assert seen == pytest.approx(setup.share, abs=0.01)
    assert np.all((drawn.category == 1) == (drawn.expert == 2))


@pytest.mark.parametrize(
    ("experts", "fields", "said"),
    [
        ([small(), small()], {}, "different names"),
        ([small(after="f")], {}, "no other expert"),
        ([{"name": "e"}], {}, "expected model, bytes"),
        ([{"name": "e", "bytes": "1 GB"}], {}, "expected a measured run"),
        ([small(share=0.0)], {}, "positive share"),
        ([small()], {"unsure": 0.1}, "need categories"),
        ([small()], {"categories": [{"name": "c", "share": 1.0, "expert": "x"}]}, "'x' is no expert"),
        ([small()], {"categories": [{"name": "c", "share": 0.5, "expert": "e"}]}, "sum to 1"),
        (
            [small()],
            {"categories": [{"name": "c", "share": 1.0, "expert": "e"}], "unsure": 0.5, "general": "d"},
            "'d' is not one",
        ),
    ],
)
def test_mistakes_are_named(experts, fields, said):
    with pytest.raises(ValueError, match=said):
        spec(experts, **fields)


def test_circles_and_bad_prompts_are_refused():
    with pytest.raises(SpecError, match="no circle"):
        world([small("a", after="b"), small("b", after="a")])
    with pytest.raises(SpecError, match="do not fall"):
        make_prompts([1.0, 0.0], [0, 0])
    with pytest.raises(SpecError, match="at least one token"):
        make_prompts([0.0], [0], 0)


def test_shipped_compositions_resolve():
    for name, nodes in (("samba-coe-150", 1), ("coe-five-31b", 1), ("coe-five-54b", 1)):
        composition = load_spec(CompositionSpec, name, "composition")
        setup = composition_setup(composition, NODE, CompositionServing(nodes=nodes))
        assert len(setup.names) == composition.count
        assert setup.share.sum() == pytest.approx(1)
        traffic = load_spec(TrafficSpec, "poisson-1k1k", "traffic")
        ran(setup, draw_prompts(setup, traffic, 0, requests=20))
