"""Hold the arguments of a call of the model, and repeat the call with other images."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from gradcam_kit.capture.model.advice import advice, check_arguments, nested_advice, precision_advice
from gradcam_kit.capture.model.kept import normal_tensors
from gradcam_kit.errors import InputError, ShapeError, interruption, is_out_of_memory, kind_of
from gradcam_kit.types import Images

Slot = int | str
"""The slot of an input of the model: its position or its key."""


@dataclass(frozen=True)
class Inputs:
    """The arguments of one call of the model, with the images among them.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
        slot: position or key of the images among the arguments.
        memory_format: memory format in which the model gets the images.
        is_asked: whether the caller, rather than an automatic search, chose the slot of the images.
        channels: channel axis of the images in the model's layout: usually 1, but 2 for videos whose channels follow
            the frames, and None for spectrograms without channels.
        entry: name of the model's method to call, such as "encode_image" if only the image tower is needed.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    slot: Slot
    memory_format: torch.memory_format = torch.preserve_format
    is_asked: bool = False
    channels: int | None = 1
    entry: str = "__call__"

    @property
    def raw(self) -> Tensor:
        """The images in the model's layout."""
        images: Tensor = self.value(self.slot)
        return images

    @property
    def images(self) -> Float[Tensor, "n c *t"]:
        """The images with the channels before the positions."""
        if self.channels == 1:
            return self.raw
        return self.raw.unsqueeze(1) if self.channels is None else self.raw.movedim(self.channels, 1)

    @property
    def image_slots(self) -> list[Slot]:
        """The slots of the inputs that could be the images: floating-point tensors with 1, 2 or 3 position axes."""
        places: list[tuple[Slot, Any]] = [*enumerate(self.args), *self.kwargs.items()]
        return [slot for slot, value in places if _could_be_images(value)]

    def value(self, slot: Slot) -> Any:
        """Return the input in a slot."""
        return self.args[slot] if isinstance(slot, int) else self.kwargs[slot]

    def at(self, slot: Slot) -> Inputs:
        """Return the same call with the images in another slot, with their channels on axis 1."""
        return self if slot == self.slot else replace(self, slot=slot, channels=1)

    def asked(self, image_input: Slot) -> Inputs:
        """Return the same call with the images in the slot that the caller names."""
        places: dict[Slot, Any] = dict(enumerate(self.args))
        places.update(self.kwargs)
        slot = _asked(image_input, places)
        return replace(self.at(slot), is_asked=True)

    def replacing(self, images: Tensor) -> Inputs:
        """Return the same call with this tensor, not a copy of it, in place of the images."""
        args = tuple(images if place == self.slot else value for place, value in enumerate(self.args))
        kwargs = {key: images if key == self.slot else value for key, value in self.kwargs.items()}
        return replace(self, args=args, kwargs=kwargs)

    @property
    def n(self) -> int:
        """The number of samples in the batch."""
        return self.images.shape[0]

    @property
    def size(self) -> tuple[int, ...]:
        """The sizes `*t` of the position axes of the images."""
        return tuple(self.images.shape[2:])

    def with_images(self, images: Float[Tensor, "m c *t"], index: Int[Tensor, " m"] | None = None) -> Inputs:
        """Return the call for other images, where row r gets the other inputs of sample `index[r]` (None = sample r).

        Tensors whose first axis has size n are taken to have one entry per sample; all other tensors are shared. All
        tensors are copied, because the model may change its inputs in place.
        """

        def row(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if index is None or value.ndim == 0 or value.shape[0] != self.n:
                return value.clone()
            return value[index.to(value.device)]

        images = images.clone(memory_format=self.memory_format)
        if self.channels != 1:
            images = images.squeeze(1) if self.channels is None else images.movedim(1, self.channels).contiguous()
        args = tuple(images if place == self.slot else tree_map(row, value) for place, value in enumerate(self.args))
        kwargs = {key: images if key == self.slot else tree_map(row, value) for key, value in self.kwargs.items()}
        return replace(self, args=args, kwargs=kwargs)

    def per_sample(self) -> list[str]:
        """Return the names of the other inputs whose first axis has size n, as if they had one entry per sample."""
        named = [*((f"argument {i}", value) for i, value in enumerate(self.args) if i != self.slot)]
        named += [(repr(key), value) for key, value in self.kwargs.items() if key != self.slot]
        return [
            name
            for name, value in named
            if any(isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == self.n for leaf in tree_leaves(value))
        ]

    def first(self) -> Inputs:
        """Return the call for the first sample alone."""
        return self.with_images(self.images[:1], torch.zeros(1, dtype=torch.long, device=self.images.device))


def read_inputs(
    images: Images, forward_kwargs: Mapping[str, Any], *models: nn.Module, image_input: Slot | None = None
) -> Inputs:
    """Find the images among the inputs, and detach all inputs from their graphs.

    If several inputs could be the images, the first one with 2 or 3 position axes is used, or else the first one.

    Args:
        images: the images, or all inputs of the model, as passed to a CAM call.
        forward_kwargs: further keyword arguments of the model.
        models: the models that will be called; arguments that they do not accept raise an error before they run.
        image_input: position or key of the images among the inputs; None = found automatically.

    Raises:
        InputError: the named input cannot be the images, an argument is unknown, or the images have a wrong type.
        ShapeError: no tensor has 1, 2 or 3 position axes.
    """
    args: tuple[Any, ...]
    if isinstance(images, Tensor):
        args, kwargs = (images,), dict(forward_kwargs)
    elif isinstance(images, Mapping):
        args, kwargs = (), {**images, **forward_kwargs}
    elif isinstance(images, tuple | list):
        args, kwargs = tuple(images), dict(forward_kwargs)
    else:
        raise InputError(
            f"images is {kind_of(images)}; expected a tensor (n, c, *positions), "
            "or a tuple or mapping of the model's inputs"
        )
    for model in dict.fromkeys(models):
        check_arguments(model, args, forward_kwargs)
    args, kwargs = tree_map(_plain, args), tree_map(_plain, kwargs)
    places: list[tuple[Slot, Any]] = [*enumerate(args), *kwargs.items()]
    if image_input is not None:
        return Inputs(args, kwargs, _asked(image_input, dict(places)), is_asked=True)
    # Prefer images, which have two position axes or more, to text embeddings and signals, which have one. If several
    # slots are equally good, `min` returns the first.
    slots = [slot for slot, value in places if _could_be_images(value)]
    if slots:
        return Inputs(args, kwargs, min(slots, key=lambda slot: dict(places)[slot].ndim == 3))
    tensors = [value for _, value in places if isinstance(value, Tensor)]
    for value in tensors:
        if value.ndim >= 3 and not value.is_floating_point():
            raise InputError(
                f"images are {str(value.dtype).removeprefix('torch.')}; expected floating-point values. "
                "Scale and normalize them first as in training, e.g. images.float() / 255; for a model "
                "that scales bytes itself, pass images.float()"
            )
    shapes = ", ".join(str(tuple(value.shape)) for value in tensors)
    if not shapes:
        if (nested := nested_advice(args, kwargs)) is not None:
            raise InputError(nested)
        kinds = ", ".join(sorted({kind_of(value) for _, value in places})) or "nothing"
        raise ShapeError(
            f"the images contain no tensor (found: {kinds}); expected a tensor (n, c, *positions), such as "
            "torch.stack([transform(picture) for picture in pictures])"
        )
    raise ShapeError(f"images have shape {shapes}; expected (n, c, *positions) with 1, 2 or 3 position axes")


def _could_be_images(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and 3 <= value.ndim <= 5


def _asked(image_input: Slot, places: Mapping[Slot, Any]) -> Slot:
    """Return the slot that the caller named, after checking that its input could be the images."""
    if image_input not in places:
        raise InputError(
            f"image_input is {image_input!r}, but the inputs of the model are {', '.join(map(repr, places))}; give the "
            "position or the key of the images among them"
        )
    value = places[image_input]
    if not _could_be_images(value):
        found = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else kind_of(value)
        raise InputError(
            f"image_input is {image_input!r}, which is {found}; expected a floating-point tensor (n, c, *positions) "
            "with "
            "1, 2 or 3 position axes"
        )
    return image_input


def _plain(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    # A tensor made under inference_mode cannot enter a graph; a clone can.
    return value.clone() if value.is_inference() else value.detach()


_OF_A_CALL = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AssertionError, AttributeError)
"""Types of errors that a wrong shape or precision of images may cause. Errors of other types are raised unchanged."""


@dataclass(frozen=True)
class Runner:
    """Calls the model under the user's autocast state, regardless of the autocast state around our own arithmetic."""

    model: nn.Module
    device_type: str
    autocast: bool
    autocast_dtype: torch.dtype

    @classmethod
    def of(cls, model: nn.Module, device: torch.device) -> Runner:
        """Return a runner with the current autocast state."""
        enabled, dtype = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
        return cls(model, device.type, enabled, dtype)

    def __call__(self, inputs: Inputs) -> Any:
        """Return the model's output.

        Raises:
            ShapeError: the model fails on images that seem to lack their batch axis, or to have the channels last.
            InputError: the model fails because the images and its parameters differ in precision.
        """
        try:
            with self.context(), normal_tensors(self.model):
                return getattr(self.model, inputs.entry)(*inputs.args, **inputs.kwargs)
        except _OF_A_CALL as error:
            if is_out_of_memory(error) or interruption(error) is not None:
                raise
            said = f"the model failed on these images: {error}\n"
            # Prefer the hint that comes from the error, because it is more reliable than a guess from the shape.
            if hint := precision_advice(inputs.images, self.model, error):
                raise InputError(said + hint) from error
            if hint := advice(inputs.images, inputs.args):
                raise ShapeError(said + hint) from error
            raise

    def context(self) -> AbstractContextManager[Any]:
        """Return a context manager that sets the autocast state in which the model runs."""
        return torch.autocast(self.device_type, dtype=self.autocast_dtype, enabled=self.autocast)

    def precision(self, images: Tensor) -> torch.dtype:
        """Return the precision in which the model computes with these images."""
        return self.autocast_dtype if self.autocast else images.dtype

    def arithmetic(self) -> AbstractContextManager[Any]:
        """Return a context manager that disables autocast, for a method's own computations in float32."""
        return torch.autocast(self.device_type, enabled=False)
