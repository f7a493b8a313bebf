"""``moesim routing``: fit expert-routing statistics from a trace, and look at them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from moesim.cli.console import answers, emit_json, note, print_table, text
from moesim.cli.options import Force, JsonFlag, complete
from moesim.errors import SpecError

if TYPE_CHECKING:
    import pandas as pd

    from moesim.spec.routing import RoutingSpec

__all__ = ["app", "fit", "show"]

app = typer.Typer(help="Expert routing: fit from a recorded trace, show.", no_args_is_help=True)


@app.command("fit")
@answers
def fit(
    trace: Annotated[Path, typer.Argument(help="Recorded experts per token.", metavar="TRACE.npz")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="YAML file; its tables go beside it.", metavar="X.yaml")
    ],
    cite: Annotated[str, typer.Option("--cite", help="Where the trace comes from: every fact has a source.")],
    url: Annotated[str, typer.Option("--url", help="Address of the source.")] = "",
    model: Annotated[
        str, typer.Option("--model", help="Name of the network.", autocompletion=complete("model"))
    ] = "",
    phase: Annotated[
        Literal["prefill", "decode"], typer.Option("--phase", help="What tokens the trace recorded.")
    ] = "decode",
    experts: Annotated[
        int | None, typer.Option("--experts", help="Experts per layer, if not all occur.")
    ] = None,
    skip: Annotated[
        int, typer.Option("--skip", help="Tokens to leave out at the head of each sequence.")
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Seed of split and samples.", min=0)] = 0,
    force: Force = False,
    json_: JsonFlag = False,
) -> None:
    """Fit a routing file on half of a trace's sequences, and print how it does on the other half."""
    from moesim.routing.describe import describe
    from moesim.routing.produce import fit_routing
    from moesim.spec.base import Source

    for path in (out, out.with_suffix(".npz")):
        if path.exists() and not force:
            raise SpecError(f"{path}: already there; --force replaces it")
    source = Source(fields=("*",), cite=cite, url=url)
    spec = fit_routing(
        trace, out, source=source, model=model, phase=phase, experts=experts, skipped=skip, seed=seed
    )
    _print(spec, describe(spec), json_, str(out))
    if not json_:
        note(f"written: {out}, {out.with_suffix('.npz')}")


@app.command("show")
@answers
def show(
    routing: Annotated[
        str,
        typer.Argument(
            help="Name or file of a routing.", metavar="ROUTING", autocompletion=complete("routing")
        ),
    ],
    json_: JsonFlag = False,
) -> None:
    """Print what is known of a routing: its statistics as recorded and as sampled, or its popularity."""
    from moesim.files import find
    from moesim.routing.describe import describe
    from moesim.routing.store import load_trace
    from moesim.spec.base import load_spec
    from moesim.spec.routing import RoutingSpec

    path = find(routing, "routing")
    spec = load_spec(RoutingSpec, routing, "routing")
    if spec.router.kind == "fitted":
        frame = describe(spec)
    elif spec.router.kind == "trace":
        frame = describe(load_trace(spec, path))
    else:
        frame = _popularity(spec, path)
    _print(spec, frame, json_, str(path))


def _popularity(spec: RoutingSpec, path: Path) -> pd.DataFrame:
    """Return the hottest expert's load over the mean, by layer where layers differ."""
    import pandas as pd

    from moesim.routing.popularity import layer_popularity

    columns = ["statistic", "value"]
    if spec.experts is None or spec.top_k is None:
        return pd.DataFrame([], columns=columns)
    share = layer_popularity(spec, spec.experts, spec.top_k, path)
    hottest = share.max(axis=1) * spec.experts
    rows = [("hottest expert over mean", float(hottest.mean()))]
    if len(hottest) > 1:
        rows += [("of the least skewed layer", float(hottest.min())), ("of the most", float(hottest.max()))]
    return pd.DataFrame(rows, columns=columns)


def _print(spec: RoutingSpec, frame: pd.DataFrame, as_json: bool, path: str) -> None:
    facts: dict[str, Any] = {
        "name": spec.name, "model": spec.model, "router": spec.router.kind, "experts": spec.experts,
        "top_k": spec.top_k, "path": path,
    }  # fmt: skip
    rows = frame.to_dict("records")
    if as_json:
        emit_json({**facts, "statistics": rows, "sources": [s.model_dump(mode="json") for s in spec.sources]})
        return
    shape = f"{spec.experts or 'any number of'} experts, top {spec.top_k or 'any'}"
    text(f"{spec.name}: {spec.router.kind} routing{f' of {spec.model}' if spec.model else ''}, {shape}")
    if rows:
        columns = list(frame.columns)
        cells = [[_cell(name, row[name]) for name in columns] for row in rows]
        print_table([str(name).replace("_", " ") for name in columns], cells, right=range(1, len(columns)))
    for source in spec.sources:
        text(f"source: {source.cite}{f' ({source.url})' if source.url else ''}")


def _cell(column: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{100 * value:+.2f} %" if column == "relative_error" else f"{value:.4g}"
