"""Find the channel axis of the images, from the model if the shape is ambiguous."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from gradcam_kit.capture.model.inputs import Inputs, Slot
from gradcam_kit.capture.model.inputs import read_inputs as read_arguments
from gradcam_kit.capture.provenance.evidence import gather, recall
from gradcam_kit.errors import ShapeError
from gradcam_kit.types import Images

_AXES = {3: 1, 4: 2, 5: 3}
"""Maps the number of axes of a convolution's kernel to the number of position axes."""


def read_inputs(
    images: Images, forward_kwargs: Mapping[str, Any], *models: nn.Module, image_input: Slot | None = None
) -> Inputs:
    """Find the images among the inputs, and the axis of their channels.

    The usual layout is `(n, c, *t)`. Video models of other libraries accept `(n, t, c, h, w)`, recurrent models and
    transformers for series `(n, t, c)`, and spectrogram models `(n, time, frequency)`. If the shape is ambiguous, the
    channels are on the first axis over which the model sums.

    Args:
        images: the images, or all inputs of the model, as passed to a CAM call.
        forward_kwargs: further keyword arguments of the model.
        models: the models that will be called; the first one determines the layout.
        image_input: position or key of the images among the inputs; None = found automatically.

    Raises:
        InputError: the images have a wrong type or integer values, or a model does not accept an argument.
        ShapeError: no tensor has 1, 2 or 3 position axes, or several axes may be the channels.
    """
    inputs = read_arguments(images, forward_kwargs, *models, image_input=image_input)
    return with_channels(models[0], inputs) if models else inputs


def with_channels(model: nn.Module, inputs: Inputs) -> Inputs:
    """Return the call with its channel axis set.

    Raises:
        ShapeError: several axes may be the channels, and no layer of the model sums over only one of them.
    """
    if inputs.n == 0 or inputs.raw.ndim not in (3, 5):
        return inputs
    kernels = _kernels(model)
    if not _is_open(model, kernels, inputs.raw):
        return inputs
    evidence = recall(model, inputs) or gather(model, inputs)
    makes_images = bool(kernels) and all(ndim > 3 for ndim, _ in kernels)  # such as spectrograms, from a series
    if inputs.raw.ndim == 3 and evidence.channels is None and not makes_images:
        return inputs  # assume (n, c, t) without evidence of another layout
    return replace(inputs, channels=_channels(evidence.channels, inputs.raw))


def _is_open(model: nn.Module, kernels: Sequence[tuple[int, int]], raw: Tensor) -> bool:
    """Whether an axis other than the first after the batch axis may be the channels."""
    if raw.ndim == 3 and not kernels:
        return any(isinstance(one, nn.RNNBase | nn.MultiheadAttention) for one in model.modules())
    first = next((channels for ndim, channels in kernels if ndim == raw.ndim), None)
    return first != raw.shape[1] or raw.shape[1] == raw.shape[2]


def _kernels(model: nn.Module) -> list[tuple[int, int]]:
    """Return the number of axes and the input channels of each convolution."""
    return [
        (weight.ndim, _inputs(module, weight))
        for module in model.modules()
        if isinstance(weight := getattr(module, "weight", None), Tensor) and weight.ndim in _AXES
    ]


def _inputs(module: nn.Module, weight: Tensor) -> int:
    return weight.shape[0] if getattr(module, "transposed", False) else weight.shape[1] * getattr(module, "groups", 1)


def _channels(summed: int | None, raw: Tensor) -> int | None:
    if raw.ndim == 3 and summed != 2:  # a waveform has one channel; the model may compute a spectrogram from it
        return None if summed is None and raw.shape[1] > 1 else 1
    if summed in (1, 2):
        return summed
    single = [axis for axis in (1, 2) if raw.shape[axis] == 1]
    if single or summed is not None:
        return single[0] if single else 1
    raise ShapeError(
        f"images of shape {tuple(raw.shape)} can be read as (n, c, t, h, w) with {raw.shape[1]} channels or as "
        f"(n, t, c, h, w) with {raw.shape[2]}, and no layer of the model sums over one of the two axes alone; "
        "wrap the model in a module that accepts (n, c, t, h, w) and moves the axes"
    )
