"""Best pattern: the most valuable set of pieces that one rank can hold below a target, by branch and bound."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@njit(cache=True)
def best_pattern(
    value: FloatArray,
    order: IntArray,
    load: FloatArray,
    owner: IntArray,
    most: IntArray,
    slots: int,
    target: float,
    nodes: int,
) -> tuple[FloatArray, IntArray, bool]:
    """Return for every piece the most valuable pattern that holds it.

    A pattern is ``slots`` pieces; a piece may repeat up to ``most`` times, pieces of one owner do not mix.

    Parameters
    ----------
    value : float64 [piece]
    order : int64 [piece], pieces by falling value
    load : float64 [row, piece]; a pattern's sum stays at or below ``target`` in every row
    owner, most : int64 [piece]
    nodes : search nodes allowed in all; without any left, the rest keeps -inf and ``finished`` is False

    Returns
    -------
    best : float64 [piece], -inf where no pattern holds the piece
    pattern : int64 [piece, slots], -1 where there is none
    finished : the search was not cut short, so that ``best`` is exact
    """
    pieces = value.shape[0]
    rows = load.shape[0]
    lightest = np.full(rows, np.inf)
    for k in range(rows):
        for i in range(pieces):
            lightest[k] = min(lightest[k], load[k, i])
    best = np.full(pieces, -np.inf)
    pattern = np.full((pieces, slots), -1, dtype=np.int64)
    finished = True
    left = nodes
    chosen = np.empty(slots, dtype=np.int64)
    position = np.zeros(slots + 1, dtype=np.int64)
    held = np.empty((slots + 1, rows))
    gained = np.empty(slots + 1)
    for first in range(pieces):
        chosen[0] = first
        gained[1] = value[first]
        fits = True
        for k in range(rows):
            held[1, k] = load[k, first]
            if held[1, k] + (slots - 1) * lightest[k] > target:
                fits = False
        if not fits:
            continue
        if slots == 1:
            best[first] = value[first]
            pattern[first, 0] = first
            continue
        depth = 1
        position[1] = 0
        while depth >= 1:
            if position[depth] >= pieces or left <= 0:
                if left <= 0:
                    finished = False
                    break
                depth -= 1
                if depth >= 1:
                    position[depth] += 1
                continue
            left -= 1
            piece = order[position[depth]]
            need = slots - depth
            # pieces come in order of value, so the rest of this level is no better
            if gained[depth] + need * value[piece] <= best[first] + 1e-12:
                depth -= 1
                if depth >= 1:
                    position[depth] += 1
                continue
            allowed = True
            repeats = 0
            for i in range(depth):
                if chosen[i] == piece:
                    repeats += 1
                elif owner[chosen[i]] == owner[piece]:
                    allowed = False
            if repeats >= most[piece]:
                allowed = False
            if allowed:
                for k in range(rows):
                    if held[depth, k] + load[k, piece] + (need - 1) * lightest[k] > target:
                        allowed = False
                        break
            if not allowed:
                position[depth] += 1
                continue
            chosen[depth] = piece
            if need == 1:
                best[first] = gained[depth] + value[piece]
                pattern[first, :] = chosen
                # nothing later on this level is better
                depth -= 1
                if depth >= 1:
                    position[depth] += 1
                continue
            gained[depth + 1] = gained[depth] + value[piece]
            for k in range(rows):
                held[depth + 1, k] = held[depth, k] + load[k, piece]
            position[depth + 1] = position[depth]
            depth += 1
    return best, pattern, finished
