"""A grid of methods side by side, one row per picture and target."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from gradcam_kit.errors import PictureError
from gradcam_kit.jobs.explainer import Explained, Explainer
from gradcam_kit.jobs.index import index_pictures
from gradcam_kit.jobs.overlays import overlay_at
from gradcam_kit.jobs.request import ModelRequest, Problems, RunSummary
from gradcam_kit.jobs.setup import make_explainer
from gradcam_kit.pictures import RGB, read_picture, write_picture
from gradcam_kit.render import contact_sheet

_LARGEST = 448  # pixels; cells of the sheet are smaller


@dataclass(frozen=True)
class SheetRequest(ModelRequest):
    """Methods to be drawn side by side.

    Attributes:
        sources: pictures, folders, globs or list files.
        out: the picture to write.
        methods: names in `METHODS`; none = all that need a single pass and suit the model.
    """

    sources: tuple[str, ...] = ()
    out: Path = Path("methods.png")
    methods: tuple[str, ...] = ()


def draw_sheet(request: SheetRequest, console: Console | None = None) -> RunSummary:
    """Explain pictures with several methods and draw all into one picture; pictures that fail are left out.

    Raises:
        GradCamKitError: the request is wrong, or no picture could be explained.
    """
    start = time.monotonic()
    entries = [entry for source in request.sources for entry in index_pictures(source, exclude=request.out)]
    explainer = make_explainer(request, request.methods, entries, console)
    problems = Problems()
    cells: list[list[RGB]] = []
    titles: list[list[str]] = []
    names: list[str] = []
    for explained in explainer.stream(entries, workers=1, batch_size=request.batch_size):
        key = explained.entry.key
        if explained.error is not None:
            problems.add(key, explained.error)
            continue
        for rank, drawn in enumerate(_drawn(explainer, explained)):
            rows = [row for row in explained.rows if row["method"] == explainer.cams[0].name]
            cells.append(drawn)
            titles.append([_title(rows[rank]), *[""] * len(explainer.cams)])
            names.append(key if rank == 0 else "")
    if not cells:
        raise PictureError(f"no picture could be explained: {problems.first[0]}")
    columns = ["picture", *(cam.name for cam in explainer.cams)]
    request.out.parent.mkdir(parents=True, exist_ok=True)
    write_picture(request.out, contact_sheet(cells, titles=titles, column_titles=columns, row_titles=names))
    return problems.summary(request.out, len(entries), time.monotonic() - start)


def _drawn(explainer: Explainer, explained: Explained) -> list[list[RGB]]:
    """Per target the picture followed by its overlays."""
    image = Image.fromarray(read_picture(explained.entry.path))
    image.thumbnail((_LARGEST, _LARGEST))
    picture = np.asarray(image)
    box = explainer.loaded.transform.box(*picture.shape[:2])
    columns = explained.heatmaps().values()
    return [[picture, *(overlay_at(picture, heatmap, box) for heatmap in row)] for row in zip(*columns, strict=True)]


def _title(row: dict[str, object]) -> str:
    named = row["target_name"] or row["target"]
    return "" if named is None else f"{named}, {row['score']:.0%}"
