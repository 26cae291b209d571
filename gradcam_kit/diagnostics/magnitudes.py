"""Measure the largest magnitudes on the way through a model, which reveal an overflow in advance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradcam_kit.capture import local_part, unobservable


class Seen(NamedTuple):
    """Largest magnitudes of the input and output of one module; NaN without a tensor.

    Attributes:
        layer: dotted name of the module; "" for the model.
        input: the largest magnitude of the input; in the backward pass, of the gradient that arrived at the output.
        output: the largest magnitude of the output; in the backward pass, of the gradients that operators of the module
            passed on.
        what: "x" for activations, "g" for gradients.

    After a sum of gradients or a ReLU, the magnitudes of gradients are upper bounds.
    """

    layer: str
    input: float
    output: float
    what: str = "x"

    def __str__(self) -> str:
        return f"{self.layer or 'model'} |{self.what}|max {self.input:.3g} -> {self.output:.3g}"


def extremes_of(tensor: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest value; both are NaN if any value is. Synchronizes."""
    values = local_part(tensor.detach())
    if not values.numel():
        return 0.0, 0.0  # the local part of a spread tensor may be empty
    # On the host, two reductions take 0.6 times as long as `aminmax`; on a device, one reduction saves a wait.
    low, high = (values.amin(), values.amax()) if values.device.type == "cpu" else torch.aminmax(values)
    return low.item(), high.item()


def largest_magnitude(tensor: Tensor) -> float:
    """Return max |x|: NaN if any value is NaN, infinity if any is infinite. Synchronizes."""
    return magnitude_between(*extremes_of(tensor))


def magnitude_between(low: float, high: float) -> float:
    """Return the largest magnitude of values with these extremes; NaN if they are NaN."""
    return high if high >= -low else -low  # NaN compares false


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite, judged by their sum, in which NaN and infinities persist. Synchronizes."""
    values = local_part(tensor.detach())
    total = values.sum(dtype=torch.float32) if values.dtype.itemsize < 4 else values.sum()
    # Large finite values can overflow the sum, so only a finite sum is conclusive.
    return math.isfinite(total.item()) or math.isfinite(largest_magnitude(values))


def larger(one: float, other: float) -> float:
    """Return the larger magnitude; NaN in `one` means that no magnitude is known yet."""
    return other if math.isnan(one) else max(one, other)


def magnitudes_of(gradients: Sequence[Tensor | None]) -> list[float]:
    """Return the largest magnitude of each gradient; -1 for None and for gradients that cannot be read."""
    return [largest_magnitude(own) if own is not None and unobservable(own) is None else -1.0 for own in gradients]


def largest_of(magnitudes: Sequence[float]) -> float:
    """Return the largest magnitude, ignoring -1; NaN if any magnitude is NaN, or none is left."""
    largest = -1.0
    for own in magnitudes:
        if math.isnan(own):
            return own
        largest = max(largest, own)
    return math.nan if largest == -1.0 else largest
