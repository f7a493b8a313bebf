"""Draw: each figure's numbers as a plotly figure (data and layout), coloured by the page."""

from __future__ import annotations

from typing import Any

from moesim.report import figures

__all__ = ["SOURCE_COLOURS", "draw_cdf", "draw_experts", "draw_presence", "draw_samples", "draw_time"]

# Okabe and Ito (2008), told apart by colour-blind readers; their blue is lightened to be seen on dark ground
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#2F8FD8", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
SOURCE_COLOURS = {"measured": GREEN, "fitted": SKY, "bound": ORANGE}
_METRICS = {"ttft": ("TTFT", BLUE), "tpot": ("TPOT", GREEN), "e2e": ("End to end", PURPLE)}
_LEGEND = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}
Figure = dict[str, Any]


def draw_cdf(data: dict[str, Any]) -> Figure:
    """Draw one of ``figures.latency_cdfs``: share of requests over latency, with the target's limit."""
    title, colour = _METRICS[data["metric"]]
    values, limit = data["value"], data["limit_s"]
    scale, unit = (1e3, "ms") if max([*values, limit or 0.0], default=0.0) < 2.0 else (1.0, "s")
    spread_out = bool(values) and values[0] > 0 and values[-1] > 50 * values[0]
    trace = {
        "type": "scatter",
        "mode": "lines",
        "name": title,
        "line": {"color": colour, "width": 2, "shape": "hv"},
        "x": [v * scale for v in values],
        "y": [100 * s for s in data["share"]],
        "hovertemplate": f"%{{y:.1f}} % of requests within %{{x:.4g}} {unit}<extra></extra>",
    }
    layout: Figure = {
        "height": 300,
        "showlegend": False,
        "xaxis": {
            "title": {"text": f"{title} ({unit})"},
            "type": "log" if spread_out else "linear",
            **({} if spread_out else {"rangemode": "tozero"}),
        },
        "yaxis": {"title": {"text": "requests (%)"}, "range": [0, 101]},
    }
    if limit is not None:
        layout["shapes"] = [
            {
                "type": "line",
                "xref": "x",
                "yref": "paper",
                "x0": limit * scale,
                "x1": limit * scale,
                "y0": 0,
                "y1": 1,
                "line": {"color": VERMILION, "width": 1.5, "dash": "dash"},
            },
            {
                "type": "line",
                "xref": "paper",
                "yref": "y",
                "x0": 0,
                "x1": 1,
                "y0": data["percentile"],
                "y1": data["percentile"],
                "line": {"color": VERMILION, "width": 1, "dash": "dot"},
            },
        ]
        trace_limit = {
            "type": "scatter",
            "mode": "markers",
            "x": [limit * scale],
            "y": [data["percentile"]],
            "marker": {"color": VERMILION, "size": 9, "symbol": "diamond"},
            "hovertemplate": f"target: p{data['percentile']:g} within %{{x:.4g}} {unit}<extra></extra>",
        }
        return {"data": [trace, trace_limit], "layout": layout}
    return {"data": [trace], "layout": layout}


def draw_presence(data: dict[str, list[float]]) -> Figure:
    """Draw ``figures.presence``: requests in the system over time, stacked by phase."""
    colours = {"decode": BLUE, "prefill": ORANGE, "waiting": VERMILION}
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "stackgroup": "present",
            "name": name,
            "x": data["time_s"],
            "y": data[name],
            "line": {"width": 0.5, "color": colour},
            "hovertemplate": f"%{{y}} {name}<extra></extra>",
        }
        for name, colour in colours.items()
    ]
    layout = {
        "height": 300,
        "legend": _LEGEND,
        "hovermode": "x unified",
        "xaxis": {"title": {"text": "time (s)"}},
        "yaxis": {"title": {"text": "requests"}, "rangemode": "tozero"},
    }
    return {"data": traces, "layout": layout}


def draw_samples(pools: list[dict[str, Any]]) -> Figure:
    """Draw ``figures.samples``: queue and batch per replica above, KV blocks below; one dash per pool."""
    dashes = ("solid", "dash", "dot")
    rows = (
        ("running", "y", BLUE, "running"),
        ("waiting", "y", VERMILION, "waiting"),
        ("kv_used", "y2", GREEN, "KV"),
    )
    traces = []
    for pool, dash in zip(pools, dashes, strict=False):
        prefix = f"{pool['pool']} " if len(pools) > 1 else ""
        for column, axis, colour, name in rows:
            share = column == "kv_used"
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": prefix + name,
                    "xaxis": "x",
                    "yaxis": axis,
                    "x": pool["time_s"],
                    "y": [None if v is None else 100 * v if share else v for v in pool[column]],
                    "line": {"color": colour, "width": 1.5, "dash": dash},
                    "hovertemplate": f"{prefix}{name} %{{y:.4g}}{' %' if share else ''}<extra></extra>",
                }
            )
    layout = {
        "height": 380,
        "legend": _LEGEND,
        "hovermode": "x unified",
        "xaxis": {"title": {"text": "time (s)"}, "anchor": "y2"},
        "yaxis": {"title": {"text": "requests per replica"}, "domain": [0.46, 1], "rangemode": "tozero"},
        "yaxis2": {"title": {"text": "KV blocks (%)"}, "domain": [0, 0.38], "rangemode": "tozero"},
    }
    return {"data": traces, "layout": layout}


def draw_time(rows: list[dict[str, Any]]) -> Figure:
    """Draw ``figures.time_by``: bars of engine time in percent, coloured by the source of the price."""
    total = sum(row["seconds"] for row in rows) or 1.0
    listed = rows[::-1]  # plotly draws the first bar at the bottom
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": source,
            "y": [row["name"] for row in listed],
            "x": [100 * row[source] / total for row in listed],
            "marker": {"color": SOURCE_COLOURS[source]},
            "customdata": [row[source] for row in listed],
            "hovertemplate": f"%{{y}}, {source}: %{{x:.2f}} %, %{{customdata:.4g}} s<extra></extra>",
        }
        for source in figures.SOURCES
        if any(row[source] > 0 for row in rows)
    ]
    layout = {
        "height": 110 + 26 * len(rows),
        "barmode": "stack",
        "legend": {**_LEGEND, "traceorder": "normal"},
        "showlegend": True,
        "xaxis": {"title": {"text": "engine time (%)"}, "rangemode": "tozero"},
        "yaxis": {"automargin": True, "ticksuffix": " "},
    }
    return {"data": traces, "layout": layout}


def draw_experts(data: dict[str, Any]) -> Figure:
    """Draw ``figures.expert_load``: layers by experts, load over an even share."""
    trace = {
        "type": "heatmap",
        "z": data["relative"],
        "x": data["experts"],
        "y": data["layers"],
        "colorscale": "Cividis",
        "zmin": 0,
        "colorbar": {"title": {"text": "x even"}, "thickness": 12, "len": 1},
        "hovertemplate": "layer %{y}, expert %{x}: %{z:.3g} x an even share<extra></extra>",
    }
    layout = {
        "height": min(620, max(260, 120 + 12 * len(data["layers"]))),
        "xaxis": {"title": {"text": "expert"}, "showgrid": False},
        "yaxis": {"title": {"text": "layer"}, "autorange": "reversed", "showgrid": False},
    }
    return {"data": [trace], "layout": layout}
