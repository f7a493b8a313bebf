"""Loading: extends, variants, --set, references and origins, on a small world of files."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from moesim.errors import SpecError
from moesim.scenario import content_hash, load, origin_of, variant_names
from moesim.spec.scenario import ScenarioSpec


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return name


def derived(folder: Path, name: str, extends: str, body: str = "") -> str:
    return write(folder, f"{name}.yaml", f"kind: scenario\nname: {name}\nextends: {extends}\n{body}")


# -- extends ----------------------------------------------------------------------------------------------------


def test_extends_is_associative(toy: Path) -> None:
    """(a over b) over c, however the chain is cut into files, is the same scenario."""
    b = "run: {requests: 60, seed: 1}\ntargets: {ttft: 2 s}\n"
    a = "run: {requests: 70}\ndeployment: {serve: {replicas: 1}}\n"
    derived(toy, "b", "toy.yaml", b)
    derived(toy, "one", "b.yaml", a)
    derived(toy, "half-b", "[]", b)
    derived(toy, "one-list", "[toy.yaml, half-b.yaml]", a)
    nested, flat = load("one.yaml").scenario, load("one-list.yaml").scenario
    assert nested.model_copy(update={"name": "x"}) == flat.model_copy(update={"name": "x"})
    assert (nested.run.requests, nested.run.seed, nested.targets.ttft, nested.deployment.serve.replicas) == (
        70, 1, 2.0, 1)  # fmt: skip


def test_a_base_shared_by_two_bases_is_laid_down_once(toy: Path) -> None:
    derived(toy, "left", "toy.yaml", "run: {requests: 60}\n")
    derived(toy, "right", "toy.yaml", "run: {seed: 3}\n")
    derived(toy, "both", "[left.yaml, right.yaml]")
    scenario = load("both.yaml").scenario
    assert (scenario.run.requests, scenario.run.seed) == (
        60,
        3,
    )  # toy's own 50 does not come back through right


def test_extends_beside_the_file_not_the_working_directory(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (toy / "sub").mkdir()
    write(toy / "sub", "deep.yaml", "kind: scenario\nextends: ../toy.yaml\n")
    (toy / "elsewhere").mkdir()
    monkeypatch.chdir(toy / "elsewhere")
    loaded = load("../sub/deep.yaml")
    assert loaded.scenario.name == "deep"
    assert loaded.scenario.model.name == "tiny-moe"


def test_cycles_are_refused_with_the_chain(toy: Path) -> None:
    derived(toy, "a", "b.yaml")
    derived(toy, "b", "a.yaml")
    with pytest.raises(SpecError, match=r"b\.yaml:3  extends.*circle: a\.yaml -> b\.yaml -> a\.yaml"):
        load("a.yaml")
    derived(toy, "me", "me.yaml")
    with pytest.raises(SpecError, match=r"circle: me\.yaml -> me\.yaml$"):
        load("me.yaml")


# -- variants ---------------------------------------------------------------------------------------------------


def test_disjoint_variants_commute(toy: Path) -> None:
    for chosen in itertools.permutations(["fast", "wide", "busy"]):
        scenario = load("toy.yaml", chosen).scenario
        same = load("toy.yaml", ["fast,wide,busy"]).scenario
        assert scenario.model_copy(update={"name": "x"}) == same.model_copy(update={"name": "x"})
    assert same.name == "toy+fast+wide+busy"
    assert (same.device.memory["hbm"].bandwidth, same.deployment.serve.parallelism.tp) == (4e12, 4)


@pytest.mark.parametrize("chosen", [("busy", "busier"), ("busier", "busy")])
def test_variants_that_set_one_key_are_refused_in_either_order(toy: Path, chosen: tuple[str, str]) -> None:
    with pytest.raises(SpecError, match=r"traffic\.arrivals\.rate: variants .* both set it"):
        load("toy.yaml", chosen)


def test_a_variant_that_replaces_what_another_changes_is_refused(toy: Path) -> None:
    text = (toy / "toy.yaml").read_text() + "  plain:\n    traffic: null\n"
    write(toy, "toy.yaml", text)
    with pytest.raises(SpecError, match="both set it"):
        load("toy.yaml", ["busy", "plain"])


def test_variants_are_inherited_changed_and_dropped(toy: Path) -> None:
    derived(
        toy, "d", "toy.yaml", "variants:\n  busy: {run: {seed: 5}}\n  fast: null\n  new: {run: {seed: 9}}\n"
    )
    assert list(variant_names("d.yaml")) == ["wide", "busy", "busier", "new"]
    assert variant_names("toy.yaml")["fast"] == "Twice the bandwidth"
    scenario = load("d.yaml", ["busy"]).scenario
    assert (scenario.traffic.arrivals.rate, scenario.run.seed) == (40.0, 5)


def test_a_variant_twice_is_a_variant_once(toy: Path) -> None:
    assert load("toy.yaml", ["busy,busy", "busy"]).scenario == load("toy.yaml", ["busy"]).scenario


# -- set --------------------------------------------------------------------------------------------------------


def test_set_wins_over_everything_and_order_does_not_matter(toy: Path) -> None:
    sets = ["traffic.arrivals.rate=99 request/s", "run.requests=7", "deployment.serve.engine.max_num_seqs=8"]
    for order in itertools.permutations(sets):
        scenario = load("toy.yaml", ["busy"], order).scenario
        assert scenario.traffic.arrivals.rate == 99.0
        assert (scenario.run.requests, scenario.deployment.serve.engine.max_num_seqs) == (7, 8)


def test_a_new_kind_and_its_keys_in_either_order(toy: Path) -> None:
    sets = ["traffic.arrivals.kind=gamma", "traffic.arrivals.rate=3 request/s", "traffic.arrivals.cv=2"]
    for order in itertools.permutations(sets):
        assert load("toy.yaml", (), order).scenario.traffic.arrivals.model_dump() == {
            "kind": "gamma", "rate": 3.0, "cv": 2.0}  # fmt: skip


def test_set_replaces_a_reference_and_reaches_inside_it(toy: Path) -> None:
    other = (
        (toy / "model.yaml").read_text().replace("tiny-moe", "other").replace("vocab: 1000", "vocab: 5000")
    )
    write(toy, "other.yaml", other)
    for order in itertools.permutations(["model=other.yaml", "model.context=2048"]):
        model = load("toy.yaml", (), order).scenario.model
        assert (model.name, model.vocab, model.context) == ("other", 5000, 2048)


def test_set_changes_one_element_of_a_list(toy: Path) -> None:
    faults = (
        "deployment: {faults: [{replica: 0, at: 1 s, repair: 2 s}, {replica: 1, at: 3 s, repair: 4 s}]}\n"
    )
    derived(toy, "d", "toy.yaml", faults)
    loaded = load("d.yaml", (), ["deployment.faults.1.at=9 s"])
    assert [fault.at for fault in loaded.scenario.deployment.faults] == [1.0, 9.0]
    assert loaded.origins["deployment.faults.1.at"] == "--set"
    assert loaded.origins["deployment.faults.0.at"] == "d.yaml:4"


def test_null_removes(toy: Path) -> None:
    assert load("toy.yaml", (), ["targets.tpot=null"]).scenario.targets.tpot is None


def test_the_seed_option(toy: Path) -> None:
    loaded = load("toy.yaml", seed=17)
    assert (loaded.scenario.run.seed, loaded.origins["run.seed"]) == (17, "--seed")
    with pytest.raises(SpecError, match=r"run\.seed: expected it once"):
        load("toy.yaml", (), ["run.seed=3"], seed=17)


# -- references -------------------------------------------------------------------------------------------------


def test_overrides_under_from(toy: Path) -> None:
    body = "traffic: {from: traffic.yaml, lengths: {output: 32}}\nmodel: {from: model.yaml, name: mine}\n"
    derived(toy, "d", "toy.yaml", body)
    loaded = load("d.yaml")
    assert (loaded.scenario.traffic.lengths.input, loaded.scenario.traffic.lengths.output) == (128, 32)
    assert loaded.scenario.model.name == "mine"
    assert loaded.origins["traffic.lengths.input"] == "traffic.yaml:4"
    assert loaded.origins["traffic.lengths.output"] == "d.yaml:4"


def test_a_whole_entry_in_place(toy: Path) -> None:
    inline = "traffic:\n  kind: traffic\n  name: inline\n" + "".join(
        f"  {line}\n" for line in (toy / "traffic.yaml").read_text().splitlines()[2:]
    )
    derived(toy, "d", "toy.yaml", inline)
    assert load("d.yaml").scenario.traffic.name == "inline"


def test_another_device_on_the_same_node(toy: Path) -> None:
    scenario = load("toy.yaml", (), ["device=h100-sxm"]).scenario
    assert (scenario.device.name, scenario.node.name, scenario.node.device) == (
        "h100-sxm",
        "toy-4",
        "h100-sxm",
    )


@pytest.mark.parametrize(
    ("reference", "name", "nodes", "device"),
    [
        ("dgx-h100", "dgx-h100", 1, "h100-sxm"),
        ("3x dgx-h100", "3x dgx-h100", 3, "h100-sxm"),
        ("h100-2", "h100-2", 2, "h100-sxm"),
        ("node.yaml", "toy-4", 1, "toy"),
    ],
)
def test_a_cluster_may_be_a_node_or_several(
    toy: Path, reference: str, name: str, nodes: int, device: str
) -> None:
    scenario = load("toy.yaml", (), [f"cluster={reference}"]).scenario
    assert (scenario.cluster.name, scenario.cluster.nodes, scenario.device.name) == (name, nodes, device)
    if reference != "node.yaml":
        from moesim.spec.topology import resolve_cluster

        assert scenario.topology() == resolve_cluster(reference)  # one meaning, wherever it is written


def test_a_trace_path_is_kept_beside_the_file_that_names_it(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(toy, "t.csv", "arrival,input_tokens,output_tokens\n0,10,5\n1,20,5\n")
    write(toy, "traced.yaml", (
        "kind: traffic\nname: traced\narrivals: {kind: trace}\nlengths: {kind: trace}\n"
        "trace: {format: generic, path: t.csv}\n"))  # fmt: skip
    derived(toy, "d", "toy.yaml", "traffic: traced.yaml\nrun: {requests: null}\n")
    (toy / "sub").mkdir()
    monkeypatch.chdir(toy / "sub")
    assert load("../d.yaml").scenario.traffic.trace.path == str(toy.resolve() / "t.csv")


# -- origins ----------------------------------------------------------------------------------------------------


def resolved_scalars(data: object, key: str = "") -> list[str]:
    if isinstance(data, dict):
        return [
            k
            for name, child in data.items()
            for k in resolved_scalars(child, f"{key}.{name}" if key else name)
        ]
    if isinstance(data, list):
        return [k for i, child in enumerate(data) for k in resolved_scalars(child, f"{key}.{i}")]
    return [key]


def test_every_value_has_an_origin(toy: Path) -> None:
    loaded = load("toy.yaml", ["fast", "busy"], ["run.requests=70"], seed=2)
    keys = resolved_scalars(loaded.scenario.model_dump(mode="json"))
    assert len(keys) > 120
    for key in keys:
        steps = key.split(".")
        assert any(".".join(steps[:end]) in loaded.origins for end in range(len(steps), 0, -1)), key


@pytest.mark.parametrize(
    ("key", "origin"),
    [
        ("run.requests", "--set"),
        ("run.seed", "--seed"),
        ("run.warmup", "default"),
        ("device.memory.hbm.bandwidth", "variant fast (toy.yaml:17)"),
        ("device.memory.hbm.capacity", "device.yaml:8"),
        ("traffic.arrivals.rate", "variant busy (toy.yaml:21)"),
        ("deployment.serve.parallelism.tp", "toy.yaml:10"),
        ("cluster.nodes", "cluster.yaml:4"),
        ("model.layers.0.layers", "model.yaml:13"),
        ("model.layers.0.layers.0.1", "model.yaml:13"),
    ],
)
def test_origins_name_the_line(toy: Path, key: str, origin: str) -> None:
    loaded = load("toy.yaml", ["fast", "busy"], ["run.requests=70"], seed=2)
    assert origin_of(loaded.origins, key) == origin


def test_catalog_values_say_so(toy: Path) -> None:
    origins = load("toy.yaml", (), ["cluster=dgx-h100"]).origins
    assert origins["device.compute.peaks.bf16"].startswith("catalog hardware/devices/h100-sxm.yaml:")
    assert origins["cluster.node"] == "--set"


# -- the resolved scenario --------------------------------------------------------------------------------------


def test_a_resolved_scenario_reads_back_equal(toy: Path) -> None:
    scenario = load("toy.yaml", ["fast"]).scenario
    again = ScenarioSpec.model_validate(scenario.model_dump(mode="json"))
    assert again == scenario
    assert content_hash(again) == content_hash(scenario)


def test_the_hash_follows_content_not_files(toy: Path) -> None:
    plain = load("toy.yaml").scenario
    derived(toy, "copy", "toy.yaml", "")
    assert content_hash(load("copy.yaml", (), ["name=toy"]).scenario) == content_hash(plain)
    assert content_hash(load("toy.yaml", seed=1).scenario) != content_hash(plain)


def test_all_problems_at_once_each_at_its_own_file(toy: Path) -> None:
    write(toy, "device.yaml", (toy / "device.yaml").read_text().replace("2 TB/s", "2 Tb/s"))
    write(toy, "toy.yaml", (toy / "toy.yaml").read_text().replace("requests: 50", "request: 50"))
    with pytest.raises(SpecError) as caught:
        load("toy.yaml", (), ["model=nothing-like-it", "targets.percentile=100"])
    text = str(caught.value).splitlines()
    assert len(text) == 4
    assert text[0] == "toy.yaml:13  run.request: unknown key, did you mean 'requests'?"
    assert any(line.startswith("--set  model  'nothing-like-it': no model") for line in text)
    assert any(line.startswith("--set  targets.percentile  100: ") for line in text)
    assert any(line.startswith("device.yaml:8  device.memory.hbm.bandwidth  '2 Tb/s': ") for line in text)
