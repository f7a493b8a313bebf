"""Dataflow: what operator fusion is worth. Kernels per decoder, operational intensity, launches, decode and prefill.

A device that streams a graph through its own memory (an RDU) turns a decoder layer into one kernel: intermediate
results never reach main memory, and one launch replaces one per operator. The same functions price a device that
runs operator by operator, so both sides of a comparison come from one formula.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from moesim.cost.flops import attention_width
from moesim.cost.lowering import head_ops, lane_ops
from moesim.cost.precision import peak
from moesim.cost.roofline import exchange_seconds
from moesim.errors import NoResult, SpecError
from moesim.files import nearest
from moesim.spec.caches import cache_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from moesim.cost.layout import Layout
    from moesim.cost.ops import Op
    from moesim.cost.pricing import FloatArray
    from moesim.spec.hardware import DeviceSpec
    from moesim.spec.topology import Topology

__all__ = [
    "Execution",
    "GraphOp",
    "OperatorGraph",
    "Orchestration",
    "copy_bandwidth",
    "execution_of",
    "kernel_calls",
    "kernel_traffic",
    "kernels_per_decoder",
    "monarch_stages",
    "operational_intensity",
    "pass_seconds",
    "run_seconds",
]

Orchestration = Literal["software", "hardware"]
"""Who starts the next kernel: the host (program load, argument load, execute), or a schedule on the device."""

_OUTER = frozenset({"embedding", "embedding_all_reduce", "final_norm"})
"""Ops of a pass that belong to no decoder layer."""


@dataclass(frozen=True, slots=True)
class GraphOp:
    """One operator: work, tensors it reads, the tensor it writes."""

    name: str
    flop: float
    reads: tuple[str, ...]
    writes: str


@dataclass(frozen=True, slots=True)
class OperatorGraph:
    """Operators in order, and the bytes of every tensor.

    Raises
    ------
    SpecError : a tensor without a size, or written twice
    """

    ops: tuple[GraphOp, ...]
    tensor_bytes: Mapping[str, float]

    def __post_init__(self) -> None:
        written = [op.writes for op in self.ops]
        if len(set(written)) < len(written):
            raise SpecError("graph: a tensor is written twice")
        for name in {name for op in self.ops for name in (*op.reads, op.writes)}:
            if name not in self.tensor_bytes:
                raise SpecError(f"graph: tensor {name!r} has no size{nearest(name, self.tensor_bytes)}")


def kernel_traffic(graph: OperatorGraph, kernels: Sequence[Sequence[int]]) -> FloatArray:
    """Return the bytes that each kernel moves to and from memory, [kernels].

    A kernel reads every outside tensor once, and writes what another kernel or nobody reads; what lives and dies
    inside it stays on chip.

    Parameters
    ----------
    kernels : indices into ``graph.ops`` of each kernel; together every operator once

    Raises
    ------
    SpecError : an operator in no kernel, or in two
    """
    if sorted(index for kernel in kernels for index in kernel) != list(range(len(graph.ops))):
        raise SpecError("kernels: expected every operator of the graph in exactly one kernel")
    made = []
    for kernel in kernels:
        inside = [graph.ops[index] for index in kernel]
        written = {op.writes for op in inside}
        read = {name for op in inside for name in op.reads} - written
        others = [op for index, op in enumerate(graph.ops) if index not in set(kernel)]
        wanted = {name for op in others for name in op.reads}
        used = {name for op in graph.ops for name in op.reads}
        kept = {name for name in written if name in wanted or name not in used}
        made.append(sum(graph.tensor_bytes[name] for name in read | kept))
    return np.array(made, dtype=np.float64)


def operational_intensity(graph: OperatorGraph, kernels: Sequence[Sequence[int]]) -> float:
    """Return operations per byte of memory traffic of the whole graph, cut into ``kernels``."""
    return sum(op.flop for op in graph.ops) / float(kernel_traffic(graph, kernels).sum())


def monarch_stages(
    width: int = 256, batch: int = 4, stages: int = 4, value_bytes: float = 2.0
) -> OperatorGraph:
    """Return ``stages`` times product, twiddle and transpose of a Monarch FFT, on ``batch`` matrices width x width.

    The SN40L paper (arXiv 2405.07518) prints 39.5, 102.6 and 410.4 operations per byte for no fusion, for
    Gemm0-Mul-Transpose in one kernel, and for all in one; its shapes are in a figure. The defaults are a
    reconstruction that gives all three: one DFT matrix and one twiddle matrix, shared by four stages.
    """
    tile = batch * width * width * value_bytes
    sizes = {"dft": width * width * value_bytes, "twiddle": width * width * value_bytes, "x0": tile}
    ops = []
    for stage in range(stages):
        rows = batch * width * width
        parts = (
            ("gemm", 2.0 * rows * width, (f"x{stage}", "dft"), f"product{stage}"),
            ("mul", 1.0 * rows, (f"product{stage}", "twiddle"), f"twisted{stage}"),
            ("transpose", 0.0, (f"twisted{stage}",), f"x{stage + 1}"),
        )
        for name, flop, reads, writes in parts:
            ops.append(GraphOp(f"{name}{stage}", flop, reads, writes))
            sizes[writes] = tile
    return OperatorGraph(tuple(ops), sizes)


@dataclass(frozen=True, slots=True)
class Execution:
    """How a device runs a graph.

    Attributes
    ----------
    fused : one kernel per decoder layer; otherwise one per operator
    bandwidth : share of the main memory's bandwidth that kernels reach
    launch_s : seconds per kernel call
    units : share of the peak rate that kernels can use
    """

    fused: bool
    bandwidth: float
    launch_s: float
    units: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.bandwidth <= 1 and 0 < self.units <= 1) or self.launch_s < 0:
            raise SpecError("execution: expected shares between 0 and 1 and non-negative seconds per launch")


def execution_of(
    device: DeviceSpec,
    *,
    fused: bool = True,
    orchestration: Orchestration = "hardware",
    bandwidth: float | None = None,
) -> Execution:
    """Return how ``device`` runs a graph, from its file.

    Parameters
    ----------
    fused : where the device can; others run operator by operator
    orchestration : ``hardware`` takes the latency inside a graph, ``software`` that of single launches
    bandwidth : share of memory bandwidth; none: as the device states

    Raises
    ------
    NoResult : fusion asked of a device that states no dataflow, or no share of bandwidth for one
    """
    flow = device.dataflow
    if flow is None:
        if fused:
            raise NoResult(f"{device.name}: no dataflow facts, it cannot fuse a decoder into one kernel")
        if bandwidth is None:
            raise NoResult(f"{device.name}: no dataflow facts, name the share of memory bandwidth")
    launch = device.graph_launch_latency if orchestration == "hardware" else device.launch_latency
    if flow is None:
        return Execution(fused=False, bandwidth=bandwidth or 1.0, launch_s=launch)
    stated = flow.fused_bandwidth if fused else flow.unfused_bandwidth
    return Execution(fused, bandwidth or stated, launch, flow.fused_units if fused else 1.0)


def kernel_calls(layout: Layout, *, fused: bool) -> int:
    """Return kernel calls of one pass: embedding, decoder layers, head.

    Unfused, every op is one call, attention too; collectives are calls. Fused, a decoder is one call with its
    collectives inside, embedding and head are one each.
    """
    one = np.ones(1, dtype=np.int64)
    if fused:
        return len(layout.model.blocks()) + 2
    ops = [*lane_ops(layout, one), *head_ops(layout, one)]
    return sum(op.launches * op.layers for op in ops) + len(layout.model.blocks())


def kernels_per_decoder(layout: Layout) -> float:
    """Return kernels of one decoder layer without fusion, its attention and collectives included; fused it is 1."""
    ops = [op for op in lane_ops(layout, np.ones(1, dtype=np.int64)) if op.name not in _OUTER]
    return sum(op.launches * op.layers for op in ops) / len(layout.model.blocks()) + 1.0


def pass_seconds(
    layout: Layout,
    execution: Execution,
    device: DeviceSpec,
    tokens: npt.ArrayLike,
    context: npt.ArrayLike = 0.0,
    sequences: npt.ArrayLike = 1,
) -> FloatArray:
    """Return the seconds of one pass through a dense model, shape of the broadcast arguments.

    Fused, a layer takes the longest of its arithmetic, of reading weights, cache and its borders, and of what its
    collectives send, which stream through the kernel (arXiv 2405.07518); unfused, every op takes the longer of its own
    two, results go through memory, and collectives wait. Latencies and launches come on top.

    Parameters
    ----------
    layout : model on devices, from ``Layout.of``
    tokens : rows of the pass, all sequences together; 0 costs nothing
    context : keys before this pass, per sequence; rows see each other too, half of them on average
    sequences : of the batch

    Raises
    ------
    NoResult : the model has routed experts, or the device lacks its arithmetic type
    """
    if layout.model.moe_layers:
        raise NoResult(f"{layout.model.name}: only dense models are priced as one kernel per layer")
    rows, keys, seqs = np.broadcast_arrays(
        *(np.asarray(a, dtype=np.float64) for a in (tokens, context, sequences))
    )
    counts = rows.ravel().astype(np.int64)
    decoder = lane_ops(layout, counts)
    # rows of the head: one per sequence
    tail = head_ops(layout, np.minimum(seqs.ravel(), rows.ravel()).astype(np.int64))
    attention = _attention(layout, rows.ravel(), keys.ravel(), seqs.ravel())
    wire = sum((_wire(op) for op in (*decoder, *tail)), np.zeros(counts.shape))
    hops = sum((_wire(op, small=True) for op in (*decoder, *tail)), np.zeros(counts.shape))
    inner = [op for op in decoder if op.name not in _OUTER]
    dtype = next(op.dtype for op in decoder if op.kind == "gemm")
    if execution.fused:
        outer = [op for op in (*decoder, *tail) if op not in inner]
        # every device reads and writes the hidden rows at the border of each layer
        border = 4.0 * layout.model.hidden * counts * len(layout.model.blocks())
        flop = sum((op.flop * op.layers for op in inner), np.zeros(counts.shape)) + attention[0]
        held = sum((op.weight_bytes * op.layers for op in inner), np.zeros(counts.shape)) + attention[1]
        busy = _longer(execution, device, flop, held + border, dtype)
        busy = np.maximum(busy, wire - hops) + hops
        busy = busy + sum((_op_seconds(execution, device, op) for op in outer), np.zeros(counts.shape))
    else:
        busy = wire + _longer(execution, device, attention[0], attention[1], dtype)
        busy = busy + sum(
            (_op_seconds(execution, device, op) for op in (*decoder, *tail)), np.zeros(counts.shape)
        )
    calls = kernel_calls(layout, fused=execution.fused)
    seconds = np.where(counts > 0, busy + calls * execution.launch_s, 0.0)
    return np.asarray(seconds.reshape(rows.shape), dtype=np.float64)


def run_seconds(
    layout: Layout, execution: Execution, device: DeviceSpec, prompt: int, output: int, sequences: int = 1
) -> float:
    """Return the seconds to answer ``sequences`` prompts together: one prefill, then a step per further token.

    Parameters
    ----------
    prompt, output : tokens per sequence, output at least 1
    """
    if prompt < 1 or output < 1 or sequences < 1:
        raise SpecError("a run needs at least one prompt token, one output token and one sequence")
    first = float(pass_seconds(layout, execution, device, prompt * sequences, 0.0, sequences))
    steps = np.arange(1, output)
    return first + float(pass_seconds(layout, execution, device, sequences, prompt + steps, sequences).sum())


def copy_bandwidth(topology: Topology, tier: str, links: int | None = None) -> float:
    """Return the B/s at which one node copies a model into main memory, all devices together.

    Device tiers: the measured rate where the node states one, else what the tiers read. Host tiers: the smaller of
    the tier and of all host links.

    Parameters
    ----------
    tier : below main memory, e.g. ``ddr``
    links : host links in use; none: all of the node

    Raises
    ------
    SpecError : no such tier, or more links than there are
    """
    device, node = topology.device, topology.node
    if tier in device.memory:
        return node.tier_copy.get(tier, device.memory[tier].bandwidth * node.devices)
    if tier not in node.host.memory:
        known = (*device.memory, *node.host.memory)
        raise SpecError(f"{node.name}: no memory tier {tier!r}{nearest(tier, known)}")
    count = node.host.links if links is None else links
    if not 1 <= count <= node.host.links:
        raise SpecError(f"{node.name}: {count} host links, it has {node.host.links}")
    wire = np.inf if node.host.link_bandwidth is None else node.host.link_bandwidth * count
    return float(min(wire, node.host.memory[tier].bandwidth))


def _attention(
    layout: Layout, rows: FloatArray, keys: FloatArray, seqs: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return operations and bytes of attention over all layers on one device."""
    tp, each = layout.parallelism.tp, rows / np.maximum(seqs, 1)
    flop = 4.0 * attention_width(layout.model) * rows * (keys + each / 2) / tp
    moved = seqs * cache_bytes(layout.model).sequence_bytes(keys + each) / tp
    return flop, moved


def _longer(
    execution: Execution, device: DeviceSpec, flop: FloatArray, moved: FloatArray, dtype: str
) -> FloatArray:
    rate = peak(device, dtype) * execution.units  # type: ignore[arg-type] # ops carry checked types
    return np.asarray(np.maximum(flop / rate, moved / (execution.bandwidth * device.main.bandwidth)))


def _op_seconds(execution: Execution, device: DeviceSpec, op: Op) -> FloatArray:
    if op.exchange is not None:
        return np.zeros(op.flop.shape)
    return op.layers * _longer(execution, device, op.flop, op.bytes, op.dtype)


def _wire(op: Op, *, small: bool = False) -> FloatArray:
    """Return the seconds of a collective, or of its latency alone."""
    if op.exchange is None:
        return np.zeros(op.flop.shape)
    exchange = replace(op.exchange, size=np.minimum(op.exchange.size, 1.0)) if small else op.exchange
    return op.layers * exchange_seconds(exchange)
