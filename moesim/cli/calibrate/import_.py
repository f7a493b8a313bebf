"""``moesim calibrate import``: measurements of every kind as tidy rows, with what was dropped and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from moesim.cli.calibrate.families import Families, chosen_families
from moesim.cli.console import answers, emit_json, note, print_table, text
from moesim.cli.options import Force, JsonFlag, complete
from moesim.errors import SpecError

if TYPE_CHECKING:
    from moesim.calibrate.profiles import ProfileImport

__all__ = ["import_"]

Format = Literal["auto", "silicon", "measured", "kineto", "nsight", "table", "serving"]
Pairs = list[str] | None


@answers
def import_(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="PyTorch profiler traces, Nsight CSV, tables (CSV, parquet), results of vLLM's and SGLang's serving "
            "benchmarks, folders of calibrate measure. None: the tables of the extra `silicon`.",
            metavar="[FILE]...",
        ),
    ] = None,
    format_: Annotated[
        Format, typer.Option("--format", help="What the files are; auto tells it from name and first lines.")
    ] = "auto",
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            help="Device of the catalog that was measured, where the file does not say.",
            metavar="NAME",
            autocompletion=complete("device"),
        ),
    ] = None,
    column: Annotated[
        Pairs,
        typer.Option(
            "--column", help="Table: our column and theirs, such as 'seconds=latency [us]'.", metavar="A=B"
        ),
    ] = None,
    constant: Annotated[
        Pairs,
        typer.Option("--constant", help="Table: what holds for every row, such as op=gemm.", metavar="A=B"),
    ] = None,
    families: Families = "",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for the tidy rows, one parquet file each.", metavar="DIR"),
    ] = None,
    scenario: Annotated[
        Path | None,
        typer.Option(
            "--scenario", help="Serving results: write a scenario that replays a run.", metavar="X.yaml"
        ),
    ] = None,
    cluster: Annotated[str, typer.Option("--cluster", help="Cluster of that scenario.", metavar="NAME")] = "",
    model: Annotated[str, typer.Option("--model", help="Model of that scenario.", metavar="NAME")] = "",
    run: Annotated[int, typer.Option("--run", help="Which run of the file, from 0.", min=0)] = 0,
    force: Force = False,
    json_: JsonFlag = False,
) -> None:
    """Read measurements: rows kept, dropped and why; rows faster than physics are named and kept out of fits."""
    paths = files or []
    if paths:
        if format_ == "silicon" or families:
            expected = "expected no file: the tables of the extra `silicon` are read from the package"
            raise SpecError(f"{paths[0]}: {expected}")
        replay = None if scenario is None else _Replay(scenario, cluster, model, run)
        targets = _targets(paths, out, force=force)
        _check(replay, paths, force=force)
        kind: Any = format_
        found = _read(paths, kind, device, column, constant)
        _write(found, targets, replay)
        if json_:
            emit_json({"imports": [imported.as_dict() for imported in found]})
        else:
            _show(found)
        return
    if format_ not in {"auto", "silicon"}:
        raise SpecError(f"--format {format_}: expected a file to read")
    own = {"--device": device, "--column": column, "--constant": constant, "--scenario": scenario}
    for option, value in own.items():
        if value:
            raise SpecError(f"{option}: expected a file to read")
    _silicon(chosen_families(families), out, force=force, as_json=json_)


class _Replay(NamedTuple):
    """The scenario that repeats a measured serving run."""

    path: Path
    cluster: str
    model: str
    run: int


def _check(replay: _Replay | None, paths: Sequence[Path], *, force: bool) -> None:
    if replay is None:
        return
    if len(paths) != 1 or not replay.cluster or not replay.model:
        raise SpecError("--scenario: expected one serving result, --cluster and --model")
    if replay.path.exists() and not force:
        raise SpecError(f"{replay.path}: exists (--force overwrites)")


def _read(
    paths: Sequence[Path], kind: Any, device: str | None, column: Pairs, constant: Pairs
) -> list[ProfileImport]:
    from moesim.calibrate.profiles import import_profile

    columns, constants = _pairs("--column", column), _pairs("--constant", constant)
    return [import_profile(p, kind, device=device, columns=columns, constants=constants) for p in paths]


def _write(found: Sequence[ProfileImport], targets: Sequence[Path | None], replay: _Replay | None) -> None:
    from moesim.calibrate.profiles import scenario_skeleton, write_import
    from moesim.files import dump_yaml, write_atomic

    if replay is not None:
        data = scenario_skeleton(found[0], replay.run, cluster=replay.cluster, model=replay.model)
        write_atomic(replay.path, dump_yaml(data))
        note(f"wrote {replay.path}")
    for imported, target in zip(found, targets, strict=True):
        if target is None:
            continue
        write_import(target, imported)
        note(f"wrote {target}")
        if imported.requests is not None:
            detail = target.with_name(f"{target.stem}-requests.parquet")
            imported.requests.to_parquet(detail, index=False)
            note(f"wrote {detail}")


def _targets(paths: Sequence[Path], out: Path | None, *, force: bool) -> list[Path | None]:
    """Return where each import goes: by the file's name, numbered where two share it."""
    if out is None:
        return [None] * len(paths)
    targets: list[Path | None] = []
    for path in paths:
        stem = path.resolve().name.removesuffix(".gz").rsplit(".", 1)[0]
        target, count = out / f"{stem}.parquet", 1
        while target in targets:
            count += 1
            target = out / f"{stem}-{count}.parquet"
        if target.exists() and not force:
            raise SpecError(f"{target}: exists (--force overwrites)")
        targets.append(target)
    return targets


