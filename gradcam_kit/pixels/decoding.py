"""Files of pictures: read upright and whole, whatever their format, or refused with the reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import SEEK_END
from os import PathLike
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError

from gradcam_kit.errors import PictureError
from gradcam_kit.pixels.opencv import cv2
from gradcam_kit.pixels.pictures import RGB, no_white, rgb_picture, with_white

_LARGEST_UNKNOWN = 2**28  # bytes of a file that PIL does not know and OpenCV may


def read_picture(path: str | PathLike[str]) -> RGB:
    """Read a picture file whole, upright (EXIF), as RGB; of several frames the first.

    16 bit is scaled to 8, opacity is dropped, gray, palettes and CMYK become RGB.

    Raises:
        PictureError: no such file, not a picture, or cut short.
    """
    try:
        with open(path, "rb") as file:
            return decode_picture(file)
    except OSError as error:
        raise PictureError(f"cannot read the picture {str(path)!r}: {error.strerror or error}") from error
    except PictureError as error:
        raise PictureError(f"cannot read the picture {str(path)!r}: {error}") from error


def decode_picture(file: Any, admit: Callable[[int], object] | None = None) -> RGB:
    """`read_picture` for an open binary file, or whatever can be read and sought like one.

    Args:
        file: the file.
        admit: told the number of pixels, as far as the head of the file tells it, before there is room for them.

    Raises:
        PictureError: not a picture, or cut short; the message says only the reason, because the file has no name.
    """
    try:
        with _truncation_refused(), Image.open(file) as image:
            if image.format == "EPS":
                raise PictureError("PostScript is a program, and is not run")
            if admit is not None:
                admit(image.width * image.height)
            ImageOps.exif_transpose(image, in_place=True)
            return rgb_picture(image)
    except UnidentifiedImageError:
        return _decoded_by_opencv(file, admit)
    except PictureError:
        raise
    except Exception as error:  # decoders of damaged files raise anything
        raise PictureError(f"{type(error).__name__}: {error}") from error


def _decoded_by_opencv(file: Any, admit: Callable[[int], object] | None) -> RGB:
    """What only OpenCV knows, such as Radiance files, of which brightness above 1 is clipped."""
    size = file.seek(0, SEEK_END)
    if size == 0:
        raise PictureError("the file is empty")
    file.seek(0)
    is_tiff = file.read(2) in (b"II", b"MM")
    pixels, most = None, 2 * (Image.MAX_IMAGE_PIXELS or _LARGEST_UNKNOWN)
    if (claimed := _claimed_pixels(file)) > most:
        raise PictureError(f"it claims to have {claimed} pixels, and more than {most} are not read")
    if admit is not None:
        admit(claimed)
    if size <= _LARGEST_UNKNOWN:
        file.seek(0)
        with suppress(cv2.error):
            pixels = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR)
    if pixels is None:
        raise PictureError("no picture of a known format")
    if pixels.dtype == np.uint16:
        pixels = pixels / np.float32(65535)
    if pixels.dtype != np.uint8:
        if pixels.dtype.kind != "f":
            raise no_white(pixels)
        pixels = pixels.astype(np.float32)
        pixels = with_white(pixels) if is_tiff else pixels.clip(0, 1)
    return rgb_picture(pixels[..., ::-1])


def _claimed_pixels(file: Any) -> int:
    """How many pixels the head of a file promises that PIL does not know; 0 if it is not understood.

    OpenCV would make room for up to a billion of them.
    """
    file.seek(0)
    head = file.read(4096)
    if radiance := re.search(rb"^#\?.*?\n[-+][XY] (\d{1,9}) [-+][XY] (\d{1,9})\n", head, re.DOTALL):
        return int(radiance[1]) * int(radiance[2])
    with suppress(Exception):  # whatever a damaged directory makes it raise
        tags = TiffImagePlugin.ImageFileDirectory_v2(head[: 16 if head[2:3] == b"+" else 8])
        file.seek(tags.next)
        tags.load(file)
        return int(tags[256]) * int(tags[257])
    return 0


@contextmanager
def _truncation_refused() -> Iterator[None]:
    """Refuse files cut short, also where other code has told PIL to fill them up with gray."""
    tolerated = ImageFile.LOAD_TRUNCATED_IMAGES
    if tolerated:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        if tolerated:
            ImageFile.LOAD_TRUNCATED_IMAGES = True
