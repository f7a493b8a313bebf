"""Kernels: the measured per-layer tables of one model on one card, made into the price of a step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.interpolate import RegularGridInterpolator

from moesim.cost.flops import flops_per_token
from moesim.cost.pricing import AttentionTable, AttentionTerm, FloatArray, OpInfo, StepPricing
from moesim.errors import DataMissing, SpecError
from moesim.spec.model import ModelSpec

__all__ = [
    "KernelTables",
    "attention_errors",
    "graph_sizes",
    "product_errors",
    "read_kernels",
    "table_pricing",
]

_MICRO = 1e-6
_COLUMNS = {
    "dense.csv": ["layer", "tokens", "time_us"],
    "per_sequence.csv": ["layer", "sequences", "time_us"],
    "attention.csv": ["prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"],
}
_ONCE = ("embedding", "final_layernorm")
"""Layers that run once per step; the others run once per block, the norm twice."""
_KEYS = ["prefill_chunk", "kv_prefill", "n_decode", "kv_decode"]


@dataclass(frozen=True, slots=True, eq=False)
class KernelTables:
    """Measured kernels of one model on one card.

    Attributes
    ----------
    dense : seconds of one call by tokens (index), one column per layer
    head : seconds of one call by sampled sequences (index), columns ``lm_head`` and ``sampler``
    attention : ``prefill_chunk``, ``kv_prefill``, ``n_decode``, ``kv_decode`` and ``seconds`` of one layer
    """

    dense: pd.DataFrame
    head: pd.DataFrame
    attention: pd.DataFrame


def read_kernels(folder: Path) -> KernelTables:
    """Read ``dense.csv``, ``per_sequence.csv`` and ``attention.csv``.

    Raises
    ------
    DataMissing : a file is not there
    SpecError : a column is missing, or a point is measured twice or not positive
    """
    dense, head, attention = (_read(folder / name, columns) for name, columns in _COLUMNS.items())
    return KernelTables(
        dense.pivot_table(index="tokens", columns="layer", values="seconds").sort_index(),
        head.pivot_table(index="sequences", columns="layer", values="seconds").sort_index(),
        attention,
    )


def _read(path: Path, columns: list[str]) -> pd.DataFrame:
    if not path.is_file():
        raise DataMissing(f"{path}: no such file; the measured kernels are part of the shared data")
    frame = pd.read_csv(path)
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise SpecError(f"{path.name}:1 {', '.join(missing)}: expected the columns {', '.join(columns)}")
    bad = frame.duplicated(columns[:-1]) | ~(frame["time_us"] > 0)
    if bad.any():
        line = int(np.flatnonzero(bad)[0]) + 2
        raise SpecError(f"{path.name}:{line} time_us: expected one positive time per point")
    return frame.assign(seconds=frame["time_us"] * _MICRO)


def graph_sizes(largest: int) -> npt.NDArray[np.int64]:
    """Return the batch sizes that vLLM captures up to ``largest`` tokens: 1, 2, 4, by 8 to 256, then by 16.

    Source: ``cudagraph_capture_sizes`` of the recorded configuration (vLLM 0.19).
    """
    sizes = np.array([1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)], dtype=np.int64)
    return sizes[sizes <= largest]


def table_pricing(
    tables: KernelTables,
    model: ModelSpec,
    *,
    max_tokens: int,
    max_seqs: int,
    graph_tokens: int = 0,
    overhead_s: float = 0.0,
) -> StepPricing:
    """Return the price of every step of one replica on one card, from measured kernels alone.

    Parameters
    ----------
    max_tokens, max_seqs : the engine's limits
    graph_tokens : steps up to so many tokens run in a captured graph and are padded to its size; 0: none
    overhead_s : host seconds per step that the device waits for

    Returns
    -------
    products cost what the next measured count costs, other layers lie on a line; attention as
    ``attention_table`` says. ``product_errors`` and ``attention_errors`` are the hold-outs behind both choices

    Raises
    ------
    SpecError : the limits lie beyond what was measured
    """
    if max_tokens > tables.dense.index.max() or max_seqs > tables.head.index.max():
        raise SpecError(
            f"max_num_batched_tokens {max_tokens}, max_num_seqs {max_seqs}: expected at most "
            f"{tables.dense.index.max()} and {tables.head.index.max()}, the largest that were measured"
        )
    blocks = len(model.blocks())
    tokens = np.arange(max_tokens + 1)
    run = tokens
    if graph_tokens:
        sizes = graph_sizes(graph_tokens)
        padded = sizes[np.minimum(np.searchsorted(sizes, tokens), len(sizes) - 1)]
        run = np.where(tokens <= sizes[-1], padded, tokens)
    calls = {
        name: 1 if name in _ONCE else 2 * blocks if name == "layernorm" else blocks for name in tables.dense
    }
    lane = np.stack([_line(tables.dense[name], run, _kind(str(name))) * calls[name] for name in tables.dense])
    rows = np.arange(max_seqs + 1)
    head = np.stack([_line(tables.head[name], rows, _kind(str(name))) for name in tables.head])
    lane[:, 0] = head[:, 0] = 0.0
    term = AttentionTerm(
        "full",
        0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        "measured",
        table=attention_table(tables.attention, blocks),
    )
    return StepPricing(
        lane_ops=_infos(tables.dense, "lane"),
        lane_s=lane,
        group_ops=(),
        group_s=np.zeros((0, max_tokens + 1)),
        head_ops=_infos(tables.head, "head"),
        head_s=head,
        attention=(term,),
        stage_share=np.ones(1),
        hop_s=np.zeros(max_tokens + 1),
        overhead_s=overhead_s,
        lanes=1,
        devices=1,
        flop_per_token=flops_per_token(model, "forward"),
        bytes_per_step=float("nan"),
        notes=(
            "every time is measured per layer on this card; between counts, products pay for the next one",
        ),
    )


def _line(column: pd.Series[float], at: npt.NDArray[np.int64], kind: str) -> FloatArray:
    """Return seconds at counts ``at``: products run whole tiles, so they cost what the next measured count costs."""
    nodes, seconds = column.index.to_numpy(), column.to_numpy(dtype=np.float64)
    if kind == "gemm":
        return np.asarray(seconds[np.searchsorted(nodes, at)])
    return np.asarray(np.interp(at, nodes, seconds))


def _infos(frame: pd.DataFrame, phase: Literal["lane", "head"]) -> tuple[OpInfo, ...]:
    return tuple(OpInfo(str(name), phase, _kind(str(name)), "measured") for name in frame)


def _kind(name: str) -> Literal["gemm", "memory"]:
    return "gemm" if name.endswith("_proj") or name == "lm_head" else "memory"


def product_errors(tables: KernelTables, rule: Literal["next", "linear"]) -> tuple[FloatArray, FloatArray]:
    """Predict the products at odd multiples of 16 tokens, from 64 on, from the multiples of 32.

    The counts between measurements are not ends of a tile (these are multiples of 16, all measured); nor are the
    counts left out here, where tiles are multiples of 32.

    Parameters
    ----------
    rule : what the next measured count costs, or a line between the two

    Returns
    -------
    predicted, measured : [products x counts] seconds
    """
    parts = []
    for name in tables.dense:
        if _kind(str(name)) == "gemm":
            column = tables.dense[name]
            column = column[column.index.to_numpy() >= 64]
            even = column.index.to_numpy() % 32 == 0
            kept, left = column[even], column[~even]
            how = "gemm" if rule == "next" else "memory"
            parts.append(
                (_line(kept, left.index.to_numpy(dtype=np.int64), how), left.to_numpy(dtype=np.float64))
            )
    return np.concatenate([p for p, _ in parts]), np.concatenate([m for _, m in parts])


def attention_table(rows: pd.DataFrame, blocks: int) -> AttentionTable:
    """Return the complete grid in the measurements: every chunk x history x sequences x context of powers of two.

    Points off that grid are left for ``attention_errors``. So are more sequences than were measured with prefill.

    Parameters
    ----------
    rows : ``prefill_chunk, kv_prefill, n_decode, kv_decode, seconds`` of one layer
    blocks : layers

    Raises
    ------
    SpecError : the grid has holes
    """
    mixed = rows[(rows["prefill_chunk"] > 0) & (rows["n_decode"] > 0)]
    axes = [
        np.array([n for n in sorted(mixed[key].unique()) if n & (n - 1) == 0], dtype=np.int64)
        for key in _KEYS
    ]
    chunk, history, sequences, context = axes
    chunk, sequences = np.append(0, chunk), np.append(0, sequences)
    known = {tuple(point): s for *point, s in rows[[*_KEYS, "seconds"]].itertuples(index=False)}
    grid = np.zeros((len(chunk), len(history), len(sequences), len(context)))
    for at in np.ndindex(grid.shape):
        c, h, n, k = chunk[at[0]], history[at[1]], sequences[at[2]], context[at[3]]
        if c == 0 and n == 0:
            continue  # no step does nothing
        point = (c, h if c else 0, n, k if n else 0)
        if point not in known:
            raise SpecError(
                f"attention.csv: no time at {', '.join(map(str, point))} of the grid ({', '.join(_KEYS)})"
            )
        grid[at] = known[point]
    nodes = [axis.astype(np.float64) for axis in (chunk, history, sequences, context)]
    return AttentionTable(nodes[0], nodes[1], nodes[2], nodes[3], grid * blocks)


def attention_errors(
    rows: pd.DataFrame, blocks: int, rule: Literal["linear", "log"], *, most_keys: int = 4096
) -> tuple[FloatArray, FloatArray]:
    """Predict the mixed points that lie off the grid from the grid.

    Parameters
    ----------
    rule : interpolate seconds over counts, or their logarithms over logarithms
    most_keys : longest history and context to look at

    Returns
    -------
    predicted, measured : [points] seconds of one layer
    """
    table = attention_table(rows, blocks)
    on = [set(axis.astype(int)) for axis in table.axes]
    off = rows[
        (rows["prefill_chunk"] >= table.chunk[1])
        & (rows["n_decode"] > 0)
        & (rows["kv_prefill"] <= most_keys)
        & (rows["kv_decode"] <= most_keys)
        & (rows["kv_decode"] >= table.context[0])
        & ~np.logical_and.reduce([rows[key].isin(nodes) for key, nodes in zip(_KEYS, on, strict=True)])
    ]
    log = rule == "log"
    nodes = (table.chunk[1:], table.history + 1.0, table.sequences[1:], table.context)
    values = table.seconds[1:, :, 1:] / blocks
    made = RegularGridInterpolator(
        [np.log(n) for n in nodes] if log else nodes, np.log(values) if log else values
    )
    at = off[_KEYS].to_numpy(dtype=np.float64) + np.array([0.0, 1.0, 0.0, 0.0])
    found = made(np.log(at) if log else at)
    return np.asarray(np.exp(found) if log else found), off["seconds"].to_numpy(dtype=np.float64)
