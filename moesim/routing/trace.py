"""RoutingTrace: the experts that recorded tokens chose, layer by layer, in sequences."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moesim.errors import Problem, SpecError
from moesim.streams import stream

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["RoutingTrace", "read_trace"]


@dataclass(frozen=True, slots=True, eq=False)
class RoutingTrace:
    """Experts chosen by the tokens of several sequences; the tokens of a sequence are consecutive.

    Attributes
    ----------
    experts : int16 [token, layer, k], heaviest first; k different experts per token and layer
    weights : float32 [token, layer, k], as recorded, falling along k; all 1/k for sampled sequences
    offset, length : int64 [sequence], first token and number of tokens
    group : [sequence], data set or task, ``""`` where unknown
    total : experts per layer
    """

    experts: npt.NDArray[np.int16]
    weights: npt.NDArray[np.float32]
    offset: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    group: npt.NDArray[np.str_]
    total: int

    @property
    def layers(self) -> int:
        """MoE layers."""
        return int(self.experts.shape[1])

    @property
    def top_k(self) -> int:
        """Experts per token and layer."""
        return int(self.experts.shape[2])

    @property
    def sequence(self) -> npt.NDArray[np.int64]:
        """Index of each token's sequence, [token]."""
        return np.repeat(np.arange(len(self.length)), self.length)

    def mask(self) -> npt.NDArray[np.bool_]:
        """Return which experts each token uses, [token, layer, E]."""
        hit = np.zeros((*self.experts.shape[:2], self.total), dtype=bool)
        np.put_along_axis(hit, self.experts.astype(np.int64), values=True, axis=2)
        return hit

    def take(self, sequences: npt.ArrayLike) -> RoutingTrace:
        """Return the given sequences (indices) as a trace."""
        chosen = np.asarray(sequences, dtype=np.int64)
        length = self.length[chosen]
        offset = np.cumsum(length) - length
        rows = np.repeat(self.offset[chosen] - offset, length) + np.arange(int(length.sum()))
        return RoutingTrace(
            self.experts[rows], self.weights[rows], offset, length, self.group[chosen], self.total
        )

    def skip(self, tokens: int) -> RoutingTrace:
        """Drop the first ``tokens`` tokens of every sequence, and the sequences that have no others."""
        keep = np.flatnonzero(self.length > tokens)
        length = self.length[keep] - tokens
        offset = np.cumsum(length) - length
        rows = np.repeat(self.offset[keep] + tokens - offset, length) + np.arange(int(length.sum()))
        return RoutingTrace(
            self.experts[rows], self.weights[rows], offset, length, self.group[keep], self.total
        )

    def split(self, seed: int = 0) -> tuple[RoutingTrace, RoutingTrace]:
        """Return two halves of the sequences, of equal share in every group (odd ones go to the first)."""
        generator = stream(seed, "routing split")
        first: list[npt.NDArray[np.int64]] = []
        second: list[npt.NDArray[np.int64]] = []
        for name in np.unique(self.group):
            members = generator.permutation(np.flatnonzero(self.group == name))
            # equal shares of long and short sequences too: deal them out in order of length, a coin per pair
            members = members[np.argsort(self.length[members], kind="stable")]
            pairs = members[: len(members) // 2 * 2].reshape(-1, 2)
            pairs = np.where(generator.random(len(pairs))[:, None] < 0.5, pairs, pairs[:, ::-1])
            first += [pairs[:, 0], members[len(pairs) * 2 :]]
            second.append(pairs[:, 1])
        return self.take(np.sort(np.concatenate(first))), self.take(np.sort(np.concatenate(second)))


def read_trace(path: Path, experts: int | None = None) -> RoutingTrace:
    """Read a recorded trace from a .npz file.

    Arrays: ``experts`` integer [token, layer, k]; ``weights`` or ``probs`` of that shape (optional; without it the
    recorded order counts as heaviest first); ``sequence_offset``, ``sequence_length`` [sequence];
    ``sequence_group`` text [sequence] (optional).

    Parameters
    ----------
    path : the file
    experts : experts per layer; none: one more than the highest that occurs

    Raises
    ------
    SpecError : no such file, not a .npz file, a missing array, wrong shapes, an expert out of range or chosen twice
        by one token, sequences that do not cover the tokens one after another
    """
    arrays = _load(path)
    for name in ("experts", "sequence_offset", "sequence_length"):
        if name not in arrays:
            raise SpecError(
                Problem(str(path), 0, name, "", f"expected this array, found {', '.join(arrays)}")
            )
    chosen = arrays["experts"]
    weights = next((arrays[name] for name in ("weights", "probs") if name in arrays), None)
    offset, length = arrays["sequence_offset"], arrays["sequence_length"]
    group = arrays.get("sequence_group", np.full(len(length), "", dtype="<U1"))
    problems = _problems(path, chosen, weights, (offset, length, group), experts)
    if problems:
        raise SpecError(*problems)
    total = experts if experts is not None else int(chosen.max()) + 1
    ids = chosen.astype(np.int16)
    if weights is None:
        sorted_weights = np.full(ids.shape, 1 / ids.shape[2], dtype=np.float32)
    else:
        order = np.argsort(-weights.astype(np.float32), axis=2, kind="stable")
        ids = np.take_along_axis(ids, order, axis=2)
        sorted_weights = np.take_along_axis(weights.astype(np.float32), order, axis=2)
    return RoutingTrace(
        ids, sorted_weights, offset.astype(np.int64), length.astype(np.int64), group.astype(np.str_), total
    )


def _load(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise SpecError(Problem(str(path), 0, "", "", "no such file")) from None
    except (ValueError, EOFError, zipfile.BadZipFile, AttributeError):
        raise SpecError(Problem(str(path), 0, "", "", "expected a .npz file of plain arrays")) from None
    except OSError as error:
        raise SpecError(Problem(str(path), 0, "", "", f"cannot be read: {error.strerror or error}")) from None


def _problems(
    path: Path,
    chosen: npt.NDArray[Any],
    weights: npt.NDArray[Any] | None,
    sequences: Sequence[npt.NDArray[Any]],
    experts: int | None,
) -> list[Problem]:
    offset, length, group = sequences

    def bad(field: str, value: object, expected: str) -> Problem:
        return Problem(str(path), 0, field, str(value), expected)

    if chosen.ndim != 3 or not np.issubdtype(chosen.dtype, np.integer) or 0 in chosen.shape:
        return [
            bad("experts", f"{chosen.dtype} {chosen.shape}", "expected integers [token, layer, k], not empty")
        ]
    found = []
    top = int(chosen.max()) if experts is None else experts - 1
    if chosen.min() < 0 or chosen.max() > top or chosen.max() > np.iinfo(np.int16).max:
        found.append(bad("experts", f"{chosen.min()}..{chosen.max()}", f"expected experts 0..{top}"))
    ordered = np.sort(chosen, axis=2)
    twice = np.flatnonzero((ordered[:, :, 1:] == ordered[:, :, :-1]).any(axis=(1, 2)))
    if len(twice):
        found.append(bad(f"experts[{twice[0]}]", "", "expected different experts in each layer of a token"))
    if weights is not None and weights.shape != chosen.shape:
        found.append(bad("weights", weights.shape, f"expected the shape of experts {chosen.shape}"))
    elif weights is not None and not np.all(np.isfinite(weights.astype(np.float32))):
        found.append(bad("weights", "", "expected finite numbers"))
    if offset.ndim != 1 or offset.shape != length.shape or group.shape != length.shape:
        found.append(
            bad("sequence_offset", offset.shape, "expected one entry per sequence, as sequence_length")
        )
    elif len(length) == 0 or length.min() < 1 or np.any(offset != np.cumsum(length) - length):
        found.append(
            bad("sequence_offset", "", "expected non-empty sequences that follow one another from token 0")
        )
    elif length.sum() != len(chosen):
        found.append(
            bad("sequence_length", length.sum(), f"expected lengths that add up to {len(chosen)} tokens")
        )
    return found
