"""Plan figures: a decision's numbers as plotly figures: loads, placements, traffic, convergence, course online."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from moesim.report.draw import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, Figure
from moesim.spec.model import ModelSpec
from moesim.spec.placement import PlacementSpec, moe_layers
from moesim.study.plans.answer import Placed, Planned

__all__ = ["before", "plan_figures", "rank_table"]

FloatArray = npt.NDArray[np.float64]

_LEGEND = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}
_COLOURS = (VERMILION, ORANGE, PURPLE, SKY, GREEN, "#999999")
_MOST_CELLS = 60_000


def plan_figures(planned: Planned, model: ModelSpec) -> dict[str, tuple[str, Figure]]:
    """Return the figures that have data: id -> label for readers who do not see it, figure."""
    drawn: dict[str, tuple[str, Figure]] = {}
    if len(planned.history) > 1 or (planned.history and planned.seconds > 0):
        drawn["convergence"] = ("Best objective and proven bound over the search", _convergence(planned))
    pair = [
        (key, placed)
        for key, placed in (("before", before(planned)), ("after", planned.plan))
        if placed is not None
    ]
    if planned.plan is not None and planned.plan.load is not None:
        drawn["by-layer"] = ("Busiest rank over mean rank by MoE layer", _by_layer(planned))
        drawn["by-rank"] = ("Load of each rank over the mean", _by_rank(planned))
    loads = [(key, placed.load) for key, placed in pair if placed.load is not None]
    for key, load in loads:
        top = max(float(table.max()) for _, table in loads)
        label = f"Load of every rank in every layer, {key}"
        drawn[f"load-{key}"] = (label, _heat(load.max(axis=0), "rank", "x mean", top))
    for key, placed in pair:
        homes = rank_table(placed.placement, model)
        drawn[f"placement-{key}"] = (
            f"Rank that holds each expert, {key}",
            _homes(homes, placed.placement.ranks),
        )
    flows = [(key, placed.traffic) for key, placed in pair if placed.traffic is not None]
    for key, flow in flows:
        most = max(float(table.max()) for _, table in flows)
        drawn[f"traffic-{key}"] = (f"Tokens from rank to rank between layers, {key}", _traffic(flow, most))
    course = planned.answer.get("online")
    if course:
        drawn["online"] = ("Imbalance over time, by policy", _online(course))
    return drawn


def before(planned: Planned) -> Placed | None:
    """Return what the plan is drawn beside: the present placement, else the contiguous one."""
    return next((planned.others[name] for name in ("present", "contiguous") if name in planned.others), None)


def rank_table(placement: PlacementSpec, model: ModelSpec) -> npt.NDArray[np.int64]:
    """Return the rank of the first copy of each expert, [MoE layer, expert]; -1 beyond a layer's experts."""
    widest = max(part.experts for part in placement.ffns.values())
    table = np.full((model.moe_layers, widest), -1, dtype=np.int64)
    for name, layers in moe_layers(model).items():
        part = placement.ffns[name]
        size = placement.slots_per_rank(name)
        for index, layer in enumerate(layers):
            row = part.slots[index % len(part.slots)]
            for slot in range(len(row) - 1, -1, -1):
                table[layer, row[slot]] = slot // size
    return table


def _convergence(planned: Planned) -> Figure:
    points = [p for p in planned.history if math.isfinite(p.seconds)]
    lines = (
        ("best found", BLUE, [p.objective for p in points]),
        ("proven bound", GREEN, [p.bound for p in points]),
    )
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "x": [p.seconds for p in points],
            "y": [v if math.isfinite(v) else None for v in values],
            "line": {"color": colour, "width": 2, "shape": "hv"},
            "marker": {"size": 5},
            "hovertemplate": f"{name} %{{y:.6g}} after %{{x:.3g}} s<extra></extra>",
        }
        for name, colour, values in lines
    ]
    layout = {
        "height": 300,
        "legend": _LEGEND,
        "xaxis": {"title": {"text": "time of search (s)"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "objective"}},
    }
    return {"data": traces, "layout": layout}


def _lines(planned: Planned) -> list[tuple[str, str, FloatArray]]:
    """Return (name, colour, load [scenario, layer, rank]) of the plan and the baselines, the plan last, on top."""
    others = [(n, p.load) for n, p in planned.others.items() if p.load is not None]
    named = [(n, _COLOURS[i % len(_COLOURS)], load) for i, (n, load) in enumerate(others)]
    assert planned.plan is not None
    assert planned.plan.load is not None
    return [*named, ("plan", BLUE, planned.plan.load)]


