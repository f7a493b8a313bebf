"""Parallelism: the cut and batch limits for a scenario's model, devices and targets; the finalists are simulated."""

from __future__ import annotations

import math
from typing import Any

from moesim.errors import NoResult, SpecError
from moesim.plan.parallelism import (
    Axes,
    Demand,
    Measured,
    Option,
    ParallelismProblem,
    Table,
    demand_of,
    finalists,
    plan_parallelism,
    sglang_flags,
    simulated,
    vllm_flags,
)
from moesim.plan.solution import Limits
from moesim.results import summary
from moesim.sim.calibration import calibrated
from moesim.sim.run import simulate
from moesim.spec.deployment import Deployment
from moesim.spec.planning import Menu, ParallelismPlan
from moesim.spec.scenario import ScenarioSpec
from moesim.spec.topology import Topology
from moesim.spec.traffic import TrafficSpec
from moesim.study.plans.answer import Planned, Progress
from moesim.traffic.sample import sample

__all__ = ["axes_of", "demand_of_traffic", "option_rows", "plan_parallelism_of", "problem_of"]

_REQUESTS = 1000
_MOST_ROWS = 2000


def plan_parallelism_of(
    scenario: ScenarioSpec,
    plan: ParallelismPlan,
    limits: Limits,  # noqa: ARG001 - every option is priced, there is no search to cut short
    on_progress: Progress | None = None,  # noqa: ARG001 - as above
) -> Planned:
    """Return the deployment of fewest devices for the rate (or of most requests per device), every option in a table.

    Raises
    ------
    NoResult : nothing serves the demand: the nearest miss
    SpecError : a scenario without targets asked for as many requests as possible
    """
    rate = plan.rate if plan.rate is not None else scenario.traffic.mean_rate or 0.0
    targets = scenario.targets
    if not rate and targets.ttft is None and targets.tpot is None:
        raise SpecError("plan: expected a rate, or targets: without either any number of requests is good")
    topology = scenario.topology()
    most = topology.devices if plan.devices is None else min(plan.devices, topology.devices)
    problem = problem_of(
        scenario, topology, demand_of_traffic(scenario.traffic, scenario.run.seed, rate), plan.axes, most
    )
    found = plan_parallelism(problem, disaggregate=plan.disaggregate)
    chosen = found.answer
    runs = simulated(finalists(chosen.table, plan.finalists), lambda how: _measured(scenario, how))
    deployment, note = chosen.deployment, "chosen by the closed form"
    if runs and chosen.split is None and runs[0].measured.meets:
        deployment, note = Deployment(serve=runs[0].option.pool), "first of the simulated finalists"
    now = sum(pool.replicas * pool.parallelism.devices for pool in scenario.deployment.pools.values())
    return Planned(
        problem="parallelism",
        measure=(f"devices for {rate:.4g} request/s" if rate else "minus requests per second and device")
        + ", by the closed form",
        objective=found.objective,
        bound=found.bound,
        method=found.method,
        sol_status=found.sol_status,
        seconds=found.seconds,
        history=found.history,
        baselines={"the scenario's deployment": float(now)} if rate else {},
        answer={
            "chosen": note,
            "devices": sum(p.replicas * p.parallelism.devices for p in deployment.pools.values()),
            "deployment": _stated(deployment),
            "launch": _launch(scenario, deployment),
            "finalists": [
                {**_row(f.option), "simulated_request_per_s": f.measured.rate, "simulated_ttft_s": f.measured.ttft_s,
                 "simulated_tpot_s": f.measured.tpot_s, "meets_targets": f.measured.meets}
                for f in runs
            ],
            "counts": chosen.table.counts(),
            "options": option_rows(chosen.table),
        },
        notes=(
            "Means are held against the targets in the closed form, percentiles in the simulation of finalists.",
            "The scenario's deployment is counted in devices; whether it meets the targets, moesim run says.",
        ),
    )  # fmt: skip


