"""Memory: what fits on a device beside the weights, counted as the serving engines count it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moesim.cost.footprint import activation_bytes, cache_share, stage_weight_bytes
from moesim.cost.layout import Layout
from moesim.errors import NoResult
from moesim.units import format_quantity

if TYPE_CHECKING:
    from moesim.spec.deployment import Engine, Pool, PrecisionChoice, Speculation
    from moesim.spec.model import ModelSpec
    from moesim.spec.topology import Topology

__all__ = ["MemoryPlan", "memory_plan", "usable_bytes"]

_GIB = float(1 << 30)
_DRIVER = 0.5 * _GIB
"""What a GPU driver keeps of the capacity it reports: the "total memory" of engine logs is less by 0.42 (RTX
3090), 0.44 (RTX 4090), 0.43 (H100) and 0.57 GiB (L40S) (vllm#14447, #13061, #12126, #15815)."""
_RESERVE = {
    # memory outside the framework's allocator: one device, several devices
    "vllm": (0.16 * _GIB, 0.30 * _GIB),  # vllm#12126 (H100, tp 1); vllm#15815 (L40S, tp 2)
    # context and communication buffers, gone before SGLang measures what is there: sgl-project/sglang#18263
    # (tp 1), SemiAnalysisAI/InferenceX#2128 (H200, tp 8: 137.9 of 140.4 GiB)
    "sglang": (0.8 * _GIB, 2.5 * _GIB),
    "trtllm": (0.16 * _GIB, 0.30 * _GIB),  # as vLLM: the same CUDA context and NCCL
}
_GRAPHS = 0.73 * _GIB
"""Captured graphs of the default 86 batch sizes, as vLLM estimates them (vllm#39559)."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes on the fullest device of a replica.

    Attributes
    ----------
    device_bytes : what the driver leaves of the device's main memory
    budget_bytes : what the engine may use of it
    weight_bytes, activation_bytes, graph_bytes, reserve_bytes : as named; those outside the budget are
        listed too
    kv_bytes : the pool for caches
    kv_bytes_per_token : of a sequence of ``sequence_tokens`` tokens, windows and recurrent state spread
        over them
    state_bytes_per_sequence : recurrent state alone
    sequence_tokens : length that the two lines above are counted at
    kv_blocks_per_lane : blocks of ``block_tokens`` tokens of each attention rank
    max_tokens : tokens that fit into one attention rank's cache
    notes : assumptions, one sentence each
    """

    device_bytes: float
    budget_bytes: float
    weight_bytes: float
    activation_bytes: float
    graph_bytes: float
    reserve_bytes: float
    kv_bytes: float
    kv_bytes_per_token: float
    state_bytes_per_sequence: float
    sequence_tokens: int
    kv_blocks_per_lane: int
    max_tokens: int
    notes: tuple[str, ...] = ()


def usable_bytes(topology: Topology) -> float:
    """Return main memory less what a GPU driver keeps; devices of other families give all of it."""
    whole = topology.device.main.capacity
    return whole - _DRIVER if topology.device.family == "gpu" else whole


def memory_plan(
    model: ModelSpec,
    topology: Topology,
    pool: Pool,
    precision: PrecisionChoice | None = None,
    speculation: Speculation | None = None,
    *,
    slots_per_rank: int | None = None,
    graphs_in_budget: bool = True,
    sequence_tokens: int | None = None,
) -> MemoryPlan:
    """Return what one replica of ``pool`` keeps on each device, and how many KV blocks are left.

    - vLLM: ``utilization * total - weights - peak activation - reserve - graphs`` (graphs since 0.21;
      before that they came out of the rest: ``graphs_in_budget=False``)
    - SGLang: ``mem_fraction_static * (total - reserve) - weights``; activations and graphs use the rest
    - TensorRT-LLM: ``free_gpu_memory_fraction * (total - weights - peak activation - reserve - graphs)``

    ``pool.engine.kv_blocks`` replaces the count, ``pool.engine.runtime_reserve`` reserve and graphs together.

    Parameters
    ----------
    slots_per_rank : expert copies per expert-parallel rank, with replicas, of every MoE layer; 0: experts / ep;
        none: as the pool's placement says
    sequence_tokens : length at which windows and recurrent state are spread over tokens; by default the
        longest request, as in vLLM's "GPU KV cache size". Models that keep every token do not depend on it

    Raises
    ------
    NoResult : weights and working memory leave no block, with the missing bytes per device; or as
        ``Layout.of``
    """
    engine = pool.engine
    layout = Layout.of(model, topology, pool.parallelism, precision)
    total = usable_bytes(topology)
    rows = engine.max_num_seqs * (1 + (speculation.draft_tokens if speculation else 0))
    active = activation_bytes(layout, engine.max_num_batched_tokens, min(rows, engine.max_num_batched_tokens))
    reserve, graphs = _outside(engine, pool.parallelism.devices)
    counted = graphs if graphs_in_budget or engine.flavor != "vllm" else 0.0
    slots = _slots(pool) if slots_per_rank is None else slots_per_rank
    weights, shares = stage_weight_bytes(layout, slots), cache_share(layout)
    length = sequence_tokens or engine.max_model_len or model.context
    per_token = [share.sequence_bytes(length) / length for share in shares]
    pools = [_pool_bytes(engine, total, w, active, reserve, counted) for w in weights]
    worst = min(range(len(pools)), key=lambda i: pools[i] / per_token[i] if per_token[i] else pools[i])
    block = engine.block_tokens * per_token[worst]
    blocks = engine.kv_blocks if engine.kv_blocks is not None else int(pools[worst] // block) if block else 0
    if pools[worst] < block or pools[worst] <= 0:
        raise NoResult(
            _short(model, topology, engine, weights[worst], active, reserve + counted, block - pools[worst])
        )
    notes = ["peak activation is estimated to about 0.3 GiB from engine logs"]
    if any(share.per_window_token or share.per_sequence for share in shares):
        notes.append(f"windows and recurrent state are spread over sequences of {length} tokens")
    if not block:
        notes.append("the model keeps no cache: blocks do not limit the batch")
    return MemoryPlan(
        device_bytes=total,
        budget_bytes=engine.gpu_memory_utilization * total,
        weight_bytes=weights[worst],
        activation_bytes=active,
        graph_bytes=graphs,
        reserve_bytes=reserve,
        kv_bytes=pools[worst],
        kv_bytes_per_token=per_token[worst],
        state_bytes_per_sequence=shares[worst].per_sequence,
        sequence_tokens=length,
        kv_blocks_per_lane=blocks,
        max_tokens=blocks * engine.block_tokens,
        notes=tuple(notes),
    )


def _slots(pool: Pool) -> dict[str, int]:
    """Return expert copies per rank by FFN, where a placement says so."""
    placed = pool.placement
    return {} if placed is None else {name: placed.slots_per_rank(name) for name in placed.ffns}


def _outside(engine: Engine, devices: int) -> tuple[float, float]:
    if engine.runtime_reserve is not None:
        return engine.runtime_reserve, 0.0
    return _RESERVE[engine.flavor][devices > 1], _GRAPHS if engine.cuda_graphs else 0.0


def _pool_bytes(
    engine: Engine, total: float, weights: float, active: float, reserve: float, graphs: float
) -> float:
    share = engine.gpu_memory_utilization
    if engine.flavor == "sglang":
        return share * (total - reserve) - weights
    if engine.flavor == "trtllm":
        return share * (total - weights - active - reserve - graphs)
    return share * total - weights - active - reserve - graphs


def _short(
    model: ModelSpec,
    topology: Topology,
    engine: Engine,
    weights: float,
    active: float,
    rest: float,
    missing: float,
) -> str:
    def text(size: float) -> str:
        return format_quantity(size, "B")

    have = text(engine.gpu_memory_utilization * usable_bytes(topology))
    return (
        f"{model.name} does not fit on {topology.device.name}: {text(weights)} weights, {text(active)} "
        f"activations and {text(rest)} reserve leave no KV block of the {have} an engine may use, "
        f"{text(missing)} short per device"
    )
