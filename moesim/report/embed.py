"""Embed: what every page carries inside: template, style, script, drawing library and JSON that cannot break out."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

__all__ = ["embed", "parts", "rounded", "template"]


def embed(data: Any) -> Markup:
    """Return JSON that is safe inside a script element: no ``<`` is left that could end it."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))  # noqa: S704


def rounded(value: Any) -> Any:
    """Return figures with floats of five digits, finer than any screen; exact numbers stand in the tables."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


@cache
def template(name: str) -> jinja2.Template:
    """Return one of the package's templates; every value is escaped, an unknown one is an error."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_read(name))


def parts() -> dict[str, Markup]:
    """Return ``style``, ``script`` and ``plotly`` (the drawing library, about 4.8 MB)."""
    return {
        "style": Markup(_read("page.css")),  # noqa: S704 - our own file
        "script": Markup(_read("page.js")),  # noqa: S704 - our own file
        "plotly": Markup(_plotly()),  # noqa: S704 - the library as shipped
    }


def _read(name: str) -> str:
    return resources.files("moesim.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs  # noqa: PLC0415 - 5 MB, read only when a report is written

    return str(get_plotlyjs())
