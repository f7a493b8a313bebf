"""Families of kernels, as an option."""

from __future__ import annotations

from typing import Annotated

import typer

from moesim.errors import SpecError

__all__ = ["Families", "chosen_families"]

Families = Annotated[
    str, typer.Option("--families", help="Comma-separated families of kernels; default all.", metavar="A,B")
]


def chosen_families(names: str) -> tuple[str, ...]:
    """Return the families of ``--families``, all where it is empty.

    Raises
    ------
    SpecError : an unknown family
    """
    from moesim.calibrate.silicon import FAMILIES
    from moesim.files import nearest

    chosen = tuple(name.strip() for name in names.split(",") if name.strip()) or tuple(FAMILIES)
    for name in chosen:
        if name not in FAMILIES:
            known = ", ".join(FAMILIES)
            raise SpecError(f"kernel family {name!r}: expected one of {known}{nearest(name, FAMILIES)}")
    return chosen
