"""Solve a PuLP program with HiGHS: true bound, warm start, progress, interrupt, and the constraint that is short.

PuLP 3 alone says "Optimal" at a time limit, ignores a warm start and keeps the bound to itself; here the HiGHS model
that PuLP builds is run and read directly.
"""

from __future__ import annotations

import ctypes
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import highspy
import numpy as np
import pulp

from moesim.errors import LawBroken
from moesim.plan.solution import Limits, Point, SolStatus

__all__ = ["Outcome", "quiet_highs", "solve"]

_TOLERANCE: Final = 1e-6  # HiGHS' own for rows and integers
_PROOF: Final = 1e-9
_POLL_S: Final = 0.05
_ELASTIC_S: Final = 20.0
_MODEL: Final = highspy.HighsModelStatus
_KIND: Final = highspy.cb.HighsCallbackType
_STOPPED: Final = {
    _MODEL.kTimeLimit,
    _MODEL.kIterationLimit,
    _MODEL.kInterrupt,
    _MODEL.kSolutionLimit,
    _MODEL.kObjectiveBound,
    _MODEL.kObjectiveTarget,
    _MODEL.kMemoryLimit,
    _MODEL.kUnknown,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is known of a program after a solve.

    Attributes
    ----------
    values : value of every variable by name, integers exact; empty without a solution
    objective : of those values, with the objective's constant; nan without a solution
    bound : no solution is better than it, in the program's own sense (below a minimum, above a maximum);
        -inf or inf where nothing is proven, nan when infeasible
    sol_status : ``optimal`` only where bound and objective meet to 1e-9, ``feasible`` at a limit or wanted gap
    seconds : wall time
    history : incumbents and bounds over time
    short : when infeasible: constraint -> how far its right-hand side is missed in the cheapest repair (each
        constraint's miss counted relative to its right-hand side); empty when no repair of constraints helps
    """

    values: Mapping[str, float]
    objective: float
    bound: float
    sol_status: SolStatus
    seconds: float
    history: tuple[Point, ...] = ()
    short: Mapping[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class _Run:
    """What callbacks write while the solver runs in its thread."""

    sign: float
    constant: float
    stop: bool = False
    points: list[Point] = field(default_factory=list)
    best: float = math.inf
    bound: float = -math.inf

    def note(self, seconds: float, primal: float, dual: float) -> None:
        """Keep a point when the incumbent or the bound moved; HiGHS speaks of 1e200 and more as of infinity."""
        primal = primal if abs(primal) < 1e30 else math.inf
        dual = dual if abs(dual) < 1e30 else -math.inf
        if primal < self.best or dual > self.bound:
            self.best, self.bound = min(primal, self.best), max(dual, self.bound)
            self.points.append(self.point(seconds))

    def point(self, seconds: float) -> Point:
        return Point(seconds, self.sign * self.best + self.constant, self.sign * self.bound + self.constant)


def solve(
    program: pulp.LpProblem,
    limits: Limits,
    *,
    start: Mapping[str, float] | None = None,
    on_progress: Callable[[Point], None] | None = None,
    elastic: Callable[[str], bool] | None = None,
) -> Outcome:
    """Minimise or maximise a program; the same program, limits.seed and start give the same answer.

    One thread and a fixed seed; only a time limit that bites makes the answer depend on the machine. An interrupt
    from the keyboard ends the search and keeps the incumbent.

    Parameters
    ----------
    program : with unique variable names
    limits : wall time, relative gap that is good enough, seed
    start : values of variables by name. A complete one is checked and is never lost: the answer is at least as good;
        a partial one is handed to HiGHS to complete
    on_progress : called in this thread with every new incumbent or bound
    elastic : names of the constraints that may be named as short when infeasible; none: all

    Raises
    ------
    ValueError : two variables of one name, a start that names an unknown variable or breaks a constraint
    LawBroken : unbounded program, or a solver error
    """
    began = time.perf_counter()
    variables = program.variables()
    names = [v.name for v in variables]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"program {program.name}: two variables are called {twice}")
    sign = -1.0 if program.sense == pulp.LpMaximize else 1.0
    run = _Run(sign, float(program.objective.constant) if program.objective is not None else 0.0)
    highs = _model(program, limits)
    initial = _start(program, variables, start or {}, highs)
    if initial is not None:
        run.note(0.0, sign * (_objective(program, variables, initial) - run.constant), -math.inf)
    _run(highs, run, on_progress)
    status = highs.getModelStatus()
    if status in (_MODEL.kInfeasible, _MODEL.kUnboundedOrInfeasible):
        short = _shortage(program, limits, elastic)
        if status == _MODEL.kUnboundedOrInfeasible and not short:
            raise LawBroken(f"program {program.name}: unbounded or infeasible")
        return Outcome(
            {}, math.nan, math.nan, "infeasible", time.perf_counter() - began, tuple(run.points), short
        )
    if status not in _STOPPED | {_MODEL.kOptimal, _MODEL.kModelEmpty}:
        raise LawBroken(f"program {program.name}: HiGHS ended with {highs.modelStatusToString(status)}")
    return _outcome(program, variables, highs, run, initial, began)


def quiet_highs() -> Any:
    """Return a HiGHS that writes nothing: answers go to standard output, and its banner would spoil them."""
    _swallow_banner()
    highs: Any = highspy.Highs()  # type: ignore[no-untyped-call]
    highs.setOptionValue("output_flag", False)  # noqa: FBT003 - an option's value
    return highs


@cache
def _swallow_banner() -> None:
    """Make the first HiGHS of the process, which prints a banner that no option stops, to nowhere."""
    flush = ctypes.CDLL(None).fflush if os.name == "posix" else None
    if flush:
        flush(None)
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        highspy.Highs()  # type: ignore[no-untyped-call]
        if flush:
            flush(None)
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _model(program: pulp.LpProblem, limits: Limits) -> Any:
    """Return PuLP's HiGHS model with this module's options; always a minimisation."""
    program.solverModel = highs = quiet_highs()
    for name, value in (
        ("threads", 1),
        ("time_limit", max(limits.seconds, 0.0)),
        ("mip_rel_gap", limits.gap),
        ("mip_abs_gap", 0.0),
        ("random_seed", limits.seed % 2**31),
    ):
        highs.setOptionValue(name, value)
    pulp.HiGHS(msg=False).buildSolverModel(program)
    return highs


def _start(
    program: pulp.LpProblem, variables: list[Any], start: Mapping[str, float], highs: Any
) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """Hand the start to HiGHS; return it when complete and checked."""
    if not start:
        return None
    place = {v.name: i for i, v in enumerate(variables)}
    unknown = [name for name in start if name not in place]
    if unknown:
        raise ValueError(f"program {program.name}: start names {unknown[0]}, which is no variable")
    index = np.array([place[name] for name in start], dtype=np.int32)
    values = np.array(list(start.values()), dtype=np.float64)
    highs.setSolution(len(index), index, values)
    if len(index) < len(variables):
        return None
    full = np.empty(len(variables))
    full[index] = values
    _check_start(program, variables, full)
    return full


def _check_start(
    program: pulp.LpProblem, variables: list[Any], full: np.ndarray[Any, np.dtype[np.float64]]
) -> None:
    value = {v.name: x for v, x in zip(variables, full.tolist(), strict=True)}
    for v in variables:
        low = -math.inf if v.lowBound is None else v.lowBound
        high = math.inf if v.upBound is None else v.upBound
        x = value[v.name]
        whole = v.cat != pulp.LpInteger or abs(x - round(x)) <= _TOLERANCE
        if not (low - _TOLERANCE <= x <= high + _TOLERANCE and whole):
            raise ValueError(f"program {program.name}: start has {v.name} = {x}, outside its domain")
    for name, row in program.constraints.items():
        miss = _miss(row, sum(c * value[v.name] for v, c in row.items()) + row.constant)
        if miss > _TOLERANCE * max(1.0, abs(row.constant)):
            raise ValueError(f"program {program.name}: start breaks {name} by {miss:g}")


def _miss(row: Any, activity: float) -> float:
    """Return by how much ``activity <= | = | >= 0`` fails."""
    if row.sense == pulp.LpConstraintEQ:
        return abs(activity)
    return max(activity if row.sense == pulp.LpConstraintLE else -activity, 0.0)


def _run(highs: Any, run: _Run, on_progress: Callable[[Point], None] | None) -> None:
    """Run HiGHS in a thread of its own, so that Ctrl-C reaches this one and progress is told from this one."""
    began = time.perf_counter()

    def called(kind: Any, _message: str, out: Any, into: Any, _data: Any) -> None:
        if kind in (_KIND.kCallbackMipImprovingSolution, _KIND.kCallbackMipLogging):
            run.note(time.perf_counter() - began, out.mip_primal_bound, out.mip_dual_bound)
        elif into is not None:
            into.user_interrupt = run.stop

    highs.setCallback(called, None)
    for kind in (
        _KIND.kCallbackMipImprovingSolution,
        _KIND.kCallbackMipLogging,
        _KIND.kCallbackMipInterrupt,
        _KIND.kCallbackSimplexInterrupt,
        _KIND.kCallbackIpmInterrupt,
    ):
        highs.startCallback(kind)
    thread = threading.Thread(target=highs.run, daemon=True)
    thread.start()
    told = 0
    while True:
        try:
            thread.join(_POLL_S)
            while on_progress is not None and told < len(run.points):
                told += 1
                on_progress(run.points[told - 1])
            if not thread.is_alive() and (on_progress is None or told == len(run.points)):
                break
        except KeyboardInterrupt:
            run.stop = True
        except BaseException:
            run.stop = True
            thread.join()
            raise
    highs.setCallback(None, None)


def _outcome(
    program: pulp.LpProblem,
    variables: list[Any],
    highs: Any,
    run: _Run,
    initial: np.ndarray[Any, np.dtype[np.float64]] | None,
    began: float,
) -> Outcome:
    info, status = highs.getInfo(), highs.getModelStatus()
    mip = any(v.cat == pulp.LpInteger for v in variables)
    solved = status in (_MODEL.kOptimal, _MODEL.kModelEmpty)
    values = None
    if info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible or solved:
        values = np.array(highs.getSolution().col_value, dtype=np.float64)
        whole = np.array([v.cat == pulp.LpInteger for v in variables], dtype=bool)
        values[whole] = np.round(values[whole])
    objective = math.nan if values is None else _objective(program, variables, values)
    if initial is not None:
        from_start = _objective(program, variables, initial)
        if values is None or run.sign * from_start < run.sign * objective - _PROOF * max(1.0, abs(objective)):
            values, objective = initial, from_start
    if mip:
        dual = float(info.mip_dual_bound)
        bound = dual if abs(dual) < 1e30 else -math.inf
    else:  # an unfinished simplex proves nothing
        bound = float(info.objective_function_value) if solved else -math.inf
    best = run.sign * bound + run.constant
    seconds = time.perf_counter() - began
    if values is None:
        return Outcome({}, math.nan, best, "no solution", seconds, tuple(run.points))
    # HiGHS rounds within its tolerance: a bound that passes the objective by less is the objective
    apart = run.sign * (objective - best)
    if apart < 0:
        if apart < -_TOLERANCE * max(1.0, abs(objective)):
            raise LawBroken(f"program {program.name}: bound {best} is beyond the objective {objective}")
        best = objective
    proven = abs(objective - best) <= _PROOF * max(1.0, abs(objective))
    history = (*run.points, Point(seconds, objective, best))
    named = {v.name: x for v, x in zip(variables, values.tolist(), strict=True)}
    return Outcome(named, objective, best, "optimal" if proven else "feasible", seconds, history)


def _objective(
    program: pulp.LpProblem, variables: list[Any], values: np.ndarray[Any, np.dtype[np.float64]]
) -> float:
    if program.objective is None:
        return 0.0
    value = dict(zip((v.name for v in variables), values.tolist(), strict=True))
    return float(sum(c * value[v.name] for v, c in program.objective.items()) + program.objective.constant)


def _shortage(
    program: pulp.LpProblem, limits: Limits, elastic: Callable[[str], bool] | None
) -> dict[str, float]:
    """Return the cheapest set of misses that makes the program feasible, by constraint."""
    if elastic is not None and not any(elastic(name) for name in program.constraints):
        return {}
    repair = pulp.LpProblem("repair", pulp.LpMinimize)
    cost = []
    misses: dict[str, list[Any]] = {}
    for number, (name, row) in enumerate(program.constraints.items()):
        expression = pulp.LpAffineExpression(dict(row.items()), row.constant)
        if elastic is None or elastic(name):
            scale = max(1.0, abs(float(row.constant)))
            slack = [pulp.LpVariable(f"_miss_{number}_{side}", 0) for side in ("low", "high")]
            misses[name] = slack
            expression += slack[0] - slack[1]
            cost += [slack[0] / scale, slack[1] / scale]
        repair += pulp.LpConstraint(expression, row.sense, f"_row_{number}", 0)
    repair += pulp.lpSum(cost)
    highs = _model(repair, Limits(min(max(limits.seconds, 1.0), _ELASTIC_S), 0.0, limits.seed))
    _run(highs, _Run(1.0, 0.0), None)
    if highs.getInfo().primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return {}
    value = highs.getSolution().col_value
    place = {v.name: i for i, v in enumerate(repair.variables())}
    amounts = {name: float(sum(value[place[s.name]] for s in slack)) for name, slack in misses.items()}
    return {name: amount for name, amount in amounts.items() if amount > _TOLERANCE}
