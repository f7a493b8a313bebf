"""Engines: how the serving engine of a measured run was started, from rules that each name their source."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from moesim.errors import SpecError
from moesim.files import read_yaml
from moesim.spec.base import Spec, validate
from moesim.spec.deployment import Engine
from moesim.study.serving.rows import ServingRow, Shape

__all__ = ["EngineRule", "EngineRules", "Setting", "engine_of", "load_rules", "rule_of"]

Setting = Literal["concurrency", "model_length", "prompt_and_batch", "prompt_and_batch_8k"]
_LENGTH_MARGIN = 256
"""InferenceMAX gives the model 200 tokens more than prompt and output; rounded to whole blocks."""
_BLOCK = {"vllm": 16, "sglang": 1, "trtllm": 32}
"""Tokens of a KV block (page) by default."""


class Match(Spec):
    """Which runs a rule is for; an absent key matches all."""

    backend: Literal["vllm", "sglang", "trtllm"]
    client: Literal["inferencemax", "aiperf"] | None = None
    models: tuple[str, ...] = ()
    systems: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()
    """Prefixes of the engine's version."""
    tp: tuple[PositiveInt, ...] = ()


class When(Spec):
    """Runs that an engine waits in, of those that the rule matches."""

    isl: PositiveInt | None = None
    osl: PositiveInt | None = None
    tp_below: PositiveInt | None = None
    concurrency_from: NonNegativeInt = 0
    concurrency_below: PositiveInt | None = None


class RuleSource(Spec):
    """Where the settings were read."""

    cite: str
    url: str = ""
    note: str = ""


class EngineRule(Spec):
    """Settings of the runs that match."""

    match: Match
    max_num_seqs: PositiveInt | Literal["concurrency"]
    max_num_batched_tokens: PositiveInt | Literal["model_length", "prompt_and_batch", "prompt_and_batch_8k"]
    """``prompt_and_batch``: (concurrency + isl + 127) in whole 64s; ``_8k``: 8192 at least."""
    memory: Annotated[float, Field(gt=0, le=1)]
    kv_cache: Literal["bf16", "fp8"] | None = None
    block_tokens: PositiveInt | None = None
    moe_backend: Literal["auto", "trtllm", "cutlass", "deepgemm", "triton", "marlin"] = "auto"
    """Kernels of the experts, without attention data parallelism."""
    async_scheduling: bool = False
    """A step is chosen while the one before it runs, which hides the host's time (vLLM: default since 0.14)."""
    poll_steps: PositiveInt | Literal["by_concurrency"] = 1
    """Decode steps between two looks at the queue; ``by_concurrency``: 30 from 16 requests in flight on, else 10."""
    wait_steps: NonNegativeInt = 0
    """Decode steps that new prompts wait for company, at most."""
    wait_fill: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of ``max_num_batched_tokens`` that ends the wait."""
    wait_when: When = When()
    requests_per_slot: PositiveInt = 10
    warmup_per_slot: NonNegativeInt = 0
    """Requests per slot left out before the measured ones, without a pause between them: the measured ones find a
    system in steady state. A client that waits for its warm-up to end has 0."""
    range_ratio: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Shortest over nominal length, input and output uniform in between (1: all alike, and in lock-step)."""
    source: RuleSource


class EngineRules(Spec):
    """All rules, first match wins."""

    kind: Literal["engines"]
    rules: tuple[EngineRule, ...] = Field(min_length=1)


@cache
def load_rules(path: Path | None = None) -> EngineRules:
    """Read the rules; by default those that ship with moesim.

    Raises
    ------
    SpecError : the file is wrong
    """
    where = path or Path(__file__).with_name("engines.yaml")
    return validate(EngineRules, read_yaml(where, where.name))


def rule_of(row: ServingRow, rules: EngineRules | None = None, shape: Shape | None = None) -> EngineRule:
    """Return the first rule that matches a run.

    Parameters
    ----------
    shape : the worker asked about; by default the run's own, of an aggregated run

    Raises
    ------
    SpecError : none matches
    """
    for rule in (rules or load_rules()).rules:
        if _matches(rule.match, row, shape or row.shape):
            return rule
    raise SpecError(f"{row.id}: no engine rule for {row.backend}")


def engine_of(row: ServingRow, rule: EngineRule, shape: Shape, concurrency: int) -> Engine:
    """Return the engine of one worker.

    Parameters
    ----------
    concurrency : requests in flight at one worker
    """
    # where a script states fewer sequences than the sweep later sent, the limit was raised with the sweep
    sequences = concurrency if rule.max_num_seqs == "concurrency" else max(rule.max_num_seqs, concurrency)
    tokens = _tokens(row, rule, concurrency)
    sequences = min(sequences, tokens)
    block = rule.block_tokens or _BLOCK[rule.match.backend]
    return Engine(
        flavor=rule.match.backend,
        max_num_seqs=sequences,
        max_num_batched_tokens=tokens,
        prefill_first=row.backend == "sglang",
        async_scheduling=rule.async_scheduling,
        block_tokens=block,
        gpu_memory_utilization=rule.memory,
        max_model_len=row.isl + row.osl + _LENGTH_MARGIN,
        moe_backend="auto" if shape.dp > 1 else rule.moe_backend,
        **_waiting(row, rule, shape, concurrency),
    )


def _waiting(row: ServingRow, rule: EngineRule, shape: Shape, concurrency: int) -> dict[str, float | int]:
    """Return how long new prompts wait before they are looked at."""
    found: dict[str, float | int] = {}
    if rule.poll_steps == "by_concurrency":
        found["poll_steps"] = 30 if concurrency >= 16 else 10
    elif rule.poll_steps > 1:
        found["poll_steps"] = rule.poll_steps
    when = rule.wait_when
    waits = (
        (when.isl is None or row.isl == when.isl)
        and (when.osl is None or row.osl == when.osl)
        and (when.tp_below is None or shape.tp < when.tp_below)
        and concurrency >= when.concurrency_from
        and (when.concurrency_below is None or concurrency < when.concurrency_below)
    )
    if rule.wait_steps and waits:
        found |= {"wait_steps": rule.wait_steps, "wait_fill": rule.wait_fill}
    return found


def _tokens(row: ServingRow, rule: EngineRule, concurrency: int) -> int:
    stated = rule.max_num_batched_tokens
    if isinstance(stated, int):
        return stated
    if stated == "model_length":
        return row.isl + row.osl + _LENGTH_MARGIN
    fitted = (concurrency + row.isl + 127) // 64 * 64
    return max(fitted, 8192) if stated == "prompt_and_batch_8k" else fitted


def _matches(match: Match, row: ServingRow, shape: Shape | None) -> bool:
    pairs = (
        (match.models, row.model),
        (match.systems, row.system),
        (match.precisions, row.precision),
        (match.tp, shape.tp if shape is not None else 0),
    )
    if match.backend != row.backend or match.client not in {None, row.client}:
        return False
    if match.versions and not any(row.version.startswith(version) for version in match.versions):
        return False
    return all(not wanted or value in wanted for wanted, value in pairs)
