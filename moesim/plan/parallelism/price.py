"""Price: seconds of a replica's steps at any mix of decoding sequences and prefill tokens, for one cut.

The ops and estimators are the simulator's (``moesim.cost``); they are asked at a few dozen token counts instead of
every one, and the seconds are linear in between, so that hundreds of cuts take seconds and not minutes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moesim.cost.attention import attention_shapes
from moesim.cost.layout import Layout
from moesim.cost.lowering import group_ops, head_ops, hop_ops, lane_ops
from moesim.cost.overheads import Overhead
from moesim.cost.pricing import AttentionTerm
from moesim.cost.roofline import Chain, Place
from moesim.cost.stepprice import launch_of, stage_shares
from moesim.plan.parallelism.attention import attention_seconds

if TYPE_CHECKING:
    from moesim.cost.attention import AttentionShape
    from moesim.cost.load import RoutingLoad
    from moesim.cost.ops import Op
    from moesim.cost.roofline import Launch
    from moesim.plan.parallelism.demand import Demand
    from moesim.spec.deployment import Engine, Parallelism, PrecisionChoice
    from moesim.spec.hardware import DeviceSpec
    from moesim.spec.model import ModelSpec
    from moesim.spec.topology import Topology

__all__ = ["CutPrice", "Memo", "price_cut"]

FloatArray = npt.NDArray[np.float64]
_GRAPH_TOKENS = 512
"""Tokens of a lane's step up to which host time of prefill is inside the graph, as in ``moesim.cost.overheads``."""
_NODES = 40
_EVERY = 1 << 40
_EDGES = (64, 128, 256, 512)
"""Token counts at which captured graphs commonly end: seconds jump there."""


@dataclass(frozen=True, slots=True, eq=False)
class CutPrice:
    """Seconds of one cut.

    Attributes
    ----------
    lane, group, head, hop : (counts, seconds) nodes
    terms : attention per kind
    overhead_s : host seconds per step
    widest_stage : share of the slowest pipeline stage
    lanes, stages, devices : of a replica
    """

    lane: tuple[FloatArray, FloatArray]
    group: tuple[FloatArray, FloatArray]
    head: tuple[FloatArray, FloatArray]
    hop: tuple[FloatArray, FloatArray]
    terms: tuple[AttentionTerm, ...]
    overhead_s: float
    widest_stage: float
    lanes: int
    stages: int
    devices: int

    def step_s(
        self, demand: Demand, sequences: FloatArray, tokens: FloatArray, all_tokens: FloatArray, chunk: float
    ) -> FloatArray:
        """Return seconds of steps whose slowest lane decodes ``sequences`` and prefills ``tokens``, same shape.

        Parameters
        ----------
        all_tokens : of all lanes
        chunk : tokens of one prompt in a step, for the keys that its later chunks read
        """
        total = (
            self.overhead_s + np.interp(sequences + tokens, *self.lane) + np.interp(all_tokens, *self.group)
        )
        total += np.interp(sequences + (tokens > 0), *self.head)
        for term in self.terms:
            total += attention_seconds(
                term,
                sequences,
                sequences * demand.keys(term.window),
                tokens,
                tokens * demand.pairs(term.window),
                tokens * demand.keys_read(chunk, term.window),
            )
        return np.asarray(total)

    def hop_s(self, tokens: FloatArray) -> FloatArray:
        """Return seconds to pass ``tokens`` to the next stage."""
        return np.asarray(np.interp(tokens, *self.hop))


class Memo:
    """Seconds of ops and attention that several cuts share: the same work on the same device is asked for once."""

    def __init__(self, chain: Chain, device: DeviceSpec) -> None:
        self.chain, self.device = chain, device
        self._ops: dict[tuple[Any, ...], FloatArray] = {}
        self._terms: dict[tuple[Any, ...], AttentionTerm] = {}

    def seconds(self, op: Op, launch: Launch) -> FloatArray:
        """Return seconds of all layers of ``op``, [tokens]."""
        arrays = [op.tokens, op.flop, op.weight_bytes, op.activation_bytes]
        moved: tuple[Any, ...] = ()
        if op.exchange is not None:
            e = op.exchange
            arrays.append(e.size)
            moved = (e.pattern, e.group, e.copies, e.ranks_per_token, e.nodes_per_token)
        key = (
            op.name, op.phase, op.kind, op.dtype, op.layers, op.launches, op.dims, op.stored, moved, launch,
            *(a.tobytes() for a in arrays),
        )  # fmt: skip
        if key not in self._ops:
            self._ops[key] = self.chain.seconds(op, Place(self.device, launch))[0]
        return self._ops[key]

    def attention(self, shape: AttentionShape, launch: Launch) -> AttentionTerm:
        """Return the coefficients of one kind of attention."""
        key = (shape, launch)
        if key not in self._terms:
            self._terms[key] = self.chain.attention(shape, Place(self.device, launch))
        return self._terms[key]


