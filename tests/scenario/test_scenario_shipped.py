"""What ships: every file lints, scenarios resolve to themselves, and the schemas describe them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moesim.files import CATALOG, catalog_names, catalog_root, find, read_yaml
from moesim.scenario import KINDS, json_schema, lint, load, variant_names

SCENARIOS = catalog_names("scenario")
FILES = [(kind, name) for kind in CATALOG for name in catalog_names(kind)]


def test_there_is_something_to_check() -> None:
    assert {"quickstart", "bench/azure-100k", "deepseek-v3-h200", "disaggregated", "closed-loop", "faults",
            "speculative"} <= set(SCENARIOS)  # fmt: skip
    assert len(FILES) > 100


def test_every_shipped_file_lints() -> None:
    from moesim.api import fits

    report = lint([], check=fits)
    assert [str(problem) for problem in report.problems] == []
    assert len(report.files) == len(FILES)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_asks_a_question_and_every_variant_says_what_it_is_about(name: str) -> None:
    scenario = load(name).scenario
    assert scenario.question.endswith("?")
    assert scenario.title
    assert scenario.name == name.rsplit("/", 1)[-1]
    assert all(variant_names(name).values()), variant_names(name)


def test_the_simulator_benchmark_is_the_published_workload() -> None:
    scenario = load("bench/azure-100k").scenario
    pool = scenario.deployment.serve
    assert pool is not None
    assert scenario.traffic.arrivals.kind == "poisson"
    assert scenario.traffic.arrivals.rate / pool.replicas == pytest.approx(6.45)
    assert (scenario.model.name, scenario.device.name, pool.replicas, pool.parallelism.devices) == (
        "llama-3-8b", "a100-80-sxm", 8, 1)  # fmt: skip
    assert (pool.engine.max_num_seqs, pool.engine.max_num_batched_tokens, pool.engine.chunked_prefill) == (
        128, 512, True)  # fmt: skip
    assert (scenario.traffic.clip.total, scenario.run.requests) == (4096, 100_000)


# -- schemas ----------------------------------------------------------------------------------------------------
# A small checker of the keywords our schemas use: no library of this size is worth a dependency.


def violations(schema: dict[str, Any], data: Any, root: dict[str, Any], path: str = "") -> list[str]:
    if "$ref" in schema:
        return violations(root["$defs"][schema["$ref"].rsplit("/", 1)[-1]], data, root, path)
    for word in ("anyOf", "oneOf"):
        if word in schema:
            options = [violations(option, data, root, path) for option in schema[word]]
            return (
                [] if any(not found for found in options) else [line for found in options for line in found]
            )
    if "type" in schema and not has_type(data, schema["type"]):
        return [f"{path}: {data!r} is no {schema['type']}"]
    if "const" in schema and data != schema["const"]:
        return [f"{path}: {data!r} is not {schema['const']!r}"]
    if "enum" in schema and data not in schema["enum"]:
        return [f"{path}: {data!r} is not in {schema['enum']}"]
    return [line for part in parts(schema, data, root, path) for line in part]


def has_type(data: Any, name: str) -> bool:
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
             "null": type(None)}  # fmt: skip
    if isinstance(data, bool):
        return name == "boolean"
    return isinstance(data, kinds[name]) or (
        name == "integer" and isinstance(data, float) and data.is_integer()
    )


def parts(schema: dict[str, Any], data: Any, root: dict[str, Any], path: str) -> Iterator[list[str]]:
    if isinstance(data, dict):
        known, extra = schema.get("properties", {}), schema.get("additionalProperties", True)
        yield [f"{path}.{name}: missing" for name in schema.get("required", ()) if name not in data]
        for name, child in data.items():
            rule = known.get(name, extra)
            yield (
                [f"{path}.{name}: unknown"]
                if rule is False
                else (violations(rule, child, root, f"{path}.{name}") if isinstance(rule, dict) else [])
            )
    if isinstance(data, list):
        first = schema.get("prefixItems", [])
        for index, child in enumerate(data):
            rule = first[index] if index < len(first) else schema.get("items")
            yield violations(rule, child, root, f"{path}.{index}") if isinstance(rule, dict) else []


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_the_schema_accepts_every_shipped_file(kind: str, name: str) -> None:
    schema = json_schema(kind)
    assert violations(schema, read_yaml(find(name, kind)).data, schema) == []


@pytest.mark.parametrize(
    ("data", "where"),
    [
        ({"kind": "scenario", "runs": {}}, ".runs: unknown"),
        ({"kind": "scenario", "run": {"request": 3}}, ".run.request: unknown"),
        ({"kind": "scenario", "run": {"requests": "many"}}, ".run.requests: 'many' is no integer"),
        ({"kind": "scenarios"}, ".kind: 'scenarios' is not 'scenario'"),
        ({"name": "x"}, ".kind: missing"),
        ({"kind": "scenario", "model": {"from": "x", "hiden": 1}}, ".model.hiden: unknown"),
        ({"kind": "scenario", "variants": {"a": {"extends": "b"}}}, ".variants.a.extends: unknown"),
    ],
)
def test_the_schema_refuses(data: dict[str, Any], where: str) -> None:
    schema = json_schema("scenario")
    assert where in "\n".join(violations(schema, data, schema))


def test_jsonschema_agrees() -> None:
    validator = pytest.importorskip("jsonschema", reason="jsonschema is not installed").Draft202012Validator
    for kind in KINDS:
        validator.check_schema(json_schema(kind))
    for kind, name in FILES:
        validator(json_schema(kind)).validate(json.loads(json.dumps(read_yaml(find(name, kind)).data)))


def test_fields_are_described() -> None:
    """Editors show attribute docstrings."""
    schema = json_schema("scenario")
    assert schema["$defs"]["Engine"]["properties"]["max_num_seqs"]["description"].startswith("Most sequences")
    assert schema["properties"]["extends"]["description"]


# -- lint -------------------------------------------------------------------------------------------------------


def test_lint_reports_every_file_and_variant(toy: Path) -> None:
    (toy / "device.yaml").write_text((toy / "device.yaml").read_text().replace("units: 4", "units: four"))
    (toy / "odd.yaml").write_text("kind: gadget\n")
    problems = [str(problem) for problem in lint(["."]).problems]
    assert any(p.startswith("device.yaml:6  compute.units  'four': ") for p in problems)
    assert any(p.startswith("odd.yaml:1  kind  'gadget': expected kind: device, node") for p in problems)
    assert any(
        p.startswith("device.yaml:6  device.compute.units  'four'") for p in problems
    )  # through toy.yaml


def test_lint_checks_each_variant(toy: Path) -> None:
    (toy / "toy.yaml").write_text(
        (toy / "toy.yaml").read_text().replace("{tp: 4}, replicas: 1", "{tp: 5}, replicas: 1")
    )
    problems = [str(problem) for problem in lint(["toy.yaml"]).problems]
    line = "toy.yaml:19  deployment.serve.parallelism.tp  5: must divide the 8 attention heads of tiny-moe"
    assert line in problems


def test_lint_of_names_and_of_nothing_known(toy: Path) -> None:
    assert lint(["h100-sxm"]).files == ("hardware/devices/h100-sxm.yaml",)
    (toy / "empty").mkdir()
    assert [str(p) for p in lint(["h100-smx", "empty", "gone.yaml"]).problems] == [
        "h100-smx: no such file, folder or catalog name, did you mean 'h100-sxm'?",
        "empty: expected YAML files in this folder",
        "gone.yaml: no such file",
    ]


def test_the_catalog_root_is_found() -> None:
    assert (catalog_root() / "scenarios" / "quickstart.yaml").is_file()
