"""Features: what decides the efficiency of a kernel, per row, from sizes and the device's datasheet.

Every family answers a ``Features``: a matrix [feature, row], the physical bound of each row, and the base that the
fit multiplies: ``floor + bound``. The floor is the least time of any kernel of the family, stated in cycles,
because pipelines of dependent instructions follow the clock. Nothing here depends on a device's name, so a fit can
speak about devices it never saw.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moesim.cost.pricing import FloatArray
    from moesim.spec.hardware import DeviceSpec, Dtype

__all__ = [
    "Features",
    "Machine",
    "attention_features",
    "collective_features",
    "exchange_features",
    "gemm_features",
    "machine_of",
    "moe_features",
    "moe_work",
    "quantise_features",
]

_BLOCK = 16384
"""Rows at a time: temporaries stay in a core's cache."""
_CLOCK = 1.9e9
"""Hz where the catalog states no boost clock: typical of data-centre cards since 2020 (1.4 to 2.5 GHz)."""


class Machine(NamedTuple):
    """What a kernel's speed depends on; floats, or arrays with one entry per row.

    Attributes
    ----------
    units : multiprocessors
    rate : FLOP/s of the arithmetic
    bandwidth : B/s of main memory
    clock : Hz
    """

    units: float | FloatArray
    rate: float | FloatArray
    bandwidth: float | FloatArray
    clock: float | FloatArray


class Features(NamedTuple):
    """Input of a fit.

    Attributes
    ----------
    matrix : [feature, row] float32
    bound : [row] seconds
    terms : [term, row] float32 seconds that a kernel's time is a weighted sum of, or None: see ``baseline``
    """

    matrix: np.ndarray
    bound: FloatArray
    terms: np.ndarray | None = None

    def take(self, where: np.ndarray | slice) -> Features:
        """Return the rows at ``where``."""
        terms = None if self.terms is None else self.terms[:, where]
        return Features(self.matrix[:, where], self.bound[where], terms)


def machine_of(device: DeviceSpec, dtype: Dtype) -> Machine | None:
    """Return the device's numbers for arithmetic ``dtype``; None where it states no such peak."""
    rate = device.compute.peaks.get(dtype)
    if rate is None:
        return None
    return Machine(device.compute.units, rate, device.main.bandwidth, device.compute.clock or _CLOCK)


def _log(value: FloatArray) -> FloatArray:
    return np.log(np.maximum(value, 1e-30))


def _waves(tiles: FloatArray, machine: Machine) -> list[FloatArray]:
    """Return log of tiles per unit, and how full the last wave of them is."""
    waves = tiles / machine.units
    return [_log(waves), waves / np.maximum(np.ceil(waves), 1.0)]


def _joined(parts: list[Features]) -> Features:
    matrix, bound = (np.concatenate([p[i] for p in parts], axis=-1) for i in (0, 1))
    return Features(matrix, bound, np.concatenate([p.terms for p in parts if p.terms is not None], axis=1))


def _stack(columns: Sequence[float | FloatArray], rows: int) -> np.ndarray:
    made = np.empty((len(columns), rows), dtype=np.float32)
    for row, column in zip(made, columns, strict=True):
        row[:] = column
    return made


def _roof(flop: FloatArray, size: FloatArray, machine: Machine) -> tuple[FloatArray, list[FloatArray]]:
    arithmetic, memory = flop / machine.rate, size / machine.bandwidth
    bound = np.maximum(arithmetic, memory)
    cycles = bound * machine.clock
    return bound, [
        _log(arithmetic * machine.clock),
        _log(memory * machine.clock),
        _log(arithmetic / memory),
        _log(cycles),
    ]


_GEMM_TILES = ((128, 128), (128, 256), (256, 128), (64, 64), (64, 128), (256, 256))


