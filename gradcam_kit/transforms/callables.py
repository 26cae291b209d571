"""Wrap any callable as a transform: its input, its checks, and its view of a picture."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from gradcam_kit.errors import ShapeError
from gradcam_kit.transforms.protocol import Box, Picture
from gradcam_kit.transforms.steps import random_steps, seen_box, steps_of

_SHOWN_AS = 224  # size in pixels of a test picture that shows whether all steps are known


@dataclass(frozen=True)
class CallableTransform:
    """Any callable from a picture to a tensor `(c, h, w)`.

    The callable gets the picture as uint8 `(height, width, 3)`, or as a PIL image if the callable is from torchvision.
    An `nn.Sequential` of torchvision's steps gets a tensor `(3, height, width)`, unless its first step converts images.
    The callable may have a method `box(height, width)` that returns the part of a picture that it shows. For transforms
    of torchvision and timm this part is derived from the steps, if all are known; otherwise it is the full picture. For
    models that scale and normalize themselves, the returned tensor may hold bytes, which become floats from 0 to 255.
    """

    function: Callable[[Any], Tensor]

    def __call__(self, picture: Picture) -> Float[Tensor, "c h w"]:
        """Call the function and verify what it returns."""
        return self.finish(self.prepare(picture)[None])[0]

    def prepare(self, picture: Picture) -> Float[Tensor, "c h w"] | UInt8[Tensor, "c h w"]:
        """Run the whole transform, because none of its steps is known to apply to a whole batch.

        Raises:
            ShapeError: the function does not return a tensor of one image.
        """
        image = self.function(self._given(picture))
        is_image = isinstance(image, Tensor) and image.ndim == 3 and image.is_floating_point()
        if not is_image and not (isinstance(image, Tensor) and _are_bytes(image)):
            got = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            raise ShapeError(
                f"the model's transform returns {got}; expected a floating-point tensor (3, h, w){_remedy(image)}"
            )
        return image

    def finish(self, batch: Float[Tensor, "n c h w"] | UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Convert bytes to floats of the same values, and leave floats unchanged."""
        return batch if batch.is_floating_point() else batch.float()

    @property
    def knows_box(self) -> bool:
        """Whether it is known which part of a picture the transform shows."""
        own = callable(getattr(self.function, "box", None))
        return own or seen_box(self.function, _SHOWN_AS, _SHOWN_AS) is not None

    @property
    def random_steps(self) -> list[str]:
        """The names of the transform's steps that change colors at random."""
        return random_steps(self.function)

    def box(self, height: int, width: int) -> Box:
        """Return the box of the callable or of its steps, else the whole picture.

        Raises:
            ShapeError: the callable's `box` does not return four finite numbers of a box with an area.
        """
        if callable(getattr(self.function, "box", None)):
            said = self.function.box(height, width)  # type: ignore[attr-defined]
            try:
                x0, y0, x1, y1 = map(float, said)
            except (TypeError, ValueError):
                x0 = math.nan
            if not all(map(math.isfinite, (x0, y0, x1, y1) if math.isfinite(x0) else (x0,))) or x0 >= x1 or y0 >= y1:
                raise ShapeError(
                    f"box({height}, {width}) of the transform is {said!r}; expected (x0, y0, x1, y1), finite numbers "
                    "with x0 < x1 and y0 < y1"
                )
            return x0, y0, x1, y1
        return seen_box(self.function, height, width) or (0.0, 0.0, float(width), float(height))

    def describe(self) -> dict[str, Any]:
        """Return the function's name, or its representation without the address of the object."""
        name = getattr(self.function, "__qualname__", None) or re.sub(r" at 0x\w+", "", repr(self.function))
        return {"callable": f"{getattr(self.function, '__module__', '')}:{name}"}

    def _given(self, picture: Picture) -> Any:
        """Return the picture in the form that the function expects."""
        first = next(steps_of(self.function), None)
        is_sequential = isinstance(self.function, nn.Sequential)
        if not type(first if is_sequential else self.function).__module__.startswith("torchvision."):
            return picture
        if is_sequential and type(first).__name__ not in ("ToTensor", "PILToTensor", "ToImage"):
            return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))  # for scripted transforms
        return Image.fromarray(picture)


def _are_bytes(image: Tensor) -> bool:
    """Whether an image holds bytes with 1 or 3 channels first, the only layout that is accepted for bytes."""
    return image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] in (1, 3)


def _remedy(image: object) -> str:
    """Return the remedy for an unsuitable result of a transform."""
    if isinstance(image, Image.Image):
        return "; end the transform with ToTensor() and Normalize()"
    if isinstance(image, np.ndarray):
        return "; end the transform with torch.from_numpy(image).permute(2, 0, 1).float() / 255"
    if isinstance(image, Tensor) and image.ndim == 4 and len(image) == 1:
        return "; leave out the batch axis"
    if isinstance(image, tuple | list | Tensor):
        return "; several crops of one picture, as from FiveCrop, are several images: use CenterCrop"
    return "" if image is not None else "; a function without a return statement returns None"
