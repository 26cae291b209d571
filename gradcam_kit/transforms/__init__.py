"""Transforms from a picture to the model's input, which also tell which part of the picture the model sees."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from math import isfinite
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from gradcam_kit.errors import (
    InputError,
    OptionError,
    PictureError,
    ShapeError,
    UnknownNameError,
    did_you_mean,
    kind_of,
)
from gradcam_kit.functional import move
from gradcam_kit.transforms.callables import CallableTransform
from gradcam_kit.transforms.protocol import Box, Picture, Prepared, Transform
from gradcam_kit.transforms.steps import refused_steps

__all__ = [
    "IMAGENET",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "INTERPOLATIONS",
    "MOST_PIXELS",
    "Box",
    "CallableTransform",
    "Picture",
    "PictureTransform",
    "Prepared",
    "Transform",
    "as_transform",
    "from_hugging_face",
    "from_timm",
    "from_torchvision",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MOST_PIXELS = 2**26
"""Maximum number of pixels of a resized picture.

At a shorter side of 256 pixels, only pictures with an aspect ratio above 1024 exceed it.
"""

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


@dataclass(frozen=True)
class PictureTransform:
    """Resize with antialiasing, crop the center, scale to [0, 1], subtract `mean` and divide by `std`.

    Attributes:
        size: height and width of the model's input.
        resize: the length of the shorter side before cropping (an int), or an exact height and width; None = `size`.
        mean: mean of each channel, in units of [0, 1]; one number instead of three gives gray images of one channel.
        std: standard deviation of each channel, in units of [0, 1], with as many numbers as `mean`.
        interpolation: a name in `INTERPOLATIONS`.
    """

    size: tuple[int, int] = (224, 224)
    resize: int | tuple[int, int] | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            hint = did_you_mean(str(self.interpolation), INTERPOLATIONS)
            raise UnknownNameError(f"there is no interpolation {self.interpolation!r}{hint}")
        sides = [*self.size, *(_pair(self.resize) if self.resize is not None else ())]
        if len(self.size) != 2 or any(side < 1 for side in sides):
            raise OptionError(f"sizes must be positive numbers of pixels, got size={self.size}, resize={self.resize}")
        numbers = [*self.mean, *self.std]
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise OptionError(
                f"mean and std must be three numbers each, or one each for gray; got {self.mean} and {self.std}"
            )
        if not all(isfinite(value) for value in numbers) or any(value <= 0 for value in self.std):
            raise OptionError(f"mean and std must be finite, and std above 0; got {self.mean} and {self.std}")

    def __call__(self, picture: Picture | Image.Image) -> Float[Tensor, "c h w"]:
        """Resize, crop and normalize, as the evaluation transforms of torchvision and timm do with a PIL image."""
        return self.finish(torch.from_numpy(self.prepare(picture))[None])[0]

    def finish(self, batch: UInt8[Tensor, "n h w c"]) -> Float[Tensor, "n c h w"]:
        """Scale to [0, 1], subtract `mean`, divide by `std`."""
        pixels = batch.permute(0, 3, 1, 2).float().div_(255)
        mean, std = move(torch.tensor([self.mean, self.std]), batch.device)[..., None, None]
        return pixels.sub_(mean).div_(std)

    def box(self, height: int, width: int) -> Box:
        """Return the crop's corners, mapped back through the resize."""
        (resized_h, resized_w), (top, left) = self._geometry(height, width)
        x, y = width / resized_w, height / resized_h
        return left * x, top * y, (left + self.size[1]) * x, (top + self.size[0]) * y

    def describe(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)

    def with_size(self, image_size: int) -> PictureTransform:
        """Return the transform for another square input, with its resize scaled in proportion."""
        scale = image_size / min(self.size)
        resize = self.resize
        if isinstance(resize, int):
            resize = round(resize * scale)
        elif resize is not None:
            resize = (round(resize[0] * scale), round(resize[1] * scale))
        return replace(self, size=(image_size, image_size), resize=resize)

    def _geometry(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the size of the resized picture, and the first row and column of the crop (negative: padding)."""
        if isinstance(self.resize, int):
            longer = int(self.resize * max(height, width) / min(height, width))
            resized = (self.resize, longer) if height <= width else (longer, self.resize)
        else:
            resized = self.resize or self.size
        offsets = [
            round((have - want) / 2) if have >= want else -((want - have) // 2)
            for have, want in zip(resized, self.size, strict=True)
        ]
        return resized, (offsets[0], offsets[1])

    def prepare(self, picture: Picture | Image.Image) -> UInt8[np.ndarray, "h w c"]:
        """Convert PIL images to RGB, resize, and crop, with black pixels outside the picture."""
        if isinstance(picture, Image.Image):
            picture = np.asarray(picture.convert("RGB"))
        if not isinstance(picture, np.ndarray):
            remedy = f"; read the file first: read_picture({str(picture)!r})" if isinstance(picture, str | Path) else ""
            raise InputError(f"the picture is {kind_of(picture)}; expected a NumPy array or a PIL image{remedy}")
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise ShapeError(f"the picture is {picture.dtype} {picture.shape}; expected uint8 (height, width, 3)")
        height, width = picture.shape[:2]
        (resized_h, resized_w), (top, left) = self._geometry(height, width)
        if resized_h * resized_w > MOST_PIXELS:
            raise PictureError(
                f"a picture of {width} x {height} pixels is too thin: resized, it would have {resized_w} x {resized_h} "
                "pixels, more than 2**26; crop it first"
            )
        image = Image.fromarray(picture)
        if len(self.mean) == 1:
            image = image.convert("L")
        resized = image.resize((resized_w, resized_h), INTERPOLATIONS[self.interpolation])
        pixels = np.array(resized.crop((left, top, left + self.size[1], top + self.size[0])))
        return pixels[..., None] if pixels.ndim == 2 else pixels


def as_transform(value: Any) -> Transform:
    """Read a transform: a `Transform`, a mapping with fields of `PictureTransform`, or any other callable.

    Raises:
        OptionError: a field is unknown, a number is not finite, or a callable moves pixels at random.
        InputError: the value is neither a transform, nor fields, nor a callable.
    """
    if isinstance(value, Transform):
        return value
    if isinstance(value, Mapping):
        known = [field.name for field in fields(PictureTransform)]
        for key in value:
            if key not in known:
                raise OptionError(f"transform has no field {key!r}; its fields are {', '.join(known)}")
        return PictureTransform(**{key: _READERS[key](key, entry) for key, entry in value.items()})
    if callable(value):
        if refused := refused_steps(value):
            raise OptionError(
                f"the transform has {', '.join(refused)}, so it moves pixels at random; pass the "
                "evaluation transform, such as Resize and CenterCrop"
            )
        return CallableTransform(value)
    raise InputError(f"the transform is {kind_of(value)}; expected a mapping, or a callable from picture to tensor")


def _size(name: str, value: Any) -> tuple[int, int]:
    """Read height and width, which are equal for a single number."""
    sides = [value] if np.ndim(value) == 0 and not isinstance(value, str) else value
    try:
        found = [index(side) for side in sides if not isinstance(side, bool)]
    except TypeError:
        found = []
    if len(found) not in (1, 2) or len(found) != len(sides):
        raise OptionError(f"transform[{name!r}] is {value!r}; expected a number of pixels, or height and width")
    return found[0], found[-1]


def _resize(name: str, value: Any) -> int | tuple[int, int] | None:
    """Read the size after the resize: height and width, or a single number for the shorter side."""
    if value is None:
        return None
    sides = _size(name, value)
    return sides[0] if np.ndim(value) == 0 else sides


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    """Read one finite number per channel."""
    entries = value.tolist() if isinstance(value, np.ndarray | Tensor) else value
    entries = entries if isinstance(entries, Sequence | Iterable) else [entries]
    try:
        found = tuple(float(entry) for entry in entries if not isinstance(entry, str | bool))
    except (TypeError, ValueError):
        found = ()
    if not found or len(found) != len(tuple(entries)) or not all(map(isfinite, found)):
        raise OptionError(
            f"transform[{name!r}] is {value!r}; expected a finite number per channel, such as 0.5, 0.5, 0.5"
        )
    return found


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "size": _size,
    "resize": _resize,
    "mean": _numbers,
    "std": _numbers,
    "interpolation": lambda _, value: getattr(value, "value", value),
}


def from_torchvision(preset: Any) -> PictureTransform:
    """Read a classification preset of torchvision (`weights.transforms()`)."""
    return PictureTransform(
        size=_pair(preset.crop_size[0]),
        resize=preset.resize_size[0],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
    )


def from_timm(config: Mapping[str, Any]) -> PictureTransform | None:
    """Read a data config of timm, or return None if it adds borders, or crops a center that is not square."""
    height, width = config["input_size"][1:]
    resized = int(height / config["crop_pct"]), int(width / config["crop_pct"])
    if config["crop_mode"] == "border" or (config["crop_mode"] == "center" and resized[0] != resized[1]):
        return None
    return PictureTransform(
        size=(height, width),
        resize=resized if config["crop_mode"] == "squash" else resized[0],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
    )


def from_hugging_face(config: Mapping[str, Any]) -> PictureTransform | None:
    """Read an image processor's config (`to_dict()`), or return None if `PictureTransform` cannot express it."""
    sides = dict(config.get("size") or {})
    crop = dict(config.get("crop_size") or {}) if config.get("do_center_crop") else {}
    resize: int | tuple[int, int] | None
    if set(sides) == {"height", "width"}:
        resize = sides["height"], sides["width"]
        size = resize
    elif set(sides) == {"shortest_edge"}:
        shortest: int = sides["shortest_edge"]
        resize, size = shortest, _pair(shortest)
        if "crop_pct" in config:  # below 384 pixels such processors enlarge and crop, from 384 on they squash
            resize = int(shortest / config["crop_pct"]) if shortest < 384 else size
            crop = {"height": size[0], "width": size[1]}
        if not crop:
            return None
    else:
        return None
    if not all(config.get(f"do_{step}", True) for step in ("resize", "rescale")):
        return None
    normalize = config.get("do_normalize", True)
    return PictureTransform(
        size=(crop["height"], crop["width"]) if crop else size,
        resize=resize,
        mean=tuple(config["image_mean"]) if normalize else (0.0, 0.0, 0.0),
        std=tuple(config["image_std"]) if normalize else (1.0, 1.0, 1.0),
        interpolation=Image.Resampling(config["resample"]).name.lower(),
    )


def _pair(side: int | tuple[int, int]) -> tuple[int, int]:
    return (side, side) if isinstance(side, int) else (int(side[0]), int(side[1]))


IMAGENET = PictureTransform(resize=256)
"""The transform that most models trained on ImageNet expect: shorter side 256, center crop of 224."""
