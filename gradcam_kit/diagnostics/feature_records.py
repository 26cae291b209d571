"""Captured features of layers: one record for each call, in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradcam_kit.capture import map_output, unobservable
from gradcam_kit.diagnostics.maths.statistics import Moments
from gradcam_kit.diagnostics.naming import named_leaves
from gradcam_kit.errors import CaptureError, UnknownNameError, did_you_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Statistics:
    """Statistics of all values of a layer's outputs, as attributes or by key, as in `statistics["mean"]`.

    Attributes:
        mean: mean of the finite values.
        std: standard deviation of the finite values.
        min: the smallest finite value.
        max: the largest finite value.
        n: number of samples.
        elements: number of values, NaN and infinite ones included.
        nan: number of NaN values.
        inf: number of infinite values.
    """

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


@dataclass(frozen=True)
class _Place:
    """Placeholder for a tensor in an output."""

    index: int


@dataclass(eq=False)
class Gradients:
    """The gradients at the tensors of one output, filled in as they arrive.

    Attributes:
        structure: the output, with placeholders instead of its tensors.
        expected: whether the output had a graph, so that gradients can arrive.
        found: index of a tensor in the output -> its gradient.
    """

    structure: Any
    expected: bool = False
    found: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def at(cls, output: Any) -> Gradients:
        """Prepare to receive the gradients at the tensors of an output, without keeping these tensors."""
        places = count()
        return cls(map_output(lambda _: _Place(next(places)), output))

    def add(self, place: int, gradient: Tensor) -> None:
        """Add a gradient; the gradients of further backward passes are summed."""
        self.found[place] = self.found[place] + gradient if place in self.found else gradient

    def tree(self) -> Any:
        """Return the gradients in the structure of the output; None where none arrived."""
        return map_output(
            lambda place: self.found.get(place.index), self.structure, is_leaf=lambda one: isinstance(one, _Place)
        )


@dataclass(eq=False)
class FeatureCall:
    """Copies of the input and output of one call of a layer, which later operations cannot change.

    Attributes:
        step: number of the model's call in which the layer ran; with `accumulate`, of the last such call.
        unit_axis: the axis of the units (channels); None where there is a single unit.
        moments: moments of all values of the output, with keep="stats".
        outputs: the kept outputs; several only until they are concatenated.
        inputs: the kept inputs, in the same way.
        gradients: the gradients at each kept output.
        last_shape: shape of the first tensor of the last output, kept or not.
    """

    step: int
    unit_axis: int | None = None
    moments: Moments = field(default_factory=Moments)
    outputs: list[Any] = field(default_factory=list, repr=False)
    inputs: list[Any] = field(default_factory=list, repr=False)
    gradients: list[Gradients] = field(default_factory=list, repr=False)
    last_shape: tuple[int, ...] = ()

    @property
    def output(self) -> Any:
        """The output: a tensor, or the tree that the layer returned; None with what="input" or keep="stats"."""
        return _joined(self.outputs)

    @property
    def input(self) -> Any:
        """The input: one argument, a tuple of several, or a mapping of keyword arguments; None if not kept."""
        return _joined(self.inputs)

    @property
    def gradient(self) -> Any:
        """Gradient at the output, in the structure of the output; None before a backward pass."""
        trees = [gradients.tree() for gradients in self.gradients if gradients.found]
        return _joined(trees)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the output, or of its first tensor if it has several."""
        kept = next((leaf for _, leaf in named_leaves("", self.output) if isinstance(leaf, Tensor)), None)
        return self.last_shape if kept is None else tuple(kept.shape)

    @property
    def statistics(self) -> Statistics:
        """Mean, std, min and max of all values of the output, with keep="stats"."""
        own = self.moments
        return Statistics(
            own.mean if own.finite else float("nan"),
            own.std, own.minimum, own.maximum, own.n, own.elements, own.nan, own.inf,
        )  # fmt: skip


def _joined(parts: list[Any]) -> Any:
    """Return the concatenated records of several calls of the model, which also replace the items of the list."""
    if len(parts) > 1:
        parts[:] = [
            map_output(lambda *own: torch.cat([one.reshape(1) if one.ndim == 0 else one for one in own]), *parts)
        ]
    return parts[0] if parts else None


@dataclass(eq=False)
class Feature:
    """All calls of one layer; except for `statistics`, the properties are those of the last call.

    Attributes:
        name: dotted name of the module.
        calls: one record for each call, in order.
    """

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
    """Captured features by layer name, in the order in which the layers first ran.

    Attributes:
        names: names of the selected layers.
        features: layer -> its captured calls.
        skipped: name of a leaf of an output -> why the leaf was not captured.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.features: dict[str, Feature] = {}
        self.skipped: dict[str, str] = {}

    @property
    def never_ran(self) -> tuple[str, ...]:
        """Layers that did not run inside the block."""
        return tuple(name for name in self.names if name not in self.features and name not in self.skipped)

    def __getitem__(self, name: str) -> Feature:
        if name not in self.features:
            if name in self.skipped:
                raise CaptureError(f"nothing was captured of layer {name!r}: it returned {self.skipped[name]}")
            if name in self.names:
                raise CaptureError(f"layer {name!r} did not run inside the block; run the model, or see .never_ran")
            raise UnknownNameError(f"no layer {name!r} was captured{did_you_mean(name, self.names)}")
        return self.features[name]

    def __contains__(self, name: object) -> bool:
        return name in self.features

    def __iter__(self) -> Iterator[str]:
        return iter(self.features)

    def __len__(self) -> int:
        return len(self.features)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {tuple(feature.shape)}" for name, feature in list(self.items())[:8])
        return f"Features({shown}{', ...' * (len(self) > 8)})"

    def plot(self, name: str, *, sample: int = 0, kind: str = "channels") -> Figure:
        """Plot the output of a layer for one sample.

        Args:
            name: the layer.
            sample: index of the sample in the batch.
            kind: "channels" for a grid of the channels, "mean" for their mean, "histogram" for all values.

        Raises:
            CaptureError: no output of the layer was kept.
            UnknownNameError: the layer was not selected.
            MissingExtraError: matplotlib is not installed.
        """
        from gradcam_kit.diagnostics.show.plots import plot_feature

        feature = self[name]
        tensor = next((leaf for _, leaf in named_leaves(name, feature.output) if unobservable(leaf) is None), None)
        if tensor is None:
            raise CaptureError(f'no output of layer {name!r} was kept; capture it with what="output" and keep="device"')
        return plot_feature(name, tensor, feature.unit_axis, sample, kind)
