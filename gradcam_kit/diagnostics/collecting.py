"""The hot path of `ModelDiagnostics`: few passes over each tensor, no reference to the graph, one copy per step."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradcam_kit.capture import Call, Observation, Observer, is_spread, local_part, unobservable
from gradcam_kit.diagnostics.accumulators import Accumulators, LiveLayer
from gradcam_kit.diagnostics.kinds import FEW_INPUTS, activation_of, flat_beyond, inputs_per_unit, own_weight
from gradcam_kit.diagnostics.ledger import Ledger
from gradcam_kit.diagnostics.maths.histogram import SAMPLE, stride_of, take_sample
from gradcam_kit.diagnostics.maths.histogram import histogram as full_histogram
from gradcam_kit.diagnostics.maths.statistics import (
    Axes,
    Moments,
    Summary,
    at_least_float32,
    moments_of,
    moments_of_finite,
    needs_two_passes,
    sum_of_squares,
    summarize,
)
from gradcam_kit.diagnostics.naming import named_leaves
from gradcam_kit.diagnostics.paths import on_every_path
from gradcam_kit.diagnostics.pending import Histograms
from gradcam_kit.diagnostics.tracks import LayerTrack
from gradcam_kit.diagnostics.units import UnitAxes, sample_axis

_MOST_PENDING = 4096


def decides_at_once(x: Tensor) -> bool:
    """Whether the tensor is on a CPU, so that its values can be read without waiting for a device."""
    return x.device.type == "cpu"


class Collector(Accumulators, Observer):
    """Collects statistics of the activations and gradients of one block in a ledger.

    Attributes:
        axes: finds the axis of the units of an output.
        producers: id of an output of this step -> a weak reference to it, and the layer that produced it.
        step: number of the model's current call; 0 before the first one.
        scale: loss scale by which gradient norms are divided.
        observation: the running observation; None before it begins.
    """

    def __init__(
        self, ledger: Ledger, *, activations: bool, gradients: bool, features: int, exact: bool,
        unit_axis: Mapping[str, int] | None, end_step: Callable[[], None],
    ) -> None:  # fmt: skip
        super().__init__(ledger, features)
        self.activations, self.gradients, self.exact, self.end_step = activations, gradients, exact, end_step
        self.axes = UnitAxes(unit_axis)
        self.producers: dict[int, tuple[weakref.ref[Tensor], LayerTrack]] = {}
        self.step = 0
        self.scale = 1.0
        self.observation: Observation | None = None

    def forget_step(self) -> None:
        """Forget the tensors of the current step."""
        self.axes.clear()
        self.producers.clear()

    # Observer ---------------------------------------------------------------------------------------------------

    def begin(self, step: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """End the previous step, a no-op if an optimizer has ended it, and begin the next one."""
        assert self.observation is not None
        if self.step:
            self.end_step()
        self.forget_step()
        self.step = step
        if self.observation.active:
            self.ledger.steps += 1

    def leave(self, call: Call) -> None:
        """Read the output of a layer, and watch the gradient at it."""
        output = call.output
        for name, leaf in named_leaves(call.name, output):
            reason = unobservable(leaf) or self._unread_part(leaf)
            if reason is not None:
                if leaf is not None or output is None:
                    self.ledger.skipped[name] = reason
                continue
            live = self.live.get(name) or self._new(name, call, leaf)
            if not call.recomputed:
                self._read(live, call, leaf)
            if self.gradients and leaf.requires_grad and not leaf.is_leaf and not (call.recomputed and live.had_graph):
                self._watch_gradient(live, leaf)
        if len(self.producers) > _MOST_PENDING:  # layers were called directly, so no `begin` ends the step
            self.end_step()
            self.forget_step()

    def end(self, step: int, output: Any) -> None:
        """Record which layers produced the output and, once per window, which layers are on every path of the graph."""
        leaves = [leaf for _, leaf in named_leaves("", output) if isinstance(leaf, Tensor)]
        for leaf in leaves:
            known = self.producers.get(id(leaf))
            if known is not None and known[0]() is leaf:
                known[1].is_output = True
        floating = [leaf for leaf in leaves if leaf.is_floating_point() and leaf.ndim > 1]
        if floating:
            self.ledger.outputs = max(self.ledger.outputs, floating[0].shape[1])
        if self.nodes:
            nodes, self.nodes = self.nodes, None
            passed = on_every_path([leaf.grad_fn for leaf in leaves], nodes)
            for name, live in self.live.items():
                live.track.on_path = name in passed if passed else None

    def _unread_part(self, leaf: Tensor) -> str | None:
        """Note that only the local part of a sharded output is read; if it is empty, return a reason to skip it."""
        if not is_spread(leaf):
            return None
        assert self.observation is not None
        self.observation.note("Outputs are spread over processes (DTensor): each process reads only its own part.")
        return None if local_part(leaf).numel() else "a tensor whose local part is empty"

    # Reading ----------------------------------------------------------------------------------------------------

    def _new(self, name: str, call: Call, leaf: Tensor) -> LiveLayer:
        module = call.module
        track = LayerTrack(name, call.name, type(module).__name__, len(self.live), activation_of(module))
        track.owns_weight = own_weight(module) is not None
        live = LiveLayer(track, weakref.ref(module), flat_beyond(module), sample_axis=sample_axis(module, name))
        self.ledger.tracks[name] = track
        self.live[name] = live
        return live

    def _plan(self, live: LiveLayer, call: Call, leaf: Tensor) -> Axes:
        axis = self.axes.of(live.track.layer, call.module, call.args, leaf)
        shape = local_part(leaf).shape
        if live.shape == shape and live.axes is not None and live.track.unit_axis == axis:
            return live.axes
        live.shape, live.axes = shape, Axes.of(shape, axis, live.sample_axis)
        live.stride = stride_of(tuple(shape), SAMPLE)
        track = live.track
        track.unit_axis, track.shape, track.units = axis, tuple(shape), live.axes.units
        track.is_half = leaf.dtype in (torch.float16,)
        return live.axes

    def _read(self, live: LiveLayer, call: Call, leaf: Tensor) -> None:
        track = live.track
        axes = self._plan(live, call, leaf)
        self._note_origin(live, call, leaf)
        track.calls = max(track.calls, call.index + 1)
        track.batch = max(track.batch, axes.n)
        track.open.steps += 1
        live.had_graph = leaf.requires_grad
        if self.gradients and leaf.requires_grad:
            track.open.expected += 1
        if not self.activations:
            return
        x = at_least_float32(local_part(leaf.detach()))
        on_host = decides_at_once(x)
        summary = summarize(x, axes, two_pass=not on_host and live.two_pass)
        if on_host:
            summary = self._read_on_host(live, x, axes, summary)
        else:
            self._read_later(live, x, axes, summary)
        fits = live.new_low is not None and live.new_low.shape == summary.low.shape
        live.new_low = torch.minimum(live.new_low, summary.low) if fits and live.new_low is not None else summary.low
        live.new_high = (
            torch.maximum(live.new_high, summary.high) if fits and live.new_high is not None else summary.high
        )
        self._keep_features(live, summary.pooled, x.numel() // (axes.n * axes.units))
        sample = self._sample(live, x, 0)
        if live.flat is not None:
            low, high = live.flat
            hits = ((sample < low) | (sample > high)).sum()
            track.open.sampled += len(sample)
            self.scalars_of(x.device).add(self._saturation(track), hits)

    def _read_on_host(self, live: LiveLayer, x: Tensor, axes: Axes, summary: Summary) -> Summary:
        total, square, m = float(summary.total), float(summary.square), x.numel()
        if not (math.isfinite(total) and math.isfinite(square)):
            found, summary = moments_of_finite(x, axes)
            if (found.nan or found.inf) and live.track.first_bad_step is None:
                live.track.first_bad_step = self.step
        else:
            two_pass = x.dtype == torch.float64 or needs_two_passes(total, square, m)
            m2 = float(x.var(correction=0)) * m if two_pass else None
            found = moments_of(axes, m, total, square, m2, math.inf, -math.inf)  # `read_window` sets the extremes
        live.track.open.moments = live.track.open.moments.merge(found)
        return summary

    def _read_later(self, live: LiveLayer, x: Tensor, axes: Axes, summary: Summary) -> None:
        """Queue the sums of a GPU tensor for the host, which decides later whether the next step needs two passes."""
        m, step, with_m2 = x.numel(), self.step, summary.m2 is not None

        def read(total: float, square: float, m2: float = 0.0) -> None:
            track = live.track
            if not (math.isfinite(total) and math.isfinite(square)):
                bad = Moments(axes.n, m, nan=int(math.isnan(square)), inf=int(not math.isnan(square)))
                track.open.moments, track.counted = track.open.moments.merge(bad), False
                track.first_bad_step = step if track.first_bad_step is None else track.first_bad_step
                return
            live.two_pass = needs_two_passes(total, square, m)
            found = moments_of(axes, m, total, square, m2 if with_m2 else None, math.inf, -math.inf)
            track.open.moments = track.open.moments.merge(found)

        extra = () if summary.m2 is None else (summary.m2,)
        self.scalars_of(x.device).add(read, summary.total, summary.square, *extra)

    def _note_origin(self, live: LiveLayer, call: Call, leaf: Tensor) -> None:
        """Record which layer produced the input; within a step, tensors are recognized by identity."""
        track = live.track
        first = call.args[0] if call.args else None
        known = self.producers.get(id(first))
        if known is not None and known[0]() is first and known[1] is not track:
            track.producer = known[1].name
        own = inputs_per_unit(call.module)
        if own is not None:
            track.mixes, track.few_inputs = True, own < FEW_INPUTS
        elif track.producer is not None and track.producer in self.ledger.tracks:
            track.few_inputs = self.ledger.tracks[track.producer].few_inputs
        self.producers[id(leaf)] = weakref.ref(leaf), track
        if self.nodes is not None and leaf.grad_fn is not None:
            self.nodes.setdefault(track.name, leaf.grad_fn)

    def _keep_features(self, live: LiveLayer, pooled: Tensor, positions: int) -> None:
        if live.track.units < FEW_INPUTS or not self.most_features:
            return
        if not self.features_chosen or live.reservoir is not None:
            live.pooled.append((pooled, positions))

    def _sample(self, live: LiveLayer, x: Tensor, kind: int) -> Tensor:
        """Count a sample of a tensor (all values with `exact`) in the layer's histogram, and return the sample."""
        device = x.device
        histograms = self.histograms.get(device)
        if histograms is None:
            histograms = self.histograms[device] = Histograms(device)
        rows = live.rows.get(device)
        if rows is None:
            rows = live.rows[device] = histograms.new_row(), histograms.new_row()
        if self.exact:
            with torch.inference_mode(False), torch.no_grad():
                histograms.counts[rows[kind]] += full_histogram(x)
            return x.reshape(-1)
        stride = live.stride if live.shape == x.shape else stride_of(tuple(x.shape), SAMPLE)
        sample = take_sample(x, self.step, stride)
        histograms.add(rows[kind], sample)
        return sample

    def _saturation(self, track: LayerTrack) -> Callable[[float], None]:
        def read(hits: float) -> None:
            track.open.saturated += hits

        return read

    # Gradients --------------------------------------------------------------------------------------------------

    def _watch_gradient(self, live: LiveLayer, leaf: Tensor) -> None:
        assert self.observation is not None

        def hook(gradient: Tensor) -> None:
            # A closure with a tensor of the graph would keep the graph alive, so this one holds only accumulators.
            if self.observation is None or self.observation.paused or unobservable(gradient) is not None:
                return
            g = at_least_float32(local_part(gradient.detach()))
            self.scalars_of(g.device).add(self._gradient(live.track, g.numel()), sum_of_squares(g))
            self._sample(live, g, 1)

        self.observation.attach.on_gradient(leaf, hook)

    def _gradient(self, track: LayerTrack, m: int) -> Callable[[float], None]:
        def read(square: float) -> None:
            norm = math.sqrt(square) / self.scale if square >= 0 else math.nan
            if math.isfinite(norm):
                track.gradient_norm.add(norm)
                track.gradient_rms.add(norm / math.sqrt(m))
            else:
                track.open.bad_gradients += 1
            track.open.gradient_norms.append(norm)

        return read
