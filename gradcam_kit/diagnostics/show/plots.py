"""Plot observations as matplotlib figures, without windows or global state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from gradcam_kit.diagnostics.ledger import Ledger
from gradcam_kit.diagnostics.maths.histogram import COARSE, coarsen
from gradcam_kit.diagnostics.tracks import LayerTrack
from gradcam_kit.diagnostics.verdicts import dead_units
from gradcam_kit.errors import CaptureError, OptionError, missing_extra
from gradcam_kit.options import one_of, whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = ("gradients", "activations", "box", "histogram", "updates", "units")
_FEATURES = ("channels", "mean", "histogram")
_MOST_CHANNELS = 64
_MOST_LABELS = 60
_BLUE, _ORANGE, _RED, _GRAY = "#2b6cb0", "#dd6b20", "#c53030", "#a0aec0"


def figure(width: float, height: float) -> Figure:
    """Return an empty figure of the given size in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("plots need matplotlib", "diagnostics") from error
    drawn = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(drawn)
    return drawn


def plot_ledger(ledger: Ledger, kind: str) -> Figure:
    """Plot the layers or the parameters in one of the views in `KINDS`.

    Raises:
        CaptureError: nothing was observed that this view shows.
        OptionError: an unknown view.
    """
    one_of("kind", kind, KINDS)
    tracks = sorted(ledger.tracks.values(), key=lambda track: track.order)
    if kind == "updates":
        return _updates(ledger)
    if not tracks:
        raise CaptureError("nothing was observed; run the model inside the block before plotting")
    return {
        "gradients": _gradients, "activations": _activations, "box": _box, "histogram": _histograms, "units": _units,
    }[kind](tracks)  # fmt: skip