def gemm_features(
    m: FloatArray, n: FloatArray, k: FloatArray, value_bytes: float, input_bytes: float, machine: Machine
) -> Features:
    """Return features of products: rows [m, k] times weights [k, n].

    Parameters
    ----------
    m, n, k : [row] sizes
    value_bytes, input_bytes : bytes per weight and per activation that enters
    """
    m, n, k = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in (m, n, k)))
    if m.size > _BLOCK and np.ndim(machine.units) == 0:
        starts = range(0, m.size, _BLOCK)
        blocks = [(m[at : at + _BLOCK], n[at : at + _BLOCK], k[at : at + _BLOCK]) for at in starts]
        return _joined([gemm_features(*block, value_bytes, input_bytes, machine) for block in blocks])
    flop = 2 * m * n * k
    size = n * k * value_bytes + m * k * input_bytes + 2 * m * n
    bound, roof = _roof(flop, size, machine)
    columns = [_log(m), _log(n), _log(k), *roof, _log(size), _log(n * k), _log(m * n), _log(n / k)]
    for tile_m, tile_n in _GEMM_TILES:
        columns += _waves(np.ceil(m / tile_m) * np.ceil(n / tile_n), machine)
    columns += [m / (np.ceil(m / q) * q) for q in (16, 64, 128, 256)]
    columns.append(n / (np.ceil(n / 128) * 128))
    columns.append(_log(np.ceil(m / 128) * np.ceil(n / 128) * k / machine.units))
    waves = np.ceil(np.ceil(m / 128) * np.ceil(n / 128) / machine.units)
    active = np.minimum(machine.units, np.ceil(m / 128) * np.ceil(n / 64))
    terms = [
        1e4 / machine.clock, n * k * value_bytes / machine.bandwidth, m * k * input_bytes / machine.bandwidth,
        2 * m * n / machine.bandwidth, flop / machine.rate,
        waves * machine.units * (2 * 128 * 128) * k / machine.rate,
        2 * np.ceil(m / 16) * 16 * np.ceil(n / 128) * 128 * k / machine.rate,
        k / machine.clock, waves * k / machine.clock, waves * 1e3 / machine.clock,  # tiles wait for their loads
        n * k * value_bytes / active / (32 * machine.clock),  # what a multiprocessor can load per cycle
    ]  # fmt: skip
    return Features(_stack(columns, m.size), bound, _stack(terms, m.size))


def moe_work(
    rows: FloatArray,
    touched: FloatArray,
    hidden: FloatArray,
    inner: FloatArray,
    ups: FloatArray,
    value_bytes: float,
    input_bytes: float,
) -> tuple[FloatArray, FloatArray]:
    """Return (flop, bytes) of one rank's fused expert layer; what stays inside the kernel is not memory traffic.

    Parameters
    ----------
    rows, touched : token-expert rows and distinct experts of the rank
    hidden, inner, ups : widths on this rank, and 2 with a gate, 1 without
    """
    values = hidden * inner * (ups + 1)
    return 2 * rows * values, touched * values * value_bytes + rows * hidden * (input_bytes + 2.0)


def moe_features(
    tokens: FloatArray,
    rows: FloatArray,
    touched: FloatArray,
    hidden: FloatArray,
    inner: FloatArray,
    ups: FloatArray,
    experts: FloatArray,
    ep: FloatArray,
    top_k: FloatArray,
    skew: FloatArray,
    value_bytes: float,
    input_bytes: float,
    machine: Machine,
    age: float | FloatArray = 0.0,
) -> Features:
    """Return features of fused expert layers on one rank.

    Parameters
    ----------
    tokens : [row] of all ranks; some kernels move the rows of experts that live elsewhere, too
    rows, touched, hidden, inner, ups : as in ``moe_work``
    experts, ep, top_k : of the whole layer
    skew : exponent of the load's power law, 0 when balanced
    age : how many measured engine versions are newer than the one that runs
    """
    given = (tokens, rows, touched, hidden, inner, ups, experts, ep, top_k, skew, age)
    tokens, rows, touched, hidden, inner, ups, experts, ep, top_k, skew, age = np.broadcast_arrays(
        *(np.asarray(x, dtype=np.float64) for x in given)
    )
    touched, rows = np.maximum(touched, 1.0), np.maximum(rows, 1.0)
    each, values = rows / touched, hidden * inner
    up_bytes, down_bytes = touched * values * ups * value_bytes, touched * values * value_bytes
    up, down = 2 * rows * values * ups / machine.rate, 2 * rows * values / machine.rate
    moved = hidden * (6 + input_bytes) + inner * (2 * ups + 2 + input_bytes)
    own = rows * moved / machine.bandwidth
    whole = tokens * top_k * (4 * hidden + (2 * ups + 4) * inner) / machine.bandwidth
    bound = (
        np.maximum(up, up_bytes / machine.bandwidth) + np.maximum(down, down_bytes / machine.bandwidth) + own
    )
    columns = [
        _log(each), _log(touched), _log(bound * machine.clock),
        _log((up + down) * machine.bandwidth / (up_bytes + down_bytes)), _log(own / bound), touched * ep / experts,
        skew, ups, skew * _log(each),
    ]  # fmt: skip
    for tile in (16, 64, 128):
        tiles = touched * np.ceil(each / tile)
        columns += _waves(tiles * np.ceil(ups * inner / 128), machine)
        columns += _waves(tiles * np.ceil(hidden / 128), machine)
        columns.append(each / (np.ceil(each / tile) * tile))
    columns += [
        _log(whole * machine.clock), _log(whole / bound), _log(tokens), _log(tokens * top_k / experts),
        _log(ups * inner), _log(inner), _log(hidden), _log(down_bytes), inner / (np.ceil(inner / 128) * 128),
        _log(experts / ep), _log(top_k), _log(experts), _log(rows),
        _log(tokens * ep / experts), age,  # Triton's untuned kernels change tiles where tokens exceed held experts
    ]  # fmt: skip
    old, pairs = age > 0, tokens * top_k
    padded = [
        2 * touched * np.ceil(each / tile) * tile * values * (ups + 1) / machine.rate for tile in (16, 64)
    ]
    foreign = [  # engines differ in what they do with rows of experts that live elsewhere
        4 * pairs * hidden / machine.bandwidth,
        (2 * ups + 4) * pairs * inner / machine.bandwidth,
        2 * pairs * values * (ups + 1) / machine.rate,
        pairs / machine.clock,
    ]
    terms = [
        1e5 / machine.clock, (up_bytes + down_bytes) / machine.bandwidth, up + down, *padded, own,
        100 * experts / ep / machine.clock, 4 * tokens * hidden / machine.bandwidth, *foreign,
        *(old * term for term in foreign),
    ]  # fmt: skip
    return Features(_stack(columns, rows.size), bound, _stack(terms, rows.size))


