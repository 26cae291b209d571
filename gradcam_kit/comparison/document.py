"""Render the page of a comparison: large heatmaps, a sortable table, and the difference between two methods."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from gradcam_kit._version import __version__
from gradcam_kit.comparison.gallery import Panel, format_value
from gradcam_kit.metrics.labels import MetricLabel, metric_label
from gradcam_kit.pages import data_uri, layers_in_short, page_template
from gradcam_kit.pixels.pictures import encode_picture
from gradcam_kit.render import colormap_table
from gradcam_kit.targets.scores import WORDS

if TYPE_CHECKING:
    from gradcam_kit.comparison.record import Comparison

TEMPLATES = Path(__file__).parent / "templates"
_COLORMAPS = "jet", "viridis", "bone"
_COSTS = (
    MetricLabel("seconds", "Time", "s for one image", "lower"),
    MetricLabel("passes", "Arithmetic", "forward passes", "lower"),
    MetricLabel("peak_mb", "Memory", "MB at most", "lower"),
)


def render_document(comparisons: Sequence[Comparison]) -> str:
    """Return comparisons of the same methods as one HTML document that needs no network.

    Args:
        comparisons: one or more comparisons of different images, such as the batches of a folder.
    """
    first = comparisons[0]
    rows = summary_of(comparisons)
    data = {"colors": [[name, base64.b64encode(colormap_table(name).tobytes()).decode()] for name in _COLORMAPS]}
    return page_template("compare.html", TEMPLATES).render(
        data=data,
        model=first.model_name,
        methods=list(first.heatmaps),
        images=sum(len(one.names) for one in comparisons),
        layers=dict.fromkeys(layers_in_short(one.layers) for one in first.explanations.values() if one.layers),
        scores=WORDS.get(str(first.score_kind)) if first.targets is not None else None,
        panels=[_panel(panel) for one in comparisons for panel in one.panels()],
        columns=_columns(rows),
        rows=rows,
        said=_aligned,
        left_out=first.left_out,
        notes=first.notes,
        version=__version__,
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )


def summary_of(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Return the rows of `Comparison.summary` over the images of all comparisons.

    Costs are those of the first comparison. Means are weighted by the number of images whose status
    is OK. If no image has status OK, as for the all-ones baseline, means are weighted by the number of all images.
    """
    found: dict[str, list[tuple[dict[str, Any], int]]] = {}
    for one in comparisons:
        for row in one.summary_rows():
            found.setdefault(row["method"], []).append((row, len(one.names)))
    return [_merged(rows) for rows in found.values()]


def _merged(rows: Sequence[tuple[dict[str, Any], int]]) -> dict[str, Any]:
    merged = dict(rows[0][0])
    for metric in [name for name in merged if f"{name} n" in merged]:
        counts = [row[f"{metric} n"] for row, _ in rows]
        weights = counts if any(counts) else [images for _, images in rows]
        known = [
            (row[metric], weight) for (row, _), weight in zip(rows, weights, strict=True) if not math.isnan(row[metric])
        ]
        total = sum(weight for _, weight in known)
        merged[metric] = sum(value * weight for value, weight in known) / total if total else math.nan
        merged[f"{metric} n"] = sum(counts)
    return merged


def _aligned(value: Any) -> str:
    """Format a value with three significant digits, trailing zeros included, so that 1.00 aligns with 1.01."""
    if isinstance(value, float) and abs(value) < 1000 and not math.isnan(value):
        return f"{value:#.3g}".rstrip(".")
    return format_value(value)


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[MetricLabel]:
    names = dict.fromkeys(name for row in rows for name in row)
    metrics = [metric_label(name) for name in names if f"{name} n" in names]
    return [*metrics, *(one for one in _COSTS if one.name in names)]


def _panel(panel: Panel) -> dict[str, Any]:
    picture = panel.shown
    height, width = picture.shape[:2]
    jpeg = data_uri(encode_picture(picture, ".jpg"), "jpeg")
    return {
        "title": panel.title,
        "note": panel.note,
        "style": f"--gk-picture:url({jpeg});--gk-ratio:{width}/{height}",
        "cells": [{"title": one.title, "notes": one.notes, "map": _gray(one.heatmap)} for one in panel.cells],
    }


def _gray(heatmap: Float[np.ndarray, "h w"]) -> str:
    """Return a heatmap as a grayscale PNG; the script of the page colors it and computes differences."""
    buffer = io.BytesIO()
    Image.fromarray(np.rint(heatmap.clip(0, 1) * 255).astype(np.uint8)).save(buffer, "PNG")
    return data_uri(buffer.getvalue(), "png")
