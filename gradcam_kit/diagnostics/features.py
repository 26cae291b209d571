"""Feature maps of any layers, copied while the user's own passes run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from gradcam_kit.capture.layers import select_layers
from gradcam_kit.capture.observable import check_observable, unobservable
from gradcam_kit.capture.observing import Call, Observation, Observer, observe
from gradcam_kit.capture.trees import map_output
from gradcam_kit.diagnostics.maths.statistics import Moments, moments
from gradcam_kit.diagnostics.naming import named_leaves
from gradcam_kit.diagnostics.units import UnitAxes, sample_axis
from gradcam_kit.errors import CaptureError, MemoryLimitError, OptionError, UnknownNameError, did_you_mean
from gradcam_kit.options import one_of, whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIZES = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


@dataclass(frozen=True)
class Statistics:
    """Statistics of all values of a layer's outputs; also by key, as in `statistics["mean"]`."""

    mean: float
    std: float
    min: float
    max: float
    n: int
    elements: int
    nan: int
    inf: int

    def __getitem__(self, name: str) -> float:
        return float(getattr(self, name))


@dataclass(eq=False)
class FeatureCall:
    """What one call of a layer took and returned; copies, which no later operation reaches.

    Attributes:
        output: a tensor, or the tree of tensors that the layer returned; None with what="input" or keep="stats".
        input: the argument, several as a tuple, keyword arguments as a mapping; None with what="output".
        gradient: of the output, shaped like it; None before a backward pass.
        shape: of the output, of its first tensor where it has several.
        unit_axis: the axis of the units (channels); None where there is a single unit.
    """

    step: int
    output: Any = None
    input: Any = None
    gradient: Any = None
    shape: tuple[int, ...] = ()
    unit_axis: int | None = None
    moments: Moments = field(default_factory=Moments)

    @property
    def statistics(self) -> Statistics:
        """Mean, std, min and max of all values of the output."""
        own = self.moments
        return Statistics(
            own.mean if own.finite else float("nan"),
            own.std, own.minimum, own.maximum, own.n, own.elements, own.nan, own.inf,
        )  # fmt: skip


