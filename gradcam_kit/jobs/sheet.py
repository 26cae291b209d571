"""A grid of methods side by side, one row per picture and target."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from gradcam_kit.errors import PictureError
from gradcam_kit.jobs.decode import batches, decode, read_entry
from gradcam_kit.jobs.explainer import Batch, Explained, Explainer, is_request_error
from gradcam_kit.jobs.index import Entry, index_pictures
from gradcam_kit.jobs.overlays import overlay_at
from gradcam_kit.jobs.pipeline import normalizations
from gradcam_kit.jobs.request import ModelRequest, RunSummary
from gradcam_kit.jobs.rows import Row, enlarged
from gradcam_kit.jobs.setup import make_explainer
from gradcam_kit.jobs.store import counted
from gradcam_kit.pictures import RGB, write_picture
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
    entries = [entry for source in request.sources for entry in index_pictures(source, str(request.out))]
    explainer = make_explainer(request, request.methods, entries, console)
    rows: list[Row] = []
    cells: list[list[RGB]] = []
    titles: list[list[str]] = []
    names: list[str] = []
    for explained in _explained(explainer, entries, request.batch_size):
        rows.extend(explained.rows)
        if explained.rows[0]["status"] != "ok":
            continue
        for rank, (drawn, title) in enumerate(_drawn(explainer, explained)):
            cells.append(drawn)
            titles.append([title, *[""] * len(explainer.cams)])
            names.append(explained.entry.key if rank == 0 else "")
    counts = counted(rows)
    if not cells:
        raise PictureError(f"no picture could be explained: {counts.problems[0]}")
    request.out.parent.mkdir(parents=True, exist_ok=True)
    grid = contact_sheet(cells, titles=titles, column_titles=["picture", *explainer.names], row_titles=names)
    write_picture(request.out, grid)
    seconds = time.monotonic() - start
    return RunSummary(str(request.out), counts.pictures, counts.failed, counts.problems, seconds)


def _explained(explainer: Explainer, entries: list[Entry], batch_size: int) -> Iterator[Explained]:
    verified = False
    for some in batches(entries, batch_size):
        found = list(explainer.explain(Batch([decode(entry, explainer.loaded.transform) for entry in some])))
        if not verified and (error := is_request_error(found)):
            raise explainer.blame(error)
        verified = verified or any(explained.reached_model for explained in found)
        yield from found


def _drawn(explainer: Explainer, explained: Explained) -> Iterator[tuple[list[RGB], str]]:
    """Per target the picture followed by its overlays, and a title."""
    image = Image.fromarray(read_entry(explained.entry))
    image.thumbnail((_LARGEST, _LARGEST))
    picture = np.asarray(image)
    box = explainer.loaded.transform.box(*picture.shape[:2])
    known = normalizations(explainer)
    by_rank: dict[int, list[Row]] = {}
    for row in explained.rows:
        by_rank.setdefault(row["rank"], []).append(row)
    for rows in by_rank.values():
        drawn = (overlay_at(picture, enlarged(row, known[row["method"]]).clip(0, 1), box) for row in rows)
        yield [picture, *drawn], _title(rows[0])


def _title(row: dict[str, object]) -> str:
    named = row["target_name"] or row["target"]
    return "" if named is None else f"{named}, {row['score']:.0%}"
