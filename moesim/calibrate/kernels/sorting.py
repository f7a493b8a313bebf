"""Sorting: from each token's chosen experts to blocks of rows of one expert each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["ExpertBlocks", "sort_tokens"]


@dataclass(frozen=True, slots=True, eq=False)
class ExpertBlocks:
    """Rows grouped by expert and padded, so that every block of rows has one expert.

    Attributes
    ----------
    slots : [blocks * block_rows] int32, ``token * top_k + choice``; ``pairs`` marks padding
    experts : [blocks] int32 expert of each block; -1 for blocks that hold padding alone
    pairs : number of (token, choice) pairs
    block_rows : rows per block
    """

    slots: torch.Tensor
    experts: torch.Tensor
    pairs: int
    block_rows: int


def sort_tokens(ids: torch.Tensor, experts: int, block_rows: int) -> ExpertBlocks:
    """Group the (token, choice) pairs by expert and pad each group to whole blocks.

    The number of blocks is the bound ``ceil(pairs / block_rows) + experts``, not the count in use: no value
    travels to the host, so the work can be captured in a graph.

    Parameters
    ----------
    ids : [tokens, top_k] integer experts, each in ``0 .. experts - 1``
    experts : number of experts
    block_rows : rows per block
    """
    import torch

    flat = ids.reshape(-1).long()
    pairs = flat.numel()
    blocks = -(-pairs // block_rows) + experts
    counts = torch.zeros(experts, dtype=torch.long, device=ids.device)
    counts.scatter_add_(0, flat, torch.ones_like(flat))
    order = torch.argsort(flat, stable=True)
    ends = torch.cumsum((counts + block_rows - 1) // block_rows, 0)
    first_row = (ends - (counts + block_rows - 1) // block_rows) * block_rows
    first_pair = torch.cumsum(counts, 0) - counts
    owner = flat[order]
    rank = torch.arange(pairs, device=ids.device) - first_pair[owner]
    slots = torch.full((blocks * block_rows,), pairs, dtype=torch.int32, device=ids.device)
    slots[first_row[owner] + rank] = order.int()
    index = torch.arange(blocks, device=ids.device)
    of_block = torch.searchsorted(ends, index, right=True).int()
    return ExpertBlocks(slots, torch.where(of_block < experts, of_block, -1), pairs, block_rows)
