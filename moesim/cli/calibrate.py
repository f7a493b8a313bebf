"""``moesim calibrate``: import measured kernel tables, fit them, report the fits' errors, measure this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from moesim.cli.console import answers, emit_json, note, print_table, text
from moesim.cli.options import Force, JsonFlag
from moesim.errors import SpecError

__all__ = ["app", "fit", "import_tables", "measure", "report"]

app = typer.Typer(
    help="Kernel times: measure, import, fit, and how far off the fits are.", no_args_is_help=True
)
Families = Annotated[
    str, typer.Option("--families", help="Comma-separated families of kernels; default all.", metavar="A,B")
]


@app.command("import")
@answers
def import_tables(
    families: Families = "",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for the tidy rows, one parquet file each.", metavar="DIR"),
    ] = None,
    force: Force = False,
    json_: JsonFlag = False,
) -> None:
    """Read the measured tables of the extra ``silicon``: rows kept, dropped and why, rows faster than physics."""
    from moesim.calibrate.silicon import read_family

    chosen = _families(families)
    reports: list[dict[str, Any]] = []
    for name in chosen:
        target = out / f"{name}.parquet" if out else None
        if target and target.exists() and not force:
            raise SpecError(f"{target}: exists (--force overwrites)")
        imported = read_family(name)
        reports.append(imported.report.as_dict())
        if target:
            target.parent.mkdir(parents=True, exist_ok=True)
            imported.rows.to_parquet(target, index=False)
            note(f"wrote {target}")
    if json_:
        emit_json({"families": reports})
        return
    rows = [
        [
            r["family"],
            f"{r['read']:,}",
            f"{r['kept']:,}",
            f"{sum(d['rows'] for d in r['dropped']):,}",
            f"{sum(d['rows'] for d in r['faster_than_bound']):,}",
        ]
        for r in reports
    ]
    print_table(["family", "read", "kept", "dropped", "faster than the bound"], rows, right=(1, 2, 3, 4))
    for r in reports:
        reasons: dict[str, int] = {}
        for drop in r["dropped"]:
            reasons[drop["reason"]] = reasons.get(drop["reason"], 0) + drop["rows"]
        for reason, count in sorted(reasons.items(), key=lambda item: -item[1]):
            text(f"{r['family']}: {count:,} rows dropped: {reason}")


@app.command("fit")
@answers
def fit(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Artifact; .json and .npz are appended.", metavar="PATH")
    ],
    families: Families = "",
    jobs: Annotated[int, typer.Option("--jobs", help="Processes.", min=1)] = 1,
    holdouts: Annotated[
        bool, typer.Option("--holdouts/--no-holdouts", help="Measure errors on unseen rows, shapes, devices.")
    ] = True,
    onto: Annotated[
        Path | None, typer.Option("--onto", help="Keep the groups of this artifact that are not refitted.")
    ] = None,
    force: Force = False,
    json_: JsonFlag = False,
) -> None:
    """Fit kernel times in efficiency space from the imported tables; the artifact is plain data."""
    from moesim.calibrate.fit.run import fit_silicon, merged
    from moesim.cost.fitted import load_artifact, save_artifact

    if out.with_suffix(".json").exists() and not force:
        raise SpecError(f"{out.with_suffix('.json')}: exists (--force overwrites)")
    base = [load_artifact(onto)] if onto else []
    fitted = fit_silicon(
        _families(families), jobs=jobs, holdouts=holdouts, progress=lambda n: note(f"fitted {n}")
    )
    artifact = merged([*base, fitted])
    save_artifact(artifact, out)
    size = sum(out.with_suffix(end).stat().st_size for end in (".json", ".npz"))
    answer = {"out": str(out), "groups": len(artifact.groups), "curves": len(artifact.curves), "bytes": size}
    if json_:
        emit_json(answer)
    else:
        text(f"{out}: {len(artifact.groups)} groups, {len(artifact.curves)} curves, {size / 1e6:.1f} MB")


@app.command("report")
@answers
def report(
    artifact: Annotated[
        Path | None,
        typer.Argument(help="Artifact without suffix; default the shipped one.", metavar="[PATH]"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write an HTML page.", metavar="X.html")
    ] = None,
    section: Annotated[
        Path | None, typer.Option("--section", help="Replace the kernels' section of this Markdown file.")
    ] = None,
    markdown_: Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")] = False,
    json_: JsonFlag = False,
) -> None:
    """Show how far off the fits are on rows, shapes and devices that they have not seen."""
    from moesim.calibrate.validate_kernels import markdown, run, write_section

    answer = run(cache=artifact)
    if out:
        out.write_text(_page(markdown(answer)), encoding="utf-8")
        note(f"wrote {out}")
    if section:
        write_section(section, markdown(answer))
        note(f"wrote {section}")
    if json_:
        emit_json(answer)
    elif markdown_:
        text(markdown(answer).rstrip("\n"))
    elif not (out or section):
        rows = [
            [
                name,
                f"{f['n']:,}",
                *(f"{100 * f[key]:.1f}" for key in ("mape", "median_ape", "p90_ape", "worst_mape")),
            ]
            for name, f in answer["metrics"].items()
            if "mape" in f
        ]
        print_table(
            ["hold-out", "rows", "MAPE %", "median", "P90", "worst group"], rows, right=(1, 2, 3, 4, 5)
        )
        coverage = answer["metrics"].get("interval_coverage")
        if coverage:
            text(f"90 % intervals cover {100 * coverage['coverage']:.1f} % of unseen shapes")


@app.command("measure")
@answers
def measure(
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option("--device", help="What to measure.")
    ] = "auto",
    suite: Annotated[Literal["quick", "full"], typer.Option("--suite", help="How much.")] = "quick",
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for rows and meta file.", metavar="DIR")
    ] = Path("measurements"),
    json_: JsonFlag = False,
) -> None:
    """Run microbenchmarks on this machine; every kernel is checked before it is timed."""
    from moesim.calibrate.measure import measure as run_suite

    written = run_suite(device=device, suite=suite, out=out)
    if json_:
        emit_json({"out": str(written)})
    else:
        text(str(written))


def _families(names: str) -> tuple[str, ...]:
    from moesim.calibrate.silicon import FAMILIES
    from moesim.files import nearest

    chosen = tuple(name.strip() for name in names.split(",") if name.strip()) or tuple(FAMILIES)
    for name in chosen:
        if name not in FAMILIES:
            known = ", ".join(FAMILIES)
            raise SpecError(f"kernel family {name!r}: expected one of {known}{nearest(name, FAMILIES)}")
    return chosen


def _page(source: str) -> str:
    """Return the Markdown tables as one self-contained page."""
    from html import escape

    body: list[str] = []
    table = False
    for line in source.splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if all(set(cell) <= set("-:") for cell in cells):
                continue
            tag = "td" if table else "th"
            body.append("" if table else "<table>")
            body.append("<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>")
            table = True
            continue
        if table:
            body.append("</table>")
            table = False
        if line.startswith("## "):
            body.append(f"<h1>{escape(line[3:])}</h1>")
        elif line:
            body.append(f"<p>{escape(line)}</p>")
    if table:
        body.append("</table>")
    style = (
        "body{font:14px system-ui,sans-serif;margin:2rem;max-width:90rem}table{border-collapse:collapse;margin:1rem 0}"
        "td,th{padding:.2rem .6rem;border-bottom:1px solid #ddd;text-align:right}td:first-child,th:first-child"
        "{text-align:left}"
    )
    head = f'<meta charset="utf-8"><title>Fitted kernels</title><style>{style}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(body)}</body></html>\n"
