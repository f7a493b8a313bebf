"""Composition: whole models as experts on the nodes of a scenario's cluster, as few nodes as serve them."""

from __future__ import annotations

import math

import numpy as np

from moesim.plan.composition import CompositionProblem, fewest_bins, pack, tiers_of_node
from moesim.plan.solution import Limits
from moesim.spec.base import load_spec
from moesim.spec.model import ModelSpec
from moesim.spec.parameters import weight_bytes
from moesim.spec.planning import CompositionPlan
from moesim.spec.scenario import ScenarioSpec
from moesim.study.plans.answer import Planned, Progress

__all__ = ["plan_composition"]


def plan_composition(
    scenario: ScenarioSpec, plan: CompositionPlan, limits: Limits, on_progress: Progress | None = None
) -> Planned:
    """Return the fewest nodes that hold all models within latency and load, and where each model lives.

    Raises
    ------
    NoResult : not even the whole cluster suffices: which limit is short, and by how much
    SpecError : no such model or tier
    """
    models = [load_spec(ModelSpec, expert.model, "model") for expert in plan.experts]
    total = sum(expert.share for expert in plan.experts)
    size, share, run, names = [], [], [], []
    for expert, model in zip(plan.experts, models, strict=True):
        for copy in range(expert.copies):
            size.append(weight_bytes(model, scenario.deployment.precision))
            share.append(expert.share / total / expert.copies)
            run.append(expert.run)
            names.append(model.name if expert.copies == 1 else f"{model.name} #{copy + 1}")
    topology = scenario.topology()
    problem = CompositionProblem(
        size=np.array(size),
        share=np.array(share),
        run_s=np.array(run),
        tiers=tiers_of_node(topology, plan.tiers, reserved=plan.reserved),
        most_bins=topology.nodes,
        router_s=plan.router,
        mean_s=math.inf if plan.mean is None else plan.mean,
        target_s=math.inf if plan.target is None else plan.target,
        late_share=plan.late,
        rate=plan.rate or 0.0,
        busy_share=plan.busy,
    )
    found = fewest_bins(problem, limits, on_progress=on_progress)
    by_rule = next((k for k in range(1, topology.nodes + 1) if pack(problem, k) is not None), None)
    rows = [
        {"node": int(node), "tier": problem.tiers[int(tier)].name, "expert": name, "bytes": float(bytes_),
         "share": float(part), "seconds": float(problem.latency()[index, int(tier)])}
        for index, (name, node, tier, bytes_, part) in enumerate(
            zip(names, found.answer.bin, found.answer.tier, size, share, strict=True)
        )
    ]  # fmt: skip
    return Planned(
        problem="composition",
        measure=f"nodes of {topology.node.name}",
        objective=found.objective,
        bound=found.bound,
        method=found.method,
        sol_status=found.sol_status,
        seconds=found.seconds,
        history=found.history,
        baselines={} if by_rule is None else {"packed by rule": float(by_rule)},
        answer={
            "mean_request_s": problem.mean_latency(found.answer),
            "experts": sorted(rows, key=lambda row: (row["node"], row["tier"])),
        },
        notes=(
            "Every model lives once; a model outside the fastest tiers is copied for every request of its own.",
        ),
    )
