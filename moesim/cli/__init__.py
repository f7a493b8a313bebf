"""Command line: one file per verb; each parses, calls one function and prints."""

from __future__ import annotations

import sys

import typer

from moesim.cli import (
    calibrate,
    compare,
    import_model,
    lint,
    list_names,
    plan,
    report,
    routing,
    run,
    schema,
    show,
    validate,
    version,
)

__all__ = ["app", "main"]

app = typer.Typer(
    name="moesim",
    help="Simulate and price the serving of Mixture-of-Experts models on hardware you may not have.",
    epilog="Start with: moesim run quickstart",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run.run)
app.command("plan")(plan.plan)
app.command("show")(show.show)
app.command("lint")(lint.lint)
app.command("list")(list_names.list_names)
app.command("schema")(schema.schema)
app.add_typer(import_model.app, name="import")
app.add_typer(routing.app, name="routing")
app.add_typer(calibrate.app, name="calibrate")
app.command("report")(report.report)
app.command("compare")(compare.compare)
app.command("validate")(validate.validate)
app.command("version")(version.version)


def main() -> None:
    """Run the command line; the exit code is the process's."""
    try:
        app(prog_name="moesim")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise SystemExit(130) from None
