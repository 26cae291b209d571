"""Largest magnitudes on the way through a model, which show an overflow in advance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gradcam_kit.capture import unobservable


@dataclass(frozen=True)
class Seen:
    """Largest magnitudes of the input and output of one module; NaN without any.

    In the backward pass `input` is the gradient that arrived at the module's output, and `output` the largest that any
    of its operators passed on.
    """

    layer: str
    input: float
    output: float
    what: str = "x"

    def __str__(self) -> str:
        return f"{self.layer or 'model'} |{self.what}|max {self.input:.3g} -> {self.output:.3g}"


def largest_magnitude(tensor: Tensor) -> float:
    """Return max |x|: NaN if any value is NaN, infinity if any is infinite. Synchronizes."""
    low, high = map(float, torch.aminmax(tensor.detach()))
    return math.nan if math.isnan(low) or math.isnan(high) else max(abs(low), abs(high))


def larger(one: float, other: float) -> float:
    """Return the larger magnitude; NaN in `one` means none yet."""
    return other if math.isnan(one) else max(one, other)


def magnitude_of(gradients: tuple[Tensor | None, ...]) -> float:
    """Return the largest magnitude of all of them; NaN if there is none."""
    found = [largest_magnitude(own) for own in gradients if own is not None and unobservable(own) is None]
    return max(found, default=math.nan)
