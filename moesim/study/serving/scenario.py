"""Scenario: a measured run as a question to the simulator: model, hardware, engine, precision, traffic."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import ValidationError

from moesim.calibrate.silicon.tables import systems_folder
from moesim.errors import DataMissing, SpecError
from moesim.spec.deployment import Deployment, Parallelism, Pool, PrecisionChoice, Run, Speculation
from moesim.spec.huggingface import load_config
from moesim.spec.model import ModelSpec, MoeFfn
from moesim.spec.routing import RoutingSpec
from moesim.spec.scenario import ScenarioSpec
from moesim.spec.topology import Topology, resolve_cluster, single_node_cluster
from moesim.spec.traffic import ClosedLoop, TrafficSpec, UniformRange
from moesim.study.serving.engines import EngineRule, EngineRules, engine_of, rule_of
from moesim.study.serving.rows import ServingRow, Shape

__all__ = [
    "CHECKPOINTS",
    "NODES",
    "Checkpoint",
    "architecture_of",
    "checkpoint_of",
    "model_of",
    "routing_of",
    "scenario_of",
    "skewed",
    "topology_of",
]

NODES: dict[str, str] = {
    "h100_sxm": "dgx-h100",
    "h200_sxm": "dgx-h200",
    "b200_sxm": "dgx-b200",
    "b300_sxm": "dgx-b300",
    "gb200": "gb200-nvl72",
    "gb300": "gb300-nvl72",
}
"""Package's name of a system -> node of the catalog."""
SKEW = 0.7
"""Zipf exponent of the experts' popularity, see ``skewed``."""
_ORDERS = 4
"""Layers whose experts are popular in different orders."""
_MOST_REQUESTS, _FEWEST_PER_SLOT = 24_576, 3
"""Bounds on replayed requests: the mean over thousands of slots needs no tenth request of each."""
_BLACKWELL = ("b200", "b300", "gb200", "gb300")


class Checkpoint(NamedTuple):
    """Weights that ran: the config they come from, and what the run stored or computed otherwise.

    Attributes
    ----------
    config : stem of a file in the package's ``model_configs``
    weights, activations : types where they differ from the config's
    static_scales : FP8 inputs have their scales in the checkpoint (ModelOpt), none is computed while serving
    """

    config: str
    weights: str | None = None
    activations: str | None = None
    static_scales: bool = False


CHECKPOINTS: dict[tuple[str, str], Checkpoint] = {
    ("meta-llama/Meta-Llama-3.1-70B", "fp8"): Checkpoint(
        "nvidia--Llama-3.1-70B-Instruct-FP8", static_scales=True
    ),
    ("meta-llama/Meta-Llama-3.1-70B", "fp4"): Checkpoint("meta-llama--Meta-Llama-3.1-70B", "nvfp4", "fp4"),
    ("meta-llama/Meta-Llama-3.1-8B", ""): Checkpoint("meta-llama--Meta-Llama-3.1-8B"),
    ("meta-llama/Meta-Llama-3.1-8B", "fp8"): Checkpoint(
        "meta-llama--Meta-Llama-3.1-8B", "fp8", "fp8", static_scales=True
    ),
    ("Qwen/Qwen3-32B", ""): Checkpoint("Qwen--Qwen3-32B"),
    ("Qwen/Qwen3-32B", "fp8"): Checkpoint("Qwen--Qwen3-32B-FP8-Static-PerTensor"),
    ("Qwen/Qwen3-32B", "fp4"): Checkpoint("Qwen--Qwen3-32B", "nvfp4", "fp4"),
    ("Qwen/Qwen3-235B-A22B-FP8", "fp8"): Checkpoint("Qwen--Qwen3-235B-A22B-FP8"),
    ("Qwen/Qwen3.5-397B-A17B", "bf16"): Checkpoint("Qwen--Qwen3.5-397B-A17B"),
    ("Qwen/Qwen3.5-397B-A17B", "fp8"): Checkpoint("Qwen--Qwen3.5-397B-A17B", "fp8_block", "fp8"),
    ("Qwen/Qwen3.5-397B-A17B", "fp4"): Checkpoint("nvidia--Qwen3.5-397B-A17B-NVFP4"),
    ("deepseek-ai/DeepSeek-R1", "fp8"): Checkpoint("deepseek-ai--DeepSeek-R1"),
    ("deepseek-ai/DeepSeek-R1", "fp4"): Checkpoint("nvidia--DeepSeek-V3.1-NVFP4"),
    ("deepseek-ai/DeepSeek-V3.1", "fp4"): Checkpoint("nvidia--DeepSeek-V3.1-NVFP4"),
    ("moonshotai/Kimi-K2.5", "int4"): Checkpoint("moonshotai--Kimi-K2.5"),
    ("moonshotai/Kimi-K2.5", "fp4"): Checkpoint("nvidia--Kimi-K2.5-NVFP4"),
    ("MiniMaxAI/MiniMax-M2.5", "fp8"): Checkpoint("MiniMaxAI--MiniMax-M2.5"),
    ("MiniMaxAI/MiniMax-M2.5", "fp4"): Checkpoint("nvidia--MiniMax-M2.5-NVFP4"),
    ("openai/gpt-oss-120b", "fp4"): Checkpoint("openai--gpt-oss-120b"),
    ("openai/gpt-oss-120b", "fp8"): Checkpoint("openai--gpt-oss-120b"),
    ("zai-org/GLM-5", "fp8"): Checkpoint("zai-org--GLM-5-FP8"),
    ("zai-org/GLM-5", "fp4"): Checkpoint("nvidia--GLM-5-NVFP4"),
}
"""(network, precision of the run) -> weights (repair R5). NVFP4 copies of DeepSeek-R1 have V3.1's config."""