def _pairs(option: str, given: Pairs) -> Mapping[str, str]:
    pairs: dict[str, str] = {}
    for text_ in given or []:
        name, equals, value = text_.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise SpecError(f"{option} {text_!r}: expected NAME=VALUE")
        pairs[name.strip()] = value.strip()
    return pairs


def _show(found: Sequence[ProfileImport]) -> None:
    rows = [
        [
            imported.source,
            imported.kind,
            f"{imported.read:,}",
            f"{imported.kept:,}",
            f"{sum(imported.dropped.values()):,}",
            f"{len(imported.frame):,}",
            "-" if imported.kind == "serving" else f"{len(imported.fittable):,}",
            f"{len(imported.impossible):,}",
        ]
        for imported in found
    ]
    columns = ["file", "format", "read", "kept", "dropped", "rows", "can be fitted", "faster than the bound"]
    print_table(columns, rows, right=(2, 3, 4, 5, 6, 7))
    for imported in found:
        for reason, count in imported.dropped.items():
            text(f"{imported.source}: {count:,} dropped: {reason}")
        named = imported.as_dict()["faster_than_bound"]
        for line in named:
            text(f"{imported.source}: faster than physics, kept out of fits: {line}")
        if len(imported.impossible) > len(named):
            text(f"{imported.source}: and {len(imported.impossible) - len(named):,} more such rows")
        for line in imported.notes:
            text(f"{imported.source}: {line}")


def _silicon(names: Sequence[str], out: Path | None, *, force: bool, as_json: bool) -> None:
    """Read the measured tables of the extra ``silicon``."""
    from moesim.calibrate.silicon import read_family

    reports: list[dict[str, Any]] = []
    for name in names:
        target = out / f"{name}.parquet" if out else None
        if target and target.exists() and not force:
            raise SpecError(f"{target}: exists (--force overwrites)")
        imported = read_family(name)
        reports.append(imported.report.as_dict())
        if target:
            target.parent.mkdir(parents=True, exist_ok=True)
            imported.rows.to_parquet(target, index=False)
            note(f"wrote {target}")
    if as_json:
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
        for drop in r["faster_than_bound"]:
            where = f"{drop['device']} {drop['framework']} {drop['dtype']}"
            text(f"{r['family']}: {drop['rows']:,} rows faster than physics, kept out of fits: {where}")
