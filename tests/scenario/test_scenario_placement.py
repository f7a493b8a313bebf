"""Placement files: what they may say, how a scenario names one, and where mistakes are shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from moesim.errors import SpecError
from moesim.scenario import content_hash, json_schema, lint, load
from moesim.spec.placement import PlacementSpec, slot_text

PLACEMENT = """\
kind: placement
name: by-hand
model: tiny-moe
ranks: 2
ffns:
  experts:
    experts: 8
    slots:
      - 0 1 2 3 7 | 4 5 6 7 0
"""


@pytest.fixture
def placed(toy: Path) -> Path:
    (toy / "hand.yaml").write_text(PLACEMENT)
    text = (toy / "toy.yaml").read_text()
    text = text.replace("parallelism: {tp: 2}", "parallelism: {tp: 2, ep: 2}\n    placement: hand.yaml")
    (toy / "toy.yaml").write_text(text)
    return toy


def problems(name: str = "toy.yaml") -> list[str]:
    with pytest.raises(SpecError) as caught:
        load(name)
    return [str(p) for p in caught.value.problems]


def change(folder: Path, old: str, new: str, name: str = "hand.yaml") -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))


def test_a_scenario_names_a_placement_file(placed: Path) -> None:
    loaded = load("toy.yaml")
    pool = loaded.scenario.deployment.serve
    assert pool is not None
    assert pool.placement is not None
    assert pool.placement.ffns["experts"].slots == ((0, 1, 2, 3, 7, 4, 5, 6, 7, 0),)
    assert pool.placement.slots_per_rank("experts") == 5
    assert loaded.origins["deployment.serve.placement.ffns.experts.slots"] == "hand.yaml:8"


def test_the_path_is_relative_to_the_file_that_names_it(placed: Path) -> None:
    (placed / "sub").mkdir()
    (placed / "sub" / "other.yaml").write_text("kind: scenario\nextends: ../toy.yaml\n")
    assert load("sub/other.yaml").scenario.deployment.serve.placement.name == "by-hand"  # type: ignore[union-attr]
    (placed / "sub" / "mine.yaml").write_text(PLACEMENT.replace("by-hand", "mine"))
    (placed / "sub" / "other.yaml").write_text(
        "kind: scenario\nextends: ../toy.yaml\ndeployment: {serve: {placement: mine.yaml}}\n"
    )
    assert load("sub/other.yaml").scenario.deployment.serve.placement.name == "mine"  # type: ignore[union-attr]
    assert (
        load("toy.yaml", sets=["deployment.serve.placement=null"]).scenario.deployment.serve.placement is None
    )  # type: ignore[union-attr]
    again = load("toy.yaml", sets=["deployment.serve.placement=sub/mine.yaml"])
    assert again.scenario.deployment.serve.placement.name == "mine"  # type: ignore[union-attr]


def test_another_placement_is_another_run(placed: Path) -> None:
    assert content_hash(load("toy.yaml").scenario) != content_hash(
        load("toy.yaml", sets=["deployment.serve.placement=null"]).scenario
    )


def test_a_resolved_scenario_resolves_to_itself(placed: Path) -> None:
    scenario = load("toy.yaml").scenario
    assert type(scenario).model_validate(scenario.model_dump(mode="json")) == scenario


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("ranks: 2", "ranks: 5", "hand.yaml:9  ffns.experts.slots.0: expected 5 ranks between bars, got 2"),
        ("0 1 2 3 7 |", "0 1 2 3 |", "hand.yaml:9  ffns.experts.slots.0"),
        ("7 0", "8 0", "hand.yaml:9  ffns.experts.slots.0  8: expected experts 0..7"),
        ("7 |", "x |", "hand.yaml:9  ffns.experts.slots.0"),
        ("4 5 6 7 0", "4 5 5 7 0", "hand.yaml:9  ffns.experts.slots.0: expected every expert in a slot"),
        ("kind: placement", "kind: placment", "hand.yaml:1  kind  'placment': expected kind"),
    ],
)  # fmt: skip
def test_lint_shows_the_line_of_a_mistake(placed: Path, old: str, new: str, line: str) -> None:
    change(placed, old, new)
    found = [str(p) for p in lint(["hand.yaml"]).problems]
    assert any(p.startswith(line) for p in found), found


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("model: tiny-moe", "model: other", "hand.yaml:3  deployment.serve.placement.model  'other': expected"),
        ("experts: 8", "experts: 7", "hand.yaml:9  deployment.serve.placement.ffns.experts.slots.0  7: expected"),
        ("  experts:\n", "  expert:\n", "hand.yaml:6  deployment.serve.placement.ffns.expert: expected a routed FFN"),
        ("      - 0 1", "      - 0 1 2 3 7 | 4 5 6 7 0\n      - 0 1",
         "hand.yaml:8  deployment.serve.placement.ffns.experts.slots  2: expected 1 row, or 4"),
        ("kind: placement", "kind: model", "hand.yaml:1  kind  'model': expected kind: placement, as toy.yaml:"),
    ],
)  # fmt: skip
def test_a_placement_that_does_not_fit_is_refused_at_its_own_line(
    placed: Path, old: str, new: str, line: str
) -> None:
    change(placed, old, new)
    assert any(p.startswith(line) for p in problems()), problems()


def test_ranks_are_the_pools(placed: Path) -> None:
    change(placed, "{tp: 2, ep: 2}", "{tp: 2}", "toy.yaml")
    assert problems() == [
        "hand.yaml:4  deployment.serve.placement.ranks  2: expected 1, the pool's expert-parallel degree ep"
    ]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("gone.yaml", "toy.yaml:11  deployment.serve.placement  'gone.yaml': no such file"),
        ("hand", "toy.yaml:11  deployment.serve.placement  'hand': expected the path of a placement file"),
    ],
)
def test_a_reference_that_leads_nowhere(placed: Path, name: str, line: str) -> None:
    change(placed, "placement: hand.yaml", f"placement: {name}", "toy.yaml")
    (found,) = problems()
    assert found.startswith(line)


def test_a_list_and_a_text_row_are_the_same() -> None:
    rows = [[0, 1, 2, 3], [3, 2, 1, 0]]
    parts = {
        "list": rows,
        "text": [slot_text(row, 2) for row in rows],
        "plain": [" ".join(map(str, row)) for row in rows],
    }
    made = {
        name: PlacementSpec.model_validate(
            {"kind": "placement", "name": "a", "ranks": 2, "ffns": {"moe": {"experts": 4, "slots": slots}}}
        )
        for name, slots in parts.items()
    }
    assert made["list"] == made["text"] == made["plain"]
    assert parts["text"][0] == "0 1 | 2 3"


def test_slots_are_a_multiple_of_ranks() -> None:
    with pytest.raises(ValueError, match="expected a multiple of ranks = 2 slots, got 3"):
        PlacementSpec.model_validate(
            {
                "kind": "placement",
                "name": "a",
                "ranks": 2,
                "ffns": {"moe": {"experts": 3, "slots": [[0, 1, 2]]}},
            }
        )


def test_editors_may_write_a_path_or_the_placement() -> None:
    kinds = json_schema("scenario")["$defs"]["Pool"]["properties"]["placement"]["anyOf"]
    assert [kind.get("type", kind.get("$ref")) for kind in kinds] == [
        "string",
        "#/$defs/PlacementSpec",
        "null",
    ]


def test_another_problem_starts_the_plan_section_afresh(placed: Path) -> None:
    with (placed / "toy.yaml").open("a") as file:
        file.write("  other: {about: Another, plan: {problem: affinity, node_hop: 3}}\n")
        file.write("  more: {about: More, plan: {redundant: 4}}\n")
        file.write("plan: {problem: balance, redundant: 2}\n")
    assert load("toy.yaml").scenario.plan.redundant == 2  # type: ignore[union-attr]
    assert load("toy.yaml", ["more"]).scenario.plan.redundant == 4  # type: ignore[union-attr]
    plan = load("toy.yaml", ["other"]).scenario.plan
    assert plan is not None
    assert (plan.problem, plan.node_hop) == ("affinity", 3)  # type: ignore[union-attr]


def test_files_of_a_plan_section_are_beside_their_own_file(placed: Path) -> None:
    (placed / "sub").mkdir()
    (placed / "sub" / "monday.json").write_text("{}")
    (placed / "sub" / "other.yaml").write_text(
        "kind: scenario\nextends: ../toy.yaml\n"
        "plan: {problem: balance, loads: [{path: monday.json}, {path: gone.x}]}\n"
    )
    plan = load("sub/other.yaml").scenario.plan
    assert [file.path for file in plan.loads] == [str(placed / "sub" / "monday.json"), "gone.x"]  # type: ignore[union-attr]
