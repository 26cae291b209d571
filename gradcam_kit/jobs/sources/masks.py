"""Masks of the objects in pictures, for metrics that score how well heatmaps find objects."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from jaxtyping import Bool
from PIL import Image

from gradcam_kit.errors import InputError, OptionError, PictureError, raise_interruption
from gradcam_kit.jobs.sources.index import Entry
from gradcam_kit.jobs.storage.addresses import is_remote
from gradcam_kit.jobs.storage.folders import opened
from gradcam_kit.transforms import Box, Transform

SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif")
"""File extensions of masks, without .jpg and .webp, because lossy compression blurs edges."""


@dataclass(frozen=True)
class Masks:
    """A folder of masks, each with the size and name of its picture, such as `a/1.png` for `a/1.jpg`.

    Every nonzero pixel belongs to the object. Its value may be a gray level, a color, or the index of a class or an
    instance. Masks are cropped and resized like the picture, but with nearest-neighbor interpolation.

    Raises:
        InputError: the folder does not exist.
    """

    folder: str

    def __post_init__(self) -> None:
        if not is_remote(self.folder) and not os.path.isdir(self.folder):
            raise InputError(f"the folder of masks {self.folder!r} does not exist")

    def check(self, transform: Transform) -> None:
        """Raise if a transform does not tell which part of a picture the model sees.

        Raises:
            OptionError: the transform has no method `box`.
        """
        if not getattr(transform, "knows_box", True):
            raise OptionError(
                "the model's transform does not tell which part of a picture the model sees, so masks "
                "cannot be placed; "
                "give it a method box(height, width) -> (x0, y0, x1, y1)"
            )

    def check_pictures(self, entries: Iterable[Entry]) -> None:
        """Raise if the folder holds the pictures themselves, so that each would be its own mask.

        Raises:
            InputError: the folder of masks is the folder of the pictures.
        """
        for entry in entries:
            if os.path.abspath(entry.path) == os.path.join(self.origin, entry.key):
                raise InputError(f"{self.folder!r} is the folder of the pictures; give the folder of their masks")

    @property
    def origin(self) -> str:
        """The absolute path of the folder, or its address on remote storage."""
        return self.folder if is_remote(self.folder) else os.path.abspath(self.folder)

    def has(self, key: str) -> bool:
        """Whether a file with the mask of a picture exists, even if it cannot be read."""
        return any(self._opens(name) for name in _names(key))

    def of(self, key: str, size: tuple[int, int], box: Box, shape: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
        """Return the mask of the part of a picture that the model sees; padding does not belong to the object.

        Args:
            key: the path of the picture, relative to the common folder.
            size: height and width of the picture.
            box: the part of the picture that the model sees.
            shape: height and width of the model's input.

        Raises:
            PictureError: the mask is missing, cannot be read, or differs from the picture in size.
        """
        mask = self._read(key)
        if mask.shape != size:
            (height, width), (own_height, own_width) = size, mask.shape
            raise PictureError(
                f"the mask is {own_width} x {own_height}, but its picture is {width} x {height}; expected equal sizes"
            )
        x0, y0, x1, y1 = box
        rows, columns = _samples(y0, y1, shape[0]), _samples(x0, x1, shape[1])
        inside = np.outer((rows >= 0) & (rows < size[0]), (columns >= 0) & (columns < size[1]))
        nearest = np.ix_(rows.clip(0, size[0] - 1), columns.clip(0, size[1] - 1))
        return np.asarray(mask[nearest] & inside)

    def _read(self, key: str) -> Bool[np.ndarray, "height width"]:
        for mask in map(self._load, _names(key)):
            if mask is not None:
                return mask
        raise PictureError(f"there is no mask {' or '.join(_names(key))} in {self.folder!r}")

    def _load(self, name: str) -> Bool[np.ndarray, "height width"] | None:
        """Return the mask in a file; None if there is no such file."""
        try:
            with opened(self._path(name)) as file, Image.open(file) as image:
                return _object(image)
        except FileNotFoundError:
            return None
        except Exception as error:  # decoders raise all kinds of exceptions for damaged files
            raise_interruption(error)
            raise PictureError(f"cannot read the mask {name}: {error}") from error

    def _path(self, name: str) -> str:
        return f"{self.folder.rstrip('/')}/{name}"

    def _opens(self, name: str) -> bool:
        try:
            with opened(self._path(name)):
                return True
        except FileNotFoundError:
            return False
        except (OSError, PictureError) as error:  # the file exists; reading it will raise the error
            raise_interruption(error)
            return True


def _names(key: str) -> list[str]:
    """Return the possible file names of a picture's mask, in all Unicode forms of accented letters."""
    stem = str(PurePosixPath(key).with_suffix(""))
    stems = dict.fromkeys([stem, *(unicodedata.normalize(form, stem) for form in ("NFC", "NFD"))])
    return [f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES]


def _object(image: Image.Image) -> Bool[np.ndarray, "height width"]:
    """Return where a mask is not 0, regardless of its opacity."""
    values = np.asarray(image)
    if image.mode in ("LA", "PA", "RGBA"):
        values = values[..., :-1]
    found = np.asarray(values if values.ndim == 2 else values.any(-1), dtype=bool)
    if image.mode == "P" and (found != np.asarray(image.convert("RGB")).any(-1)).any():
        raise PictureError(
            "its palette has a color other than black at index 0, or black at another index; save it as a gray image"
        )
    return found


def _samples(start: float, end: float, count: int) -> np.ndarray:
    """Return the indices of the pixels at the centers of `count` equal parts between start and end."""
    places: np.ndarray = np.floor(start + (np.arange(count) + 0.5) * (end - start) / count).astype(int)
    return places
