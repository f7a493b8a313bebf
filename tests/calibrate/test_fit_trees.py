"""Fits: forests, curves, hold-outs and the artifact, on data whose truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moesim.calibrate.fit.boost import Settings, boost, borders_of
from moesim.calibrate.fit.curve import _common, _fit
from moesim.calibrate.fit.data import GroupData
from moesim.calibrate.fit.group import Plan, fit_group
from moesim.calibrate.fit.holdout import coverage, errors_of, interval_of, regime_of, shape_folds
from moesim.calibrate.fit.run import merged
from moesim.cost.fitted import trees
from moesim.cost.fitted.artifact import Artifact, load_artifact, save_artifact
from moesim.cost.fitted.curves import Curve, CurveFit
from moesim.cost.fitted.features import Machine, gemm_features
from moesim.cost.fitted.trees import Forest, bins_of
from moesim.errors import DataMissing


def forest_of(seed: int = 0, trees: int = 40, rows: int = 2000) -> tuple[Forest, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    matrix = random.normal(size=(3, rows)).astype(np.float32)
    target = np.where(matrix[0] > 0.3, 1.0, -1.0) + 0.5 * matrix[1]
    borders = borders_of(matrix)
    forest = boost(matrix, target, borders, Settings(trees=trees, depth=4, rate=0.3, columns=1.0))
    return forest, bins_of(matrix, borders), target


class TestForest:
    def test_it_learns_what_is_there(self) -> None:
        forest, binned, target = forest_of()
        assert np.sqrt(np.mean((forest.answer(binned) - target) ** 2)) < 0.1 * target.std()

    def test_the_answer_is_that_of_walking_each_tree(self) -> None:
        forest, binned, _ = forest_of(trees=7, rows=50)
        for row in range(50):
            walked = 0.0
            for tree in range(7):
                leaf = sum(
                    int(binned[forest.feature[tree, d], row] > forest.border[tree, d]) << d for d in range(4)
                )
                walked += float(forest.leaves[tree, leaf]) * float(forest.scale[tree])
            assert forest.answer(binned[:, [row]])[0] == pytest.approx(walked, abs=1e-5)

    def test_bins_count_the_borders_below_however_many_rows_there_are(self) -> None:
        values = np.random.default_rng(1).normal(size=(2, 5000)).astype(np.float32)
        borders = [np.array([-0.5, 0.0, 0.7], np.float32), values[1, :5].copy()]  # borders that values equal
        borders[1].sort()
        many = bins_of(values, borders)
        few = np.concatenate([bins_of(values[:, i : i + 100], borders) for i in range(0, 5000, 100)], axis=1)
        assert (many == few).all()
        assert (many[0] == (values[0] > np.array([[-0.5], [0.0], [0.7]], np.float32)).sum(axis=0)).all()

    def test_a_table_over_tokens_is_answered_row_by_row(self) -> None:
        tokens = np.arange(6000, dtype=np.float32)
        matrix = np.stack([tokens, np.full_like(tokens, 3.0), tokens % 700, np.minimum(tokens, 4000.0)])
        borders = [np.array([0, 7, 7.5, 5999], np.float32), np.array([3, 4], np.float32)]
        borders += [np.array([350, 699], np.float32), np.array([3999, 4000], np.float32)]
        binned = bins_of(matrix, borders)
        assert (
            binned
            == [(column > cuts[:, None]).sum(axis=0) for column, cuts in zip(matrix, borders, strict=True)]
        ).all()
        forest, _, _ = forest_of(trees=9)
        rows = binned[:3] * np.uint8(60)
        shuffled = np.random.default_rng(2).permutation(6000)
        assert (forest.answer(rows)[shuffled] == forest.answer(rows[:, shuffled])).all()
        assert len(np.unique(forest.answer(rows))) > 1

    def test_chunks_do_not_matter(self) -> None:
        forest, binned, _ = forest_of()
        wide = np.tile(binned, (1, 40))
        assert (forest.answer(wide) == np.tile(forest.answer(binned), 40)).all()

    @pytest.mark.parametrize("rows", [0, 1, 2, 127, 128, 129, 1024])
    def test_few_rows_at_once_are_answered_to_the_last_bit(
        self, rows: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        forest, binned, _ = forest_of()
        together = forest.answer(binned[:, :rows])
        monkeypatch.setattr(trees, "_AT_ONCE", -1)
        assert (together == forest.answer(binned[:, :rows])).all()
        assert together.shape == (rows,)

    def test_same_seed_same_trees_other_seed_other_trees(self) -> None:
        random = np.random.default_rng(0)
        matrix = random.normal(size=(3, 500)).astype(np.float32)
        borders = borders_of(matrix)
        one, two, three = (
            boost(matrix, matrix[0] ** 2, borders, Settings(trees=5, seed=s)) for s in (1, 1, 2)
        )
        assert (one.leaves == two.leaves).all()
        assert (one.feature == two.feature).all()
        assert not (one.leaves == three.leaves).all()

    def test_a_constant_feature_is_never_asked(self) -> None:
        matrix = np.stack([np.ones(400), np.linspace(0, 1, 400)]).astype(np.float32)
        forest = boost(
            matrix, matrix[1].astype(float), borders_of(matrix), Settings(trees=10, depth=3, columns=1.0)
        )
        asked = forest.feature[forest.border < 255]
        assert (asked == 1).all()

    def test_borders_split_few_values_in_the_middle(self) -> None:
        assert borders_of(np.array([[1, 1, 2, 4]], dtype=np.float32))[0].tolist() == [1.5, 3.0]
        many = borders_of(np.arange(10_000, dtype=np.float32)[None, :], limit=9)[0]
        assert np.allclose(many, np.arange(1, 10) * 999.9 * 1.0, rtol=0.01)

    def test_outliers_pull_with_bounded_force(self) -> None:
        matrix = np.zeros((1, 1000), dtype=np.float32)
        matrix[0, 500:] = 1
        target = np.zeros(1000)
        target[:5] = 1000.0
        forest = boost(matrix, target, borders_of(matrix), Settings(trees=20, depth=1, columns=1.0, rows=1.0))
        assert np.abs(forest.answer(bins_of(matrix, borders_of(matrix)))).max() < 0.1


class TestHoldouts:
    def test_a_shape_lies_in_one_fold(self) -> None:
        shape = np.repeat(np.arange(23), 7)
        fold = shape_folds(shape, 5, seed=3)
        assert all(np.unique(fold[shape == s]).size == 1 for s in range(23))
        assert set(fold.tolist()) == set(range(5))

    def test_errors_by_hand(self) -> None:
        found = errors_of(np.array([1.1, 0.8]), np.array([1.0, 1.0]))
        assert (found["n"], found["mape"], found["bias"]) == (2, pytest.approx(0.15), pytest.approx(-0.05))

    def test_an_interval_covers_nine_of_ten(self) -> None:
        error = np.random.default_rng(0).normal(0, 0.1, 20_000)
        shape, regime = np.arange(20_000) // 50, np.zeros(20_000, dtype=np.int64)
        ((low, high),) = interval_of(error, regime, 1)
        assert (low, high) == (
            pytest.approx(np.exp(-0.1645), rel=0.01),
            pytest.approx(np.exp(0.1645), rel=0.01),
        )
        assert coverage(error, regime, shape, 1) == pytest.approx(0.9, abs=0.01)

    def test_a_regime_with_few_rows_takes_all_rows_interval(self) -> None:
        error = np.r_[np.random.default_rng(0).normal(0, 0.1, 1000), 5.0]
        regime = np.r_[np.zeros(1000, dtype=np.int64), 1]
        wide = interval_of(error, regime, 2)
        assert wide[1][1] < 2.0

    def test_regimes_by_size(self) -> None:
        assert regime_of(np.array([1e-6, 1e-4]), np.array([1e-5, 1e-5]), (-2.0, 1.0, 4.0)).tolist() == [0, 2]


def made_up(devices: dict[str, Machine], seed: int = 0, noise: float = 0.0) -> GroupData:
    """Products on devices that reach 70 % of their bound above a floor of 5,000 cycles."""
    random = np.random.default_rng(seed)
    parts = []
    for name, machine in devices.items():
        m, n, k = (2.0 ** random.integers(low, 13, 3000) for low in (0, 6, 6))
        features = gemm_features(m, n, k, 2.0, 2.0, machine)
        seconds = 5000 / machine.clock + features.bound / 0.7
        parts.append((name, machine, features, seconds * np.exp(random.normal(0, noise, 3000)), n * 1e6 + k))
    shape = np.unique(np.concatenate([p[4] for p in parts]), return_inverse=True)[1]
    return GroupData(
        ("gemm", "vllm", "bf16", "any"),
        type(parts[0][2])(
            np.concatenate([p[2].matrix for p in parts], axis=1), np.concatenate([p[2].bound for p in parts])
        ),
        np.concatenate([p[3] for p in parts]),
        np.concatenate([np.full(3000, float(p[1].clock)) for p in parts]),
        np.repeat([p[0] for p in parts], 3000),
        np.repeat(["1.0"], 3000 * len(parts)),
        shape.astype(np.int64),
    )


DEVICES = {
    "small": Machine(60, 100e12, 1e12, 1.2e9),
    "middle": Machine(108, 300e12, 2e12, 1.4e9),
    "large": Machine(132, 900e12, 3.3e12, 1.8e9),
}
PLAN = Plan(Settings(trees=60, depth=5), Settings(trees=80, depth=5, columns=0.8), folds=4, tried=1)


@pytest.fixture(scope="module")
def data() -> GroupData:
    return made_up(DEVICES, noise=0.02)


class TestGroup:
    def test_unseen_shapes_and_devices_are_predicted(self, data: GroupData) -> None:
        group = fit_group(data, PLAN)
        for fit in group.devices.values():
            assert fit.errors["points"]["mape"] < 0.04
            assert fit.errors["shapes"]["mape"] < 0.04
            assert 0.85 < fit.errors["shapes"]["coverage"] < 0.98
            assert fit.floor_cycles == pytest.approx(5000, rel=0.2)
        assert max(e["mape"] for e in group.errors.values()) < 0.12

    def test_a_device_nobody_measured_gets_the_common_fit(self, data: GroupData) -> None:
        group = fit_group(data, PLAN, holdouts=False)
        new = Machine(90, 200e12, 1.5e12, 1.3e9)
        truth = made_up({"new": new}, seed=9)
        predicted = group.seconds(truth.features, "new", 1.3e9)
        assert errors_of(predicted, truth.seconds)["mape"] < 0.1
        low, high = group.bounds(truth.features, "new", 1.3e9)
        assert (low < high).all()

    def test_an_artifact_comes_back_as_it_was_and_with_equal_bytes(
        self, data: GroupData, tmp_path: Path
    ) -> None:
        group = fit_group(data, PLAN, holdouts=False)
        curve = Curve(
            {("h100-sxm", 8): CurveFit(1e-5, (-1.0, 1.0), (0.5, 0.1))}, {8: CurveFit(1e-5, (0.0,), (0.2,))},
            {"h100-sxm": ("1.0",)}, {"points": {}}, ((0.9, 1.1), (0.5, 2.0)),
        )  # fmt: skip
        artifact = Artifact(
            {data.key: group}, {("nccl", "nccl", "bf16", "all_gather"): curve}, {"source": "test"}
        )
        save_artifact(artifact, tmp_path / "one")
        back = load_artifact(tmp_path / "one")
        save_artifact(back, tmp_path / "two")
        for end in (".json", ".npz"):
            assert (tmp_path / f"one{end}").read_bytes() == (tmp_path / f"two{end}").read_bytes()
        same = back.groups[data.key].seconds(data.features, "large", 1.8e9)
        assert np.allclose(same, group.seconds(data.features, "large", 1.8e9), rtol=1e-5)
        assert back.curves["nccl", "nccl", "bf16", "all_gather"] == curve

    def test_merging_replaces_and_keeps(self, data: GroupData) -> None:
        group = fit_group(data, PLAN, holdouts=False)
        other = ("moe", "vllm", "bf16", "triton")
        one = Artifact({data.key: group}, {}, {"imports": {"gemm": 1}})
        two = Artifact({other: group}, {}, {"imports": {"moe": 2}, "source": "x"})
        both = merged([one, two])
        assert set(both.groups) == {data.key, other}
        assert both.meta == {"imports": {"gemm": 1, "moe": 2}, "source": "x"}


def test_no_artifact_is_missing_data(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="calibrate fit"):
        load_artifact(tmp_path / "none")
    (tmp_path / "old.json").write_text('{"format": 0}')
    np.savez(tmp_path / "old.npz")
    with pytest.raises(DataMissing, match="format"):
        load_artifact(tmp_path / "old")


class TestCurve:
    sizes = 2.0 ** np.arange(8, 28)

    def test_measured_sizes_are_answered_as_measured(self) -> None:
        seconds = 8e-6 + self.sizes / 200e9
        fit = _fit(self.sizes, seconds, 450e9)
        assert np.allclose(fit.seconds(self.sizes, 450e9), seconds, rtol=1e-9)

    def test_sizes_in_between_and_beyond_follow_the_law(self) -> None:
        fit = _fit(self.sizes[::2], (8e-6 + self.sizes / 200e9)[::2], 450e9)
        between = np.sqrt(self.sizes[:-1] * self.sizes[1:])
        assert np.allclose(fit.seconds(between, 450e9), 8e-6 + between / 200e9, rtol=0.06)
        beyond = np.array([2.0**34])
        assert fit.seconds(beyond, 450e9)[0] == pytest.approx(beyond[0] / 200e9, rel=0.05)

    def test_a_faster_link_is_predicted_from_the_others(self) -> None:
        fits = [_fit(self.sizes, 8e-6 + self.sizes / (0.6 * rate), rate) for rate in (200e9, 450e9, 900e9)]
        new = _common(fits).seconds(self.sizes, 600e9)
        assert np.allclose(new, 8e-6 + self.sizes / (0.6 * 600e9), rtol=0.05)
