"""Find the axes of a layer's output that hold its units (channels, features) and its samples."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from fnmatch import fnmatchcase

from torch import Tensor, nn

_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,  # batch and instance normalization
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.Upsample,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
)
_LAST = (nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
_TIME_FIRST = (nn.RNNBase, nn.MultiheadAttention)


def own_unit_axis(module: nn.Module, tensor: Tensor) -> int | None:
    """Return the unit axis that the kind of module determines; None if it depends on the input of the module."""
    if isinstance(module, _FIRST):
        return 1
    if isinstance(module, _LAST):
        return tensor.ndim - 1
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        width = module.normalized_shape[-1]
        # Some subclasses normalize channels-first maps.
        return 1 if tensor.ndim == 4 and tensor.shape[-1] != width == tensor.shape[1] else tensor.ndim - 1
    return None


def default_unit_axis(tensor: Tensor) -> int | None:
    """Return the usual unit axis: 1 for 2, 4 or 5 axes, else the last axis; None for fewer than 2 axes."""
    if tensor.ndim < 2:
        return None
    return 1 if tensor.ndim in (2, 4, 5) else tensor.ndim - 1


def sample_axis(module: nn.Module, leaf: str) -> int:
    """Return the sample axis of a leaf of an output: 0, or 1 where recurrent and attention layers put time first."""
    if isinstance(module, _TIME_FIRST):
        if "[1]" in leaf:  # states (layers, n, h), and weights of attention (n, q, k)
            return 1 if isinstance(module, nn.RNNBase) else 0
        return 0 if module.batch_first else 1
    return 0


class UnitAxes:
    """Unit axes of the tensors of one step; modules without a fixed axis inherit the axis of their input."""

    def __init__(self, override: Mapping[str, int] | None = None) -> None:
        self.override = dict(override or {})
        self._known: dict[int, tuple[weakref.ref[Tensor], int | None]] = {}

    def clear(self) -> None:
        """Forget the tensors of the step."""
        self._known.clear()

    def of(self, layer: str, module: nn.Module, inputs: object, output: Tensor) -> int | None:
        """Return the unit axis of a module's output, and remember it for the modules that receive the output."""
        axis = self._find(layer, module, inputs, output)
        if axis is not None and axis < 0:
            axis += output.ndim
        if axis is not None and not 0 <= axis < output.ndim:
            axis = None
        self._known[id(output)] = weakref.ref(output), axis
        return axis

    def _find(self, layer: str, module: nn.Module, inputs: object, output: Tensor) -> int | None:
        for pattern, axis in self.override.items():
            if fnmatchcase(layer, pattern):
                return axis
        own = own_unit_axis(module, output)
        if own is not None:
            return own
        first = inputs[0] if isinstance(inputs, tuple) and inputs else inputs
        if isinstance(first, Tensor) and first.ndim == output.ndim:
            known = self._known.get(id(first))
            if known is not None and known[0]() is first:
                return known[1]
        return default_unit_axis(output)
