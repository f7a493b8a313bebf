"""Measured attention of whole batches: read as scipy reads it, and as the docstring says beyond the nodes."""

import numpy as np
import pytest
from scipy.interpolate import RegularGridInterpolator
from worlds import fed, open_pool, pricing, setup

from moesim.cost.pricing import AttentionTable, AttentionTerm
from moesim.errors import SpecError
from moesim.spec.deployment import Engine, Speculation
from moesim.traffic.requests import make_requests

CHUNK = np.array([0.0, 4.0, 16.0, 64.0])
HISTORY = np.array([0.0, 8.0, 32.0])
SEQUENCES = np.array([0.0, 1.0, 2.0, 8.0])
CONTEXT = np.array([4.0, 16.0, 64.0])
ENGINE = Engine(max_num_seqs=8, max_num_batched_tokens=64)


def table(seed=0, slope=None):
    shape = (4, 3, 4, 3)
    if slope is None:
        seconds = 1.0 + np.random.default_rng(seed).random(shape)
    else:
        grid = np.meshgrid(CHUNK, HISTORY, SEQUENCES, CONTEXT, indexing="ij")
        seconds = slope(*grid)
    return AttentionTable(CHUNK, HISTORY, SEQUENCES, CONTEXT, seconds)


def term(made):
    # coefficients that would be noticed if they were used
    return AttentionTerm("full", 0, 1e3, 1e3, 1e3, 1e3, 1e3, 1e3, 1e3, "measured", table=made)


def read(made, tokens, pairs, contexts):
    """What a step must take, from scipy and the docstring, inside the table."""
    n = len(contexts)
    mean = float(np.mean(contexts)) if n else CONTEXT[0]
    if tokens == 0:
        pure = RegularGridInterpolator((SEQUENCES[1:], CONTEXT), made.seconds[0, 0, 1:])
        return float(pure([[n, mean]])[0])
    history = pairs / tokens - (tokens + 1) / 2
    if n == 0:
        alone = RegularGridInterpolator((CHUNK[1:], HISTORY), made.seconds[1:, :, 0, 0])
        return float(alone([[tokens, history]])[0])
    mixed = RegularGridInterpolator((CHUNK[1:], HISTORY, SEQUENCES[1:], CONTEXT), made.seconds[1:, :, 1:, :])
    total = float(mixed([[tokens, history, n, mean]])[0])
    if n > 1:
        longest = float(max(contexts))
        total += float(mixed([[4, 0, 1, longest]])[0]) - float(mixed([[4, 0, 1, mean]])[0])
    return total


def ends(made, arrivals, inputs, outputs, engine=ENGINE):
    requests = make_requests(np.array(arrivals, dtype=float), np.array(inputs), np.array(outputs))
    pool = open_pool(setup(engine, pricing(64, 8, attention=(term(made),))), requests)
    return fed(pool, requests, np.zeros(len(requests), dtype=int)).state


def test_every_kind_of_step_is_read_from_the_table():
    made = table()
    first = read(made, 10, 55, [])  # 10 prompt tokens alone
    later = read(made, 12, 78, [11])  # the second prompt beside one decode over 11 keys
    third = read(made, 20, 210, [12, 13])  # the third beside two of them
    decode = read(made, 0, 0, [13, 14, 21])
    state = ends(made, [0.0, 0.1, first + 0.1], [10, 12, 20], [4, 3, 2])
    steps = np.cumsum([first, later, third, decode])
    np.testing.assert_allclose(state.req["first"], steps[:3], rtol=1e-12)
    np.testing.assert_allclose(state.req["finish"], [steps[3]] * 3, rtol=1e-12)
    np.testing.assert_allclose(state.spent[0, 0].sum(), steps[3], rtol=1e-12)


def test_a_prompt_in_pieces_knows_its_history():
    made = table(1)
    engine = Engine(max_num_seqs=8, max_num_batched_tokens=16)
    state = ends(made, [0.0], [28], [1], engine)
    expected = read(made, 16, 136, []) + read(made, 12, 12 * 16 + 78, [])
    assert state.req["finish"][0] == pytest.approx(expected, rel=1e-12)


def test_beyond_the_last_node_the_slope_goes_on_and_below_the_first_it_is_flat():
    made = table(slope=lambda c, h, n, k: 1.0 + n * (k + 10.0))
    state = ends(made, [0.0], [99], [5], Engine(max_num_seqs=8, max_num_batched_tokens=64))
    steps = np.diff([state.req["first"][0], state.req["finish"][0]])
    assert steps[0] == pytest.approx(sum(1.0 + (k + 10.0) for k in (100, 101, 102, 103)), rel=1e-12)
    short = ends(made, [0.0], [1], [2])
    assert short.req["finish"][0] - short.req["first"][0] == pytest.approx(15.0)  # as with 4 keys


def test_short_prompts_together_cost_less_than_one_long():
    made = table(slope=lambda c, h, n, k: 1.0 + c * (h + c / 2))  # proportional to attended pairs
    together = ends(made, [0.0, 0.0], [8, 8], [1, 1]).req["finish"][0]
    alone = ends(made, [0.0], [16], [1]).req["finish"][0]
    assert alone == pytest.approx(1.0 + 16 * 8)
    assert together == pytest.approx(1.0 + 16 * 4)


def test_the_longest_decode_ends_last():
    made = table(slope=lambda c, h, n, k: 1.0 + n * k + c)
    equal = ends(made, [0.0, 0.0, 0.1], [20, 20, 4], [3, 3, 1])
    uneven = ends(made, [0.0, 0.0, 0.1], [36, 4, 4], [3, 3, 1])
    gap = (uneven.req["first"][2] - uneven.req["first"][0]) - (equal.req["first"][2] - equal.req["first"][0])
    assert gap == pytest.approx(16.0)  # 37 keys against a mean of 21


def test_fast_path_and_single_steps_agree():
    made = table(3)
    requests = make_requests(np.array([0.0, 0.1, 30.0]), np.array([10, 20, 30]), np.array([20, 30, 5]))
    priced = setup(ENGINE, pricing(64, 8, attention=(term(made),)))
    states = [
        fed(open_pool(priced, requests, fast=f), requests, np.zeros(3, dtype=int)).state
        for f in (True, False)
    ]
    assert states[0].req["finish"].tobytes() == states[1].req["finish"].tobytes()


def test_drafts_are_refused():
    requests = make_requests(np.zeros(1), np.array([4]), np.array([2]))
    priced = pricing(64, 32, attention=(term(table()),))
    made = setup(ENGINE, priced, speculation=Speculation(draft_tokens=2, acceptance=0.5))
    with pytest.raises(SpecError, match="speculation: measured attention tables hold one query"):
        open_pool(made, requests)


def test_terms_must_share_axes():
    other = AttentionTable(CHUNK, HISTORY, SEQUENCES, CONTEXT * 2, table().seconds)
    requests = make_requests(np.zeros(1), np.array([4]), np.array([2]))
    with pytest.raises(ValueError, match="share their axes"):
        open_pool(setup(ENGINE, pricing(64, 8, attention=(term(table()), term(other)))), requests)