def _over_layers(tracks: list[LayerTrack], title: str) -> tuple[Figure, Axes]:
    """Return a figure with a labeled column for each layer; names that would overlap are left out."""
    drawn = figure(min(4 + 0.22 * len(tracks), 24.0), 5.0)
    axes = drawn.subplots()
    every = max(1, math.ceil(len(tracks) / _MOST_LABELS))
    places = range(0, len(tracks), every)
    axes.set_xticks(list(places), [tracks[i].name for i in places], rotation=90, fontsize=7)
    axes.set_xlim(-0.6, len(tracks) - 0.4)
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(axis="y", color="#e2e8f0", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return drawn, axes


def _gradients(tracks: list[LayerTrack]) -> Figure:
    drawn, axes = _over_layers(tracks, "Gradient at the output of each layer, in the order of execution")
    found = np.array([track.gradient_norm.value for track in tracks])
    low = np.array([_quantile(track.gradient_norm.values, 0.1) for track in tracks])
    high = np.array([_quantile(track.gradient_norm.values, 0.9) for track in tracks])
    shown = np.isfinite(found) & (found > 0)
    x = np.arange(len(tracks))
    axes.vlines(x[shown], np.maximum(low, 1e-45)[shown], high[shown], color=_GRAY, linewidth=3)
    axes.plot(x[shown], found[shown], "o-", color=_BLUE, markersize=4, linewidth=1, label="median norm (bar: 10-90 %)")
    if not shown.all():
        lost = x[~shown]
        axes.plot(lost, [0.02] * len(lost), "x", color=_RED, transform=axes.get_xaxis_transform(), label="no gradient")
    if shown.any():
        axes.set_yscale("log")
    axes.set_ylabel("gradient norm")
    axes.legend(frameon=False, fontsize=8)
    return drawn


def _activations(tracks: list[LayerTrack]) -> Figure:
    drawn, axes = _over_layers(tracks, "Activations of each layer: mean and standard deviation")
    moments = [track.total.merge(track.open.moments) for track in tracks]
    x = np.arange(len(tracks))
    mean = np.array([own.mean if own.finite else np.nan for own in moments])
    std = np.array([own.std for own in moments])
    axes.errorbar(x, mean, std, fmt="o", color=_BLUE, ecolor=_GRAY, elinewidth=3, markersize=4)
    broken = np.array([own.nan + own.inf > 0 for own in moments])
    if broken.any():
        axes.plot(
            x[broken], [0.02] * int(broken.sum()), "x", color=_RED, transform=axes.get_xaxis_transform(),
            label="NaN or infinite",
        )  # fmt: skip
        axes.legend(frameon=False, fontsize=8)
    axes.set_yscale("symlog", linthresh=1.0)
    axes.set_ylabel("activation")
    return drawn


def _box(tracks: list[LayerTrack]) -> Figure:
    from gradcam_kit.diagnostics.maths.histogram import quantile

    drawn, axes = _over_layers(
        tracks, "Distribution of the activations of each layer (box: quartiles, whiskers: 1st to 99th percentile)"
    )
    boxes = []
    for track in tracks:
        low, first, middle, third, high = (quantile(track.counts, q) for q in (0.01, 0.25, 0.5, 0.75, 0.99))
        boxes.append({"whislo": low, "q1": first, "med": middle, "q3": third, "whishi": high, "fliers": []})
    axes.bxp(
        boxes, positions=list(range(len(tracks))), showfliers=False, patch_artist=True, widths=0.6, manage_ticks=False,
        boxprops={"facecolor": "#bee3f8", "edgecolor": _BLUE}, medianprops={"color": _ORANGE},
        whiskerprops={"color": _GRAY}, capprops={"color": _GRAY},
    )  # fmt: skip
    axes.set_yscale("symlog", linthresh=1.0)
    axes.set_ylabel("activation")
    return drawn


def _histograms(tracks: list[LayerTrack]) -> Figure:
    """Plot a histogram over time for each of up to 24 layers (x: time, y: value); brighter means more values."""
    shown = tracks if len(tracks) <= 24 else [tracks[round(i * (len(tracks) - 1) / 23)] for i in range(24)]
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    drawn = figure(3.2 * columns, 2.1 * rows + 0.4)
    panels = np.atleast_1d(drawn.subplots(rows, columns, squeeze=False)).ravel()
    for axes, track in zip(panels, shown, strict=False):
        history = track.history.shares.astype(np.float64)
        now = coarsen(track.counts) - track.coarse_before
        if now.sum() > 0:
            history = np.concatenate([history, now[None] / now.sum()])
        axes.imshow(
            np.log1p(1000 * history[:, : COARSE - 1].T), aspect="auto", origin="lower", cmap="viridis",
            interpolation="nearest",
        )  # fmt: skip
        axes.set_title(track.name, fontsize=7, loc="left")
        axes.set_yticks([4.5, 17, 29.5], ["-1", "0", "1"], fontsize=6)
        axes.set_xticks([])
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    drawn.suptitle("Activations over time (x: windows, y: values on a symmetric logarithmic scale)", fontsize=9)
    return drawn


def _updates(ledger: Ledger) -> Figure:
    measured = [own for own in ledger.parameters.values() if own.update.seen and own.dims >= 2]
    if not measured:
        raise CaptureError("no update was measured; pass optimizer= and run at least one of its steps inside the block")
    drawn = figure(8.0, min(1.2 + 0.16 * len(measured), 24.0))
    axes = drawn.subplots()
    values = [max(own.update.value, 1e-12) for own in measured]
    y = np.arange(len(measured))[::-1]
    colors = [_BLUE if 1e-5 <= value <= 1e-1 else _RED for value in values]
    axes.scatter(values, y, c=colors, s=16)
    axes.axvline(1e-3, color=_ORANGE, linewidth=1, label="1e-3: healthy")
    axes.axvspan(1e-5, 1e-1, color="#edf2f7", zorder=0)
    axes.set_xscale("log")
    axes.set_yticks(list(y), [own.name for own in measured], fontsize=6)
    axes.set_xlabel("relative update of one step")
    axes.legend(frameon=False, fontsize=8)
    return drawn


def _units(tracks: list[LayerTrack]) -> Figure:
    shares = [(track, dead_units(track, track.last_window(0))) for track in tracks]
    own = [track for track, dead in shares if dead is not None]
    if not own:
        raise CaptureError(
            "every observed layer has NaN, or no units that can die; observe ReLU-like layers, or pass optimizer="
        )
    drawn, axes = _over_layers(own, "Units that were never active in the last window")
    values = [100 * (dead or 0) / max(track.units, 1) for track, dead in shares if dead is not None]
    axes.bar(
        range(len(own)), values, color=[_RED if value >= 50 else _ORANGE if value >= 10 else _BLUE for value in values]
    )
    axes.set_ylabel("dead units in %")
    axes.set_ylim(0, 100)
    return drawn


def plot_feature(name: str, tensor: Tensor, unit_axis: int | None, sample: int, kind: str) -> Figure:
    """Plot the channels of one sample as a grid, their mean, or a histogram of the values of all samples.

    Raises:
        OptionError: an unknown kind, or a sample that does not exist.
    """
    one_of("kind", kind, _FEATURES)
    values = tensor.detach().float().cpu()
    if kind == "histogram":
        drawn = figure(6.0, 3.5)
        axes = drawn.subplots()
        finite = values[values.isfinite()]
        axes.hist(finite.numpy(), bins=80, color=_BLUE)
        axes.set_title(f"{name}: {finite.numel():,} finite values", loc="left", fontsize=10)
        axes.set_yscale("log")
        return drawn
    if values.ndim and not -len(values) <= whole("sample", sample) < len(values):
        raise OptionError(f"sample is {sample}, but the number of samples of layer {name!r} is {len(values)}")
    maps = _maps(values[sample] if values.ndim else values[None], None if unit_axis in (None, 0) else unit_axis)
    maps = maps.mean(0, keepdims=True) if kind == "mean" else maps
    return _grid(name, maps)


def _maps(values: Tensor, unit_axis: int | None) -> Any:
    """Return the maps of one sample, `(k, h, w)`."""
    if values.ndim and unit_axis is not None and values.ndim >= unit_axis:
        values = values.movedim(unit_axis - 1, 0)
    if values.ndim <= 1:
        return values.reshape(1, 1, -1).numpy()
    while values.ndim > 3:
        values = values.mean(1)  # a single slice would hide the rest of a volume or video
    return (values[:, None] if values.ndim == 2 else values).numpy()


def _grid(name: str, maps: Any) -> Figure:
    total = len(maps)
    maps = maps[:_MOST_CHANNELS]
    columns = max(1, min(8, math.ceil(math.sqrt(len(maps)))))
    rows = math.ceil(len(maps) / columns)
    drawn = figure(max(1.3 * columns, 4.0), max(1.3 * rows + 0.5, 2.0))
    panels = drawn.subplots(rows, columns, squeeze=False).ravel()
    for place, (axes, own) in enumerate(zip(panels, maps, strict=False)):
        axes.imshow(own, cmap="viridis", aspect="auto" if 1 in own.shape else "equal")
        axes.set_title(str(place), fontsize=6, pad=2)
    for axes in panels:
        axes.set_axis_off()
    more = f", the first {len(maps)} of {total} channels" if total > len(maps) else ""
    drawn.suptitle(f"{name}{more}", fontsize=9)
    return drawn


def _quantile(values: Sequence[float], q: float) -> float:
    return float(np.quantile(values, q)) if values else math.nan
