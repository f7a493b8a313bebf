"""Read the files that a routing spec names: fitted tables and recorded traces."""

from __future__ import annotations

from pathlib import Path

from moesim.errors import SpecError
from moesim.files import CATALOG, catalog_root
from moesim.routing.model import RoutingModel, unpack
from moesim.routing.trace import RoutingTrace, read_trace
from moesim.spec.routing import Fitted, Recorded, RoutingSpec

__all__ = ["load_model", "load_trace"]


def load_model(spec: RoutingSpec, beside: Path | None = None) -> RoutingModel:
    """Read the tables of a fitted spec; ``beside`` is the YAML file they lie next to (none: the catalog).

    Raises
    ------
    SpecError : not a fitted spec, tables missing or changed, or other dimensions than the spec says
    """
    if not isinstance(spec.router, Fitted):
        raise SpecError(f"routing {spec.name}: {spec.router.kind} routing has no tables")
    model = unpack(_resolve(spec.router.tables.path, beside), spec.router.tables.sha256)
    if (model.layers, model.experts, model.top_k) != (spec.router.layers, spec.experts, spec.top_k):
        raise SpecError(
            f"routing {spec.name}: the tables are for {model.layers} layers, {model.experts} experts, "
            f"top {model.top_k}; the file says {spec.router.layers}, {spec.experts}, {spec.top_k}"
        )
    return model


def load_trace(spec: RoutingSpec, beside: Path | None = None) -> RoutingTrace:
    """Read the trace of a recorded spec; ``beside`` as in ``load_model``.

    Raises
    ------
    SpecError : not a recorded spec, or the trace is missing or wrong
    """
    if not isinstance(spec.router, Recorded):
        raise SpecError(f"routing {spec.name}: {spec.router.kind} routing has no trace")
    trace = read_trace(_resolve(spec.router.path, beside), spec.experts)
    return trace.skip(spec.router.skipped) if spec.router.skipped else trace


def _resolve(path: str, beside: Path | None) -> Path:
    given = Path(path).expanduser()
    if given.is_absolute():
        return given
    folder = beside.parent if beside is not None else catalog_root() / CATALOG["routing"]
    return folder / given