def checkpoint_of(row: ServingRow) -> Checkpoint:
    """Return the weights that a run used.

    Raises
    ------
    SpecError : the network and precision are not known
    """
    found = CHECKPOINTS.get((row.model, row.precision))
    if found is None:
        raise SpecError(
            f"{row.id}: no checkpoint of {row.model} in precision {row.precision or 'not stated'!r}"
        )
    if (row.model, row.precision, row.gemm) == ("meta-llama/Meta-Llama-3.1-8B", "fp8", "fp8_block"):
        return found._replace(weights="fp8_block")  # the gap analysis says which fp8; no checkpoint does
    if row.model == "openai/gpt-oss-120b" and row.system.startswith(_BLACKWELL):
        return found._replace(activations="fp8")  # R6
    return found


@cache
def model_of(config: str) -> ModelSpec:
    """Return a network from the package's own ``config.json``, imported as a user would.

    Raises
    ------
    DataMissing : the package has no such config
    SpecError : the importer refuses it
    """
    path = Path(systems_folder()).parent / "model_configs" / f"{config}_config.json"
    if not path.is_file():
        raise DataMissing(f"the installed extra has no config {config}")
    return load_config(path)


@cache
def skewed(experts: int, exponent: float = SKEW) -> RoutingSpec:
    """Return a popularity of ``experts`` like that of recorded routers, the same for every model.

    No measured serving run has a say in it. With one token of each of 8 to 32 sequences, gpt-oss-20b touches as many
    distinct experts in a layer as Zipf weights with exponent 0.8 to 1.0 do, DeepSeek-V2-Lite as with 0.6 to 0.7.
    """
    draws = np.random.default_rng(0)
    order = [draws.permutation(experts).tolist() for _ in range(_ORDERS)]
    return RoutingSpec.model_validate(
        {
            "kind": "routing",
            "name": f"zipf-{exponent:g}",
            "router": {"kind": "popularity", "zipf": exponent, "order": order},
            "sources": [
                {
                    "fields": ["*"],
                    "cite": "distinct experts in recorded routing of gpt-oss-20b (ExpertFingerprinting) and "
                    "DeepSeek-V2-Lite (ESFT), the middle of both",
                }
            ],
        }
    )


def routing_of(row: ServingRow) -> RoutingSpec | None:
    """Return the popularity of a run's experts, None for a network without experts."""
    if row.dense:
        return None
    ffns = model_of(checkpoint_of(row).config).ffns.values()
    return skewed(max(ffn.experts for ffn in ffns if isinstance(ffn, MoeFfn)))