def price_cut(
    model: ModelSpec,
    topology: Topology,
    cut: Parallelism,
    engine: Engine,
    loads: dict[str, RoutingLoad] | None,
    *,
    precision: PrecisionChoice | None = None,
    overhead: Overhead | None = None,
    memo: Memo | None = None,
    widest: Engine | None = None,
) -> CutPrice:
    """Price one cut for steps of up to the engine's limits.

    Parameters
    ----------
    loads : curves that reach ``dp * max_num_batched_tokens`` tokens
    overhead : host terms beside the kernels
    memo : estimators, and what they said already; by default the roofline bound alone
    widest : limits that the tables shall reach, by default the engine's own; graphs are captured for the engine's

    Raises
    ------
    NoResult, SpecError, DataMissing : as ``moesim.cost.stepprice.step_pricing``
    """
    layout = Layout.of(model, topology, cut, precision, engine.expert_exchange)
    known, host = memo or Memo(Chain(), topology.device), overhead or Overhead()
    launch, reach = launch_of(topology, engine), widest or engine
    edges = [*_EDGES, launch.graph_tokens]
    top = reach.max_num_batched_tokens
    lane, group = _nodes(top, edges), _nodes(cut.dp * top, [cut.dp * e for e in edges])
    head = _nodes(reach.max_num_seqs + 1, [])

    def seconds(ops: list[Op], counts: npt.NDArray[np.int64], lanes: int = 1) -> FloatArray:
        # a graph holds so many tokens of each lane; an op of all lanes counts the tokens of all
        started = replace(launch, graph_tokens=max(lanes * launch.graph_tokens, -1))
        total = np.zeros(len(counts))
        for op in ops:
            total += known.seconds(op, started)
        return total

    lane_s = seconds(lane_ops(layout, lane), lane)
    group_s = seconds(group_ops(layout, group, loads), group, cut.dp)
    lane_s[lane > _GRAPH_TOKENS] *= host.prefill
    group_s[group > cut.dp * _GRAPH_TOKENS] *= host.prefill
    # attention asks only whether decode steps replay a graph: all graphs are one key of the memo
    decoding = replace(launch, graph_tokens=_EVERY if launch.graph_tokens >= 0 else -1)
    terms = tuple(
        _slower(known.attention(shape, decoding), host.prefill) for shape in attention_shapes(layout)
    )
    return CutPrice(
        lane=(lane.astype(np.float64), lane_s),
        group=(group.astype(np.float64), group_s),
        head=(head.astype(np.float64), seconds(head_ops(layout, head), head) + head * host.sequence_s),
        hop=(lane.astype(np.float64), seconds(hop_ops(layout, lane), lane)),
        terms=terms,
        overhead_s=(engine.step_overhead or 0.0) + host.step_s,
        widest_stage=float(stage_shares(model, cut.pp).max()),
        lanes=cut.dp,
        stages=cut.pp,
        devices=cut.devices,
    )


def _nodes(top: int, edges: list[int]) -> npt.NDArray[np.int64]:
    """Return token counts from 0 to ``top``: dense where small, both sides of every edge."""
    spread = np.geomspace(1, max(top, 2), _NODES).astype(np.int64)
    beside = [e + d for e in edges for d in (0, 1)]
    return np.unique(np.clip(np.r_[0, 1, 2, 4, 8, spread, beside, top].astype(np.int64), 0, top))


def _slower(term: AttentionTerm, factor: float) -> AttentionTerm:
    return replace(
        term,
        prefill_flop_s=term.prefill_flop_s * factor,
        prefill_kv_s=term.prefill_kv_s * factor,
        prefill_token_s=term.prefill_token_s * factor,
    )
