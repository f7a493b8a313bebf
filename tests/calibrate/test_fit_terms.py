"""Physical terms below the trees: weights are found, shares add up, old versions teach but are not scored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from moesim.calibrate.fit.boost import Settings
from moesim.calibrate.fit.data import GroupData, _aged
from moesim.calibrate.fit.group import Plan, fit_group
from moesim.calibrate.fit.holdout import interval_of
from moesim.calibrate.fit.terms import weights_of
from moesim.cost.fitted.baseline import base_of, shares_of
from moesim.cost.fitted.features import Features, Machine, gemm_features, moe_features
from moesim.cost.fitted.trees import Forest, bins_of

MACHINE = Machine(132, 900e12, 3.3e12, 1.8e9)
PLAN = Plan(Settings(trees=40, depth=4), Settings(trees=60, depth=4, columns=0.8), folds=4, tried=4)


def experts(age: np.ndarray | float = 0.0, size: int = 4000, seed: int = 0) -> tuple[Features, np.ndarray]:
    """Return features of random expert layers and the number of each row's shape."""
    random = np.random.default_rng(seed)
    tokens, shape = 2.0 ** random.integers(0, 15, size), random.integers(0, 12, size)
    hidden, inner = 1024.0 * (1 + shape % 4), 512.0 * (1 + shape // 4)
    ep = 2.0 ** random.integers(0, 5, size)
    rows = np.maximum(tokens * 8 / ep, 1)
    one = np.ones(size)
    features = moe_features(
        tokens, rows, np.minimum(rows, 128 / ep), hidden, inner, 2 * one, 128 * one, ep, 8 * one, 0 * one, 2.0, 2.0,
        MACHINE, age,
    )  # fmt: skip
    return features, shape.astype(np.int64)


class TestWeights:
    def test_planted_weights_come_back(self) -> None:
        random = np.random.default_rng(0)
        terms = np.exp(random.normal(-12, 2, (4, 5000)))
        planted = np.array([0.5, 0.0, 3.0, 1.2])
        found = weights_of(terms.astype(np.float32), planted @ terms * np.exp(random.normal(0, 0.05, 5000)))
        assert np.allclose(found, planted, rtol=0.05, atol=0.02)

    def test_a_better_sum_than_any_neighbour(self) -> None:
        random = np.random.default_rng(1)
        terms = np.exp(random.normal(-12, 1, (3, 2000)))
        seconds = terms.max(axis=0) * np.exp(random.normal(0, 0.1, 2000))
        found = np.array(weights_of(terms.astype(np.float32), seconds))

        def loss(weights: np.ndarray) -> float:
            return float(np.mean(np.log(weights @ terms / seconds) ** 2))

        for at in range(3):
            for factor in (0.8, 1.25):
                other = found.copy()
                other[at] *= factor
                assert loss(found) <= loss(other) + 1e-6
        assert (found >= 0).all()

    def test_slow_outliers_do_not_carry_the_sum_away(self) -> None:
        terms = np.exp(np.random.default_rng(2).normal(-12, 1, (2, 1000)))
        seconds = 2 * terms.sum(axis=0)
        seconds[:20] *= 1000
        assert np.allclose(weights_of(terms.astype(np.float32), seconds), 2.0, rtol=0.1)


class TestBase:
    def test_without_terms_it_is_floor_and_bound(self) -> None:
        features = Features(np.zeros((1, 2), np.float32), np.array([1e-6, 3e-6]))
        assert np.allclose(base_of(features, 2000.0, 1e9, ()), [3e-6, 5e-6])
        assert shares_of(features, ()) is features.matrix

    def test_shares_add_up_to_one(self) -> None:
        features, _ = experts()
        assert features.terms is not None
        work = np.linspace(0.5, 1.5, len(features.terms))
        share = np.exp(shares_of(features, work)[len(features.matrix) :])
        assert np.allclose(share.sum(axis=0), 1, atol=0.002)
        assert np.allclose(base_of(features, 0.0, 1.0, work), work @ features.terms, rtol=1e-5)

    def test_old_versions_have_terms_of_their_own(self) -> None:
        new, _ = experts(0.0)
        old, _ = experts(1.0)
        assert new.terms is not None
        assert old.terms is not None
        apart = np.flatnonzero((new.terms != old.terms).any(axis=1))
        assert len(apart) == 4
        assert (new.terms[apart] == 0).all()
        assert np.array_equal(old.terms[apart], old.terms[apart - 4])

    def test_blocks_change_nothing(self) -> None:
        random = np.random.default_rng(3)
        m, n, k = (2.0 ** random.integers(4, 14, 40_000) for _ in range(3))
        whole = gemm_features(m, n, k, 2.0, 2.0, MACHINE)
        part = gemm_features(m[30_000:], n[30_000:], k[30_000:], 2.0, 2.0, MACHINE)
        assert whole.terms is not None
        assert part.terms is not None
        assert np.array_equal(whole.matrix[:, 30_000:], part.matrix)
        assert np.array_equal(whole.terms[:, 30_000:], part.terms)


class TestCompiled:
    def test_many_rows_get_the_answers_of_few(self) -> None:
        random = np.random.default_rng(4)
        column = random.normal(size=(5, 120_000)).astype(np.float32)
        borders = [np.sort(random.normal(size=count)).astype(np.float32) for count in (1, 7, 31, 63, 255)]
        binned = bins_of(column, borders)
        some = np.arange(0, 120_000, 101)
        assert np.array_equal(binned[:, some], bins_of(column[:, some], borders))
        forest = Forest.quantised(
            random.integers(0, 5, (30, 7)).astype(np.uint8), random.integers(0, 63, (30, 7)).astype(np.uint8),
            random.normal(size=(30, 128)).astype(np.float32),
        )  # fmt: skip
        assert np.array_equal(forest.answer(binned)[some], forest.answer(binned[:, some]))

    def test_too_few_features_are_refused(self) -> None:
        forest = Forest.quantised(
            np.full((1, 1), 3, np.uint8), np.zeros((1, 1), np.uint8), np.ones((1, 2), np.float32)
        )
        with pytest.raises(IndexError, match="2 features: expected 4"):
            forest.answer(np.random.default_rng(0).integers(0, 9, (2, 200_000)).astype(np.uint8))


def _group(
    current: np.ndarray | None, seconds: np.ndarray, features: Features, shape: np.ndarray
) -> GroupData:
    return GroupData(
        ("moe", "vllm", "bf16", "triton"), features, seconds, np.full(shape.size, 1.8e9),
        np.full(shape.size, "h100-sxm"), np.where(current, "2.0", "1.0") if current is not None else
        np.full(shape.size, "2.0"), shape, current, {"h100-sxm": 0},
    )  # fmt: skip


class TestVersions:
    def test_rows_know_how_many_versions_are_newer(self) -> None:
        rows = pd.DataFrame(
            {
                "device": ["a", "a", "a", "b", "b"],
                "version": ["0.9", "0.10", "0.9", "0.9", "0.9"],
                "n": [1, 1, 2, 1, 2],
            }
        )
        aged = _aged(rows, ("n",))
        assert aged["age"].tolist() == [1, 0, 1, 1, 1]
        assert aged["current"].tolist() == [False, True, True, True, True]

    def test_old_rows_teach_but_are_not_scored(self) -> None:
        """The old version takes half as long again on half of the shapes; the new one knows the others alone."""
        old = np.random.default_rng(5).random(4000) < 0.5
        features, shape = experts(old.astype(float))
        assert features.terms is not None
        seconds = (features.terms[0] + features.bound / 0.8) * np.where(old, 1.5, 1.0)
        group = fit_group(_group(~old, seconds, features, shape), PLAN)
        fit = group.devices["h100-sxm"]
        assert fit.rows == fit.errors["shapes"]["n"] == int((~old).sum())
        assert fit.versions == ("2.0",)
        assert fit.errors["shapes"]["mape"] < 0.06
        blind = fit_group(_group(~old, seconds, experts(0.0)[0], shape), PLAN)
        assert blind.devices["h100-sxm"].errors["shapes"]["mape"] > 2 * fit.errors["shapes"]["mape"]

    def test_terms_extrapolate_where_trees_cannot(self) -> None:
        features, shape = experts()
        assert features.terms is not None
        seconds = np.array([0.5] + [1.3] * 11 + [0.0] * 4) @ features.terms
        with_terms = fit_group(_group(None, seconds, features, shape), PLAN)
        without = fit_group(_group(None, seconds, features._replace(terms=None), shape), PLAN)
        left, right = (g.devices["h100-sxm"].errors["shapes"]["mape"] for g in (with_terms, without))
        assert left < 0.01 < right

    def test_the_estimate_is_base_times_the_trees(self) -> None:
        features, shape = experts()
        assert features.terms is not None
        seconds = np.array([0.5] + [1.3] * 11 + [0.0] * 4) @ features.terms
        group = fit_group(_group(None, seconds, features, shape), PLAN, holdouts=False)
        assert np.allclose(group.seconds(features, "h100-sxm", 1.8e9), seconds, rtol=0.02)
        assert np.allclose(group.seconds(features, "another", 1.8e9), seconds, rtol=0.02)
        aged = replace(group, devices={"h100-sxm": replace(group.devices["h100-sxm"], age=2)})
        assert (aged.age("h100-sxm"), aged.age("another")) == (2, 0)


class TestInterval:
    def test_each_shape_counts_the_same(self) -> None:
        """One shape of many rows at 0 and nine of one row at 1: most of the mass is at 1."""
        error = np.r_[np.zeros(900), np.ones(9)]
        shape = np.r_[np.zeros(900), np.arange(1, 10)].astype(np.int64)
        regime = np.zeros(909, dtype=np.int64)
        low, high = interval_of(error, regime, 1, shape)[0]
        assert low == pytest.approx(1.0, abs=0.05)
        assert high == pytest.approx(np.e)
        assert interval_of(error, regime, 1)[0] == (1.0, 1.0)

    def test_few_shapes_make_it_wider(self) -> None:
        error = np.random.default_rng(6).normal(size=4000)
        regime = np.zeros(4000, dtype=np.int64)
        widths = []
        for shapes in (5, 20, 1000):
            low, high = interval_of(error, regime, 1, np.arange(4000) % shapes)[0]
            widths.append(np.log(high / low))
        assert widths[0] > widths[1] > widths[2] > 0.98 * 2 * 1.645
