"""The interface of transforms from a picture to the model's input."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

Picture = UInt8[np.ndarray, "_ _ 3"]
Box = tuple[float, float, float, float]
"""`(x0, y0, x1, y1)` in the picture's pixels. The box extends beyond the picture where the model saw padding."""

Prepared = UInt8[np.ndarray, "h w c"] | Float[Tensor, "c h w"] | UInt8[Tensor, "c h w"]
"""A prepared picture, to which only the arithmetic of `finish` must still be applied."""


@runtime_checkable
class Transform(Protocol):
    """The interface of transforms from a picture to the model's input.

    A transform has two halves: `prepare` runs in many processes, and `finish` runs on the model's device.
    """

    def __call__(self, picture: Picture) -> Float[Tensor, "c h w"]:
        """Return the model's input for one picture, by running both halves."""
        ...

    def prepare(self, picture: Picture) -> Prepared:
        """Run the first half of the transform on a single picture."""
        ...

    def finish(self, batch: UInt8[Tensor, "n ..."] | Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Run the second half of the transform on a batch of prepared pictures, on the device of the batch."""
        ...

    def box(self, height: int, width: int) -> Box:
        """Return the part of a picture of this size that the model sees."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return all settings that determine the transform's result, as plain values."""
        ...