@dataclass(eq=False)
class Feature:
    """All calls of one layer, in order; what is asked of it is answered for the last one."""

    name: str
    calls: list[FeatureCall] = field(default_factory=list)

    @property
    def output(self) -> Any:
        """Output of the last call."""
        return self.calls[-1].output

    @property
    def input(self) -> Any:
        """Input of the last call."""
        return self.calls[-1].input

    @property
    def gradient(self) -> Any:
        """Gradient at the output of the last call; None before a backward pass."""
        return self.calls[-1].gradient

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the output of the last call."""
        return self.calls[-1].shape

    @property
    def unit_axis(self) -> int | None:
        """Axis of the units (channels) of the output."""
        return self.calls[-1].unit_axis

    @property
    def statistics(self) -> Statistics:
        """Mean, std, min and max over all calls, with keep="stats"."""
        merged = Moments()
        for call in self.calls:
            merged = merged.merge(call.moments)
        return FeatureCall(0, moments=merged).statistics


class Features(Mapping[str, Feature]):
    """Layer name -> what was captured of it, in the order in which the layers ran first.

    Attributes:
        skipped: leaf of an output -> why it was not captured.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._features: dict[str, Feature] = {}
        self.skipped: dict[str, str] = {}

    @property
    def never_ran(self) -> tuple[str, ...]:
        """Layers that did not run inside the block."""
        return tuple(name for name in self._names if name not in self._features and name not in self.skipped)

    def __getitem__(self, name: str) -> Feature:
        if name not in self._features:
            if name in self.skipped:
                raise CaptureError(f"nothing was captured of layer {name!r}: it returned {self.skipped[name]}")
            if name in self._names:
                raise CaptureError(f"layer {name!r} did not run inside the block; run the model, or see .never_ran")
            raise UnknownNameError(f"no layer {name!r} was captured{did_you_mean(name, self._names)}")
        return self._features[name]

    def __contains__(self, name: object) -> bool:
        return name in self._features

    def __iter__(self) -> Iterator[str]:
        return iter(self._features)

    def __len__(self) -> int:
        return len(self._features)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {tuple(feature.shape)}" for name, feature in list(self.items())[:8])
        return f"Features({shown}{', ...' * (len(self) > 8)})"

    def plot(self, name: str, *, sample: int = 0, kind: str = "channels") -> Figure:
        """Draw the output of a layer for one sample.

        Args:
            name: the layer.
            sample: which sample of the batch.
            kind: "channels", a grid of its channels; "mean", their mean; "histogram" of all values.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from gradcam_kit.diagnostics.show.plots import plot_feature

        feature = self[name]
        tensor = next((leaf for _, leaf in named_leaves(name, feature.output) if unobservable(leaf) is None), None)
        if tensor is None:
            raise CaptureError(f'no output of layer {name!r} was kept; capture it with what="output" and keep="device"')
        return plot_feature(name, tensor, feature.unit_axis, sample, kind)


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
    """Capture outputs, inputs and gradients of layers while the model runs, and change nothing of it.

    Args:
        model: any model, in any mode, called any number of times.
        layers: a dotted name, a wildcard ("layer*.conv2"), a module, a type, a sequence of those, or None: all leaves.
        what: "output", "input" or "both".
        gradients: also keep the gradient at each output when a backward pass runs.
        keep: "device" copies on the device, "cpu" copies on the host, "stats" no tensors but `.statistics`.
        accumulate: concatenate along the first axis over the calls of the model, instead of one record for each.
        max_bytes: the most memory that copies may take.

    Raises:
        LayerNotFoundError: a pattern without a match.
        MemoryLimitError: the copies would exceed `max_bytes`; raised where the model runs.

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
        raise OptionError(f"max_bytes is {max_bytes}; expected a number of bytes of at least 0")
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
        self.axes.clear()
        self.inputs.clear()
        self.observation = None

    def enter(self, call: Call) -> None:
        if not call.recomputed:
            args: Any = call.args[0] if len(call.args) == 1 else call.args
            given = args if not call.kwargs else dict(call.kwargs) if not call.args else (*call.args, dict(call.kwargs))
            # The layer may change its input in place, so what it got is copied first.
            self.inputs.setdefault(call.name, []).append(self._copy(call.name, given))

    def leave(self, call: Call) -> None:
        if call.recomputed:
            self._gradient_of_recomputed(call)
            return
        named = list(named_leaves(call.name, call.output))
        kept = [(name, leaf) for name, leaf in named if unobservable(leaf) is None]
        for name, leaf in named:
            if leaf is not None and (reason := unobservable(leaf)) is not None:
                self.features.skipped[name] = reason
        if not kept:
            if call.output is None or not named:
                self.features.skipped[call.name] = "None" if call.output is None else "nothing"
            return
        record = FeatureCall(call.step, shape=tuple(kept[0][1].shape))
        record.unit_axis = self.axes.of(call.name, call.module, call.args, kept[0][1])
        if self.keep == "stats":
            for name, leaf in kept:
                axis = self.axes.of(call.name, call.module, call.args, leaf)
                record.moments = record.moments.merge(moments(leaf, axis, sample_axis(call.module, name))[0])
        elif self.what != "input":
            record.output = self._copy(call.name, call.output)
        pending = self.inputs.get(call.name)
        if pending:
            record.input = pending.pop()
        record = self._store(call, record)
        if self.gradients:
            self._watch_gradients(call, record)

    def _store(self, call: Call, record: FeatureCall) -> FeatureCall:
        calls = self.features._features.setdefault(call.name, Feature(call.name)).calls
        if not self.merges or call.index >= len(calls):
            calls.append(record)
            return record
        before = calls[call.index]
        before.moments = before.moments.merge(record.moments)
        before.output, before.input = _joined(before.output, record.output), _joined(before.input, record.input)
        before.step = call.step
        before.shape = record.shape
        output = next((leaf for _, leaf in named_leaves("", before.output) if isinstance(leaf, Tensor)), None)
        if output is not None:
            before.shape = tuple(output.shape)
        return before

    def _gradient_of_recomputed(self, call: Call) -> None:
        """Reentrant checkpointing had no graph in the first pass; its gradients arrive at the recomputed output."""
        feature = self.features._features.get(call.name)
        if self.gradients and feature is not None:
            missing = [record for record in feature.calls if record.step == call.step and record.gradient is None]
            if missing:
                self._watch_gradients(call, missing[-1])

    def _watch_gradients(self, call: Call, record: FeatureCall) -> None:
        assert self.observation is not None
        before, step = record.gradient, call.step

        def watch(path: int, leaf: Any) -> None:
            def hook(gradient: Tensor) -> None:
                if record.step == step or self.merges:
                    copied = self._copy(call.name, gradient)
                    found[path] = found[path] + copied if path in found else copied
                    fresh = [found.get(i) for i in range(len(leaves))]
                    tree = fresh[0] if isinstance(call_output_kind, Tensor) else _fill(structure, fresh)
                    record.gradient = _joined(before, tree) if self.merges else tree

            assert self.observation is not None
            self.observation.attach.on_gradient(leaf, hook)

        leaves = [leaf for _, leaf in named_leaves("", call.output) if isinstance(leaf, Tensor)]
        found: dict[int, Tensor] = {}
        call_output_kind: Any = torch.empty(0) if isinstance(call.output, Tensor) else None
        places = iter(range(len(leaves)))
        structure = None if isinstance(call.output, Tensor) else map_output(lambda _: _Place(next(places)), call.output)
        for place, leaf in enumerate(leaves):
            if leaf.requires_grad and not leaf.is_leaf:
                watch(place, leaf)

    def _copy(self, layer: str, value: Any) -> Any:
        if self.keep == "stats":
            return None

        def copy(tensor: Tensor) -> Tensor:
            size = tensor.numel() * tensor.element_size()
            if self.bytes + size > self.max_bytes:
                raise MemoryLimitError(
                    f"the copies of layer {layer!r} {tuple(tensor.shape)} would bring what is kept to "
                    f"{_size(self.bytes + size)}, over max_bytes={_size(self.max_bytes)}; keep only statistics with "
                    'keep="stats", name fewer layers, or raise max_bytes'
                )
            self.bytes += size
            with torch.no_grad():
                return tensor.detach().to("cpu", copy=True) if self.keep == "cpu" else tensor.detach().clone()

        return map_output(copy, value)


@dataclass(frozen=True)
class _Place:
    index: int


def _fill(structure: Any, leaves: list[Any]) -> Any:
    return map_output(lambda place: leaves[place.index], structure, is_leaf=lambda value: isinstance(value, _Place))


def _joined(before: Any, after: Any) -> Any:
    if before is None or after is None:
        return after if before is None else before
    if isinstance(before, Tensor) and before.ndim == 0:
        return torch.stack([before, after])
    return map_output(lambda a, b: torch.cat([a, b]) if a.ndim else torch.stack([a, b]), before, after)


def _size(number: int) -> str:
    unit, name = next(((unit, name) for unit, name in _SIZES if number >= unit), (1, "bytes"))
    return f"{number / unit:.4g} {name}"
