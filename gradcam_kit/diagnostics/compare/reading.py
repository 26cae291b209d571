"""Read features of layers in eval mode, averaged over positions, for batches of any loader."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradcam_kit.capture import Call, Observation, Observer, check_observable, observe, select_layers, unobservable
from gradcam_kit.diagnostics.checks.batches import call, moved, samples
from gradcam_kit.diagnostics.checks.preserving import device_of, left_as_found
from gradcam_kit.diagnostics.maths.statistics import Axes, at_least_float32, pool
from gradcam_kit.diagnostics.naming import named_leaves
from gradcam_kit.diagnostics.units import UnitAxes, default_unit_axis, own_unit_axis, sample_axis
from gradcam_kit.errors import CaptureError, NonFiniteError

Pooled = dict[str, Float[Tensor, "_ _"]]
"""Layer -> its features, in the order in which the layers first ran."""


@contextmanager
def evaluated(model: nn.Module, *others: object) -> Iterator[None]:
    """Keep a model in eval mode for a block, and then restore modes, buffers, attributes and random states."""
    with left_as_found(model, *others), _attributes(model):
        for module in model.modules():
            if module.training:
                module.training = False
        yield


def forward_only(model: nn.Module) -> AbstractContextManager[Any]:
    """Return a context manager for forward passes: without gradients, unless a fast path would hide layers.

    In eval mode without gradients, `nn.TransformerEncoderLayer` can take a fast path that calls none of its sublayers.
    """
    hides = any(isinstance(module, nn.TransformerEncoderLayer) for module in model.modules())
    return torch.set_grad_enabled(hides)


@contextmanager
def _attributes(model: nn.Module) -> Iterator[None]:
    """Restore attributes that modules set while they run, such as anchors for the current image size."""
    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, values in before:
            now = vars(module)
            for name in [name for name in now if name not in values]:
                del now[name]
            now.update({name: value for name, value in values.items() if now.get(name) is not value})


@contextmanager
def feature_reader(model: nn.Module, layers: Any = None, *, inputs: bool = False) -> Iterator[FeatureReader]:
    """Keep a model in eval mode for a block, and yield a reader of pooled features of its layers.

    Args:
        model: any model; it is not changed.
        layers: see `select_layers`; None = all modules without children.
        inputs: also pool the inputs of the layers.

    Raises:
        LayerNotFoundError: a pattern that matches no module.
    """
    inner = check_observable(model)
    selected = select_layers(inner, layers, model)
    reader = FeatureReader(model, selected)
    with evaluated(inner), forward_only(inner), observe(model, selected, reader, enter=inputs) as observation:
        reader.observation = observation
        yield reader


class FeatureReader(Observer):
    """Reads pooled features of layers: for each sample and unit, the mean over positions.

    Attributes:
        layers: name -> observed module.
        features: features of the last batch; if a layer ran several times, the units of all calls are concatenated.
        inputs: inputs of the layers for the last batch.
        skipped: layer -> why it has no features.
        output_of: layers whose output the model returned.
        unit_axes: layer -> axis of the units of its output; None where there is a single unit.
        calls: layer -> number of its calls for the last batch.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        self.model, self.layers = model, layers
        self.device = device_of(model)
        self.observation: Observation | None = None
        self.features: Pooled = {}
        self.inputs: Pooled = {}
        self.skipped: dict[str, str] = {}
        self.output_of: set[str] = set()
        self.unit_axes: dict[str, int | None] = {}
        self.calls: Counter[str] = Counter()
        self._axes = UnitAxes()
        self._n = 0
        self._made: dict[str, weakref.ref[Tensor]] = {}

    def __call__(self, inputs: Any) -> Pooled:
        """Run the model on a batch and return the features of its layers, on the host.

        Raises:
            CaptureError: none of the layers that ran has features for each sample.
            NonFiniteError: NaN or infinite features; the message names the layer.
        """
        self.features, self.inputs = {}, {}
        self._n = samples(inputs)
        call(self.model, moved(inputs, self.device))
        self._axes.clear()
        found = {name: features.cpu() for name, features in self.features.items()}
        if not found:
            reasons = "; ".join(f"{name} returned {reason}" for name, reason in list(self.skipped.items())[:3])
            raise CaptureError(
                f"no layer of {type(self.model).__name__} has features of {self._n} samples"
                f"{f' ({reasons})' if reasons else ''}; select layers that run and whose output has one row per sample"
            )
        for name, features in found.items():
            if not bool(features.isfinite().all()):
                raise NonFiniteError(
                    f"the features of layer {name!r} hold NaN or infinite values; find their origin with "
                    "find_nonfinite(model)"
                )
        return found

    @property
    def never_ran(self) -> tuple[str, ...]:
        """Layers that did not run."""
        return () if self.observation is None else self.observation.never_ran

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on what was not observed, and why."""
        return () if self.observation is None else tuple(self.observation.notes)

    def begin(self, step: int, args: Any, kwargs: Any) -> None:
        """Forget the tensors of the last batch."""
        self._axes.clear()
        self._made.clear()
        self.calls.clear()

    def enter(self, call: Call) -> None:
        """Pool the input of a layer, before the layer can change it in place."""
        given = next((one for one in (*call.args, *call.kwargs.values()) if unobservable(one) is None), None)
        if isinstance(given, Tensor) and given.ndim and len(given) == self._n:
            own = own_unit_axis(call.module, given)
            self._add(self.inputs, call.name, given, default_unit_axis(given) if own is None else own, 0)

    def leave(self, call: Call) -> None:
        """Pool the output of a layer, before the next layer can change it in place."""
        leaves = [(name, one) for name, one in named_leaves(call.name, call.output) if unobservable(one) is None]
        if not leaves:
            self.skipped[call.name] = str(unobservable(call.output) or "no tensor")
            return
        name, leaf = leaves[0]
        unit = self._axes.of(call.name, call.module, call.args, leaf)
        axis = sample_axis(call.module, name)
        if leaf.ndim <= axis or leaf.shape[axis] != self._n or unit == axis:
            self.skipped[call.name] = f"{tuple(leaf.shape)}, which has no axis for {self._n} samples"
            return
        self._made[call.name] = weakref.ref(leaf)
        self.unit_axes[call.name] = unit
        self.calls[call.name] += 1
        self._add(self.features, call.name, leaf, unit, axis)

    def end(self, step: int, output: Any) -> None:
        """Find the layers whose outputs the model returned."""
        returned = {id(leaf) for _, leaf in named_leaves("", output) if isinstance(leaf, Tensor)}
        self.output_of |= {name for name, made in self._made.items() if id(made()) in returned}

    def _add(self, into: Pooled, name: str, tensor: Tensor, unit: int | None, sample: int) -> None:
        wide = at_least_float32(tensor.detach())
        axes = Axes.of(wide.shape, unit, sample)
        means = pool(wide, axes) * (axes.n * axes.units / max(wide.numel(), 1))
        into[name] = torch.cat([into[name], means], 1) if name in into else means.clone()
