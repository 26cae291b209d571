"""From a picture to the model's input, and back: a transform knows which part of the picture the model saw."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from gradcam_kit.errors import InputError, OptionError, PictureError, ShapeError, UnknownNameError, did_you_mean
from gradcam_kit.functional import on_device

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Picture = UInt8[np.ndarray, "_ _ 3"]
Box = tuple[float, float, float, float]
"""`(x0, y0, x1, y1)` in the picture's pixels; it reaches beyond the picture where the model saw padding."""

MOST_PIXELS = 2**26
"""The largest resized picture; only one a thousand times longer than wide gets there."""

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


Prepared = UInt8[np.ndarray, "h w 3"] | Float[Tensor, "3 h w"]
"""A picture on its way to the model: all but the arithmetic that a whole batch shares is done."""


@runtime_checkable
class Transform(Protocol):
    """What a run asks of the way from a picture to the model's input.

    It has two halves, because the first is work for many processes and the second for the model's device.
    """

    def __call__(self, picture: Picture) -> Float[Tensor, "3 h w"]:
        """The model's input for one picture: both halves."""
        ...

    def prepare(self, picture: Picture) -> Prepared:
        """What is done to each picture alone."""
        ...

    def finish(self, batch: UInt8[Tensor, "n h w 3"] | Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        """What is done to a batch of prepared pictures, on the device on which it is."""
        ...

    def box(self, height: int, width: int) -> Box:
        """The part of a picture of this size that the model sees."""
        ...

    def describe(self) -> dict[str, Any]:
        """All that determines the numbers, as plain values."""
        ...


@dataclass(frozen=True)
class PictureTransform:
    """Resize with antialiasing, crop the center, scale to [0, 1], subtract `mean` and divide by `std`.

    Attributes:
        size: height and width of the model's input.
        resize: the shorter side before cropping (an int), an exact height and width, or None: exactly `size`.
        mean: per channel, in units of [0, 1].
        std: per channel, in units of [0, 1].
        interpolation: a name in `INTERPOLATIONS`.
    """

    size: tuple[int, int] = (224, 224)
    resize: int | tuple[int, int] | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            hint = did_you_mean(self.interpolation, INTERPOLATIONS)
            raise UnknownNameError(f"there is no interpolation {self.interpolation!r}{hint}")
        sides = [*self.size, *(_pair(self.resize) if self.resize is not None else ())]
        if len(self.size) != 2 or any(side < 1 for side in sides):
            raise OptionError(f"sizes are positive numbers of pixels, got size={self.size}, resize={self.resize}")
        if len(self.mean) != 3 or len(self.std) != 3 or any(value <= 0 for value in self.std):
            raise OptionError(f"mean and std are three numbers, std above 0; got {self.mean} and {self.std}")

    def __call__(self, picture: Picture) -> Float[Tensor, "3 h w"]:
        """Normalize the crop; equal to the evaluation transforms of torchvision and timm on a PIL image."""
        return self.finish(torch.from_numpy(self.prepare(picture))[None])[0]

    def finish(self, batch: UInt8[Tensor, "n h w 3"]) -> Float[Tensor, "n 3 h w"]:
        """Scale to [0, 1], subtract `mean`, divide by `std`."""
        pixels = batch.permute(0, 3, 1, 2).float().div_(255)
        mean, std = on_device(torch.tensor([self.mean, self.std]), batch.device)[..., None, None]
        return pixels.sub_(mean).div_(std)

    def box(self, height: int, width: int) -> Box:
        """The crop's corners, carried back through the resize."""
        (resized_h, resized_w), (top, left) = self._geometry(height, width)
        x, y = width / resized_w, height / resized_h
        return left * x, top * y, (left + self.size[1]) * x, (top + self.size[0]) * y

    def describe(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)

    def with_size(self, image_size: int) -> PictureTransform:
        """The same transform for a square input, its resize scaled in proportion."""
        scale = image_size / min(self.size)
        resize = self.resize
        if isinstance(resize, int):
            resize = round(resize * scale)
        elif resize is not None:
            resize = (round(resize[0] * scale), round(resize[1] * scale))
        return PictureTransform((image_size, image_size), resize, self.mean, self.std, self.interpolation)

    def _geometry(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Size of the whole picture after resizing; row and column at which the crop begins (negative: padding)."""
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

    def prepare(self, picture: Picture) -> Picture:
        """Resize, then crop; what lies outside of the picture is black."""
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise ShapeError(f"a picture is uint8 (height, width, 3), got {picture.dtype} {picture.shape}")
        height, width = picture.shape[:2]
        (resized_h, resized_w), (top, left) = self._geometry(height, width)
        if resized_h * resized_w > MOST_PIXELS:
            raise PictureError(
                f"{width} x {height} pixels are too thin: resized they would be {resized_w} x {resized_h}"
            )
        resized = Image.fromarray(picture).resize((resized_w, resized_h), INTERPOLATIONS[self.interpolation])
        return np.array(resized.crop((left, top, left + self.size[1], top + self.size[0])))


@dataclass(frozen=True)
class CallableTransform:
    """Any callable from a picture to a tensor `(3, h, w)`.

    The callable gets the picture as uint8 `(height, width, 3)`; one of torchvision gets a PIL image, as it expects.
    It may have a method `box(height, width)` that says which part of a picture it shows; else that is the whole.
    """

    function: Callable[[Any], Tensor]

    def __call__(self, picture: Picture) -> Float[Tensor, "3 h w"]:
        """Call the function and verify what it returns."""
        wants_pil = type(self.function).__module__.startswith("torchvision.")
        image = self.function(Image.fromarray(picture) if wants_pil else picture)
        if not isinstance(image, Tensor) or not image.is_floating_point() or image.ndim != 3:
            got = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            raise ShapeError(f"the model's transform returns {got}; a floating tensor (3, h, w) was expected")
        return image

    def prepare(self, picture: Picture) -> Float[Tensor, "3 h w"]:
        """All of it: nothing is known that a batch could share."""
        return self(picture)

    def finish(self, batch: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        """Nothing is left to do."""
        return batch

    @property
    def knows_box(self) -> bool:
        """Whether the callable says which part of a picture it shows."""
        return callable(getattr(self.function, "box", None))

    def box(self, height: int, width: int) -> Box:
        """What the callable says, else the whole picture."""
        if self.knows_box:
            x0, y0, x1, y1 = map(float, self.function.box(height, width))  # type: ignore[attr-defined]
            return x0, y0, x1, y1
        return 0.0, 0.0, float(width), float(height)

    def describe(self) -> dict[str, Any]:
        """The function's name, or its representation without the address of the object."""
        name = getattr(self.function, "__qualname__", None) or re.sub(r" at 0x\w+", "", repr(self.function))
        return {"callable": f"{getattr(self.function, '__module__', '')}:{name}"}


def as_transform(value: Transform | Mapping[str, Any] | Callable[[Any], Tensor]) -> Transform:
    """Read the `transform` that a model carries: one of this module, fields of `PictureTransform`, or a callable."""
    if isinstance(value, Transform):
        return value
    if isinstance(value, Mapping):
        known = [field.name for field in fields(PictureTransform)]
        for key in value:
            if key not in known:
                raise OptionError(f"transform has no field {key!r}; its fields are {', '.join(known)}")
        plain: dict[str, Any] = {
            key: tuple(entry) if isinstance(entry, list) else entry for key, entry in value.items()
        }
        return PictureTransform(**{**plain, "size": _pair(plain.get("size", 224))})
    if callable(value):
        return CallableTransform(value)
    raise InputError(f"a transform is a mapping or a callable from picture to tensor, got {type(value).__name__}")


def from_torchvision(preset: Any) -> PictureTransform:
    """Read a classification preset (`weights.transforms()`)."""
    return PictureTransform(
        size=_pair(preset.crop_size[0]),
        resize=preset.resize_size[0],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
    )


def from_timm(config: Mapping[str, Any]) -> PictureTransform | None:
    """Read a data config of timm; None when pictures are letterboxed or their shorter side fits no single number."""
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
    """Read an image processor's config (`to_dict()`); None when it says something that is not understood."""
    sides = dict(config.get("size") or {})
    crop = dict(config.get("crop_size") or {}) if config.get("do_center_crop") else {}
    resize: int | tuple[int, int] | None
    if set(sides) == {"height", "width"}:
        resize = sides["height"], sides["width"]
        size = resize
    elif set(sides) == {"shortest_edge"}:
        shortest: int = sides["shortest_edge"]
        resize, size = shortest, _pair(shortest)
        if "crop_pct" in config:  # below 384 such processors enlarge and crop, above they squash
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
"""Shorter side 256, center crop of 224: what most models trained on ImageNet expect."""
