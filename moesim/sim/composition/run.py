"""Run: prompts through router and experts on nodes, from a setup to tables."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import simpy

from moesim.policies.composition import NodeView, Waiting
from moesim.sim.composition.node import Node, Staged

if TYPE_CHECKING:
    from collections.abc import Generator

    from moesim.sim.composition.prompts import Prompts
    from moesim.sim.composition.setup import CompositionSetup

__all__ = ["CompositionResult", "simulate_composition"]


@dataclass(frozen=True, slots=True, eq=False)
class CompositionResult:
    """What happened.

    Attributes
    ----------
    prompts : one row each: prompt, expert, node, arrival_s, routed_s, run_s (its last run began), finish_s, switches
        (copies that its runs had to wait for)
    runs : one row each: node, expert, prompts, copy_from_s, copy_to_s (-1: resident), run_from_s, run_to_s, tail
        (the last expert of its prompts)
    nodes : one row each: routed, router_s, busy_s, copy_s, switches, runs, evictions, most_resident_bytes
    resident : node, time_s, bytes at every change of main memory
    """

    prompts: pd.DataFrame
    runs: pd.DataFrame
    nodes: pd.DataFrame
    resident: pd.DataFrame
    capacity: float

    @property
    def switches(self) -> int:
        """Copies into main memory."""
        return int(self.nodes["switches"].sum())

    @property
    def latency_s(self) -> pd.Series[float]:
        """Seconds from arrival to answer, by prompt."""
        return self.prompts["finish_s"] - self.prompts["arrival_s"]

    @property
    def makespan_s(self) -> float:
        """Seconds from the first arrival to the last answer."""
        return float(self.prompts["finish_s"].max() - self.prompts["arrival_s"].min())

    @property
    def hit_share(self) -> float:
        """Share of runs whose expert was resident."""
        return 1.0 - self.switches / max(int(self.nodes["runs"].sum()), 1)

    def summary(self) -> dict[str, Any]:
        """Return the figures people ask for first."""
        late = self.latency_s
        total = float(self.nodes[["router_s", "busy_s"]].to_numpy().sum()) + float(self.nodes["copy_s"].sum())
        return {
            "prompts": len(self.prompts),
            "mean_latency_s": float(late.mean()),
            "p50_latency_s": float(late.quantile(0.5)),
            "p99_latency_s": float(late.quantile(0.99)),
            "prompts_per_s": len(self.prompts) / self.makespan_s if self.makespan_s else float("nan"),
            "switches": self.switches,
            "hit_share": self.hit_share,
            "switch_time_share": float(self.nodes["copy_s"].sum()) / total if total else 0.0,
            "resident_bytes": float(self.nodes["most_resident_bytes"].max()),
        }


class _World:
    """Nodes, the prompts on their way, and what is written down."""

    def __init__(self, setup: CompositionSetup, prompts: Prompts) -> None:
        self.env = simpy.Environment()
        self.setup, self.prompts = setup, prompts
        n = len(prompts)
        self.step = np.zeros(n, dtype=np.int64)
        self.node = np.full(n, -1, dtype=np.int64)
        self.routed = np.full(n, -1.0)
        self.began = np.full(n, -1.0)
        self.finish = np.full(n, -1.0)
        self.switches = np.zeros(n, dtype=np.int64)
        self.runs: list[dict[str, Any]] = []
        self.chains = [setup.chain(int(e)) for e in prompts.expert]
        self.nodes = [Node(self.env, i, setup, prompts, self._routed, self._ran) for i in range(setup.nodes)]
        self.env.process(self._arrive())

    def _arrive(self) -> Generator[Any, Any, None]:
        times, starts = np.unique(self.prompts.arrival_s, return_index=True)
        ends = [*starts[1:], len(self.prompts)]
        for time, start, end in zip(times, starts, ends, strict=True):
            yield self.env.timeout(float(time) - self.env.now)
            together = list(range(int(start), int(end)))
            if self.setup.router is None:
                self._routed(together)
                continue
            # whole batches stay together: the router reads them at once
            for at in range(0, len(together), self.setup.router_batch):
                front = min(self.nodes, key=lambda node: node.waiting)
                front.ask(together[at : at + self.setup.router_batch])

    def _routed(self, prompts: list[int]) -> None:
        for prompt in prompts:
            self.routed[prompt] = self.env.now
            self._send(prompt)

    def _send(self, prompt: int) -> None:
        expert = self.chains[prompt][self.step[prompt]]
        able = [node for node in self.nodes if self.setup.held[node.index, expert]]
        home = expert % self.setup.nodes
        views = [NodeView(n.waiting, n.expects(expert), n.index == home) for n in able]
        able[self.setup.dispatch(views)].submit(Waiting(prompt, expert))

    def _ran(self, index: int, run: Staged, began: float, ended: float) -> None:
        self.runs.append(
            {
                "node": index, "expert": run.expert, "prompts": len(run.prompts), "copy_from_s": run.copy_from_s,
                "copy_to_s": run.copy_to_s, "run_from_s": began, "run_to_s": ended,
            }
        )  # fmt: skip
        for prompt in run.prompts:
            self.began[prompt], self.node[prompt] = began, index
            self.switches[prompt] += run.copy_to_s >= 0
            self.step[prompt] += 1
            if self.step[prompt] == len(self.chains[prompt]):
                self.finish[prompt] = ended
            else:
                self._send(prompt)


def simulate_composition(setup: CompositionSetup, prompts: Prompts) -> CompositionResult:
    """Simulate prompts through a composition; every prompt is answered.

    Parameters
    ----------
    setup : composition on nodes
    prompts : with experts below the number of the setup's

    Returns
    -------
    result : equal inputs give equal tables
    """
    world = _World(setup, prompts)
    world.env.run()
    nodes = pd.DataFrame(
        [{k: v for k, v in asdict(n.totals).items() if k != "resident"} for n in world.nodes]
    )
    held = [(n.index, time, size) for n in world.nodes for time, size in n.totals.resident]
    table = pd.DataFrame(
        {
            "prompt": np.arange(len(prompts)), "expert": prompts.expert, "node": world.node,
            "arrival_s": prompts.arrival_s, "routed_s": world.routed, "run_s": world.began,
            "finish_s": world.finish, "switches": world.switches,
        }
    )  # fmt: skip
    return CompositionResult(
        table,
        pd.DataFrame(world.runs),
        nodes,
        pd.DataFrame(held, columns=["node", "time_s", "bytes"]),
        setup.capacity,
    )