def attention_features(
    sequences: FloatArray,
    context: FloatArray,
    heads: FloatArray,
    kv_heads: FloatArray,
    head_dim: FloatArray,
    window: FloatArray,
    flop: FloatArray,
    size: FloatArray,
    machine: Machine,
    *,
    decode: bool,
) -> Features:
    """Return features of attention kernels.

    Parameters
    ----------
    sequences, context : [row] sequences, and keys (decode) or prompt tokens (prefill) of each
    heads, kv_heads, head_dim, window : [row] on this device; window 0 is full attention
    flop, size : [row] work as the cost model counts it
    """
    sequences, context = (np.asarray(x, dtype=np.float64) for x in (sequences, context))
    bound, roof = _roof(flop, size, machine)
    reach = np.where(np.asarray(window) > 0, np.minimum(window, context), context)
    columns = [
        _log(sequences), _log(context), _log(reach), _log(np.asarray(heads)), _log(np.asarray(kv_heads)),
        np.asarray(head_dim), _log(np.asarray(heads) / kv_heads), _log(np.asarray(window) + 1.0), *roof, _log(size),
        _log(sequences * kv_heads), _log(sequences * context),
    ]  # fmt: skip
    blocks = sequences * kv_heads
    if decode:
        columns += _waves(blocks * np.ones_like(reach), machine)
        for split in (128, 512):
            columns += _waves(blocks * np.ceil(reach / split), machine)
    else:
        for tile in (64, 128):
            columns += _waves(sequences * heads * np.ceil(context / tile), machine)
        columns.append(context / (np.ceil(context / 128) * 128))
    return Features(_stack(columns, sequences.size), bound)


def collective_features(ranks: FloatArray, size: FloatArray, link: FloatArray, clock: FloatArray) -> Features:
    """Return features of a collective over ``ranks`` devices of one node.

    Parameters
    ----------
    size : [row] bytes of the buffer
    link : B/s one way per device
    """
    size = np.asarray(size, dtype=np.float64)
    bound = size * (ranks - 1) / ranks / link
    columns = [
        _log(np.asarray(ranks)),
        _log(size),
        _log(bound * clock),
        _log(size / ranks),
        _log(link * np.ones_like(size)),
    ]
    return Features(_stack(columns, size.size), bound)


def exchange_features(
    tokens: FloatArray,
    hidden: FloatArray,
    top_k: FloatArray,
    experts: FloatArray,
    ranks: FloatArray,
    nodes: FloatArray,
    sms: FloatArray,
    value_bytes: FloatArray,
    combine: FloatArray,
    link: FloatArray,
) -> Features:
    """Return features of one phase of an expert exchange; ``tokens`` are one rank's own."""
    tokens = np.asarray(tokens, dtype=np.float64)
    targets = (ranks - 1) * (1 - (1 - 1 / ranks) ** top_k)
    one = tokens * hidden * value_bytes
    bound = one * targets / link
    columns = [
        _log(tokens), _log(np.asarray(hidden)), np.asarray(top_k), np.asarray(experts), np.asarray(ranks),
        np.asarray(nodes), np.asarray(sms), np.asarray(value_bytes), np.asarray(combine), _log(one), _log(bound),
        _log(one / experts),
    ]  # fmt: skip
    return Features(_stack(columns, tokens.size), bound)


def quantise_features(m: FloatArray, k: FloatArray, machine: Machine) -> Features:
    """Return features of a pass that reads [m, k] in 16 bits and writes 8."""
    m, k = np.broadcast_arrays(np.asarray(m, dtype=np.float64), np.asarray(k, dtype=np.float64))
    bound, roof = _roof(2 * m * k, 3 * m * k, machine)
    bound = 3 * m * k / machine.bandwidth
    return Features(_stack([_log(m), _log(k), roof[1], *_waves(m, machine), _log(m * k)], m.size), bound)
