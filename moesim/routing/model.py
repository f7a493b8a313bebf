"""RoutingModel: tables of an autoregressive model of expert choice, and the memory of past tokens it reads.

A token's heaviest expert in a layer is drawn with log-odds

    bias + from the layer below (its heaviest expert, and its other experts) + persistence

and its other k - 1 experts one after another without replacement with log-odds of the same form plus a term that
depends on the heaviest one. Persistence is a weighted sum of memories of the sequence so far: whether the previous
token used the expert (and had it heaviest), and how often recent tokens used it against its popularity, with
exponential forgetting at several half-lives. Draws by log-odds are made with Gumbel noise (Plackett-Luce).
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moesim.errors import Problem, SpecError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["HALF_LIVES", "MEMORIES", "PRIOR_TOKENS", "RoutingModel", "forgetting", "pack", "unpack"]

Array = npt.NDArray[np.float32]

HALF_LIVES = (2.0, 8.0, 32.0, np.inf)
"""Half-lives of the memories in tokens; infinite: the whole sequence so far."""
MEMORIES = 2 + len(HALF_LIVES)
"""Persistence terms: previous token's set, previous token's heaviest, then one per half-life."""
PRIOR_TOKENS = 1.0
"""Tokens of average popularity that each memory starts from, so that log-ratios stay finite."""


@dataclass(frozen=True, slots=True, eq=False)
class RoutingModel:
    """Fitted tables. L layers, E experts, k experts per token.

    Attributes
    ----------
    popularity : [L, E] probability that a token uses an expert, rows sum to k
    top_bias, rest_bias : [L, E]
    top_from_top, top_from_rest, rest_from_top, rest_from_rest : [L, E, E] from the layer below (row) to this one; the
        first layer's are zero
    rest_from_own : [L, E, E] from this layer's heaviest expert (row)
    top_memory, rest_memory : [L, MEMORIES] weights of the persistence terms
    top_k : experts per token
    """

    popularity: Array
    top_bias: Array
    rest_bias: Array
    top_from_top: Array
    top_from_rest: Array
    rest_from_top: Array
    rest_from_rest: Array
    rest_from_own: Array
    top_memory: Array
    rest_memory: Array
    top_k: int

    @property
    def layers(self) -> int:
        """MoE layers."""
        return len(self.popularity)

    @property
    def experts(self) -> int:
        """Experts per layer."""
        return int(self.popularity.shape[1])


def forgetting() -> Array:
    """Return what is left of a memory after one token, [half-life]."""
    return np.asarray(0.5 ** (1 / np.array(HALF_LIVES)), dtype=np.float32)


_MATRICES = ("top_from_top", "top_from_rest", "rest_from_top", "rest_from_rest", "rest_from_own")
_MAGIC = "moesim-routing-1"


def pack(model: RoutingModel) -> bytes:
    """Return the model as a compressed .npz file: the matrices in 8 bits with one scale per layer, the rest in float32.

    The same model gives the same bytes.
    """
    arrays: dict[str, npt.NDArray[np.generic]] = {"format": np.array(_MAGIC), "top_k": np.array(model.top_k)}
    for field in fields(model):
        value = getattr(model, field.name)
        if field.name in _MATRICES:
            scale = np.maximum(np.abs(value).max(axis=(1, 2)), 1e-12) / 127
            arrays[field.name] = np.round(value / scale[:, None, None]).astype(np.int8)
            arrays[f"{field.name}_scale"] = scale.astype(np.float32)
        elif field.name != "top_k":
            arrays[field.name] = value.astype(np.float32)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)  # zip entries carry a fixed 1980 date
    return buffer.getvalue()


def unpack(path: Path, sha256: str | None = None) -> RoutingModel:
    """Read tables written by ``pack``.

    Raises
    ------
    SpecError : no such file, another digest than ``sha256``, or not such a file
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SpecError(Problem(str(path), 0, "", "", f"cannot be read: {error.strerror}")) from None
    digest = hashlib.sha256(data).hexdigest()
    if sha256 is not None and digest != sha256:
        raise SpecError(
            Problem(str(path), 0, "sha256", digest, f"expected {sha256}: the tables were changed")
        )
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if str(arrays["format"]) != _MAGIC:
            raise SpecError(Problem(str(path), 0, "format", str(arrays["format"]), f"expected {_MAGIC}"))
        for name in _MATRICES:
            arrays[name] = arrays[name].astype(np.float32) * arrays.pop(f"{name}_scale")[:, None, None]
        tables = {f.name: arrays[f.name] for f in fields(RoutingModel) if f.name != "top_k"}
        return RoutingModel(**tables, top_k=int(arrays["top_k"]))
    except (KeyError, ValueError, EOFError, OSError) as error:
        raise SpecError(Problem(str(path), 0, "", "", f"expected fitted routing tables ({error})")) from None
