"""``moesim calibrate report``: how far off fits are on what they have not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moesim.cli.console import answers, emit_json, note, print_table, text
from moesim.cli.options import JsonFlag

__all__ = ["report"]


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