def problem_of(
    scenario: ScenarioSpec, topology: Topology, demand: Demand, axes: Menu, devices: int
) -> ParallelismProblem:
    """Return the problem of one device type under the scenario's model, engine and prices of steps."""
    how = scenario.deployment
    engine = next(iter(how.pools.values())).engine
    known = calibrated(how.calibration, engine, topology.device)
    return ParallelismProblem(
        model=scenario.model,
        topology=topology,
        demand=demand,
        devices=devices,
        targets=scenario.targets,
        engine=engine,
        axes=axes_of(axes),
        precision=how.precision,
        routing=scenario.routing,
        chain=known.chain,
        overhead=known.host,
    )


def axes_of(menu: Menu) -> Axes:
    """Return what a plan section lists to try."""
    return Axes(menu.tp, menu.pp, menu.dp, menu.ep, menu.max_num_seqs, menu.max_num_batched_tokens)


def demand_of_traffic(traffic: TrafficSpec, seed: int, rate: float) -> Demand:
    """Return the lengths of a traffic's first requests at a rate."""
    return demand_of(sample(traffic, seed, _REQUESTS), rate)


def option_rows(table: Table) -> list[dict[str, Any]]:
    """Return the options as rows, those that serve first, the others with their reason; at most 2,000."""
    good = table.good()
    kept = {id(option) for option in good}
    rest = [option for option in table.options if id(option) not in kept]
    return [_row(option) for option in [*good, *rest][:_MOST_ROWS]]


def _row(option: Option) -> dict[str, Any]:
    cut, engine = option.pool.parallelism, option.pool.engine
    return {
        "tp": cut.tp, "pp": cut.pp, "dp": cut.dp, "ep": cut.ep, "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens, "replicas": option.pool.replicas,
        "devices": option.devices, "request_per_s_per_replica": option.goodput, "ttft_s": _known(option.ttft_s),
        "tpot_s": _known(option.tpot_s), "status": option.status, "reason": option.reason,
    }  # fmt: skip


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _stated(deployment: Deployment) -> dict[str, Any]:
    """Return a deployment as a scenario would state it."""
    limits = ("max_num_seqs", "max_num_batched_tokens")
    return {
        name: {
            "replicas": pool.replicas,
            "parallelism": pool.parallelism.model_dump(),
            "engine": pool.engine.model_dump(mode="json", exclude_defaults=True)
            | {key: getattr(pool.engine, key) for key in limits},
        }
        for name, pool in deployment.pools.items()
    }


def _launch(scenario: ScenarioSpec, deployment: Deployment) -> dict[str, str]:
    """Return launch commands, or why an engine has none."""
    found: dict[str, str] = {}
    for name, pool in deployment.pools.items():
        for engine, flags in (("vllm", vllm_flags), ("sglang", sglang_flags)):
            key = engine if name == "serve" else f"{engine} {name}"
            try:
                made = flags(scenario.model, scenario.topology(), pool, scenario.deployment.precision)
            except NoResult as error:
                found[key] = f"none: {error}"
                continue
            times = f"{made.replicas} times: " if made.replicas > 1 else ""
            found[key] = f"{times}{made}" + "".join(f" ({note})" for note in made.notes)
    return found


def _measured(scenario: ScenarioSpec, deployment: Deployment) -> Measured:
    """Simulate the scenario under another deployment, everything else the same."""
    how = scenario.deployment.model_copy(
        update={name: getattr(deployment, name) for name in ("serve", "prefill", "decode")}
    )
    told = summary(simulate(scenario.model_copy(update={"deployment": how})))
    good, judged = told["goodput"], told["verdict"]
    rate = told["throughput"]["requests_per_s"] if good is None else good["requests_per_s"]
    seen = {
        name: judged[name]["value_s"] if name in judged else told[f"{name}_s"]["mean"]
        for name in ("ttft", "tpot")
    }
    ttft, tpot = (math.inf if value is None else float(value) for value in seen.values())
    return Measured(float(rate or 0.0), ttft, tpot, all(v["met"] is True for v in judged.values()))
