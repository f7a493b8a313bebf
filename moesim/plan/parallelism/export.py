"""Export: a pool as launch flags of vLLM and SGLang, checked for memory first.

Sources: ``vllm serve`` reference and "Expert Parallel Deployment" (docs.vllm.ai): ``--enable-expert-parallel`` spreads
experts over tensor x data parallel ranks, limits are those of one data parallel rank; ranks of an MoE model run in
lock-step. SGLang "Server Arguments" (docs.sglang.ai, commit 004813e1): ``--tp-size`` counts all devices of a stage,
``--dp-size`` with ``--enable-dp-attention`` divides them into attention ranks, and the server divides
``--chunked-prefill-size`` and ``--max-running-requests`` by ``--dp-size``.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moesim.cost.memory import memory_plan
from moesim.errors import NoResult
from moesim.spec.model import MoeFfn

if TYPE_CHECKING:
    from moesim.spec.deployment import Engine, Pool, PrecisionChoice
    from moesim.spec.model import ModelSpec
    from moesim.spec.topology import Topology

__all__ = ["LaunchFlags", "sglang_flags", "vllm_flags"]


@dataclass(frozen=True, slots=True)
class LaunchFlags:
    """A command for one replica.

    Attributes
    ----------
    command : program and arguments
    replicas : how many times to run it
    notes : what the command cannot say
    """

    command: tuple[str, ...]
    replicas: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return shlex.join(self.command)


def vllm_flags(
    model: ModelSpec,
    topology: Topology,
    pool: Pool,
    precision: PrecisionChoice | None = None,
    *,
    weights: str | None = None,
) -> LaunchFlags:
    """Return ``vllm serve`` for one replica of ``pool``.

    Parameters
    ----------
    weights : path or name of the checkpoint; by default the model's name here

    Raises
    ------
    NoResult : it does not fit, or vLLM cannot spread experts that way
    """
    memory_plan(model, topology, _as(pool, "vllm"), precision)
    cut, engine = pool.parallelism, pool.engine
    command = ["vllm", "serve", weights or model.name]
    command += _degree("--tensor-parallel-size", cut.tp) + _degree("--pipeline-parallel-size", cut.pp)
    command += _degree("--data-parallel-size", cut.dp)
    if cut.ep > 1:
        if cut.ep != cut.tp * cut.dp:
            raise NoResult(
                f"vLLM spreads experts over all {cut.tp * cut.dp} tensor x data parallel ranks, ep {cut.ep} has no flag"
            )
        command.append("--enable-expert-parallel")
    command += ["--max-num-seqs", str(engine.max_num_seqs)]
    command += ["--max-num-batched-tokens", str(engine.max_num_batched_tokens)]
    command += ["--gpu-memory-utilization", f"{engine.gpu_memory_utilization:g}"]
    command += ["--block-size", str(engine.block_tokens)]
    command += ["--max-model-len", str(engine.max_model_len)] if engine.max_model_len else []
    command.append("--enable-chunked-prefill" if engine.chunked_prefill else "--no-enable-chunked-prefill")
    command.append("--enable-prefix-caching" if engine.prefix_caching else "--no-enable-prefix-caching")
    command += ["--kv-cache-dtype", "fp8"] if _fp8_cache(precision) else []
    command += [] if engine.cuda_graphs else ["--enforce-eager"]
    command += ["--async-scheduling"] if engine.async_scheduling else []
    command += ["--scheduling-policy", "priority"] if engine.scheduling == "priority" else []
    notes = _dense_lanes(model, pool, "vLLM")
    return LaunchFlags(tuple(command), pool.replicas, notes)


def sglang_flags(
    model: ModelSpec,
    topology: Topology,
    pool: Pool,
    precision: PrecisionChoice | None = None,
    *,
    weights: str | None = None,
    side: str = "",
) -> LaunchFlags:
    """Return ``sglang.launch_server`` for one replica of ``pool``.

    Parameters
    ----------
    weights : path or name of the checkpoint; by default the model's name here
    side : ``prefill`` or ``decode`` of a disaggregated deployment

    Raises
    ------
    NoResult : it does not fit
    """
    memory_plan(model, topology, _as(pool, "sglang"), precision)
    cut, engine = pool.parallelism, pool.engine
    command = ["python", "-m", "sglang.launch_server", "--model-path", weights or model.name]
    command += _degree("--tp-size", cut.tp * cut.dp) + _degree("--pp-size", cut.pp)
    command += [*_degree("--dp-size", cut.dp), "--enable-dp-attention"] if cut.dp > 1 else []
    command += _degree("--ep-size", cut.ep)
    command += ["--max-running-requests", str(engine.max_num_seqs * cut.dp)]
    chunk = (engine.prefill_chunk or engine.max_num_batched_tokens) * cut.dp if engine.chunked_prefill else -1
    command += ["--chunked-prefill-size", str(chunk)]
    command += ["--mem-fraction-static", f"{engine.gpu_memory_utilization:g}"]
    command += ["--page-size", str(engine.block_tokens)]
    command += ["--context-length", str(engine.max_model_len)] if engine.max_model_len else []
    command += [] if engine.prefill_first else ["--enable-mixed-chunk"]
    command += [] if engine.prefix_caching else ["--disable-radix-cache"]
    command += ["--kv-cache-dtype", "fp8_e4m3"] if _fp8_cache(precision) else []
    command += [] if engine.cuda_graphs else ["--disable-cuda-graph"]
    command += ["--scheduler-recv-interval", str(engine.poll_steps)] if engine.poll_steps > 1 else []
    command += ["--disaggregation-mode", side] if side else []
    notes = _dense_lanes(model, pool, "SGLang")
    if not engine.prefix_caching and not engine.prefill_first and side == "":
        notes += ("--enable-mixed-chunk puts prefill and decode into one step, as the plan assumed",)
    return LaunchFlags(tuple(command), pool.replicas, notes)


def _degree(flag: str, value: int) -> list[str]:
    return [flag, str(value)] if value > 1 else []


def _fp8_cache(precision: PrecisionChoice | None) -> bool:
    return precision is not None and precision.kv_cache == "fp8"


def _as(pool: Pool, flavor: str) -> Pool:
    engine: Engine = pool.engine.model_copy(update={"flavor": flavor})
    return pool.model_copy(update={"engine": engine})


def _dense_lanes(model: ModelSpec, pool: Pool, engine: str) -> tuple[str, ...]:
    dense = not any(isinstance(ffn, MoeFfn) for ffn in model.ffns.values())
    if dense and pool.parallelism.dp > 1:
        return (
            f"{engine} runs data parallel ranks of a dense model apart: they need not wait for each other",
        )
    return ()
