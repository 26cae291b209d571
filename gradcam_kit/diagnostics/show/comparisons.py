"""Plot comparisons, and display them in notebooks."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from gradcam_kit.diagnostics.show.plots import figure
from gradcam_kit.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _ORANGE, _GRAY = "#2b6cb0", "#dd6b20", "#a0aec0"
_MOST_LABELS = 40
_GROUPS = ("#2b6cb0", "#dd6b20", "#2f855a", "#c53030", "#6b46c1", "#975a16", "#d53f8c", "#4a5568", "#b7791f", "#0987a0")


def plot_matrix(values: Float[np.ndarray, "a b"], rows: Sequence[str], columns: Sequence[str], title: str) -> Figure:
    """Plot a matrix of values in [0, 1] with the names of its rows and columns; undefined values are gray."""
    drawn = figure(min(3.0 + 0.24 * len(columns), 18.0), min(2.4 + 0.24 * len(rows), 16.0))
    axes = drawn.subplots()
    axes.set_facecolor("#e2e8f0")
    image = axes.imshow(values, vmin=0, vmax=1, cmap="magma", aspect="auto", interpolation="nearest")
    for axis, names, rotation in ((axes.xaxis, columns, 90), (axes.yaxis, rows, 0)):
        every = max(1, math.ceil(len(names) / _MOST_LABELS))
        places = range(0, len(names), every)
        axis.set_ticks(list(places), [names[i] for i in places], rotation=rotation, fontsize=7)
    axes.set_title(title, loc="left", fontsize=10)
    drawn.colorbar(image, ax=axes, shrink=0.8)
    return drawn


def plot_shifts(rows: Sequence[Any], level: float, limit: float) -> Figure:
    """Plot the shift of the layers in ranked order; layers with a corrected p-value below `level` are orange."""
    shown = list(rows)[:_MOST_LABELS]
    drawn = figure(7.0, 1.2 + 0.24 * len(shown))
    axes = drawn.subplots()
    places = np.arange(len(shown))
    colors = [_ORANGE if row.p_adjusted < level else _GRAY for row in shown]
    axes.barh(places, [row.shift for row in shown], color=colors, height=0.7)
    for place, row in zip(places, shown, strict=True):
        axes.annotate(f" p {row.p_adjusted:.2g}", (row.shift, place), va="center", fontsize=7, annotation_clip=False)
    axes.axvline(limit, color=_BLUE, linewidth=0.8, linestyle="--")
    axes.set_yticks(places, [row.name for row in shown], fontsize=7)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    more = f", the first {len(shown)} of {len(rows)} layers" if len(rows) > len(shown) else ""
    axes.set_title(f"Largest shift of a unit in pooled std{more} (orange: p < {level})", loc="left", fontsize=10)
    _plain(axes)
    return drawn


def plot_importance(units: Mapping[str, Tensor], method: str) -> Figure:
    """Plot the importance of each layer's units in descending order, as a share of the largest in the layer."""
    drawn = figure(7.0, 4.0)
    axes = drawn.subplots()
    cycle = [_GROUPS[i % len(_GROUPS)] for i in range(len(units))]
    for color, (name, values) in zip(cycle, units.items(), strict=True):
        ordered = values.sort(descending=True).values
        largest = float(ordered.abs().max())
        share = np.linspace(0, 1, len(ordered)) if len(ordered) > 1 else np.zeros(1)
        label = name if len(units) <= len(_GROUPS) else None
        axes.plot(
            share,
            (ordered / largest if largest > 0 else ordered).numpy(),
            color=color,
            label=label,
            marker="." if len(ordered) < 40 else "",
        )
    axes.set_xlabel("share of the units, the most important ones first")
    axes.set_ylabel("importance / largest")
    axes.set_title(f"Importance of units by {method}", loc="left", fontsize=10)
    axes.axhline(0, color=_GRAY, linewidth=0.6)
    if 0 < len(units) <= len(_GROUPS):
        axes.legend(frameon=False, fontsize=8)
    _plain(axes)
    return drawn


def plot_points(projection: Any) -> Figure:
    """Plot the first two components of a projection."""
    drawn = figure(6.4, 5.0)
    axes = drawn.subplots()
    points = projection.points.numpy()
    x, y = points[:, 0], points[:, 1] if points.shape[1] > 1 else np.zeros(len(points))
    if projection.labels is None:
        axes.scatter(x, y, s=12, color=_BLUE, alpha=0.7, linewidths=0)
    else:
        labels = np.array([list(projection.names).index(one) for one in projection.labels])
        for place, name in enumerate(projection.names.values()):
            own = labels == place
            marker = "os^Dv"[place // len(_GROUPS) % 5]
            axes.scatter(
                x[own], y[own], s=14, color=_GROUPS[place % len(_GROUPS)], marker=marker, alpha=0.75, linewidths=0,
                label=name if place < _MOST_LABELS else None,
            )  # fmt: skip
        axes.legend(
            frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), ncols=1 + len(projection.names) // 21
        )
    said = "" if projection.silhouette is None else f", silhouette {projection.silhouette:.2f}"
    axes.set_title(f"{projection.method}{said}", loc="left", fontsize=10)
    if projection.explained is None:
        axes.set_xticks([])
        axes.set_yticks([])
    else:
        axes.set_xlabel(f"component 1, {projection.explained[0]:.0%} of the variance", fontsize=8)
        if len(projection.explained) > 1:
            axes.set_ylabel(f"component 2, {projection.explained[1]:.0%} of the variance", fontsize=8)
    _plain(axes)
    return drawn


def plot_levels(levels: Sequence[Any], bins: Sequence[str], title: str) -> Figure:
    """Plot each pyramid level's share of the score by box size, and its mean activation."""
    drawn = figure(8.0, 1.6 + 0.4 * len(levels))
    left, right = drawn.subplots(1, 2, width_ratios=(3, 2), sharey=True)
    values = np.array([[level.strength[name] for name in bins] for level in levels])
    left.set_facecolor("#e2e8f0")
    left.imshow(values, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            left.text(
                column,
                row,
                f"{value:.0%}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if value > 0.6 else "black",
            )
    left.set_xticks(range(len(bins)), bins, fontsize=8)
    left.set_yticks(
        range(len(levels)), [f"{level.name}  {'x'.join(map(str, level.shape))}" for level in levels], fontsize=8
    )
    left.set_title(title, loc="left", fontsize=10)
    left.tick_params(length=0)
    right.tick_params(axis="y", left=False, labelleft=False)
    right.barh(range(len(levels)), [level.activation for level in levels], color=_BLUE, height=0.6)
    right.set_title("mean |activation|", loc="left", fontsize=10)
    _plain(right)
    return drawn


def as_html(shown: Any) -> str:
    """Return a comparison as HTML: its text and, if matplotlib is installed, its plot."""
    text = f"<pre>{html.escape(str(shown))}</pre>"
    try:
        drawn = shown.plot()
    except MissingExtraError:
        return text
    stream = io.StringIO()
    drawn.savefig(stream, format="svg")
    svg = stream.getvalue()
    return f"{text}{svg[svg.index('<svg') :]}"


def _plain(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
