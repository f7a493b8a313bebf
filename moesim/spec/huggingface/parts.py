"""Parts: what a family's reader finds in a config, before it becomes a ModelSpec."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["DRAFTS_UNKNOWN", "Block", "Parts", "layer_runs"]

Block = tuple[str, str]
_LONGEST_PERIOD = 24

DRAFTS_UNKNOWN = "The config does not describe the draft layers; each is taken as the last decoder layer."


@dataclass
class Parts:
    """Pieces of a model.

    Attributes
    ----------
    attentions, ffns : name -> fields of the spec
    blocks : [attention, ffn] of every decoder layer
    encoder : the same for an encoder
    cross_attention : name of the attention towards the encoder
    mtp_layers, mtp_block : multi-token prediction
    notes : what the config does not say or the spec cannot hold, one sentence each
    """

    attentions: dict[str, dict[str, Any]]
    ffns: dict[str, dict[str, Any]]
    blocks: list[Block]
    encoder: list[Block] = field(default_factory=list)
    cross_attention: str = ""
    mtp_layers: int = 0
    mtp_block: Block | None = None
    notes: list[str] = field(default_factory=list)


def layer_runs(blocks: list[Block]) -> list[dict[str, Any]]:
    """Write a list of layers as few repeated runs; expanding them gives the list back.

    At each position the period that covers the most layers wins, the shortest of equals.

    >>> layer_runs([("a", "x")] * 3 + [("a", "y"), ("b", "y")] * 2)
    [{'repeat': 3, 'layers': [['a', 'x']]}, {'repeat': 2, 'layers': [['a', 'y'], ['b', 'y']]}]
    """
    runs: list[dict[str, Any]] = []
    start = 0
    while start < len(blocks):
        best = (1, 1)
        for period in range(1, min(_LONGEST_PERIOD, len(blocks) - start) + 1):
            pattern = blocks[start : start + period]
            repeat = 1
            while blocks[start + repeat * period : start + (repeat + 1) * period] == pattern:
                repeat += 1
            if (repeat > 1 or period == 1) and repeat * period > best[0] * best[1]:
                best = (period, repeat)
        period, repeat = best
        pattern = blocks[start : start + period]
        if repeat == 1 and runs and runs[-1]["repeat"] == 1:
            runs[-1]["layers"].append(list(pattern[0]))  # lone layers stand in one run
        else:
            runs.append({"repeat": repeat, "layers": [list(block) for block in pattern]})
        start += period * repeat
    return runs
