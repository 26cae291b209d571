"""Write comparisons to a file: a page, a table, one picture or a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gradcam_kit.comparison.document import render_document
from gradcam_kit.comparison.gallery import COLUMNS, render_figure, render_sheet
from gradcam_kit.errors import PictureError
from gradcam_kit.pixels.pictures import encode_picture, write_picture
from gradcam_kit.tables import csv_text

if TYPE_CHECKING:
    from gradcam_kit.comparison.record import Comparison

_DOCUMENTS = (".html", ".htm", ".csv", ".pdf", ".svg")


def write_comparisons(path: Path, comparisons: Sequence[Comparison], columns: int = COLUMNS) -> None:
    """Write several comparisons to one file as `Comparison.save` does, and create its folder if it is missing.

    Raises:
        PictureError: an unknown suffix, or a path that cannot be written to.
        MissingExtraError: .pdf or .svg, and matplotlib is not installed.
    """
    check_ending(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, comparisons, columns)
    except OSError as error:
        raise PictureError(f"cannot write {str(path)!r}: {error.strerror or error}") from error


def _write(path: Path, comparisons: Sequence[Comparison], columns: int) -> None:
    match path.suffix.lower():
        case ".html" | ".htm":
            path.write_text(render_document(comparisons), encoding="utf-8")
        case ".csv":
            rows = [row for one in comparisons for row in one.rows()]
            names = dict.fromkeys(name for row in rows for name in row)
            path.write_bytes(csv_text(names, rows).encode("utf-8", "backslashreplace"))
        case ".pdf" | ".svg":
            render_figure([panel for one in comparisons for panel in one.panels()], columns).savefig(path)
        case _:
            write_picture(path, render_sheet([panel for one in comparisons for panel in one.panels()], columns))


def check_ending(path: Path) -> None:
    """Check before the work starts that comparisons can be written in the format of this path.

    Raises:
        PictureError: an unknown suffix.
    """
    if path.suffix.lower() not in _DOCUMENTS:
        try:
            encode_picture(np.zeros((1, 1, 3), np.uint8), path.suffix)
        except PictureError as error:
            raise PictureError(f"{error}. A comparison can also be written as {', '.join(_DOCUMENTS)}") from error
