"""Build the parts of the dashboard: lists, tables and Plotly figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradcam_kit.diagnostics.findings import LEVELS
from gradcam_kit.diagnostics.report import LayerRow
from gradcam_kit.diagnostics.show.log import Log
from gradcam_kit.pages import data_uri

_COLUMNS = ("name", "type", "n", "mean", "std", "dead", "units", "nan", "inf", "gradient_rms")
_MOST_MAPS = 64
_BLUE, _ORANGE = "#2b6cb0", "#dd6b20"
_BANDS = np.concatenate([-(2.0 ** np.arange(8, -25, -2)), [0.0], 2.0 ** np.arange(-24, 9, 2)])
"""Edges of the bands of values, two octaves each, in which histograms are shown over time."""


def findings(given: Any) -> Any:
    """Return the findings of the report, or else the latest findings in the folder, as an HTML list."""
    from dash import html

    rows = [one.to_dict() for one in given.report.findings] if given.report is not None else None
    if rows is None and given.log is not None:
        rows = given.log.tables.get("findings")
    if rows is None:
        return html.P("No report yet.")
    if not rows:
        return html.P("Nothing found.")
    return html.Ul([_finding(row) for row in rows])


def _finding(row: Mapping[str, Any]) -> Any:
    from dash import html

    level = row.get("level") if row.get("level") in LEVELS else "note"
    where = f" in {row['layer']}" if row.get("layer") else ""
    head = f"{level} {row.get('kind', '')}{where}: {row.get('message', '')}"
    return html.Li([html.Strong(head), html.Pre(str(row.get("advice") or ""))], className=level)


def layers(given: Any) -> Any:
    """Return a table with one row per layer."""
    from dash import html

    rows = _layer_rows(given)
    if not rows:
        return html.P("The table of layers appears once there is a report or training has ended.")
    head = html.Tr([html.Th(name) for name in _COLUMNS])
    return html.Table(
        [html.Thead(head), html.Tbody([html.Tr([html.Td(_text(row.get(c))) for c in _COLUMNS]) for row in rows])]
    )


def profile(given: Any) -> Any:
    """Plot the standard deviation of activations and the gradient norm of each layer, in the order of execution."""
    import plotly.graph_objects as go

    rows = _layer_rows(given)
    names, deviations = [str(row.get("name")) for row in rows], [_number(row.get("std")) for row in rows]
    gradients = [_number(row.get("gradient_norm")) for row in rows]
    if not rows and given.log is not None:
        known = [name.removesuffix("/std") for name in given.log.scalars if name.endswith("/std")]
        names = known
        deviations = [_last(given.log, f"{name}/std") for name in known]
        gradients = [_last(given.log, f"{name}/gradient_norm") for name in known]
    figure = _figure("Layers, in the order of execution", "", go)
    figure.add_scatter(x=names, y=deviations, name="activation std", mode="lines+markers", line_color=_BLUE)
    figure.add_scatter(x=names, y=gradients, name="gradient norm", mode="lines+markers", line_color=_ORANGE)
    figure.update_yaxes(type="log")
    return figure


def curve(points: Sequence[tuple[int, float | None]], name: str | None) -> Any:
    """Plot one scalar over the steps."""
    import plotly.graph_objects as go

    figure = _figure(name or "No number yet", "step", go)
    figure.add_scatter(x=[step for step, _ in points], y=[value for _, value in points], mode="lines+markers")
    return figure


def ridges(series: Sequence[tuple[int, list[float], list[int]]], name: str | None) -> Any:
    """Plot one histogram over the steps; brighter means more values."""
    import plotly.graph_objects as go

    figure = _figure(name or "No histogram yet", "step", go)
    if series:
        shares = np.stack([_in_bands(edges, counts) for _, edges, counts in series])
        labels = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(_BANDS)]
        figure.add_heatmap(
            x=[str(step) for step, *_ in series], y=labels, z=np.log1p(1000 * shares.T).tolist(), colorscale="viridis",
            showscale=False,
        )  # fmt: skip
        figure.update_yaxes(title="value, in steps of two octaves")
    return figure


def _in_bands(edges: Sequence[float], counts: Sequence[int]) -> Any:
    middles = (np.asarray(edges[:-1]) + np.asarray(edges[1:])) / 2
    places = np.clip(np.searchsorted(_BANDS, middles, side="right") - 1, 0, len(_BANDS) - 2)
    shares = np.bincount(places, weights=np.asarray(counts, dtype=np.float64), minlength=len(_BANDS) - 1)
    return shares / max(shares.sum(), 1)


def pictures(log: Log, name: str) -> Any:
    """Return the first and the last picture with this name, side by side."""
    from dash import html

    known = log.images.get(name, [])
    shown = []
    for step, path in dict.fromkeys((known[0], known[-1])) if known else []:
        content = log.picture(path)
        if content is not None:
            source = data_uri(content, "png")
            shown.append(
                html.Figure([html.Figcaption(f"step {step}"), html.Img(src=source, alt=f"{name}, step {step}")])
            )
    return shown or "No picture yet."


def feature_picture(values: Tensor, unit_axis: int | None) -> bytes:
    """Render the maps of one sample as a PNG."""
    from gradcam_kit.pixels.pictures import encode_picture
    from gradcam_kit.render import colorize, contact_sheet

    values = torch.nan_to_num(values.detach().float().cpu())
    if unit_axis is not None and values.ndim >= unit_axis > 0:
        values = values.movedim(unit_axis - 1, 0)
    while values.ndim > 3:
        values = values.mean(1)
    maps = values.reshape(1, 1, -1) if values.ndim < 2 else values[:, None] if values.ndim == 2 else values
    maps = maps[:_MOST_MAPS]
    low, high = maps.amin(), maps.amax()
    levels = ((maps - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    columns = max(1, min(8, math.ceil(math.sqrt(len(levels)))))
    sheet = contact_sheet(list(colorize(levels, "viridis")), columns=columns, cell_size=96, margin=4)
    return encode_picture(sheet, ".png")


def _layer_rows(given: Any) -> list[dict[str, Any]]:
    if given.report is not None:
        return [_shown(row) for row in given.report.layers]
    return list(given.log.tables.get("layers", [])) if given.log is not None else []


def _shown(row: LayerRow) -> dict[str, Any]:
    return {name: getattr(row, name) for name in (*_COLUMNS, "gradient_norm")}


def _last(log: Log, name: str) -> float | None:
    points = log.scalars.get(name)
    return points[-1][1] if points else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _figure(title: str, below: str, go: Any) -> Any:
    figure = go.Figure()
    figure.update_layout(title=title, xaxis_title=below, height=320, margin={"t": 50, "b": 60, "l": 60, "r": 20})
    return figure
