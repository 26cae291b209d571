"""What a model is called with, and how the same call is made for other rows."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from gradcam_kit.capture.model.advice import advice, check_arguments, precision_advice
from gradcam_kit.errors import InputError, ShapeError, is_out_of_memory, kind_of
from gradcam_kit.types import Images


@dataclass(frozen=True)
class Inputs:
    """The arguments of one forward call; `slot` is the place of the images among them.

    `memory_format` is the order of axes in memory in which the model gets the images.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    slot: int | str
    memory_format: torch.memory_format = torch.preserve_format

    @property
    def images(self) -> Float[Tensor, "n c *t"]:
        """The first floating tensor with a position axis."""
        images: Tensor = self.args[self.slot] if isinstance(self.slot, int) else self.kwargs[self.slot]
        return images

    @property
    def n(self) -> int:
        """Samples in the batch."""
        return self.images.shape[0]

    @property
    def size(self) -> tuple[int, ...]:
        """The positions `*t` of the images."""
        return tuple(self.images.shape[2:])

    def with_images(self, images: Float[Tensor, "m c *t"], index: Int[Tensor, " m"] | None = None) -> Inputs:
        """The call for other images: row r takes everything else from sample `index[r]` (None = from its own).

        Tensors whose first axis is n belong to the samples; all others are shared by the batch. All are copies, because
        the model may change its input in place.
        """

        def row(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if index is None or value.ndim == 0 or value.shape[0] != self.n:
                return value.clone()
            return value[index.to(value.device)]

        images = images.clone(memory_format=self.memory_format)
        args = tuple(images if place == self.slot else tree_map(row, value) for place, value in enumerate(self.args))
        kwargs = {key: images if key == self.slot else tree_map(row, value) for key, value in self.kwargs.items()}
        return replace(self, args=args, kwargs=kwargs)

    def per_sample(self) -> list[str]:
        """The other inputs that are taken for one entry per sample, because their first axis has as many."""
        named = [*((f"argument {i}", value) for i, value in enumerate(self.args) if i != self.slot)]
        named += [(repr(key), value) for key, value in self.kwargs.items() if key != self.slot]
        return [
            name
            for name, value in named
            if any(isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == self.n for leaf in tree_leaves(value))
        ]

    def first(self) -> Inputs:
        """The call for the first sample alone."""
        return self.with_images(self.images[:1], torch.zeros(1, dtype=torch.long, device=self.images.device))


def read_inputs(images: Images, forward_kwargs: Mapping[str, Any], *models: nn.Module) -> Inputs:
    """Find the images among the inputs, detached from any graph and usable in one.

    Args:
        images: what a CAM was called with.
        forward_kwargs: further keyword arguments of the model.
        models: the models that will be called; arguments that they do not take are named before they run.

    Raises:
        InputError: integer images, no tensor at all, or arguments that a model does not take.
        ShapeError: no tensor with 1, 2 or 3 position axes.
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
    places: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    for slot, value in places:
        if isinstance(value, Tensor) and value.is_floating_point() and 3 <= value.ndim <= 5:
            return Inputs(args, kwargs, slot)
    tensors = [value for _, value in places if isinstance(value, Tensor)]
    for value in tensors:
        if value.ndim >= 3 and not value.is_floating_point():
            raise InputError(
                f"images are {str(value.dtype).removeprefix('torch.')}; expected floating point. "
                "Scale and normalize them first as in training, e.g. images.float() / 255"
            )
    shapes = ", ".join(str(tuple(value.shape)) for value in tensors)
    if not shapes:
        kinds = ", ".join(sorted({kind_of(value) for _, value in places})) or "nothing"
        raise ShapeError(
            f"there is no tensor in the images, but {kinds}; expected a tensor (n, c, *positions). "
            "Pictures become one by torch.stack([transform(picture) for picture in pictures])"
        )
    raise ShapeError(f"images have shape {shapes}; expected (n, c, *positions) with 1, 2 or 3 position axes")


def _plain(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    # A tensor made under inference_mode cannot enter a graph; a clone can.
    return value.clone() if value.is_inference() else value.detach()


@dataclass(frozen=True)
class Runner:
    """Calls the model as the user's context would: under the same autocast, whatever surrounds the arithmetic."""

    model: nn.Module
    device_type: str
    autocast: bool
    autocast_dtype: torch.dtype

    @classmethod
    def of(cls, model: nn.Module, device: torch.device) -> Runner:
        """Remember the autocast state of this moment."""
        enabled, dtype = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
        return cls(model, device.type, enabled, dtype)

    def __call__(self, inputs: Inputs) -> Any:
        """The model's output.

        Raises:
            ShapeError: the model fails on images that seem to lack their batch axis, or to have the channels last.
            InputError: the model fails on images in another precision than its parameters.
        """
        try:
            with self.context():
                return self.model(*inputs.args, **inputs.kwargs)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            said = f"the model failed on these images: {error}\n"
            if hint := precision_advice(inputs.images, self.model, error):  # of the error, and no guess from a shape
                raise InputError(said + hint) from error
            if hint := advice(inputs.images, inputs.args):
                raise ShapeError(said + hint) from error
            raise

    def context(self) -> AbstractContextManager[Any]:
        """The autocast state in which the model runs."""
        return torch.autocast(self.device_type, dtype=self.autocast_dtype, enabled=self.autocast)

    def precision(self, images: Tensor) -> torch.dtype:
        """The precision in which the model computes with such images."""
        return self.autocast_dtype if self.autocast else images.dtype

    def arithmetic(self) -> AbstractContextManager[Any]:
        """The autocast state in which a method computes: none, all in float32."""
        return torch.autocast(self.device_type, enabled=False)
