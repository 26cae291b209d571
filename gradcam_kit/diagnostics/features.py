"""Copy feature maps of any layers while the user runs the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from gradcam_kit.capture import (
    Call,
    Observation,
    Observer,
    check_observable,
    map_output,
    observe,
    select_layers,
    unobservable,
)
from gradcam_kit.diagnostics.feature_records import Feature, FeatureCall, Features, Gradients
from gradcam_kit.diagnostics.maths.statistics import moments
from gradcam_kit.diagnostics.naming import named_leaves
from gradcam_kit.diagnostics.units import UnitAxes, sample_axis
from gradcam_kit.errors import MemoryLimitError, OptionError
from gradcam_kit.options import one_of, whole

_SIZES = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


@contextmanager
def capture_features(
    model: Any,
    layers: Any = None,
    *,
    what: Literal["output", "input", "both"] = "output",
    gradients: bool = False,
    keep: Literal["device", "cpu", "stats"] = "device",
    accumulate: bool = False,
    max_bytes: int = 2**30,
) -> Iterator[Features]:
    """Capture outputs, inputs and gradients of layers while the model runs, without side effects on it.

    Args:
        model: any model, in any mode, called any number of times.
        layers: a dotted name, a wildcard ("layer*.conv2"), a module, a type, or a sequence of these; None = all leaf
            modules.
        what: the tensors to copy: "output", "input" or "both".
        gradients: also keep the gradient at each output when a backward pass runs.
        keep: "device" keeps copies on the device, "cpu" keeps them on the host, "stats" keeps only `.statistics`.
        accumulate: concatenate the records of all calls of the model along the first axis.
        max_bytes: maximum memory for the copies, in bytes.

    Yields:
        A mapping: `features[name].output` is the output of the last call of a layer.

    Raises:
        LayerNotFoundError: a pattern that matches no module.
        OptionError: `what` or `keep` is unknown, or `max_bytes` is negative.
        MemoryLimitError: the copies would exceed `max_bytes`; raised by the call of the model.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
        >>> with capture_features(model, "1") as features:
        ...     _ = model(torch.zeros(2, 3, 8, 8))
        >>> features["1"].output.shape
        torch.Size([2, 8, 6, 6])
    """
    one_of("what", what, ("output", "input", "both"))
    one_of("keep", keep, ("device", "cpu", "stats"))
    if whole("max_bytes", max_bytes) < 0:
        raise OptionError(f"max_bytes is {max_bytes}; expected at least 0 bytes")
    selected = select_layers(check_observable(model), layers, model)
    features = Features(tuple(selected))
    recorder = _Recorder(features, what, gradients, keep, accumulate, max_bytes)
    with observe(model, selected, recorder, enter=what != "output") as observation:
        recorder.observation = observation
        try:
            yield features
        finally:
            recorder.finish()


class _Recorder(Observer):
    def __init__(
        self, features: Features, what: str, gradients: bool, keep: str, accumulate: bool, max_bytes: int
    ) -> None:
        self.features, self.what, self.gradients, self.keep = features, what, gradients, keep
        self.merges, self.max_bytes = accumulate or keep == "stats", max_bytes
        self.bytes = 0
        self.axes = UnitAxes()
        self.inputs: dict[str, list[Any]] = {}
        self.observation: Observation | None = None

    def begin(self, step: int, args: Any, kwargs: Any) -> None:
        self.axes.clear()
        self.inputs.clear()

    def finish(self) -> None:
        """Release all tensors except the captured ones."""
        self.axes.clear()
        self.inputs.clear()
        self.observation = None

    def enter(self, call: Call) -> None:
        if not call.recomputed and self.keep != "stats":
            args: Any = call.args[0] if len(call.args) == 1 else call.args
            given = args if not call.kwargs else dict(call.kwargs) if not call.args else (*call.args, dict(call.kwargs))
            # The layer may change its input in place, so the input is copied first.
            self.inputs.setdefault(call.name, []).append(self._copy(call.name, given))

    def leave(self, call: Call) -> None:
        if call.recomputed:
            self._watch_recomputed(call)
            return
        kept = []
        for name, leaf in named_leaves(call.name, call.output):
            reason = unobservable(leaf)
            if reason is None:
                kept.append((name, leaf))
            elif leaf is not None or leaf is call.output:
                self.features.skipped[name] = reason
        if not kept:
            self.features.skipped.setdefault(call.name, "no tensor")
            return
        record = self._record(call)
        record.step, record.last_shape = call.step, tuple(kept[0][1].shape)
        record.unit_axis = self.axes.of(call.name, call.module, call.args, kept[0][1])
        if self.keep == "stats":
            for name, leaf in kept:
                axis = self.axes.of(call.name, call.module, call.args, leaf)
                record.moments = record.moments.merge(moments(leaf, axis, sample_axis(call.module, name))[0])
        elif self.what != "input":
            record.outputs.append(self._copy(call.name, call.output))
        if pending := self.inputs.get(call.name):
            record.inputs.append(pending.pop())
        if self.gradients and self.keep != "stats":
            self._watch(call, record)

    def _record(self, call: Call) -> FeatureCall:
        calls = self.features.features.setdefault(call.name, Feature(call.name)).calls
        if not self.merges or call.index >= len(calls):
            calls.append(FeatureCall(call.step))
            return calls[-1]
        return calls[call.index]

    def _watch_recomputed(self, call: Call) -> None:
        """Watch the recomputed output of a reentrant checkpoint, whose first pass had no graph to receive gradients."""
        feature = self.features.features.get(call.name)
        if self.gradients and self.keep != "stats" and feature is not None:
            own = [one for one in feature.calls if one.step == call.step and one.gradients]
            without = [one for one in own if not one.gradients[-1].expected]
            if without:
                without[-1].gradients.pop()
                self._watch(call, without[-1])

    def _watch(self, call: Call, record: FeatureCall) -> None:
        assert self.observation is not None
        gradients = Gradients.at(call.output)
        record.gradients.append(gradients)
        tensors = [leaf for _, leaf in named_leaves("", call.output) if isinstance(leaf, Tensor)]
        for place, tensor in enumerate(tensors):
            if tensor.requires_grad and not tensor.is_leaf:
                gradients.expected = True
                self.observation.attach.on_gradient(tensor, self._adding(call.name, gradients, place))

    def _adding(self, layer: str, gradients: Gradients, place: int) -> Callable[[Tensor], None]:
        def add(gradient: Tensor) -> None:
            gradients.add(place, self._copy(layer, gradient))

        return add

    def _copy(self, layer: str, value: Any) -> Any:
        def copy(tensor: Tensor) -> Tensor:
            size = tensor.numel() * tensor.element_size()
            if self.bytes + size > self.max_bytes:
                raise MemoryLimitError(
                    f"the copies of layer {layer!r} {tuple(tensor.shape)} would increase the kept memory to "
                    f"{_size(self.bytes + size)}, over max_bytes={_size(self.max_bytes)}; keep only statistics with "
                    'keep="stats", select fewer layers, or raise max_bytes'
                )
            self.bytes += size
            with torch.no_grad():
                return tensor.detach().to("cpu", copy=True) if self.keep == "cpu" else tensor.detach().clone()

        return map_output(copy, value)


def _size(number: int) -> str:
    unit, name = next(((unit, name) for unit, name in _SIZES if number >= unit), (1, "bytes"))
    return f"{number / unit:.4g} {name}"
