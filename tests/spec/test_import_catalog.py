"""The model catalog: every file loads, carries sources, and agrees with what the authors publish."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from moesim.files import catalog_names, catalog_root
from moesim.spec.base import load_spec
from moesim.spec.model import ModelSpec
from moesim.spec.model_table import model_table
from moesim.spec.parameters import parameter_count

NAMES = catalog_names("model")
WANTED = {
    "mixtral-8x7b", "mixtral-8x22b", "deepseek-v2-lite", "deepseek-v3", "deepseek-r1", "deepseek-v3.2",
    "deepseekmoe-16b", "qwen3-30b-a3b", "qwen3-235b-a22b", "qwen3.5-397b-a17b", "gpt-oss-20b", "gpt-oss-120b",
    "olmoe-1b-7b", "kimi-k2", "kimi-k2.5", "minimax-m2.5", "glm-5", "dbrx", "switch-base-8", "switch-base-16",
    "switch-base-32", "switch-base-64", "switch-base-128", "switch-base-256", "phi-3.5-moe", "grok-1",
    "qwen1.5-moe-a2.7b", "arctic", "llama-3.1-8b", "llama-3-8b", "llama-3.1-70b", "llama-2-7b", "llama-2-70b",
    "qwen3-8b", "qwen3-32b",
}  # fmt: skip


def of(name: str) -> ModelSpec:
    return load_spec(ModelSpec, name, "model")


def test_catalog_is_complete() -> None:
    assert set(NAMES) >= WANTED


@pytest.mark.parametrize("name", NAMES)
def test_file_agrees_with_its_published_totals(name: str) -> None:
    model = of(name)
    count, published = parameter_count(model), model.published
    assert model.name == name
    assert model.sources[0].fields == ("*",)
    assert all(source.cite for source in model.sources)
    stated = published.total is not None or published.active is not None
    assert any("published" in source.fields for source in model.sources) == stated
    if published.total is not None:
        assert published.tolerance <= 0.03
        assert count.total == pytest.approx(published.total, rel=published.tolerance)
        if published.tolerance > 0.005:  # a looser tolerance is explained
            assert any("published" in source.fields and source.note for source in model.sources)
    if published.active is not None:
        left_out = {
            "nothing": 0,
            "embedding": count.embedding,
            "embedding and head": count.embedding + count.head,
        }[published.active_excludes]
        assert count.active - left_out == pytest.approx(published.active, rel=published.active_tolerance)


def test_readme_table_is_current() -> None:
    text = (catalog_root() / "workloads/models/README.md").read_text(encoding="utf-8")
    table = model_table(of(name) for name in NAMES)
    assert text[text.index("| name |") :] == table
    assert table.count("\n") == len(NAMES) + 2


SHARED = {
    "Mixtral-8x7B-v0.1": "mixtral-8x7b",
    "Mixtral-8x22B-v0.1": "mixtral-8x22b",
    "DBRX": "dbrx",
    "OLMoE-1B-7B-0924": "olmoe-1b-7b",
    "Qwen1.5-MoE-A2.7B": "qwen1.5-moe-a2.7b",
    "DeepSeekMoE-16B": "deepseekmoe-16b",
    "DeepSeek-V2-Lite": "deepseek-v2-lite",
    "Phi-3.5-MoE-instruct": "phi-3.5-moe",
    "Grok-1": "grok-1",
    "Snowflake-Arctic": "arctic",
    "Switch-base-128": "switch-base-128",
    "gpt-oss-20b": "gpt-oss-20b",
}


@pytest.mark.shared
def test_independent_table_of_dimensions_agrees() -> None:
    folder = Path(os.environ.get("MOESIM_SHARED", Path(__file__).parents[3] / "shared"))
    path = folder / "data/moe_dims.csv"
    if not path.is_file():
        pytest.skip(f"NOT CHECKED: {path} is not there")
    with path.open(encoding="utf-8") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    for theirs, ours in SHARED.items():
        row, count = rows[theirs], parameter_count(of(ours))
        assert count.total / 1e9 == pytest.approx(float(row["calc_total_B"]), rel=0.005), ours
        if ours == "arctic":
            # the table takes the residual FFN as wide as an expert (4864), the class as wide as the model
            assert count.active / 1e9 - float(row["calc_active_B"]) == pytest.approx(
                35 * 3 * 7168 * (7168 - 4864) / 1e9, rel=0.03
            )
        else:
            active = float(row["calc_active_B"])
            assert count.active / 1e9 == pytest.approx(active, rel=0.005, abs=0.005), ours
