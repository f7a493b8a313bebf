"""``moesim calibrate``: measure this machine, import what others measured, fit it, report the fits' errors."""

from __future__ import annotations

import typer

from moesim.cli.calibrate.fit import fit
from moesim.cli.calibrate.import_ import import_
from moesim.cli.calibrate.measure import measure
from moesim.cli.calibrate.report import report

__all__ = ["app", "fit", "import_", "measure", "report"]

app = typer.Typer(
    help="Kernel times: measure, import, fit, and how far off the fits are.", no_args_is_help=True
)
app.command("measure")(measure)
app.command("import")(import_)
app.command("fit")(fit)
app.command("report")(report)
