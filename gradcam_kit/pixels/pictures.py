"""Convert pictures of every layout and type to uint8 RGB, and write files in the format of their suffix."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from PIL import Image
from torch import Tensor

from gradcam_kit.errors import InputError, PictureError, ShapeError, kind_of, raise_interruption
from gradcam_kit.pixels.opencv import cv2

Array = Shaped[np.ndarray, "..."] | Tensor
"""Values of a picture or a heatmap: uint8 in 0..255 or floating-point values in [0, 1], on any device."""

Picture = Array | Image.Image
"""One picture: `(h, w)`, `(h, w, c)` or `(c, h, w)` with 1, 3 or 4 channels, or a PIL image of any mode."""

RGB = UInt8[np.ndarray, "h w 3"]

_JPEG_QUALITY, _JPEG_SUFFIXES = 92, (".jpg", ".jpeg")
_BAND = 2**22  # number of pixels that are converted at once
_BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # TIFF tags; PHOTOMETRIC is 0 if the value 0 is white
_CHANNELS = (3, 1, 4)  # sizes by which the channel axis is recognized, in order of preference


def rgb_picture(picture: Picture) -> RGB:
    """Turn one picture into uint8 RGB by the rules of `rgb_pictures`. The result may share the picture's memory.

    Raises:
        ShapeError: there are several pictures, or no axis of 1, 3 or 4 channels.
        InputError: the picture is not an array, a tensor or a PIL image, or its values are neither uint8 nor floating
            point.
        PictureError: values are NaN or outside [0, 1], or the mode cannot be converted to RGB.
    """
    return packed(rgb_pictures(batch_of_one(picture))[0].cpu())


def batch_of_one(picture: Picture) -> Tensor:
    """Give one picture a batch axis, so that `rgb_pictures` reads a leading 1 or 3 as channels, not as pictures."""
    values = tensor_of(_unpacked(picture) if isinstance(picture, Image.Image) else picture, "a picture")
    if values.ndim not in (2, 3):
        raise ShapeError(
            f"one picture has the shape (h, w), (h, w, c) or (c, h, w), not {tuple(values.shape)}; "
            "index the batch for one of its pictures, or call overlays() for all of them"
        )
    return values[None]


def rgb_pictures(pictures: Array) -> UInt8[Tensor, "n h w 3"]:
    """Turn a batch of pictures into uint8 RGB, on the batch's own device.

    Args:
        pictures: `(n, h, w)`, `(n, h, w, c)` or `(n, c, h, w)`. The channels are the last or the first axis of a
            picture, whichever has size 3, else 1, else 4; the last if both do, so `(3, h, 3)` is `(h, w, c)`. A
            fourth channel is opacity and is dropped, because a model sees the color under it. Floating-point values are
            rounded to the nearest of the 256 levels.

    Raises:
        ShapeError: the pictures have no axis of 1, 3 or 4 channels, or no pixels.
        InputError: the pictures are neither an array nor a tensor, or their values are neither uint8 nor floating
            point.
        PictureError: values are NaN or outside [0, 1].
    """
    return as_rgb(channels_last(tensor_of(pictures, "pictures")))


def channels_last(values: Tensor) -> Shaped[Tensor, "n h w c"]:
    """View pictures with 1 or 3 channels last, by the rules of `rgb_pictures`."""
    if gray := values.ndim == 3:
        values = values[..., None]
    shape = tuple(values.shape[1:])
    if values.ndim != 4 or 0 in shape:
        raise ShapeError(
            f"expected pictures of shape (n, h, w), (n, h, w, c) or (n, c, h, w), got {tuple(values.shape)}"
        )
    axes = (3,) if gray else (3, 1)
    axis = next((axis for size in _CHANNELS for axis in axes if values.shape[axis] == size), None)
    if axis is None:
        raise ShapeError(
            f"a picture of shape {shape} has no axis for the channels: expected 3 (RGB), 1 (gray) or 4 (RGBA) first or "
            "last; if it has another number of channels, select 1 or 3 of them by indexing"
        )
    return values.movedim(axis, 3)[..., :3]


def as_rgb(values: Shaped[Tensor, "n h w c"]) -> UInt8[Tensor, "n h w 3"]:
    """Turn the values of pictures with 1 or 3 channels into uint8 RGB, by the rules of `rgb_pictures`."""
    if values.dtype != torch.uint8:
        values = levels_of(values, "a picture").round_().to(torch.uint8)
    return values.expand(-1, -1, -1, 3)


def packed(rgb: UInt8[Tensor, "h w 3"]) -> RGB:
    """Return one picture on the host in OpenCV's memory layout, without a copy if it already has this layout."""
    if rgb.stride(2) == 1:
        return np.ascontiguousarray(rgb.numpy())
    return cv2.merge([np.ascontiguousarray(plane.numpy()) for plane in rgb.unbind(2)])  # 10 times as fast as NumPy


