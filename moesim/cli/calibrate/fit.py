"""``moesim calibrate fit``: kernel times in efficiency space, from shipped tables or a user's own measurements."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from moesim.cli.calibrate.families import Families, chosen_families
from moesim.cli.console import answers, emit_json, note, print_table, text
from moesim.cli.options import Force, JsonFlag
from moesim.errors import SpecError

if TYPE_CHECKING:
    from moesim.cost.fitted import Artifact

__all__ = ["fit"]


@answers
def fit(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Artifact; .json and .npz are appended.", metavar="PATH")
    ],
    sources: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Your own measurements: files or folders of calibrate import, folders of calibrate measure. "
            "None: the tables of the extra `silicon`.",
            metavar="[SOURCE]...",
        ),
    ] = None,
    framework: Annotated[
        Literal["any", "vllm", "sglang", "trtllm"],
        typer.Option(
            "--framework", help="Whose kernels the own measurements are; any: they serve every engine."
        ),
    ] = "any",
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
    """Fit kernel times in efficiency space; the artifact is plain data and holds its own hold-out errors.

    A scenario uses it by ``--set deployment.calibration=PATH``.
    """
    from moesim.calibrate.fit.run import fit_silicon, merged
    from moesim.cost.fitted import load_artifact, save_artifact

    out = out.with_suffix("") if out.suffix in {".json", ".npz"} else out
    if out.with_suffix(".json").exists() and not force:
        raise SpecError(f"{out.with_suffix('.json')}: exists (--force overwrites)")
    base = [load_artifact(onto)] if onto else []
    more: dict[str, Any] = {}
    if sources:
        if families:
            raise SpecError("--families: expected no family: own measurements are fitted whole")
        from moesim.calibrate.profiles.fit import fit_own

        own = fit_own(sources, framework=framework, holdouts=holdouts, progress=lambda n: note(f"fitted {n}"))
        fitted = own.artifact
        more = {"read": own.read, "used": own.used, "left_out": own.left_out}
    else:
        fitted = fit_silicon(
            chosen_families(families), jobs=jobs, holdouts=holdouts, progress=lambda n: note(f"fitted {n}")
        )
    artifact = merged([*base, fitted])
    save_artifact(artifact, out)
    size = sum(out.with_suffix(end).stat().st_size for end in (".json", ".npz"))
    answer = {"out": str(out), "groups": len(artifact.groups), "curves": len(artifact.curves), "bytes": size}
    if json_:
        emit_json(answer | more | ({"fits": _errors(fitted)} if sources else {}))
        return
    text(f"{out}: {len(artifact.groups)} groups, {len(artifact.curves)} curves, {size / 1e6:.1f} MB")
    if sources:
        _show(fitted, more["left_out"])


def _errors(artifact: Artifact) -> list[dict[str, Any]]:
    from moesim.calibrate.validate_kernels import kernel_errors

    return kernel_errors(artifact)


def _show(artifact: Artifact, left_out: dict[str, int]) -> None:
    rows = [
        [e["family"], e["dtype"], e["kernel"], e["device"], e["holdout"], f"{e['n']:,}"]
        + [f"{100 * e[figure]:.1f}" for figure in ("mape", "median_ape", "p90_ape")]
        for e in _errors(artifact)
    ]
    columns = ["family", "types", "kernel", "device", "unseen", "rows", "MAPE %", "median", "P90"]
    print_table(columns, rows, right=(5, 6, 7, 8))
    for reason, count in left_out.items():
        text(f"{count:,} rows not fitted: {reason}")
