"""The two plots of the report, as SVG whose bytes depend on the figures alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from benchmarks.methods import FORWARD
from benchmarks.quality import CHANCE
from benchmarks.results import Row

_INK, _FAINT, _POINT = "#222222", "#bbbbbb", "#2166ac"
_LABEL_STEP = 0.035
"""Of the axes' height: so far apart labels have to be."""


def draw_quality(rows: Sequence[Row], file: Path) -> None:
    """Time against quality, a point per method, labeled in the margin."""
    chance = [row.figures["energy"].median for row in rows if row.case["method"] == CHANCE]
    points = sorted((row for row in rows if "ratio" in row.figures), key=lambda row: row.figures["energy"].median)
    canvas, axes = _axes(9, 6.5)
    canvas.subplots_adjust(right=0.76)
    axes.set_xscale("log")
    axes.set_xlabel("time / plain forward pass")
    axes.set_ylabel("share of the heatmap on the object")
    for level in chance:
        axes.axhline(level, color=_FAINT, linestyle="--", linewidth=1)
        axes.annotate(
            "object's share of the picture", (0.01, level), ("axes fraction", "data"), color=_INK, va="bottom"
        )
    axes.scatter(*zip(*(_place(row) for row in points), strict=True), color=_POINT, zorder=3)
    axes.set_ylim(0, None)
    highest = axes.get_ylim()[1]
    heights = spread([_place(row)[1] / highest for row in points], _LABEL_STEP)
    for row, height in zip(points, heights, strict=True):
        axes.annotate(
            str(row.case["method"]),
            xy=_place(row),
            xytext=(1.06, height),
            textcoords="axes fraction",
            va="center",
            arrowprops={"arrowstyle": "-", "color": _FAINT, "linewidth": 0.6, "relpos": (0, 0.5)},
        )
    _save(canvas, file)


def _place(row: Row) -> tuple[float, float]:
    return row.figures["ratio"].median, row.figures["energy"].median


def spread(heights: Sequence[float], step: float) -> list[float]:
    """Sorted heights moved apart as little as needed, from the lowest up and, beyond 1, back down."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + step) if moved else height)
    ceiling = max(1.0, step * (len(moved) - 1))
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], ceiling)
        ceiling = moved[i] - step
    return moved


def draw_batches(rows: Sequence[Row], file: Path) -> None:
    """Milliseconds per image by batch size, a line per method."""
    canvas, axes = _axes(7, 4.5)
    canvas.subplots_adjust(right=0.76)
    by_method: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        milliseconds = 1000 * row.figures["seconds_per_image"].median
        by_method.setdefault(str(row.case["method"]), []).append((int(row.case["batch"]), milliseconds))
    for method, points in by_method.items():
        style: dict[str, Any] = {"color": _INK, "linestyle": "--"} if method == FORWARD else {}
        axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=4, label=method, **style)
    batches = sorted({batch for points in by_method.values() for batch, _ in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.set_ylim(0, None)
    axes.set_xlabel("images in a batch")
    axes.set_ylabel("milliseconds per image, ResNet-50")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5))
    _save(canvas, file)


def _axes(width: float, height: float) -> tuple[Canvas, Axes]:
    canvas = Canvas(figsize=(width, height))
    axes = canvas.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=_FAINT, linewidth=0.4)
    return canvas, axes


def _save(canvas: Canvas, file: Path) -> None:
    with mpl.rc_context({"svg.hashsalt": "gradcam-kit"}):
        canvas.savefig(file, metadata={"Date": None})