def _by_layer(planned: Planned) -> Figure:
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": list(range(load.shape[1])),
            "y": load.max(axis=(0, 2)).tolist(),
            "line": {"color": colour, "width": 3 if name == "plan" else 1.5},
            "hovertemplate": f"{name}, layer %{{x}}: %{{y:.4g}}<extra></extra>",
        }
        for name, colour, load in _lines(planned)
    ]
    layout = {
        "height": 340,
        "legend": _LEGEND,
        "xaxis": {"title": {"text": "MoE layer"}},
        "yaxis": {"title": {"text": "busiest over mean"}},
    }
    return {"data": traces, "layout": layout}


def _by_rank(planned: Planned) -> Figure:
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "x": list(range(load.shape[2])),
            "y": load.mean(axis=1).max(axis=0).tolist(),
            "line": {"color": colour, "width": 3 if name == "plan" else 1.5, "shape": "hvh"},
            "marker": {"size": 4},
            "hovertemplate": f"{name}, rank %{{x}}: %{{y:.4g}} x mean<extra></extra>",
        }
        for name, colour, load in _lines(planned)
    ]
    layout = {
        "height": 340,
        "legend": _LEGEND,
        "xaxis": {"title": {"text": "rank"}},
        "yaxis": {"title": {"text": "load, mean of layers"}},
    }
    return {"data": traces, "layout": layout}


def _heat(table: FloatArray, axis: str, unit: str, top: float) -> Figure:
    trace = {
        "type": "heatmap",
        "z": table.tolist(),
        "colorscale": "Cividis",
        "zmin": 0,
        "zmax": top,
        "colorbar": {"title": {"text": unit}, "thickness": 12, "len": 1},
        "hovertemplate": f"layer %{{y}}, {axis} %{{x}}: %{{z:.4g}}<extra></extra>",
    }
    return {"data": [trace], "layout": _grid(len(table), axis, "MoE layer")}


def _homes(table: npt.NDArray[np.int64], ranks: int) -> Figure:
    shown = table[:, :: max(1, -(-table.size // _MOST_CELLS))]
    trace = {
        "type": "heatmap",
        "z": [[None if v < 0 else v for v in row] for row in shown.tolist()],
        "colorscale": "Turbo",
        "zmin": 0,
        "zmax": max(ranks - 1, 1),
        "colorbar": {"title": {"text": "rank"}, "thickness": 12, "len": 1},
        "hovertemplate": "layer %{y}, expert %{x}: rank %{z}<extra></extra>",
    }
    return {"data": [trace], "layout": _grid(len(table), "expert", "MoE layer")}


def _traffic(table: FloatArray, most: float) -> Figure:
    trace = {
        "type": "heatmap",
        "z": table.tolist(),
        "colorscale": "Cividis",
        "zmin": 0,
        "zmax": most,
        "colorbar": {"title": {"text": "tokens"}, "thickness": 12, "len": 1},
        "hovertemplate": "from rank %{y} to rank %{x}: %{z:.5g}<extra></extra>",
    }
    layout = _grid(len(table), "to rank", "from rank")
    return {"data": [trace], "layout": layout | {"height": 380}}


def _grid(rows: int, x: str, y: str) -> dict[str, Any]:
    return {
        "height": min(620, max(260, 120 + 8 * rows)),
        "xaxis": {"title": {"text": x}, "showgrid": False},
        "yaxis": {"title": {"text": y}, "autorange": "reversed", "showgrid": False},
    }


def _online(course: dict[str, Any]) -> Figure:
    steps = course["steps"]
    traces = []
    for index, (name, run) in enumerate(course["policies"].items()):
        values = run["course"]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "x": [steps * (at + 0.5) / len(values) for at in range(len(values))],
                "y": values,
                "line": {"color": (BLUE, *_COLOURS)[index % 7], "width": 1.5},
                "hovertemplate": f"{name}, step %{{x:.0f}}: %{{y:.4g}}<extra></extra>",
            }
        )
    layout = {
        "height": 340,
        "legend": _LEGEND,
        "xaxis": {"title": {"text": "engine step"}},
        "yaxis": {"title": {"text": "busiest over mean"}},
    }
    return {"data": traces, "layout": layout}
