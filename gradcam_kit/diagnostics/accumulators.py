"""Accumulate statistics of observed layers on their devices, and copy them to the host once per step."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gradcam_kit.capture import is_spread
from gradcam_kit.diagnostics.kinds import own_weight
from gradcam_kit.diagnostics.ledger import Ledger
from gradcam_kit.diagnostics.maths.statistics import Axes, Moments
from gradcam_kit.diagnostics.pending import Copied, Histograms, Reservoir, Scalars
from gradcam_kit.diagnostics.tracks import LayerTrack


@dataclass(eq=False)
class LiveLayer:
    """The state of an observed layer: its accumulators on the device, and the layout of its output.

    Attributes:
        track: the statistics on the host.
        module: weak reference to the layer.
        flat: the outputs below and above which the slope of the activation function is small; None if there are none.
        shape: shape of the output for which `axes` and `stride` hold.
        axes: the axes of samples and units.
        stride: distance between the sampled values of the flattened output.
        sample_axis: the axis of the samples.
        two_pass: whether the variance needs a second pass over the values, judged by an earlier step.
        low: the smallest value of each unit in the open window `(k,)`.
        high: the largest value of each unit in the open window `(k,)`.
        new_low: the smallest value of each unit since the last flush `(k,)`.
        new_high: the largest value of each unit since the last flush `(k,)`.
        rows: device -> the row of the outputs and the row of the gradients in its histograms.
        reservoir: features of a random sample of images; None for a layer whose features are not kept.
        pooled: features to add at the next flush, as sums over positions with the number of positions.
        had_graph: whether the last observed output required a gradient.
        alive: whether each unit's own weights or bias had a nonzero gradient in the open window `(k,)`.
    """

    track: LayerTrack
    module: weakref.ref[nn.Module]
    flat: tuple[float, float] | None
    shape: torch.Size | None = None
    axes: Axes | None = None
    stride: int = 1
    sample_axis: int = 0
    two_pass: bool = True
    low: Tensor | None = None
    high: Tensor | None = None
    new_low: Tensor | None = None
    new_high: Tensor | None = None
    rows: dict[torch.device, tuple[int, int]] = field(default_factory=dict)
    reservoir: Reservoir | None = None
    pooled: list[tuple[Tensor, int]] = field(default_factory=list)
    had_graph: bool = False
    alive: Tensor | None = None


class Accumulators:
    """The observed layers, with the scalars, samples and features that are pending on their devices."""

    def __init__(self, ledger: Ledger, features: int) -> None:
        self.most_features = features
        self.restart(ledger)

    def restart(self, ledger: Ledger) -> None:
        """Start over with an empty ledger."""
        self.ledger = ledger
        self.live: dict[str, LiveLayer] = {}
        self.scalars: dict[torch.device, Scalars] = {}
        self.histograms: dict[torch.device, Histograms] = {}
        self.copied: list[Copied] = []
        self.nodes: dict[str, Any] | None = {}
        self.features_chosen = False

    def scalars_of(self, device: torch.device) -> Scalars:
        """Return the pending scalars of a device."""
        scalars = self.scalars.get(device)
        if scalars is None:
            scalars = self.scalars[device] = Scalars(device)
        return scalars

    @torch.inference_mode(False)
    @torch.no_grad()
    def flush(self, wait: bool = False) -> None:
        """Count pending samples, merge extremes, start copying the scalars to the host, and read the previous copy.

        With `wait`, or if all devices are CPUs, the new copy is also read immediately.
        """
        for histograms in self.histograms.values():
            histograms.flush()
        for live in self.live.values():
            if live.new_low is not None and live.new_high is not None:
                fits = live.low is not None and live.high is not None and live.low.shape == live.new_low.shape
                live.low = torch.minimum(live.low, live.new_low) if fits else live.new_low  # type: ignore[arg-type]
                live.high = torch.maximum(live.high, live.new_high) if fits else live.new_high  # type: ignore[arg-type]
                live.new_low = live.new_high = None
        self._flush_features()
        for copied in self.copied:
            copied.read()
        started = [scalars.flush() for scalars in self.scalars.values()]
        self.copied = [copied for copied in started if copied is not None]
        if wait or all(device.type == "cpu" for device in self.scalars):
            for copied in self.copied:
                copied.read()
            self.copied = []

    def _flush_features(self) -> None:
        if not self.features_chosen and self.live and any(live.pooled for live in self.live.values()):
            candidates = [live for live in self.live.values() if live.pooled]
            number = min(self.most_features, len(candidates))
            for i in range(number):
                live = candidates[round(i * (len(candidates) - 1) / max(number - 1, 1))]
                live.reservoir = live.reservoir or Reservoir(live.track.units)
            self.features_chosen = True
        for live in self.live.values():
            if live.reservoir is not None:
                for pooled, positions in live.pooled:
                    if pooled.shape[1] == live.reservoir.units:
                        live.reservoir.add(pooled / positions)
            live.pooled.clear()

    def read_window(self, close: bool) -> None:
        """Copy the extremes, features and living units of the open window, and all histograms, to the host.

        With `close`, everything except the histograms is then cleared for the next window.
        """
        for live in self.live.values():
            track = live.track
            if live.low is not None and live.high is not None:
                track.open.low, track.open.high = live.low.cpu().numpy(), live.high.cpu().numpy()
                found = track.open.moments
                low, high = float(live.low.amin()), float(live.high.amax())
                track.open.moments = found.merge(Moments(minimum=low, maximum=high))
            if live.reservoir is not None:
                rows = live.reservoir.take() if close else live.reservoir.peek()
                track.open.features = None if rows is None else rows.float().cpu().numpy()
            for device, (row, gradient_row) in live.rows.items():
                counts = self.histograms[device].counts
                # On a CPU, these arrays share memory with `counts`, which saves a copy of 32 KiB per layer.
                track.counts, track.gradient_counts = counts[row].cpu().numpy(), counts[gradient_row].cpu().numpy()
            if live.alive is not None:
                track.open.alive = live.alive.cpu().numpy()
            module = live.module()
            weight = None if module is None else own_weight(module)
            track.zero_weight = weight is not None and _is_zero(weight)
            if close:
                live.low = live.high = live.alive = None

    def begin_window(self) -> None:
        """Make the next step trace the paths of the graph again, because the paths may depend on the input."""
        self.nodes = {}


def _is_zero(weight: Tensor) -> bool:
    """Whether all values are 0; False for tensors without all values at hand (sharded, or on the "meta" device)."""
    return weight.device.type != "meta" and not is_spread(weight) and not bool((weight != 0).any())
