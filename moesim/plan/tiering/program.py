"""Program: experts to (tier, bitwidth) as a multiple-choice knapsack, one function per constraint.

Equal experts share one integer variable ``n_CLASS_TIER_BITS``: how many of the class take that choice.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pulp

from moesim.plan.tiering.choice import Choices

__all__ = ["TieringProgram", "least_seconds", "one_choice", "tiering_program", "within_limit"]

Variables = dict[tuple[int, int], pulp.LpVariable]


class TieringProgram:
    """A PuLP program and its variables by (class, choice)."""

    def __init__(self, choices: Choices, open_: npt.NDArray[np.bool_], name: str = "tiering") -> None:
        self.choices = choices
        self.program = pulp.LpProblem(name, pulp.LpMinimize)
        self.taken: Variables = {
            (g, c): pulp.LpVariable(
                f"n_{g}_{c // choices.widths}_{c % choices.widths}", 0, int(choices.count[g]), pulp.LpInteger
            )
            for g, c in zip(*(axis.tolist() for axis in np.nonzero(open_)), strict=True)
        }


def least_seconds(made: TieringProgram) -> None:
    """Minimise the expected seconds per step, counted in units of the dearest choice for the solver's sake."""
    cost, unit = made.choices.cost, unit_of(made.choices)
    made.program += pulp.LpAffineExpression(
        [(v, float(cost[g, c] / unit)) for (g, c), v in made.taken.items()]
    )


def unit_of(choices: Choices) -> float:
    """Return the seconds that one unit of the program's objective stands for."""
    finite = choices.cost[np.isfinite(choices.cost)]
    return float(finite.max()) if finite.size and finite.max() > 0 else 1.0


def one_choice(made: TieringProgram) -> None:
    """Let every expert take exactly one tier at one bitwidth."""
    rows: dict[int, list[pulp.LpVariable]] = {g: [] for g in range(len(made.choices.count))}
    for (g, _), v in made.taken.items():
        rows[g].append(v)
    for g, variables in rows.items():
        made.program += (
            pulp.LpAffineExpression([(v, 1) for v in variables]) == int(made.choices.count[g]),
            f"one_choice_{g}",
        )


def within_limit(made: TieringProgram, limit: int, shrink: float = 0.0) -> None:
    """Keep one tier's bytes, or the summed loss, within what there is; written in the unit of its smallest part.

    ``shrink`` tightens the row by that share, against the solver's tolerance.
    """
    weight, most = made.choices.weight[limit], float(made.choices.limit[limit])
    used = {key: float(weight[key]) for key in made.taken if weight[key] > 0}
    unit = min(used.values(), default=1.0)
    made.program += (
        pulp.LpAffineExpression([(made.taken[key], w / unit) for key, w in used.items()])
        <= most * (1.0 - shrink) / unit,
        f"within_{made.choices.names[limit]}",
    )


def tiering_program(choices: Choices, open_: npt.NDArray[np.bool_], shrink: float = 0.0) -> TieringProgram:
    """Return the whole program over the choices that ``open_`` [G, C] leaves."""
    made = TieringProgram(choices, open_)
    least_seconds(made)
    one_choice(made)
    for limit in range(len(choices.limit)):
        within_limit(made, limit, shrink)
    return made