def tensor_of(values: Array, what: str) -> Tensor:
    """Return uint8 or floating-point values as a tensor, without a copy if possible; `what` names them in errors.

    Raises:
        InputError: the value is neither an array nor a tensor, or its entries are neither uint8 nor floating point.
    """
    if not isinstance(values, np.ndarray | Tensor):
        raise InputError(f"{what} cannot be {kind_of(values)}; expected a NumPy array or a tensor")
    if isinstance(values, np.ndarray):
        if values.dtype.kind == "f":
            values = values.astype(np.float32, copy=False)
        if values.dtype in (np.uint8, np.float32):
            # Tensors share memory only with writable arrays of positive strides.
            return torch.from_numpy(np.require(values, requirements=["C", "W"]))
    elif values.dtype == torch.uint8 or values.is_floating_point():
        return values.detach()
    remedy = "divide 16-bit values by 65535" if str(values.dtype).endswith("uint16") else "cast levels to uint8"
    raise InputError(f"{what} cannot be {values.dtype}; expected uint8 in 0..255 or floats in [0, 1]: {remedy}")


def levels_of(values: Tensor, what: str) -> Float[Tensor, "*shape"]:
    """Scale values to the levels 0 to 255 of uint8, as unrounded float32 in new memory.

    Raises:
        PictureError: floating-point values are NaN, or outside [0, 1] by more than half a level.
    """
    if values.dtype == torch.uint8:
        return values.float()
    levels = values.float() * 255
    if levels.numel():
        # amin() and amax() do not copy the values, but aminmax() would if the channels came first.
        lowest, highest = torch.stack([levels.amin(), levels.amax()]).cpu().tolist()
        if not (lowest >= -0.5 and highest <= 255.5):  # this is False for NaN too
            found = "NaN" if lowest != lowest else f"values from {lowest / 255:.4g} to {highest / 255:.4g}"
            raise PictureError(
                f"{what} holds {found}; floats must be in [0, 1]: divide by 255, or undo the model's normalization"
            )
    return levels.clamp_(0, 255)


def _unpacked(image: Image.Image) -> Shaped[np.ndarray, "h w *c"]:
    """Return the values of a PIL image: RGB, except for gray modes of more than 8 bits, which PIL would clip."""
    white_is_zero = getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0  # PIL applies this tag only up to 8 bits
    if image.mode == "F":
        floats = with_white(_in_host_order(np.asarray(image)))
        return 1 - floats if white_is_zero else floats
    if image.mode.startswith("I"):  # PIL gives 16-bit files as I or I;16
        values, bits = np.asarray(image), _bits_of(image)
        if bits > 16 or (not bits and 0 < values.max() < 256) or not 0 <= values.min() <= values.max() < 65536:
            raise no_white(values)
        high = (values >> (bits or 16) - 8).astype(np.uint8)  # the high byte, which PIL also uses for 16-bit colors
        return ~high if white_is_zero else high
    try:
        return _converted(image)
    except ValueError as error:
        raise PictureError(f"a picture of mode {image.mode} cannot become RGB: {error}; convert it first") from error


