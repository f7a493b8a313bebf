"""Composition policies: which prompts a node runs next, and which node answers a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moesim.errors import SpecError
from moesim.files import nearest

__all__ = ["BATCHING", "DISPATCH", "NodeView", "Waiting", "make_batching", "make_dispatch"]


@dataclass(frozen=True, slots=True)
class Waiting:
    """A routed prompt in a node's queue."""

    prompt: int
    expert: int


@dataclass(frozen=True, slots=True)
class NodeView:
    """What a dispatcher may look at.

    Attributes
    ----------
    waiting : prompts that are queued or running
    resident : the expert is in main memory, or on its way there for a queued prompt
    home : the expert's own node
    """

    waiting: int
    resident: bool
    home: bool


Batching = Callable[[Sequence[Waiting], frozenset[int], int], list[int]]
"""Queue in order of arrival, resident experts, most prompts -> indices into the queue of the next run."""
Dispatch = Callable[[Sequence[NodeView]], int]
"""Nodes that hold the expert's weights -> index of the one that answers."""


def _fcfs(queue: Sequence[Waiting], _resident: frozenset[int], most: int) -> list[int]:
    """Take the oldest prompt, and the ones right behind it that need the same expert."""
    taken = [0]
    while len(taken) < min(most, len(queue)) and queue[len(taken)].expert == queue[0].expert:
        taken.append(len(taken))
    return taken


def _grouped(queue: Sequence[Waiting], resident: frozenset[int], most: int) -> list[int]:
    """Take all prompts of one expert: the oldest whose expert is resident, or else the oldest of all."""
    first = next((w.expert for w in queue if w.expert in resident), queue[0].expert)
    return [index for index, w in enumerate(queue) if w.expert == first][:most]


def _least_busy(nodes: Sequence[NodeView]) -> int:
    return min(range(len(nodes)), key=lambda i: nodes[i].waiting)


def _resident(nodes: Sequence[NodeView]) -> int:
    return min(range(len(nodes)), key=lambda i: (not nodes[i].resident, nodes[i].waiting))


def _home(nodes: Sequence[NodeView]) -> int:
    return min(range(len(nodes)), key=lambda i: (not nodes[i].home, nodes[i].waiting))


BATCHING: dict[str, Batching] = {"fcfs": _fcfs, "grouped": _grouped}
DISPATCH: dict[str, Dispatch] = {"least_busy": _least_busy, "resident": _resident, "home": _home}


def make_batching(name: str) -> Batching:
    """Return the batching rule of that name.

    Raises
    ------
    SpecError : unknown name
    """
    if name not in BATCHING:
        raise SpecError(f"batching {name!r}: unknown policy{nearest(name, BATCHING)}")
    return BATCHING[name]


def make_dispatch(name: str) -> Dispatch:
    """Return the dispatch rule of that name.

    Raises
    ------
    SpecError : unknown name
    """
    if name not in DISPATCH:
        raise SpecError(f"dispatch {name!r}: unknown policy{nearest(name, DISPATCH)}")
    return DISPATCH[name]
