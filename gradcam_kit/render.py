"""Render heatmaps on pictures as uint8 RGB: colors, overlays, contact sheets. Brightness is never rescaled."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, SupportsFloat

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from gradcam_kit.errors import OptionError, ShapeError, UnknownNameError, did_you_mean
from gradcam_kit.foreign import says_what_it_is_here
from gradcam_kit.functional import move
from gradcam_kit.pixels.opencv import cv2
from gradcam_kit.pixels.outlines import outline, read_outlines
from gradcam_kit.pixels.painting import blended_on_device, blended_on_host, colored, exact_share
from gradcam_kit.pixels.pictures import RGB, Array, Picture, as_rgb, batch_of_one, channels_last, rgb_picture, tensor_of
from gradcam_kit.pixels.placement import Boxes, places

_PREFIX = "COLORMAP_"

COLORMAPS: tuple[str, ...] = tuple(name[len(_PREFIX) :].lower() for name in dir(cv2) if name.startswith(_PREFIX))
"""Names of all colormaps of OpenCV."""

Row = Iterable[Picture | None]
"""Pictures of one row of a contact sheet; None leaves a cell empty."""

_INK, _GRAY, _WHITE = (24, 24, 24), (90, 90, 90), (255, 255, 255)
_SPELLED = str.maketrans({"→": "->", "←": "<-", "×": "x", "−": "-", "–": "-", "—": "-", "≤": "<=", "≥": ">="})


@lru_cache
def colormap_table(name: str) -> UInt8[np.ndarray, "256 3"]:
    """Return a read-only table of the RGB colors of the levels 0 to 255.

    Raises:
        UnknownNameError: the name is not one of `COLORMAPS`.
    """
    if name not in COLORMAPS:
        # OpenCV numbers its colormaps, and other libraries accept the numbers.
        numbered = [known for known in COLORMAPS if name == getattr(cv2, _PREFIX + known.upper())]
        nearest = f"; in gradcam_kit: {numbered[0]!r}" if numbered else did_you_mean(str(name).lower(), COLORMAPS)
        raise UnknownNameError(f"no colormap {name!r}{nearest or '; known are ' + ', '.join(COLORMAPS)}")
    levels = np.arange(256, dtype=np.uint8)[:, None]
    bgr = cv2.applyColorMap(levels, getattr(cv2, _PREFIX + name.upper()))
    table = np.ascontiguousarray(bgr[:, 0, ::-1])
    table.flags.writeable = False
    return table


def colorize(heatmaps: Array, colormap: str = "jet") -> UInt8[np.ndarray, "*n h w 3"]:
    """Color heatmaps at their own size without a picture, with the nearest of 256 colors for each value.

    Args:
        heatmaps: `(h, w)` or `(n, h, w)`, in [0, 1] or uint8.
        colormap: one of `COLORMAPS`.

    Raises:
        UnknownNameError, InputError, PictureError: see `overlay`.
    """
    return colored(tensor_of(heatmaps, "a heatmap"), colormap_table(colormap))


@says_what_it_is_here
def overlay(
    picture: Picture,
    heatmap: Array,
    *,
    box: Boxes | None = None,
    outlines: Boxes | None = None,
    colormap: str = "jet",
    alpha: SupportsFloat = 0.5,
) -> RGB:
    """Overlay a heatmap on a picture: $(1 - alpha) picture + alpha colors$, rounded to the nearest level.

    Args:
        picture: `(h, w)`, `(h, w, c)` or `(c, h, w)` with 1, 3 or 4 channels, as an array, tensor or PIL image. Values
            are uint8, or floating-point numbers in [0, 1]. The channels are the last or the first axis, whichever has
            size 3, else 1, else 4; if both axes have this size, the last axis. A fourth channel (opacity) is dropped.
        heatmap: `(h, w)` of any size, resized linearly to the box; floating-point values in [0, 1], or uint8.
        box: `(x0, y0, x1, y1)`, the part of the picture that the model saw, in the picture's pixels, as returned by
            `transform.box(height, width)` and stored in the rows of a run. The rest of the picture is dimmed; parts of
            the box beyond the picture are padding and are cut off. None = the full picture, which is wrong after a
            center crop.
        outlines: boxes to mark, `(4,)` or `(b, 4)`, in the picture's pixels, such as the explained detection.
        colormap: one of `COLORMAPS`.
        alpha: opacity of the heatmap, in [0, 1]: 0 gives the picture, 1 the colors of the heatmap. It is rounded to a
            multiple of 2^-15, for which the blend is exact.

    Raises:
        ShapeError: there are several pictures or heatmaps (call `overlays` for these), no axis has 1, 3 or 4 channels,
            or a box does not consist of four numbers.
        InputError: values are neither uint8 nor floating point.
        PictureError: values are NaN or outside [0, 1].
        OptionError: `alpha` is outside [0, 1], or a box has no area or lies outside the picture.
        UnknownNameError: the colormap is unknown.
    """
    values = tensor_of(heatmap, "a heatmap")
    if values.ndim != 2:
        raise ShapeError(
            f"heatmap has shape {tuple(values.shape)}; expected (h, w). Index one heatmap, or call overlays() for all"
        )
    marked = None if outlines is None else [outlines]
    painted = overlays(batch_of_one(picture), values[None], boxes=box, outlines=marked, colormap=colormap, alpha=alpha)
    return np.asarray(painted[0])


@says_what_it_is_here
def overlays(
    pictures: Array,
    heatmaps: Array,
    *,
    boxes: Boxes | None = None,
    outlines: Sequence[Boxes | None] | None = None,
    colormap: str = "jet",
    alpha: SupportsFloat = 0.5,
) -> UInt8[np.ndarray, "n h w 3"]:
    """Overlay heatmaps on pictures. This runs on the heatmaps' device, and copies the finished bytes to the host once.

    Args:
        pictures: `(n, h, w)`, `(n, h, w, c)` or `(n, c, h, w)`; layouts and values as in `overlay`.
        heatmaps: `(n, h, w)` of any size; values as in `overlay`.
        boxes: one box for all pictures, or one for each, `(n, 4)`; as in `overlay`.
        outlines: boxes to mark, an entry for each picture: None, `(4,)` or `(b, 4)`.
        colormap: one of `COLORMAPS`.
        alpha: opacity of the heatmaps, in [0, 1].

    Returns:
        The same bytes as `overlay` for each pair.

    Raises:
        ShapeError: as for `overlay`, or the numbers of pictures and heatmaps differ.
        InputError, PictureError, OptionError, UnknownNameError: as for `overlay`.
    """
    share = float(alpha)
    if not 0 <= share <= 1:
        raise OptionError(
            f"alpha is {alpha}; expected the opacity of the heatmap, from 0 (only the picture) to 1 (only the heatmap)"
        )
    maps = tensor_of(heatmaps, "heatmaps")
    if maps.ndim != 3 or 0 in maps.shape[1:]:
        raise ShapeError(f"expected heatmaps of shape (n, h, w), got {tuple(maps.shape)}; index or flatten other axes")
    values = channels_last(tensor_of(pictures, "pictures"))
    if len(values) != len(maps):
        raise ShapeError(f"{len(values)} pictures and {len(maps)} heatmaps; expected one heatmap for each picture")
    if values.device != maps.device:
        values = move(as_rgb(values), maps.device)
    n, height, width, _ = values.shape
    where = places((0, 0, width, height) if boxes is None else boxes, n, (height, width))
    if outlines is not None and len(outlines) != n:
        raise ShapeError(f"outlines has length {len(outlines)}; expected {n}, one entry for each picture")
    marked = [None if one is None else read_outlines(one, (height, width)) for one in outlines or ()]
    blended = blended_on_host if maps.device.type == "cpu" else blended_on_device
    painted = blended(values, maps, where, colormap_table(colormap), exact_share(share))
    for canvas, own in zip(painted, marked, strict=False):
        if own is not None:
            outline(canvas, own)
    return painted


def contact_sheet(
    pictures: Iterable[Row] | Row,
    *,
    columns: int | None = None,
    titles: Sequence[str] | Sequence[Sequence[str]] | None = None,
    column_titles: Sequence[str] | None = None,
    row_titles: Sequence[str] | None = None,
    cell_size: int = 224,
    margin: int = 12,
    font_size: int = 15,
) -> RGB:
    """Arrange pictures in a grid on a white background, each resized to its cell without a change of aspect ratio.

    Args:
        pictures: rows of pictures, or a flat list for one row or for rows of `columns` pictures; None leaves a cell
            empty. A batch `(n, ...)` with four axes is a row.
        columns: number of pictures in a row, for a flat list of pictures.
        titles: a title above each picture, nested like the pictures.
        column_titles: a title above each column.
        row_titles: a title to the left of each row.
        cell_size: length of the longer side of every picture, in pixels; a row is as high as its tallest picture.
        margin: white space between and around the cells, in pixels.
        font_size: size of the font, in pixels. Long texts are shortened with an ellipsis, accents are dropped, and
            letters missing in the font become question marks.

    Raises:
        ShapeError: there are no pictures, or the number of titles is wrong.
        OptionError: `columns` is given for rows of pictures, a size is below 1, or the margin is negative.
        InputError, PictureError, ShapeError: a picture cannot be rendered, see `overlay`.
    """
    if min(cell_size, font_size, 1 if columns is None else columns) < 1 or margin < 0:
        raise OptionError(
            f"{cell_size=}, {font_size=}, {columns=}, {margin=}; expected at least 1, and at least 0 for the margin"
        )
    entries: list[Any] = list(pictures)
    nested = any(isinstance(entry, Sequence) or getattr(entry, "ndim", 0) == 4 for entry in entries)
    if nested and columns is not None:
        raise OptionError(f"{columns=} for nested pictures; leave it out, or pass the pictures as a flat list")
    columns = columns or len(entries) or 1
    rows = _rows(entries, columns, nested)
    width = max(map(len, rows), default=0)
    if width == 0:
        raise ShapeError("no pictures for the contact sheet; expected at least one")
    _require_one_each("rows of titles" if nested else "titles", titles, len(entries))
    _require_one_each("column_titles", column_titles, width)
    _require_one_each("row_titles", row_titles, len(rows))
    names = None if titles is None else _rows(list(titles), columns, nested)
    for i, row in enumerate(rows):
        _require_one_each(f"titles in row {i}", names and names[i], len(row))

    cells = [[None if picture is None else _fitted(rgb_picture(picture), cell_size) for picture in row] for row in rows]
    heights = [max((len(cell) for cell in row if cell is not None), default=cell_size) for row in cells]
    writer = _Writer(font_size)
    band = writer.line if titles is not None else 0
    widest = max(cell_size, 12 * font_size)
    left = margin + min(widest, max(map(writer.width, row_titles))) if row_titles is not None else 0
    top = writer.line if column_titles is not None else 0
    step = cell_size + margin
    tops = list(accumulate((band + height + margin for height in heights), initial=margin + top))
    sheet = Image.new("RGB", (margin + left + width * step, tops[-1]), _WHITE)
    draw = ImageDraw.Draw(sheet)

    for j, title in enumerate(column_titles or ()):
        center = margin + left + j * step + cell_size // 2
        writer.write(draw, title, (center, margin + writer.line // 2), cell_size, _INK, "mm")
    for i, row in enumerate(cells):
        y = tops[i] + band
        if row_titles is not None:
            writer.write(draw, row_titles[i], (left, y + heights[i] // 2), left - margin, _INK, "rm")
        for j, cell in enumerate(row):
            x = margin + left + j * step
            if names is not None:
                writer.write(draw, names[i][j], (x + cell_size // 2, y - band // 2), cell_size, _GRAY, "mm")
            if cell is not None:
                offset = ((cell_size - cell.shape[1]) // 2, (heights[i] - cell.shape[0]) // 2)
                sheet.paste(Image.fromarray(cell), (x + offset[0], y + offset[1]))
    return np.array(sheet)


def _rows(entries: list[Any], columns: int, nested: bool) -> list[list[Any]]:
    if nested:
        return [list(row) for row in entries]
    return [entries[start : start + columns] for start in range(0, len(entries), columns)]


def _require_one_each(what: str, titles: Sequence[Any] | None, expected: int) -> None:
    if titles is not None and len(titles) != expected:
        raise ShapeError(f"got {len(titles)} {what}; expected {expected}")


def _fitted(rgb: RGB, size: int) -> UInt8[np.ndarray, "height width 3"]:
    """Scale a picture to the largest size that fits into a square cell."""
    height, width = rgb.shape[:2]
    scale = size / max(height, width)
    wanted = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(rgb, wanted, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


class _Writer:
    """Renders single lines of text with the font included in PIL."""

    def __init__(self, size: int) -> None:
        self.font = ImageFont.load_default(size)
        self.line = round(1.6 * size)
        self.unknown = bytes(self.font.getmask("\uffff"))

    def printable(self, text: str) -> str:
        """Return the text without accents, and with question marks for characters missing in the font."""
        known = unicodedata.normalize("NFD", " ".join(text.split()).translate(_SPELLED))
        return "".join(
            letter if letter == " " or bytes(self.font.getmask(letter)) != self.unknown else "?"
            for letter in known
            if not unicodedata.combining(letter)
        )

    def width(self, text: str) -> int:
        """Return the width of the full text in pixels."""
        return math.ceil(self.font.getlength(self.printable(text)))

    def write(
        self, draw: ImageDraw.ImageDraw, text: str, at: tuple[int, int], width: int, color: Any, anchor: str
    ) -> None:
        """Render the text, shortened with an ellipsis if it is wider than `width` pixels."""
        text = shown = self.printable(text[: 2 * width])  # more letters cannot fit, as each is wider than half a pixel
        while shown and self.font.getlength(shown) > width:
            text = text[:-1]
            shown = text.rstrip() + "…" if text else ""
        draw.text(at, shown, fill=color, font=self.font, anchor=anchor)
