"""Replacements of removed positions: a value, the mean color, a blur, noise, or an imputation from neighbors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gradcam_kit.draws import uniform
from gradcam_kit.errors import OptionError, ShapeError
from gradcam_kit.functional import at_least_float32, gaussian_blur
from gradcam_kit.metrics.draws import identities_of
from gradcam_kit.metrics.imputation import TOLERANCE, Workspace, imputed
from gradcam_kit.metrics.rows import spread
from gradcam_kit.options import finite_number, positive, positive_int

Fill = Literal["mean", "blur", "noise", "inpaint"]

_KINDS = f"a finite number, or one of {', '.join(get_args(Fill))}"
_STREAM = 3


@dataclass(frozen=True, eq=False)
class Replacement:
    """A way to fill removed positions of images.

    Attributes:
        fill: function from the indices of images `(m,)` and the positions removed in each, `(m, *t)`, to the changed
            images `(m, c, *t)`.
        settings: description of the replacement, for the settings of a result.
    """

    fill: Callable[[Int[Tensor, " m"], Bool[Tensor, "m *t"]], Float[Tensor, "m c *t"]]
    settings: dict[str, Any]


def replacement(
    images: Float[Tensor, "n c *t"],
    baseline: float | Fill,
    seed: int = 0,
    identities: Int[Tensor, " n"] | None = None,
    *,
    kernel: int = 11,
    sigma: float = 5.0,
) -> Replacement:
    """Return the replacement of removed positions that `baseline` describes.

    Args:
        images: the model's input.
        baseline: a number in the units of the images (for normalized images, 0 is the mean color), or a name. "mean" is
            the mean of each channel of the image. "blur" is the image blurred by a Gaussian, with mirrored borders.
            "noise" draws each value from U(smallest, largest) of its channel in the image. "inpaint" is the weighted
            mean of the neighbors, as in `impute`, or the mean of each channel if no position remains.
        seed: seed of the noise.
        identities: an integer per image, from which its noise is derived; None = derived from the values of the image.
        kernel: size of the window of the blur in positions, odd.
        sigma: width of the blur, in positions.

    Raises:
        OptionError: a baseline that is neither a finite number nor one of these names, or a kernel or sigma that
            `blurred` refuses.
        ShapeError: "inpaint" for images without two position axes.
    """
    if not isinstance(baseline, str) or baseline not in get_args(Fill):
        value = finite_number("baseline", baseline, _KINDS)
        return _constant(images, torch.full_like(images[:1], value).expand_as(images), f"value {value:g}")
    if baseline == "inpaint":
        return _inpainting(images)
    if baseline == "mean":
        return _constant(images, _means(images), "mean of each channel of the image")
    if baseline == "blur":
        return _constant(
            images,
            blurred(images, kernel, sigma),
            f"Gaussian blur, kernel {kernel}, sigma {sigma:g}, mirrored borders",
        )
    end = channel_noise(images, identities_of(identities, images), seed, _STREAM)
    return _constant(images, end, "uniform noise in the range of each channel of the image", seed=seed)


def blurred(images: Float[Tensor, "n c *t"], kernel: int, sigma: float) -> Float[Tensor, "n c *t"]:
    """Blur images with a Gaussian window in at least float32, and return them in their own precision.

    Raises:
        OptionError: a sigma that is not positive, or a kernel that is not a positive odd integer.
    """
    positive("sigma", sigma)
    if positive_int("kernel", kernel) % 2 == 0:
        raise OptionError(f"kernel is {kernel}; expected an odd number of positions, so that the window has a center")
    with torch.autocast(images.device.type, enabled=False):
        return gaussian_blur(at_least_float32(images), kernel, sigma).to(images.dtype)


def channel_noise(
    images: Float[Tensor, "m c *t"], own: Int[Tensor, " m"], seed: int, stream: int | Int[Tensor, " m"]
) -> Float[Tensor, "m c *t"]:
    """Draw every value uniformly from the range of its channel in its image."""
    values = at_least_float32(images)
    flat = values.flatten(2)
    low, high = (extreme.reshape(*flat.shape[:2], *(1 for _ in images.shape[2:])) for extreme in _extremes(flat))
    return (low + (high - low) * uniform(tuple(images.shape[1:]), own, seed, stream)).to(images.dtype)


def _extremes(flat: Float[Tensor, "m c p"]) -> tuple[Tensor, Tensor]:
    return flat.amin(2), flat.amax(2)


def _means(images: Float[Tensor, "n c *t"]) -> Float[Tensor, "n c *t"]:
    means = at_least_float32(images).mean(tuple(range(2, images.ndim)), keepdim=True)
    return means.to(images.dtype).expand_as(images)


def _constant(images: Tensor, end: Tensor, said: str, **settings: Any) -> Replacement:
    """Return the replacement of removed positions by precomputed values."""

    def fill(index: Tensor, removed: Tensor) -> Tensor:
        return torch.where(spread(removed), end[index], images[index])

    return Replacement(fill, {"baseline": said, **settings})


def _inpainting(images: Tensor) -> Replacement:
    if images.ndim != 4:
        raise ShapeError(
            f"the baseline 'inpaint' needs images (n, c, h, w); got {tuple(images.shape)}; use 'blur' or a value"
        )
    means, room = _means(images), Workspace()

    def fill(index: Tensor, removed: Tensor) -> Tensor:
        is_all = removed.flatten(1).all(1)[:, None, None]
        filled = imputed(images[index], removed & ~is_all, TOLERANCE, room)
        return torch.where(spread(is_all), means[index], filled.to(images.dtype))

    settings = {
        "baseline": "weighted mean of the neighbors, or mean of each channel if no position remains",
        "tolerance": TOLERANCE,
    }
    return Replacement(fill, settings)
