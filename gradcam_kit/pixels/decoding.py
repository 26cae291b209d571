"""Read picture files in any format of PIL or OpenCV, upright and complete, or raise an error with the reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import SEEK_END
from os import PathLike
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from gradcam_kit.errors import PictureError, raise_interruption
from gradcam_kit.pixels.opencv import cv2
from gradcam_kit.pixels.pictures import PHOTOMETRIC, RGB, no_white, rgb_picture, sixteen_bits, with_white

_LARGEST_UNKNOWN = 2**28  # maximum size in bytes of a file that PIL does not know
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Maps each EXIF orientation to the operation that turns the picture upright."""
_TWELVE_BITS = 15  # the largest high byte of a 12-bit value that is stored in 16 bits


def read_picture(path: str | PathLike[str]) -> RGB:
    """Read the first frame of a complete picture file as RGB, turned upright by its EXIF orientation.

    16-bit values are scaled to 8 bits, opacity is dropped, and gray, palettes and CMYK become RGB.

    Raises:
        PictureError: the file does not exist, is not a picture, or is truncated.
    """
    try:
        with open(path, "rb") as file:
            return decode_picture(file)
    except OSError as error:
        raise_interruption(error)
        raise PictureError(f"cannot read the picture {str(path)!r}: {error.strerror or error}") from error
    except PictureError as error:
        raise PictureError(f"cannot read the picture {str(path)!r}: {error}") from error


def decode_picture(file: Any, admit: Callable[[int], object] | None = None) -> RGB:
    """Read a picture as `read_picture` does, from an open binary file or a file-like object.

    Args:
        file: the file.
        admit: called before memory is allocated, with the number of pixels in the file's header (0 = unknown).

    Raises:
        PictureError: the file is not a picture or is truncated; the message has only the reason, because the file has
            no name.
    """
    try:
        with _truncation_refused(), Image.open(file) as image:
            if image.format == "EPS":
                raise PictureError("PostScript files are programs and are not run")
            if admit is not None:
                admit(image.width * image.height)
            turn_upright(image)
            return rgb_picture(image)
    except UnidentifiedImageError:
        return _decoded_by_opencv(file, admit)
    except PictureError:
        raise
    except Exception as error:  # decoders raise all kinds of exceptions for damaged files
        raise_interruption(error)
        raise PictureError(f"{type(error).__name__}: {error}") from error


def turn_upright(image: Image.Image) -> None:
    """Turn an open picture upright by its EXIF orientation, in place.

    The EXIF data is only read. `ImageOps.exif_transpose` would write it again, which fails for tags whose types do not
    match the standard. Unreadable EXIF data is ignored.
    """
    image.load()
    with suppress(Exception):  # damaged EXIF raises all kinds of exceptions
        turn = _TURNS.get(_whole(image.getexif().get(ExifTags.Base.Orientation)))
        if turn is not None:
            image.im = image.im.transpose(turn)
            image._size = image.im.size


def _whole(value: Any) -> int:
    """Read an EXIF value of any type as an orientation from 2 to 8, or return 0 for any other value."""
    if isinstance(value, tuple | list) and len(value) == 1:
        [value] = value
    if isinstance(value, bytes):
        value = value.strip(b"\0 ").decode("latin-1")
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return 0
    return int(number) if number in _TURNS else 0


def looks_like_twelve_bits(file: Any) -> bool:
    """Whether the largest value of a 16-bit picture is in 256..4095, as if it held unscaled 12-bit values."""
    try:
        with Image.open(file) as image:
            if not sixteen_bits(image):
                return False
            levels = rgb_picture(image)
            tags = getattr(image, "tag_v2", {})
    except Exception as error:  # `decode_picture` reports the errors of unreadable files
        raise_interruption(error)
        return False
    if tags.get(PHOTOMETRIC) == 0:
        levels = 255 - levels
    return bool(0 < levels.max() <= _TWELVE_BITS)


def _decoded_by_opencv(file: Any, admit: Callable[[int], object] | None) -> RGB:
    """Decode formats that only OpenCV knows, such as Radiance files, whose brightness above 1 is clipped."""
    size = file.seek(0, SEEK_END)
    if size == 0:
        raise PictureError("the file is empty")
    file.seek(0)
    is_tiff = file.read(2) in (b"II", b"MM")
    white_is_zero = is_tiff and _tags(file).get(PHOTOMETRIC) == 0
    pixels, most = None, 2 * (Image.MAX_IMAGE_PIXELS or _LARGEST_UNKNOWN)
    if (claimed := _claimed_pixels(file)) > most:
        raise PictureError(f"it claims to have {claimed} pixels, but at most {most} are read")
    if admit is not None:
        admit(claimed)
    if size <= _LARGEST_UNKNOWN:
        file.seek(0)
        with suppress(cv2.error):
            pixels = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR)
    if pixels is None:
        raise PictureError("not a picture of a known format")
    if pixels.dtype == np.uint16:
        pixels = pixels / np.float32(65535)
    if pixels.dtype != np.uint8:
        if pixels.dtype.kind != "f":
            raise no_white(pixels)
        pixels = pixels.astype(np.float32)
        pixels = with_white(pixels) if is_tiff else pixels.clip(0, 1)
        if white_is_zero:  # OpenCV applies this tag only to 8-bit pictures
            pixels = 1 - pixels
    return rgb_picture(pixels[..., ::-1])


def _claimed_pixels(file: Any) -> int:
    """Return the number of pixels in the header of a file that PIL does not know, or 0 for an unknown header.

    Without a check of this number, OpenCV would allocate memory for up to a billion pixels.
    """
    file.seek(0)
    head = file.read(4096)
    if radiance := re.search(rb"^#\?.*?\n[-+][XY] (\d{1,9}) [-+][XY] (\d{1,9})\n", head, re.DOTALL):
        return int(radiance[1]) * int(radiance[2])
    with suppress(Exception):  # damaged numbers may raise any exception
        tags = _tags(file)
        return int(tags[256]) * int(tags[257])
    return 0


def _tags(file: Any) -> dict[int, Any]:
    """Return the tags of a TIFF file, or an empty dict for other or damaged files."""
    with suppress(Exception):  # a damaged directory may raise any exception
        file.seek(0)
        head = file.read(16)
        tags = TiffImagePlugin.ImageFileDirectory_v2(head[: 16 if head[2:3] == b"+" else 8])
        file.seek(tags.next)
        tags.load(file)
        return dict(tags)
    return {}


@contextmanager
def _truncation_refused() -> Iterator[None]:
    """Refuse truncated files, even if other code has told PIL to fill them with gray."""
    tolerated = ImageFile.LOAD_TRUNCATED_IMAGES
    if tolerated:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        if tolerated:
            ImageFile.LOAD_TRUNCATED_IMAGES = True
