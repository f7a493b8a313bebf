"""Suite ``silicon-serving``: replay every measured serving run and say how far off the simulator is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesim.cost.fitted import shipped
from moesim.cost.overheads import OverheadTable, load_overheads
from moesim.files import write_atomic
from moesim.study.serving.estimators import chains, stamp
from moesim.study.serving.fit import fit_overheads, overheads_yaml
from moesim.study.serving.hidden import speculation_of
from moesim.study.serving.replay import Prediction, Replayer, replay_rows
from moesim.study.serving.rows import ServingRow, distinct, read_rows
from moesim.study.serving.scenario import routing_of
from moesim.study.serving.score import QUANTITIES, Band, Sets, dense_interval, read_sets, report, widened

if TYPE_CHECKING:
    from moesim.study.serving.replay import Progress

__all__ = ["SETS_FILE", "refit", "run", "select"]

SETS_FILE = Path("data/measured/aiconfigurator_predictions.csv.gz")
"""Where the scoring sets stand in the shared data folder."""


def run(
    *,
    shared: Path | None = None,
    cache: Path | None = None,
    bands: tuple[Band, ...] = (),
    quick: int = 0,
    bound: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return the suite's answer, see ``score.report``.

    Parameters
    ----------
    shared : folder with the scoring sets; without it only figures over all distinct measurements
    cache : where answers of single runs are kept; a stopped run goes on from there
    quick : every n-th distinct measurement only; 0: all rows
    bound : price with the roofline bound alone, not with fitted kernels

    Raises
    ------
    DataMissing : the extra ``silicon`` is not installed, or ``shared`` lacks the sets
    """
    sets = None if shared is None else read_sets(shared / SETS_FILE)
    rows = read_rows()
    chosen = select(rows, sets, quick)
    overheads = None if bound else load_overheads()
    replayer = Replayer(
        chains=None if bound else chains,
        stamp="bound" if bound else stamp(),
        overheads=overheads,
        routing=routing_of,
        folder=cache,
    )
    predictions = replay_rows(chosen, replayer, progress)
    hidden = Replayer(
        chains=None if bound else chains,
        stamp="bound" if bound else stamp(),
        overheads=overheads,
        routing=routing_of,
        speculation=speculation_of,
        folder=cache,
    )
    drafted = replay_rows([row for row in chosen if speculation_of(row)], hidden, None)
    if quick:
        rows = tuple(chosen)
    known = None if overheads is None else overheads.intervals
    answer = report(rows, predictions, sets, bands, drafted, known)
    answer["estimators"] = "bound" if bound else stamp()
    answer["warnings"] = _warnings(overheads, answer["estimators"])
    answer["overheads"] = (
        None if overheads is None else [rule.model_dump(mode="json") for rule in overheads.rules]
    )
    return answer


def refit(target: Path, progress: Progress | None = None) -> OverheadTable:
    """Fit the overheads anew on the dense runs, beside the kernels that ship, and write them to ``target``.

    Runs that are faster than the roofline bound, and those of one deployment whose TPOT is out of order (Qwen3-32B
    on GB200: 8 and 42 ms for one key), take no part.

    Raises
    ------
    DataMissing : the extra ``silicon`` or the fitted kernels are not installed
    """
    rows = [row for row in distinct(read_rows()) if row.dense and not row.left_out and row.system != "gb200"]
    bound = replay_rows(rows, Replayer())
    rows = [row for row in rows if row.tpot_s > bound[row.id].tpot_s]

    def replay(members: Sequence[ServingRow], table: OverheadTable) -> dict[str, Prediction]:
        return replay_rows(members, Replayer(chains=chains, stamp=stamp(), overheads=table), progress)

    table = fit_overheads(rows, replay, stamp())
    made = replay(rows, table)
    pairs = [(row, made[row.id]) for row in rows if made[row.id].ok]
    intervals: dict[str, tuple[float, float]] = {}
    for value in QUANTITIES:
        intervals[value] = dense_interval(pairs, value)
        intervals[f"{value}_moe"] = widened(intervals[value], shipped().interval("moe"))
    table = table.model_copy(update={"intervals": intervals})
    write_atomic(target, overheads_yaml(table))
    return table


def _warnings(overheads: OverheadTable | None, used: str) -> list[str]:
    if overheads is None or overheads.estimators == used:
        return []
    return [f"the overheads complete other kernel times ({overheads.estimators}) than these ({used})"]


def select(rows: tuple[ServingRow, ...], sets: Sets | None, quick: int = 0) -> list[ServingRow]:
    """Return the rows to replay: every distinct measurement that can be, and every row of a scoring set."""
    first = distinct(rows)
    if quick:
        return list(first[::quick])
    # disaggregated runs are replayed where a set names them; the others would take hours and are not scored
    wanted = {row.id for row in first}
    if sets is not None:
        wanted |= sets.a | sets.c | sets.d | sets.disagg
    return [row for row in rows if row.id in wanted]
