"""``moesim routing``: fit expert-routing statistics from a trace, and look at them."""

from __future__ import annotations

import typer

app = typer.Typer(help="Expert routing: fit from a trace, show.", no_args_is_help=True)
