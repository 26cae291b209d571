"""Draw the two plots of the report as SVG files that are byte-identical for the same figures."""

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


def draw_quality(rows: Sequence[Row], file: Path) -> None:
    """Plot quality and time side by side, with one line per method and the best method on top."""
    chance = [row.figures["energy"].median for row in rows if row.case["method"] == CHANCE]
    methods = sorted((row for row in rows if "ratio" in row.figures), key=lambda row: row.figures["energy"].median)
    canvas = Canvas(figsize=(9, 1 + 0.24 * len(methods)), layout="constrained")
    left, right = canvas.subplots(1, 2, sharey=True)
    for axes, figure in ((left, "energy"), (right, "ratio")):
        _plain(axes)
        seen = [row.figures[figure] for row in methods]
        ends = [[one.median - one.low for one in seen], [one.high - one.median for one in seen]]
        axes.errorbar([one.median for one in seen], range(len(seen)), xerr=ends, fmt="o", color=_POINT, ecolor=_FAINT)
    left.set_yticks(range(len(methods)), [str(row.case["method"]) for row in methods])
    left.set_xlabel("share of the heatmap on the object")
    left.set_xlim(0, 1)
    for level in chance:
        left.axvline(level, color=_INK, linestyle="--", linewidth=1, label="the object's share of the picture")
        left.legend(frameon=False, loc="lower right")
    right.set_xlabel("time / plain forward pass")
    right.set_xscale("log")
    _save(canvas, file)


def draw_batches(rows: Sequence[Row], file: Path) -> None:
    """Plot milliseconds per image by batch size, one line per method."""
    canvas = Canvas(figsize=(7, 4), layout="constrained")
    axes = canvas.subplots()
    _plain(axes)
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


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=_FAINT, linewidth=0.4)


def _save(canvas: Canvas, file: Path) -> None:
    with mpl.rc_context({"svg.hashsalt": "gradcam-kit"}):
        canvas.savefig(file, metadata={"Date": None})
