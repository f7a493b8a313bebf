"""Experts that are all alike: the closed form is the general one; drawn gates are what the table says."""

import numpy as np
import pytest

from moesim.errors import SpecError
from moesim.routing.alike import straggler_alike
from moesim.routing.expected import expected_distinct_ranks, straggler_factor
from moesim.routing.gate import GATED_RANKS, counted_ranks

COUNTS = np.unique(np.r_[0:9, np.geomspace(9, 20_000, 24).astype(int)])


@pytest.mark.parametrize(
    ("experts", "k", "ranks"),
    [(8, 2, 8), (128, 8, 4), (256, 8, 32), (160, 6, 10), (16, 1, 16), (4, 3, 2), (2, 1, 2), (32, 31, 4)],
)
def test_equal_to_the_general_form(experts: int, k: int, ranks: int) -> None:
    general = straggler_factor(np.ones(experts), k, COUNTS, ranks)
    np.testing.assert_allclose(straggler_alike(experts, k, COUNTS, ranks), general, rtol=1e-9)
    assert general.max() > 1.001, "nothing to tell apart"


def test_close_to_simulation() -> None:
    generator = np.random.default_rng(5)
    experts, k, tokens, ranks = 32, 4, 24, 8
    busiest = []
    for _ in range(3000):
        chosen = np.argpartition(generator.random((tokens, experts)), k, axis=1)[:, :k] // (experts // ranks)
        busiest.append(np.bincount(chosen.ravel(), minlength=ranks).max())
    mean, error = np.mean(busiest), np.std(busiest) / np.sqrt(len(busiest))
    assert straggler_alike(experts, k, tokens, ranks) * tokens * k / ranks == pytest.approx(
        mean, abs=4 * error + 0.03 * mean
    )


def test_edges_and_shapes() -> None:
    assert straggler_alike(8, 2, np.zeros((2, 3), int), 4).tolist() == [[1.0] * 3] * 2
    assert straggler_alike(8, 8, [1, 9], 4).tolist() == [1.0, 1.0]  # every token uses every expert
    assert straggler_alike(8, 2, [1, 9], 1).tolist() == [1.0, 1.0]
    for wrong in ((8, 9, 1, 2), (8, 2, 1, 3), (8, 2, -1, 2), (8, 0, 1, 2)):
        with pytest.raises(SpecError):
            straggler_alike(*wrong)


@pytest.mark.parametrize("gate", GATED_RANKS)
def test_known_gates_are_what_drawing_gives(gate: tuple[int, int, int, int]) -> None:
    experts, k, groups, top = gate
    for ranks in (2, 8, experts // 2):
        assert counted_ranks(experts, k, ranks, groups, top) == GATED_RANKS[gate][ranks]
        found = expected_distinct_ranks(experts, k, ranks, groups, top)
        assert found == GATED_RANKS[gate][ranks] / 65536
    assert GATED_RANKS[gate][experts] == 65536 * k, "one rank per expert"
