"""Deliberate mistakes, each with the one line that moesim answers. ``python tests/cli/mistakes.py`` prints a table.

The golden lines are what users read; a change here is a change of the user interface.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scenario"))

from toy_world import FILES, build

TOY = FILES["toy.yaml"]


@dataclass(frozen=True)
class Mistake:
    """One mistake.

    Attributes
    ----------
    name : what is wrong
    line : the one line on stderr; ``{here}`` is the folder, and a line that ends in a blank may go on
    files : files that differ from the toy world's
    args : command line
    code : exit code
    """

    name: str
    line: str
    files: dict[str, str | bytes] = field(default_factory=dict)
    args: tuple[str, ...] = ("show", "toy.yaml")
    code: int = 2


def toy(old: str, new: str) -> dict[str, str | bytes]:
    assert old in TOY, old
    return {"toy.yaml": TOY.replace(old, new)}


def other(name: str, old: str, new: str) -> dict[str, str | bytes]:
    assert old in FILES[name], old
    return {name: FILES[name].replace(old, new)}


def sets(*options: str) -> tuple[str, ...]:
    return ("show", "toy.yaml", *(part for option in options for part in ("--set", option)))


MISTAKES = (
    Mistake(
        "unknown key",
        "toy.yaml:13  run.request: unknown key, did you mean 'requests'?",
        toy("run: {requests: 50}", "run: {requests: 50, request: 50}"),
    ),
    Mistake(
        "missing unit",
        "device.yaml:8  device.memory.hbm.bandwidth  2000000000000.0: expected bytes per second, such as "
        "'3.35 TB/s'; a bare value has no unit",
        other("device.yaml", "2 TB/s", "2.0e12"),
    ),
    Mistake(
        "wrong dimension",
        "device.yaml:8  device.memory.hbm.bandwidth  '2 TFLOP/s': expected bytes per second, such as '3.35 TB/s' "
        "(the unit 'TFLOP/s' does not fit)",
        other("device.yaml", "2 TB/s", "2 TFLOP/s"),
    ),
    Mistake(
        "bits where bytes are due",
        "device.yaml:8  device.memory.hbm.bandwidth  '2 Tb/s': expected bytes per second, such as '3.35 TB/s' "
        "(the unit 'Tb/s' does not fit)",
        other("device.yaml", "2 TB/s", "2 Tb/s"),
    ),
    Mistake(
        "duplicate key",
        "toy.yaml:14  run: expected one value, the key already stands on line 13",
        toy("run: {requests: 50}\n", "run: {requests: 50}\nrun: {requests: 60}\n"),
    ),
    Mistake("missing file", "nowhere.yaml: no such scenario file", args=("show", "nowhere.yaml")),
    Mistake(
        "missing file in a reference",
        "toy.yaml:5  model  'gone.yaml': no such file",
        toy("model: model.yaml", "model: gone.yaml"),
    ),
    Mistake(
        "unknown scenario",
        "quickstrat: no scenario of that name in the catalog, did you mean 'quickstart'? (moesim list scenarios)",
        args=("run", "quickstrat"),
    ),
    Mistake(
        "cycle in extends",
        "b.yaml:2  extends  'toy.yaml': the files extend each other in a circle: toy.yaml -> b.yaml -> toy.yaml",
        {
            **toy("name: toy\n", "name: toy\nextends: b.yaml\n"),
            "b.yaml": "kind: scenario\nextends: toy.yaml\n",
        },
    ),
    Mistake(
        "huge trace line",
        "{here}/t.csv:3: expected lines of at most 1 MiB",
        {
            **toy("traffic: traffic.yaml", "traffic: traced.yaml"),
            "traced.yaml": "kind: traffic\nname: traced\narrivals: {kind: trace}\nlengths: {kind: trace}\n"
            "trace: {format: generic, path: t.csv}\n",
            "t.csv": b"arrival,input_tokens,output_tokens\n0,10,5\n" + b"9" * (1 << 21) + b"\n",
        },
        ("run", "toy.yaml"),
    ),
    Mistake(
        "negative tokens in a trace",
        "{here}/t.csv:3  output_tokens  '-5': expected tokens as a whole number, at least 0",
        {
            **toy("traffic: traffic.yaml", "traffic: traced.yaml"),
            "traced.yaml": "kind: traffic\nname: traced\narrivals: {kind: trace}\nlengths: {kind: trace}\n"
            "trace: {format: generic, path: t.csv}\n",
            "t.csv": "arrival,input_tokens,output_tokens\n0,10,5\n1,10,-5\n",
        },
        ("run", "toy.yaml"),
    ),
    Mistake(
        "negative rate",
        "traffic.yaml:3  traffic.arrivals.rate  '-20 request/s': expected positive requests per second, such as "
        "'6.45 request/s'",
        other("traffic.yaml", "20 request/s", "-20 request/s"),
    ),
    Mistake(
        "not a number",
        "toy.yaml:13  run.horizon  .nan: expected a finite number",
        toy("{requests: 50}", "{requests: 50, horizon: .nan}"),
    ),
    Mistake(
        "model that does not fit",
        "deepseek-v3 does not fit on toy: ",
        args=("run", "toy.yaml", "--set", "model=deepseek-v3"),
        code=3,
    ),
    Mistake(
        "unknown catalog name",
        "--set  model  'mixtral': no model of that name in the catalog, did you mean 'mixtral-8x7b'? "
        "(moesim list models)",
        args=sets("model=mixtral"),
    ),
    Mistake(
        "unknown cluster",
        "--set  cluster  'dgx-h1000': no cluster of that name in the catalog, did you mean 'dgx-h100'? "
        "(moesim list clusters)",
        args=sets("cluster=dgx-h1000"),
    ),
    Mistake(
        "two variants set one key",
        "toy.yaml:23  traffic.arrivals.rate: variants 'busy' and 'busier' both set it ('busy' on toy.yaml:21); "
        "choose one",
        args=("show", "toy.yaml", "--variant", "busy,busier"),
    ),
    Mistake(
        "unknown variant",
        "--variant  'fsat': no variant of that name, did you mean 'fast'? (known: fast, wide, busy, busier)",
        args=("show", "toy.yaml", "--variant", "fsat"),
    ),
    Mistake(
        "--set of an unknown key",
        "--set  deployment.serve.replica: unknown key, did you mean 'replicas'?",
        args=sets("deployment.serve.replica=4"),
    ),
    Mistake(
        "--set without a value",
        "--set  'run.requests': expected key=value, such as run.requests=2000",
        args=sets("run.requests"),
    ),
    Mistake(
        "one key set twice",
        "--set  run.requests: expected it once, another option sets this key too",
        args=sets("run.requests=1", "run.requests=2"),
    ),
    Mistake(
        "tp does not divide the heads",
        "--set  deployment.serve.parallelism.tp  3: must divide the 8 attention heads of tiny-moe",
        args=sets("deployment.serve.parallelism.tp=3", "deployment.serve.replicas=1"),
    ),
    Mistake(
        "ep does not divide the devices",
        "toy.yaml:10  deployment.serve.parallelism: ep 4 must divide tp * dp = 2",
        args=sets("deployment.serve.parallelism.ep=4"),
    ),
    Mistake(
        "more replicas than devices",
        "--set  deployment.serve.replicas: expected at most the 4 devices of cluster toy-cluster, got serve "
        "3 x 2 = 6",
        args=sets("deployment.serve.replicas=3"),
    ),
    Mistake(
        "bad YAML syntax",
        "toy.yaml:14: expected YAML: expected ',' or '}', but got ':'",
        toy("run: {requests: 50}", "run: {requests: 50"),
    ),
    Mistake(
        "tab indentation",
        "toy.yaml:9: expected YAML: ",
        toy("  serve:\n    replicas", "  serve:\n\treplicas"),
    ),
    Mistake("empty file", "toy.yaml: expected a YAML document, the file is empty", {"toy.yaml": ""}),
    Mistake(
        "a list, not a mapping",
        "toy.yaml:1: expected a mapping that describes a scenario",
        {"toy.yaml": "- 1\n"},
    ),
    Mistake("not text", "toy.yaml: expected UTF-8 text (byte 0 is not)", {"toy.yaml": b"\xff\xfe\x00"}),
    Mistake(
        "wrong kind",
        "model.yaml:1  kind  'modell': expected kind: model, as toy.yaml:5 names it for model",
        other("model.yaml", "kind: model\n", "kind: modell\n"),
    ),
    Mistake(
        "a device where a model is due",
        "device.yaml:1  kind  'device': expected kind: model, as toy.yaml:5 names it for model",
        toy("model: model.yaml", "model: device.yaml"),
    ),
    Mistake(
        "a dtype without a peak",
        "toy has no fp8 peak (it has bf16, fp16, fp32): choose another precision or device",
        args=(
            "run",
            "toy.yaml",
            "--set",
            "deployment.precision={weights: fp8, experts: fp8, activations: fp8}",
        ),
        code=3,
    ),
    Mistake(
        "neither pool shape",
        "toy.yaml:7  deployment: expected either 'serve', or both 'prefill' and 'decode'",
        toy("  serve:\n", "  decode:\n"),
    ),
    Mistake(
        "a run without an end",
        "toy.yaml:13  run: expected requests, horizon or both: without them the run does not end",
        toy("run: {requests: 50}", "run: {seed: 1}"),
    ),
    Mistake(
        "a fault of a replica that is not there",
        "--set  deployment.faults.0.replica  7: expected below 2, the replicas of pool serve",
        args=sets("deployment.faults=[{replica: 7, at: 1 s, repair: 1 s}]"),
    ),
    Mistake(
        "a cluster of nodes without a network",
        "cluster.yaml:1  cluster: a cluster of several nodes needs fabric.kind",
        other("cluster.yaml", "nodes: 1", "nodes: 2"),
    ),
    Mistake("no such run", "runs/none: no such run folder", args=("report", "runs/none")),
    Mistake(
        "unknown kind of file",
        "modle: no such kind of file, did you mean 'model'? (known: device, node, cluster, model, traffic, routing, "
        "placement, composition, scenario)",
        args=("schema", "modle"),
    ),
    Mistake(
        "output that is there already",
        "device.yaml: already there; --force replaces it",
        args=("run", "toy.yaml", "--out", "device.yaml"),
    ),
)


def prepare(folder: Path, mistake: Mistake) -> None:
    """Write the toy world with the mistake in it."""
    build(folder)
    for name, content in mistake.files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def table() -> str:
    """Run every mistake and return a Markdown table of what moesim answers."""
    from call import command

    rows = ["| mistake | answer |", "|---|---|"]
    here = Path.cwd()
    for mistake in MISTAKES:
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder), mistake)
            os.chdir(folder)
            try:
                answer = command(*mistake.args).err.strip().replace("|", "\\|")
                answer = answer.replace(f"{Path.cwd()}/", "")
            finally:
                os.chdir(here)
        rows.append(f"| {mistake.name} | `{answer}` |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table())
