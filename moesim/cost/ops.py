"""Op: one named piece of device work of a step, with its flop and bytes for every token count at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from moesim.cost.collectives import Group
    from moesim.cost.precision import Format
    from moesim.cost.pricing import FloatArray
    from moesim.spec.hardware import Dtype

__all__ = ["Exchange", "IntArray", "Op", "Phase", "gemm", "memory_op", "scaled", "transfer"]

IntArray = npt.NDArray[np.int64]
Phase = Literal["lane", "group", "head", "attention"]


@dataclass(frozen=True, slots=True, eq=False)
class Exchange:
    """What a collective op moves.

    Attributes
    ----------
    pattern : which collective
    group : who takes part
    size : [tokens] bytes as the collective counts them: the buffer of an all-reduce, the gathered whole of an
        all-gather, one copy of a device's tokens in an all-to-all
    copies, ranks_per_token, nodes_per_token : of an all-to-all only
    """

    pattern: Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "p2p"]
    group: Group
    size: FloatArray
    copies: float = 1.0
    ranks_per_token: float = 1.0
    nodes_per_token: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """Work of one op of one layer on one device (the busiest one), for an array of token counts.

    Attributes
    ----------
    name, phase, kind : as in ``OpInfo``
    dtype : arithmetic type, decides the peak
    tokens : [n] the token counts (rows, for the head) that the other arrays belong to
    flop : [n] operations; a multiply-add is two
    weight_bytes, activation_bytes : [n] bytes read and written
    layers : how many layers do exactly this
    launches : kernels per layer
    exchange : set for collectives; ``flop`` and bytes are then zero
    dims : sizes a measured kernel is looked up by, e.g. ``n`` and ``k`` of a product
    stored : storage type of the weights that a measured kernel is looked up by; empty without weights
    """

    name: str
    phase: Phase
    kind: str
    dtype: Dtype
    tokens: IntArray
    flop: FloatArray
    weight_bytes: FloatArray
    activation_bytes: FloatArray
    layers: int = 1
    launches: int = 1
    exchange: Exchange | None = None
    dims: tuple[tuple[str, int], ...] = field(default=())
    stored: str = ""

    @property
    def bytes(self) -> FloatArray:
        """All memory traffic, [n]."""
        return self.weight_bytes + self.activation_bytes


def scaled(tokens: npt.NDArray[Any], factor: float) -> FloatArray:
    """Return ``tokens * factor`` as float64."""
    return np.asarray(tokens * factor, dtype=np.float64)


def gemm(
    name: str,
    phase: Phase,
    tokens: IntArray,
    n: int,
    k: int,
    weights: Format,
    layers: int,
    *,
    output_bytes: float = 2.0,
    share: float = 1.0,
) -> Op:
    """Return a dense product: rows [tokens, k] times weights [k, n], weights read once.

    Parameters
    ----------
    tokens : [n] rows
    n, k : output and input width on this device
    share : part of the rows that this device computes (sequence parallel)
    output_bytes : bytes per output value
    """
    rows = scaled(tokens, share)
    return Op(
        name,
        phase,
        "gemm",
        weights.compute,
        tokens,
        flop=scaled(rows, 2.0 * n * k),
        weight_bytes=scaled(tokens > 0, n * k * weights.value_bytes),
        activation_bytes=scaled(rows, k * weights.input_bytes + n * output_bytes),
        layers=layers,
        dims=(("n", n), ("k", k)),
        stored=weights.stored,
    )


def memory_op(
    name: str,
    phase: Phase,
    tokens: IntArray,
    token_bytes: float,
    dtype: Dtype,
    layers: int,
    launches: int = 1,
) -> Op:
    """Return an op bound by memory: ``token_bytes`` read and written per token (norms, copies)."""
    zero = np.zeros(tokens.shape)
    return Op(name, phase, "memory", dtype, tokens, zero, zero, scaled(tokens, token_bytes), layers, launches)


def transfer(
    name: str,
    phase: Phase,
    tokens: IntArray,
    exchange: Exchange,
    dtype: Dtype,
    layers: int,
    dims: tuple[tuple[str, int], ...] = (),
) -> Op:
    """Return a collective op."""
    zero = np.zeros(tokens.shape)
    return Op(name, phase, "collective", dtype, tokens, zero, zero, zero, layers, 1, exchange, dims)
