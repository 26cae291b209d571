"""Analyze transforms of torchvision and timm step by step: the visible part of a picture, and random steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from gradcam_kit.transforms.protocol import Box

_IN_PLACE = {
    *(
        "ConvertImageDtype",
        "Grayscale",
        "Identity",
        "LinearTransformation",
        "Normalize",
        "PILToTensor",
        "RGB",
        "ToDtype",
    ),
    *("ToImage", "ToPILImage", "ToPureTensor", "ToTensor", "MaybePILToTensor", "MaybeToTensor", "ToNumpy"),
}
"""Steps that leave every pixel where it is."""

_COLORS = {
    *("ColorJitter", "GaussianBlur", "GaussianNoise", "JPEG", "RandomAdjustSharpness", "RandomAutocontrast"),
    *("RandomChannelPermutation", "RandomEqualize", "RandomErasing", "RandomGrayscale", "RandomInvert"),
    *("RandomPhotometricDistort", "RandomPosterize", "RandomSolarize"),
}
"""Random steps that leave every pixel where it is."""

_PLACES = {
    "AugMix",
    "AutoAugment",
    "CutMix",
    "ElasticTransform",
    "MixUp",
    "RandAugment",
    "ScaleJitter",
    "TrivialAugmentWide",
}
"""Steps that move pixels or mix pictures at random, in addition to those whose names begin with "Random"."""


@dataclass(frozen=True)
class View:
    """The part of the picture that an image shows after some steps.

    Attributes:
        height: height of the image.
        width: width of the image.
        top: the row of the picture at which the image begins.
        left: the column of the picture at which the image begins.
        y: number of rows of the picture per row of the image.
        x: number of columns of the picture per column of the image.
    """

    height: int
    width: int
    top: float = 0.0
    left: float = 0.0
    y: float = 1.0
    x: float = 1.0

    def resized(self, height: int, width: int) -> View:
        """Return the view of the same part after a resize."""
        return replace(self, height=height, width=width, y=self.y * self.height / height, x=self.x * self.width / width)

    def cropped(self, top: int, left: int, height: int, width: int) -> View:
        """Return the view after a crop, which may extend beyond the edges of the image into padding."""
        return replace(self, height=height, width=width, top=self.top + top * self.y, left=self.left + left * self.x)

    @property
    def box(self) -> Box:
        """The corners of the part, in the picture's pixels."""
        return self.left, self.top, self.left + self.width * self.x, self.top + self.height * self.y


def seen_box(transform: Any, height: int, width: int) -> Box | None:
    """Return the part of a picture of this size that a transform shows, or None if a step is unknown."""
    view = View(height, width)
    for step in steps_of(transform):
        found = _after(step, view)
        if found is None:
            return None
        view = found
    return view.box


def steps_of(transform: Any) -> Iterator[Any]:
    """Yield the steps of a transform, including those of nested transforms."""
    parts = getattr(transform, "transforms", None) if _name(transform) == "Compose" else None
    if isinstance(transform, nn.Sequential):
        parts = list(transform)
    if parts is None:
        yield transform
        return
    for part in parts:
        yield from steps_of(part)


def refused_steps(transform: Any) -> list[str]:
    """Return the names of steps that move pixels at random, such as random crops."""
    names = (_name(step) for step in steps_of(transform))
    return [name for name in names if name not in _COLORS and (name.startswith("Random") or name in _PLACES)]


def random_steps(transform: Any) -> list[str]:
    """Return the names of steps that change colors at random."""
    return [name for name in map(_name, steps_of(transform)) if name in _COLORS]


def _name(step: Any) -> str:
    """Return the class name of a step of torchvision or timm, or an empty string for anything else."""
    is_known = type(step).__module__.startswith(("torchvision.transforms", "timm.data")) or isinstance(
        step, nn.Identity
    )
    return type(step).__name__ if is_known else ""


def _after(step: Any, view: View) -> View | None:
    match _name(step):
        case name if name in _IN_PLACE or name in _COLORS:
            return view
        case "Resize":
            return _resize(view, step.size, getattr(step, "max_size", None))
        case "CenterCrop" | "CenterCropOrPad":
            return _center_crop(view, step.size)
        case "Pad":
            return _pad(view, step.padding)
        case "ImageClassification":
            return _center_crop(_resize(view, step.resize_size, None), step.crop_size)
        case "SemanticSegmentation":
            return view if not step.resize_size else _resize(view, step.resize_size, None)
        case "ObjectDetection":
            return view
    return None


def _resize(view: View, size: int | Sequence[int] | None, most: int | None) -> View:
    """Return the view after a resize to height and width, or of the shorter side with a limit `most` for the longer."""
    sides = [size] if isinstance(size, int) else size
    if sides is not None and len(sides) == 2:
        return view.resized(sides[0], sides[1])
    shorter, longer = sorted((view.height, view.width))
    if sides is None:
        assert most is not None  # torchvision requires max_size if size is None
        short, long = int(most * shorter / longer), most
    else:
        short, long = sides[0], int(sides[0] * longer / shorter)
        if most is not None and long > most:
            short, long = int(most * short / long), most
    return view.resized(long, short) if view.width <= view.height else view.resized(short, long)


def _center_crop(view: View, size: int | Sequence[int]) -> View:
    """Crop around the center, and pad smaller images, with an odd pixel at the bottom or right."""
    sides = [size] if isinstance(size, int) else size
    height, width = sides[0], sides[-1]
    top, left = _begin(view.height, height), _begin(view.width, width)
    return view.cropped(top, left, height, width)


def _begin(have: int, want: int) -> int:
    return round((have - want) / 2) if have >= want else -((want - have) // 2)


def _pad(view: View, padding: int | Sequence[int]) -> View:
    """Pad by one number on all sides, by two for left/right and top/bottom, or by left, top, right and bottom."""
    sides = [padding] if isinstance(padding, int) else list(padding)
    left, top, right, bottom = (sides * 4)[:4] if len(sides) < 4 else sides
    return view.cropped(-top, -left, view.height + top + bottom, view.width + left + right)
