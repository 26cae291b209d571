"""ModelDiagnostics: a block around a training or evaluation loop that reports what is wrong, where, and what to try."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from gradcam_kit.capture import check_observable, observe, select_layers
from gradcam_kit.diagnostics.collecting import Collector
from gradcam_kit.diagnostics.ledger import Ledger
from gradcam_kit.diagnostics.maths.histogram import coarsen
from gradcam_kit.diagnostics.parameters import ParameterWatch, after_closure, note_scale
from gradcam_kit.diagnostics.report import Report
from gradcam_kit.diagnostics.rows import history_row, report_of
from gradcam_kit.diagnostics.thresholds import Thresholds
from gradcam_kit.diagnostics.tracks import WindowStats
from gradcam_kit.diagnostics.writing import GuardedWriters, WindowWriter
from gradcam_kit.errors import CaptureError, InputError, kind_of
from gradcam_kit.options import positive_int, whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ModelDiagnostics:
    """Observe the passes of a model, and report what is wrong, in which module, and with what evidence.

    The run is not affected: parameters, buffers, random states, gradients, modes and outputs are the same to the last
    bit. Memory is bounded, and no graph is held. The value of the loss is not observed: `check_loss` finds its NaN.

    Args:
        model: the model that is trained or evaluated, also compiled or inside DistributedDataParallel.
        layers: a dotted name, a wildcard ("layer*.conv2"), a module, a type, or a sequence of these; None = all leaves.
        optimizer: one or several optimizers; without one, parameters are not measured.
        activations: observe the outputs of layers.
        gradients: observe the gradients at the outputs of layers.
        parameters: measure the parameters around one optimizer step in every ten observed steps.
        every: observe each `every`-th call of the model.
        window: number of observed steps in a window; dead, saturated and constant layers are judged in the last one.
        features: number of layers whose rank and redundancy are judged, from pooled features of up to 256 samples.
        thresholds: the limits of the verdicts.
        writer: a `Writer` or a sequence of them. Writers receive numbers and histograms at the end of each window,
            findings when they change, and tables at the end. A writer that fails is dropped with one warning.
        exact: compute zeros and histograms from all values, not from a sample of 4,096 for each tensor and step.
        unit_axis: pattern of layer names -> axis of the units, if the default is wrong.
        scaler: the `GradScaler`, so that gradients are reported without its scale.

    Raises:
        LayerNotFoundError: a pattern that matches no module.
        InputError: a model whose layers cannot be observed.
        OptionError: an option outside its range.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> with ModelDiagnostics(model) as diagnostics:
        ...     _ = model(torch.ones(16, 4))
        >>> diagnostics.report().steps
        1
    """

    def __init__(
        self,
        model: Any,
        layers: Any = None,
        *,
        optimizer: Any = None,
        activations: bool = True,
        gradients: bool = True,
        parameters: bool = True,
        every: int = 1,
        window: int = 50,
        features: int = 16,
        thresholds: Thresholds = Thresholds(),  # noqa: B008 - frozen
        writer: Any = None,
        exact: bool = False,
        unit_axis: Mapping[str, int] | None = None,
        scaler: Any = None,
    ) -> None:
        self._given, self._inner = model, check_observable(model)
        self._layers = select_layers(self._inner, layers, model)
        self._optimizers = _optimizers(optimizer)
        self._activations, self._gradients, self._parameters = activations, gradients, parameters
        self._every, self._window = positive_int("every", every), positive_int("window", window)
        self._features = max(whole("features", features), 0)
        self.thresholds = thresholds
        self._exact, self._unit_axis, self._scaler = exact, unit_axis, scaler
        self._windows = WindowWriter(GuardedWriters(writer))
        self._stack: ExitStack | None = None
        self._observation: Any = None
        self._window_start = 0
        self._ledger = self._new_ledger()
        self._collector = self._new_collector()
        self._watch: ParameterWatch | None = None

    # Running ----------------------------------------------------------------------------------------------------

    def start(self) -> ModelDiagnostics:
        """Start observing without a `with` block; call `stop` to end.

        Raises:
            CaptureError: this object was started already.
        """
        if self._stack is not None:
            raise CaptureError(
                "this ModelDiagnostics has been started already; call stop() first, or create a second one"
            )
        with ExitStack() as stack:
            observed = observe(self._given, self._layers, self._collector, every=self._every)
            self._observation = self._collector.observation = stack.enter_context(observed)
            self._ledger.notes = self._observation.notes
            attach = self._observation.attach
            self._ledger.has_optimizer, self._ledger.scaled = bool(self._optimizers), self._scaler is not None
            if self._parameters and self._optimizers:
                self._watch = ParameterWatch(self._ledger, self._inner, self._optimizers, self._collector)
            for optimizer in self._optimizers:
                if self._watch is not None:
                    attach.before_step(optimizer, self._before_step)
                attach.after_step(optimizer, self._after_step)
            self._stack = stack.pop_all()
        return self

    def stop(self) -> None:
        """Stop observing, and keep the report; a no-op if not running.

        Raises:
            CaptureError: modules were replaced, moved or cast while they were observed.
        """
        self._stop(None, None, None)

    def _stop(self, *error: Any) -> None:
        stack, self._stack = self._stack, None
        if stack is None:
            return
        try:
            self._end_step()
            self._collector.flush(wait=True)
            self._collector.read_window(close=False)
            self._ledger.never_ran = self._observation.never_ran
            if self._ledger.steps:
                self._windows.write(self._ledger, self.report, at_end=True)
        finally:
            self._collector.observation = None
            stack.__exit__(*error)

    def __enter__(self) -> ModelDiagnostics:
        return self.start()

    def __exit__(self, *error: Any) -> None:
        self._stop(*error)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Pause observing inside the block, for example during validation."""
        observation = self._observation
        before = observation.paused if observation is not None else False
        if observation is not None:
            observation.paused = True
        try:
            yield
        finally:
            if observation is not None:
                observation.paused = before

    def reset(self) -> None:
        """Discard all observations, and continue observing."""
        observation, watch = self._observation, self._watch
        self._ledger = self._new_ledger()
        self._collector.restart(self._ledger)
        self._collector.forget_step()
        self._ledger.has_optimizer, self._ledger.scaled = bool(self._optimizers), self._scaler is not None
        self._window_start = 0
        self._windows.restart()
        if observation is not None:
            observation.ran.clear()
            self._ledger.notes = observation.notes
        if watch is not None and self._stack is not None:
            self._watch = ParameterWatch(self._ledger, self._inner, self._optimizers, self._collector)

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        note_scale(self._ledger, self._observation)
        # With a closure, gradients are computed inside `step()`, so measure them right after the closure returns.
        return after_closure(args, kwargs, partial(self._measure, optimizer))

    def _measure(self, optimizer: Any) -> None:
        if self._watch is not None and self._observation.active and not self._observation.paused:
            self._watch.before_step(optimizer, (), {})

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._observation.end_step()
        if self._observation.active and not self._observation.paused:
            if self._watch is not None:
                self._watch.after_step(optimizer, args, kwargs)
            self._end_step()

    def _end_step(self) -> None:
        if self._scaler is not None:
            self._collector.scale = float(self._scaler.get_scale()) or 1.0
        self._collector.flush()
        # A window ends just before the step that would exceed it, so that late gradients are still included.
        if self._ledger.steps - self._window_start >= self._window:
            self._close_window()

    def _close_window(self) -> None:
        self._collector.flush(wait=True)
        self._collector.read_window(close=True)
        for track in self._ledger.tracks.values():
            if track.open.moments.elements or track.open.gradient_norms:
                track.windows += 1
                coarse = coarsen(track.counts)
                track.history.add(history_row(track, self._ledger.steps), coarse - track.coarse_before)
                track.coarse_before = coarse
                track.total = track.total.merge(track.open.moments)
                track.closed, track.open = track.open, WindowStats()
        for parameter in self._ledger.parameters.values():
            parameter.close_window()
        norms = [norm for step, norm in self._ledger.gradient_norms if step > self._window_start]
        if norms:
            self._ledger.window_norms = [*self._ledger.window_norms, max(norms)][-16:]
        self._window_start = self._ledger.steps
        self._collector.begin_window()
        self._windows.write(self._ledger, lambda: report_of(self._ledger, self.thresholds))

    # Results ----------------------------------------------------------------------------------------------------

    def report(self) -> Report:
        """Return the findings and the tables; may be called inside the block."""
        self._catch_up()
        return report_of(self._ledger, self.thresholds)

    def plot(self, kind: str = "gradients") -> Figure:
        """Plot the observations.

        Args:
            kind: "gradients", "activations" or "box" over depth, "histogram" over time, "updates" of parameters, or
                "units" for the share of dead units in each layer.

        Raises:
            MissingExtraError: matplotlib is not installed.
            CaptureError: nothing was observed that this kind of plot shows.
        """
        from gradcam_kit.diagnostics.show.plots import plot_ledger

        self._catch_up()
        return plot_ledger(self._ledger, kind)

    def to_html(self, path: str | PathLike[str]) -> Path:
        """Write the report as one HTML file, and return its path."""
        from gradcam_kit.diagnostics.show.document import document

        self._catch_up()
        target = Path(path)
        target.write_text(document(self._ledger, self.report()), encoding="utf-8")
        return target

    def merge(self, other: ModelDiagnostics | Mapping[str, Any]) -> ModelDiagnostics:
        """Return new diagnostics that merge this rank with another one, given as an object or its `state_dict()`."""
        self._catch_up()
        theirs = other.state_dict() if isinstance(other, ModelDiagnostics) else other
        merged = ModelDiagnostics(
            self._given, list(self._layers), thresholds=self.thresholds,
            window=self._window, every=self._every, exact=self._exact,
        )  # fmt: skip
        merged._ledger = pickle.loads(pickle.dumps(self._ledger)).merge(theirs["ledger"])
        return merged

    def state_dict(self) -> dict[str, Any]:
        """Return all observations, without tensors or modules, to be sent to another rank for `merge`."""
        self._catch_up()
        return {"ledger": pickle.loads(pickle.dumps(self._ledger))}

    def _catch_up(self) -> None:
        if self._stack is not None:
            self._collector.flush(wait=True)
            self._collector.read_window(close=False)
            self._ledger.never_ran = self._observation.never_ran

    def _new_ledger(self) -> Ledger:
        return Ledger(type(self._inner).__name__, window=self._window, exact=self._exact)

    def _new_collector(self) -> Collector:
        return Collector(
            self._ledger, activations=self._activations, gradients=self._gradients, features=self._features,
            exact=self._exact, unit_axis=self._unit_axis, end_step=self._end_step,
        )  # fmt: skip


def _optimizers(optimizer: Any) -> list[Optimizer]:
    given = [] if optimizer is None else list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    for one in given:
        if not isinstance(one, Optimizer):
            raise InputError(f"optimizer is {kind_of(one)}; expected a torch.optim.Optimizer, or a list of them")
    return given
