"""Statistics of each layer and parameter: numbers on the host that can be merged, stored and judged."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import numpy as np

from gradcam_kit.diagnostics.history import History
from gradcam_kit.diagnostics.maths.histogram import BINS, COARSE
from gradcam_kit.diagnostics.maths.running_median import RunningMedian
from gradcam_kit.diagnostics.maths.statistics import Moments

_LOST = 4.0  # an update whose norm is below this times eps times the norm of the values is lost in most entries


def _least(a: Any, b: Any) -> Any:
    return b if a is None else a if b is None or a.shape != b.shape else np.minimum(a, b)


def _most(a: Any, b: Any) -> Any:
    return b if a is None else a if b is None or a.shape != b.shape else np.maximum(a, b)


@dataclass
class WindowStats:
    """Statistics of one output tensor of a layer in one window of steps.

    Attributes:
        steps: number of observed calls.
        moments: moments of all values.
        low: the smallest value of each unit `(k,)`.
        high: the largest value of each unit `(k,)`.
        saturated: number of sampled values where the slope is small; `sampled` is the number of sampled values.
        gradient_norms: the norm of each gradient that arrived.
        expected: number of outputs that had a graph, where a gradient could arrive.
        bad_gradients: number of gradients with NaN or infinities.
        alive: whether each unit's own weights or bias had a nonzero gradient in any measured step `(k,)`; `measured` is
            the number of these steps.
        features: pooled outputs `(r, k)` of a few samples.
    """

    steps: int = 0
    moments: Moments = field(default_factory=Moments)
    low: Any = None
    high: Any = None
    saturated: float = 0.0
    sampled: int = 0
    gradient_norms: array[float] = field(default_factory=lambda: array("d"))
    expected: int = 0
    bad_gradients: int = 0
    alive: Any = None
    measured: int = 0
    features: Any = None

    def merge(self, other: WindowStats) -> WindowStats:
        """Return the statistics of both windows."""
        rows = [own for own in (self.features, other.features) if own is not None]
        same = len({row.shape[1] for row in rows}) == 1
        return WindowStats(
            self.steps + other.steps,
            self.moments.merge(other.moments),
            _least(self.low, other.low),
            _most(self.high, other.high),
            self.saturated + other.saturated,
            self.sampled + other.sampled,
            self.gradient_norms + other.gradient_norms,
            self.expected + other.expected,
            self.bad_gradients + other.bad_gradients,
            _most(self.alive, other.alive),
            self.measured + other.measured,
            np.concatenate(rows) if same else None,
        )

    @property
    def gradient_norm(self) -> float:
        """The median of the finite gradient norms; NaN without any."""
        finite = [norm for norm in self.gradient_norms if np.isfinite(norm)]
        return median(finite) if finite else float("nan")


@dataclass
class LayerTrack:
    """Statistics of one output tensor of a layer: `layer` for a single tensor, else `layer[0]` and so on.

    Attributes:
        order: position in the order of execution.
        activation: "relu", "sigmoid" or "tanh" if the module is such an activation function.
        mixes: whether each unit combines input channels, as in linear and convolutional layers.
        few_inputs: whether each unit of this layer, or of the layer that feeds it, combines few input channels.
        on_path: whether the layer is on every path from input to output; None if unknown.
        producer: name of the track whose output is the input of the layer.
        counted: False if NaN or infinities were seen on a GPU. An exact count would wait for the device, so each output
            that holds any is counted once.
        total: moments of all closed windows; `open` is the window in progress, and `closed` the one before.
        coarse_before: coarse histogram of all values before the open window.
    """

    name: str
    layer: str
    kind: str
    order: int
    activation: str | None = None
    owns_weight: bool = False
    mixes: bool = False
    unit_axis: int | None = None
    shape: tuple[int, ...] = ()
    units: int = 1
    batch: int = 0
    calls: int = 0
    is_half: bool = False
    few_inputs: bool = False
    is_output: bool = False
    zero_weight: bool = False
    on_path: bool | None = None
    producer: str | None = None
    first_bad_step: int | None = None
    counted: bool = True
    total: Moments = field(default_factory=Moments)
    counts: Any = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))
    gradient_counts: Any = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))
    gradient_norm: RunningMedian = field(default_factory=RunningMedian)
    gradient_rms: RunningMedian = field(default_factory=RunningMedian)
    open: WindowStats = field(default_factory=WindowStats)
    closed: WindowStats | None = None
    windows: int = 0
    coarse_before: Any = field(default_factory=lambda: np.zeros(COARSE, dtype=np.int64))
    history: History = field(default_factory=History)

    def last_window(self, enough: int) -> WindowStats:
        """Return the window for verdicts: the open window, merged with the previous one if it has few samples."""
        if self.closed is None or self.open.moments.n >= min(enough, self.closed.moments.n) > 0:
            return self.open
        return self.closed.merge(self.open)

    @property
    def open_or_closed_std(self) -> float:
        """The standard deviation in the open window, else in the last one; 0 without values."""
        windows = [own for own in (self.open, self.closed) if own is not None and own.moments.finite]
        return windows[0].moments.std if windows else 0.0

    def merge(self, other: LayerTrack) -> LayerTrack:
        """Return the merged statistics of both tracks."""
        steps = [own for own in (self.first_bad_step, other.first_bad_step) if own is not None]
        windows = [own.closed for own in (self, other) if own.closed is not None]
        return replace(
            self,
            calls=max(self.calls, other.calls),
            batch=max(self.batch, other.batch),
            first_bad_step=min(steps) if steps else None,
            counted=self.counted and other.counted,
            total=self.total.merge(other.total),
            counts=self.counts + other.counts,
            gradient_counts=self.gradient_counts + other.gradient_counts,
            gradient_norm=self.gradient_norm.merge(other.gradient_norm),
            gradient_rms=self.gradient_rms.merge(other.gradient_rms),
            open=self.open.merge(other.open),
            closed=windows[0].merge(windows[1]) if len(windows) == 2 else next(iter(windows), None),
            windows=max(self.windows, other.windows),
            history=self.history.merge(other.history),
        )


@dataclass
class ParameterTrack:
    """One parameter: norms and updates at measured steps, and how often a gradient was missing.

    `missing` counts the measured steps of the window without a gradient, `zero` those with a gradient of zeros. `reach`
    estimates the norm of the last measured update (NaN if unknown), and `epsilon` is the precision of the data type. If
    the parameter is sharded into `parts`, `shards` are the positions of the shards that were measured. `optimized` is
    whether an optimizer holds the parameter (None without optimizers), and `rate` is the learning rate.
    """

    name: str
    module: str
    dims: int
    trains: bool
    optimized: bool | None = None
    norm: float = float("nan")
    gradient_norm: float = float("nan")
    rate: float = float("nan")
    reach: float = float("nan")
    epsilon: float = 0.0
    update: RunningMedian = field(default_factory=RunningMedian)
    updates: list[float] = field(default_factory=list)
    measured: int = 0
    missing: int = 0
    zero: int = 0
    previous: tuple[int, int, int, tuple[float, ...]] | None = None
    shards: frozenset[tuple[int, ...]] = frozenset()
    parts: int = 1

    @property
    def is_local(self) -> bool:
        """Whether only some of the shards of the parameter were measured."""
        return len(self.shards) < self.parts > 1

    def close_window(self) -> None:
        """Begin a new window, and keep the last one until something is measured in the new one."""
        if self.measured:
            self.previous = (self.measured, self.missing, self.zero, tuple(self.updates))
            self.measured = self.missing = self.zero = 0
            self.updates = []

    @property
    def is_lost(self) -> bool:
        """Whether updates are lost to rounding, so that the parameter does not change although it is not frozen."""
        return 0 < self.reach < _LOST * self.epsilon * self.norm

    @property
    def window(self) -> tuple[int, int, int, tuple[float, ...]]:
        """The last window: measured steps, steps without gradients, steps with zero gradients, relative updates."""
        if self.measured or self.previous is None:
            return (self.measured, self.missing, self.zero, tuple(self.updates))
        return self.previous

    def merge(self, other: ParameterTrack) -> ParameterTrack:
        """Merge the tracks of two ranks. Norms of different shards are joined; data-parallel ranks have equal norms."""
        if self.shards and not self.shards & other.shards:
            return replace(
                self,
                shards=self.shards | other.shards,
                norm=math.hypot(self.norm, other.norm),
                gradient_norm=math.hypot(self.gradient_norm, other.gradient_norm),
                reach=math.hypot(self.reach, other.reach),
                update=self.update.merge(other.update),
                updates=self.updates + other.updates,
                zero=min(self.zero, other.zero),
            )
        return replace(
            self,
            update=self.update.merge(other.update),
            updates=self.updates + other.updates,
            measured=self.measured + other.measured,
            missing=self.missing + other.missing,
            zero=self.zero + other.zero,
        )