@cache
def topology_of(system: str, devices: int = 1) -> Topology:
    """Return as many nodes of a system as hold ``devices``, on a fabric without contention.

    Raises
    ------
    SpecError : a system without a node in the catalog
    """
    if system not in NODES:
        raise SpecError(f"{system}: no node of the catalog stands for it, known: {', '.join(NODES)}")
    one = single_node_cluster(NODES[system])
    nodes = -(-devices // one.devices)
    return one if nodes == 1 else resolve_cluster(f"{nodes}x {NODES[system]}")


def architecture_of(system: str) -> str:
    """Return the generation of a system's devices, as the catalog calls it.

    Raises
    ------
    SpecError : a system without a node in the catalog
    """
    return topology_of(system).device.architecture


def scenario_of(
    row: ServingRow,
    *,
    seed: int = 0,
    routing: RoutingSpec | None = None,
    rules: EngineRules | None = None,
    speculation: Speculation | None = None,
) -> ScenarioSpec:
    """Return a measured run as a scenario.

    Closed loop: all slots are filled at time 0, and ten requests per slot are measured. InferenceMAX's client waits
    for its warm-up to finish before it starts, so the burst of the start is measured too; lengths are uniform in
    80-100 % of nominal. What other clients did, the rules say.

    Raises
    ------
    SpecError : the run is left out, its checkpoint or system is not known, or its parts do not fit
    DataMissing : the extra is not installed
    """
    if row.left_out:
        raise SpecError(f"{row.id}: {row.left_out}")
    chosen = checkpoint_of(row)
    rule = rule_of(row, rules, row.shape or row.decode)
    shapes = [shape for shape in (row.shape, row.prefill, row.decode) if shape is not None]
    topology = topology_of(row.system, sum(shape.devices * shape.replicas for shape in shapes))
    precision = {"weights": chosen.weights, "activations": chosen.activations, "kv_cache": rule.kv_cache}
    try:
        return ScenarioSpec(
            kind="scenario",
            name="serving-row",
            cluster=topology.cluster,
            node=topology.node,
            device=topology.device,
            model=model_of(chosen.config),
            traffic=_traffic(row, rule),
            routing=routing,
            deployment=Deployment(
                **_pools(row, rules),
                speculation=speculation,
                precision=PrecisionChoice(**{key: value for key, value in precision.items() if value}),
            ),
            run=Run(seed=seed, timeline_points=2),
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise SpecError(f"{row.id}: {first['msg']}") from None


def _traffic(row: ServingRow, rule: EngineRule) -> TrafficSpec:
    per_slot = max(min(rule.requests_per_slot, _MOST_REQUESTS // row.concurrency), _FEWEST_PER_SLOT)
    return TrafficSpec(
        kind="traffic",
        name="serving-row",
        arrivals=ClosedLoop(
            concurrency=row.concurrency, requests_per_slot=per_slot, warmup_per_slot=rule.warmup_per_slot
        ),
        lengths=UniformRange(input=row.isl, output=row.osl, range_ratio=rule.range_ratio),
    )


def _pools(row: ServingRow, rules: EngineRules | None) -> dict[str, Pool]:
    if row.shape is not None:
        return {"serve": _pool(row, row.shape, row.concurrency, 1, rules)}
    pools = {}
    for name, shape in (("prefill", row.prefill), ("decode", row.decode)):
        assert shape is not None  # rows without are left out
        share = -(-row.concurrency // shape.replicas)
        pools[name] = _pool(row, shape, share, shape.replicas, rules)
    return pools


def _pool(row: ServingRow, shape: Shape, concurrency: int, replicas: int, rules: EngineRules | None) -> Pool:
    rule = rule_of(row, rules, shape)
    return Pool(
        replicas=replicas,
        parallelism=Parallelism(tp=shape.tp, pp=shape.pp, dp=shape.dp, ep=shape.ep),
        engine=engine_of(row, rule, shape, concurrency),
    )
