"""Pictures of an explanation: an overlay, a sheet, a figure."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from gradcam_kit.errors import OptionError, ShapeError
from gradcam_kit.pixels.pictures import encode_picture, rgb_picture, write_picture
from gradcam_kit.render import colorize, contact_sheet, overlay

if TYPE_CHECKING:
    from gradcam_kit.methods.engine.explanation import Explanation

_log = logging.getLogger("gradcam_kit")
_DISTORTION = 1.02  # largest ratio of two aspect ratios whose difference is invisible


class RenderedPicture(np.ndarray):
    """A uint8 picture `(h, w, 3)` that can be saved and that notebooks display.

    Example:
        >>> from gradcam_kit import GradCAM
        >>> from gradcam_kit.demo import sample_pictures
        >>> from gradcam_kit.models import load_model
        >>> loaded, picture = load_model("demo"), sample_pictures()[0].picture
        >>> explanation = GradCAM(loaded.model).explain(loaded.transform(picture)[None])
        >>> explanation.overlay(picture).shape
        (128, 128, 3)
    """

    def save(self, path: str | PathLike[str]) -> None:
        """Write the picture in the format that the suffix of the path names.

        Raises:
            PictureError: a suffix that does not name a picture format, or a path that cannot be written to.
        """
        write_picture(path, np.asarray(self))

    def _repr_png_(self) -> bytes:
        return encode_picture(np.asarray(self), ".png")


def overlay_of(
    explanation: Explanation, picture: Any, image: int, target: int, transform: Any, box: Any, options: dict[str, Any]
) -> RenderedPicture:
    """Return the picture with one heatmap; see `Explanation.overlay`."""
    heatmap = one_map(explanation, image, target)
    rgb = rgb_picture(picture)
    height, width = rgb.shape[:2]
    if box is None and transform is not None:
        box = transform.box(height, width)
    elif box is None:
        factor = (width * heatmap.shape[0]) / (height * heatmap.shape[1])
        if max(factor, 1 / factor) > _DISTORTION:
            _log.warning(
                "The picture has %d x %d pixels and the heatmap %d x %d. The heatmap is stretched over the "
                "picture, which is wrong after a center crop; pass transform= or box=",
                width, height, heatmap.shape[1], heatmap.shape[0],
            )  # fmt: skip
    return overlay(rgb, heatmap, box=box, **options).view(RenderedPicture)


def sheet_of(explanation: Explanation, pictures: Sequence[Any] | None, transform: Any) -> RenderedPicture:
    """Return a sheet with a row for each image: its picture if given, then a map per target; see `Explanation.save`."""
    n, m = len(explanation.is_empty), explanation.is_empty[0].numel() if len(explanation.is_empty) else 0
    if pictures is not None and len(pictures) != n:
        raise ShapeError(f"{len(pictures)} pictures and {n} explained images; expected one picture for each image")
    rows = []
    for i in range(n):
        if pictures is None:
            rows.append([colorize(one_map(explanation, i, j)) for j in range(m)])
        else:
            shown = [overlay_of(explanation, pictures[i], i, j, transform, None, {}) for j in range(m)]
            rows.append([rgb_picture(pictures[i]), *map(np.asarray, shown)])
    return contact_sheet(rows).view(RenderedPicture)


def one_map(explanation: Explanation, image: int, target: int) -> Float[Tensor, "h w"]:
    """Return the heatmap of one image and target.

    Raises:
        OptionError: an image or a target that was not explained.
        ShapeError: maps of signals or volumes, which are not pictures.
    """
    maps = explanation.heatmaps
    maps = maps.reshape(len(maps), -1, *maps.shape[explanation.is_empty.ndim :])
    for what, index, count in (("image", image, maps.shape[0]), ("target", target, maps.shape[1])):
        if not -count <= index < count:
            raise OptionError(f"{what} is {index}; expected an index from {-count} to {count - 1}")
    if maps.ndim != 4:
        axes = maps.ndim - 2
        raise ShapeError(f"expected heatmaps with 2 position axes, as in a picture, not {axes}; plot or slice them")
    heatmap: Tensor = maps[image, target]
    return heatmap