def _in_host_order(values: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Undo PIL's double byte swap of compressed big-endian floats, which leaves values that no real picture has."""
    swapped = values.byteswap()
    with np.errstate(invalid="ignore"):
        is_garbage = (values.any() and not values.max() > 1e-30) or not (values.min() >= 0 and values.max() <= 1)
        return swapped if is_garbage and swapped.min() >= 0 and 1e-3 < swapped.max() <= 1 else values


def _converted(image: Image.Image) -> RGB:
    """Convert a PIL image to RGB band by band, because PIL makes several copies of what it converts."""
    rgb = np.empty((image.height, image.width, 3), np.uint8)
    step = _BAND // max(1, image.width) or 1
    for top in range(0, image.height, step):
        bottom = min(top + step, image.height)
        is_whole = bottom - top == image.height
        band = image if is_whole else image.crop((0, top, image.width, bottom))
        if band.mode in ("P", "PA", "La"):
            band = band.convert("LA" if band.mode == "La" else "RGBA")
        rgb[top:bottom] = np.asarray(band.convert("RGB"))
    return rgb


def _bits_of(image: Image.Image) -> int:
    """Return the bits per value of a gray picture of more than 8 bits, or 0 if unknown, as for arrays in memory."""
    tags = getattr(image, "tag_v2", {})
    if _BITS_PER_SAMPLE in tags:
        return int(tags[_BITS_PER_SAMPLE][0])
    if image.mode != "I" or image.format in ("PNG", "PPM"):
        return 16
    return 32 if image.format else 0


def sixteen_bits(image: Image.Image) -> bool:
    """Whether an open picture has 16 bits per channel, even if PIL reads it with 8."""
    if image.mode.startswith("I"):
        return _bits_of(image) == 16
    return any("16" in str(arguments) for _, _, _, arguments in getattr(image, "tile", ()))


def with_white(values: np.ndarray) -> np.ndarray:
    """Return floating-point values if they are in [0, 1] up to half a level (1/510), else raise PictureError."""
    if not -0.5 <= values.min() * 255 <= values.max() * 255 <= 255.5:  # this is False for NaN too
        raise no_white(values)
    return values


def no_white(values: np.ndarray) -> PictureError:
    """Return the error for pixels of unknown scale, because a guess could give black or white pictures."""
    return PictureError(
        f"its {values.dtype} values, from {values.min():g} to {values.max():g}, do not tell which value is "
        "white; save it with 8 or 16 bits per channel, or as floats from 0 to 1"
    )


def encode_picture(picture: Picture, suffix: str) -> bytes:
    """Encode a picture in the format that the suffix (".png", ".jpg", ...) names. JPEG has quality 92.

    Raises:
        PictureError: the suffix does not name a format, or the format cannot hold the picture.
    """
    bgr = cv2.cvtColor(rgb_picture(picture), cv2.COLOR_RGB2BGR)
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if suffix.lower() in _JPEG_SUFFIXES else []
    try:
        done, encoded = cv2.imencode(suffix, bgr, options)
    except (cv2.error, UnicodeError) as error:
        raise PictureError(f"no format for the suffix {suffix!r}; use .jpg, .png, .webp or .tif") from error
    if not done:
        raise PictureError(f"{suffix} cannot hold a picture of shape {bgr.shape}")
    return encoded.tobytes()


def write_picture(path: str | PathLike[str], picture: Picture) -> None:
    """Write a picture in the format that the suffix of the path names. JPEG has quality 92.

    Raises:
        PictureError: the suffix does not name a format, or the file cannot be written.
    """
    path = Path(path)
    try:
        # Encode in memory and let Python write the file, because Python accepts every file name on every system.
        encoded = encode_picture(picture, path.suffix)
    except PictureError as error:
        raise_interruption(error)
        raise PictureError(f"cannot write {str(path)!r}: {error}") from error
    try:
        path.write_bytes(encoded)
    except OSError as error:
        raise_interruption(error)
        raise PictureError(f"cannot write {str(path)!r}: {error.strerror}") from error
