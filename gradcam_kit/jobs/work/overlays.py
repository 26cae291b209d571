"""Render heatmaps onto full pictures, on the part that the model saw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from gradcam_kit.errors import raise_interruption
from gradcam_kit.functional import Normalization
from gradcam_kit.jobs.request import one_line
from gradcam_kit.jobs.sources.index import Entry
from gradcam_kit.jobs.sources.reading import picture_of
from gradcam_kit.jobs.storage.folders import is_full
from gradcam_kit.jobs.storage.rows import Row, enlarged
from gradcam_kit.jobs.storage.store import Store
from gradcam_kit.pixels.pictures import encode_picture
from gradcam_kit.render import overlay
from gradcam_kit.transforms import Picture


def overlay_of(row: Mapping[str, Any], picture: Picture, normalization: Normalization = "minmax") -> Picture:
    """Return the picture of a row with its heatmap on it."""
    x0, y0, x1, y1 = row["box"]
    return overlay(picture, enlarged(row, normalization).clip(0, 1), box=(x0, y0, x1, y1))


def render_overlays(
    store: Store, entry: Entry, rows: Sequence[Row], normalization: Mapping[str, Normalization]
) -> None:
    """Render and write the overlays of one picture; if one cannot be written, all rows of the picture get the reason.

    Args:
        store: folder of the run.
        entry: the picture.
        rows: the rows of the picture.
        normalization: how each method normalizes its heatmaps.

    Raises:
        OptionError: nothing can be written, because the disk is full or read-only.
    """
    try:
        with picture_of(entry) as picture:  # read again, because full-size pictures would fill the memory
            for row in rows:
                name = store.overlay_name(entry.key, row["method"], row["rank"])
                store.folder.put(name, encode_picture(overlay_of(row, picture, normalization[row["method"]]), ".jpg"))
    except Exception as error:  # one overlay must not end a run
        raise_interruption(error)
        if is_full(error):
            with store.named():
                raise
        mark_unrendered(rows, error)


def mark_unrendered(rows: Iterable[Row], error: Exception) -> None:
    """Set the error of all rows of a picture to the reason why an overlay cannot be written."""
    said = error.strerror or error if isinstance(error, OSError) else error
    for row in rows:
        row["error"] = one_line(f"{type(error).__name__}: the overlay cannot be written: {said}")


class Painter:
    """A context manager that renders overlays in threads while the model runs, with a short queue of pictures."""

    def __init__(self, store: Store, workers: int, normalization: Mapping[str, Normalization]) -> None:
        self._store = store
        self._normalization = normalization
        self._pool = ThreadPoolExecutor(workers)
        self._most = 4 * workers
        self._waiting: list[Future[None]] = []

    def add(self, entry: Entry, rows: Sequence[Row]) -> Future[None]:
        """Render the overlays of one picture; `rows` are complete when the future is done."""
        while self._waiting and (len(self._waiting) >= self._most or self._waiting[0].done()):
            self._waiting.pop(0).result()  # in order, so that the first failure is reported
        future = self._pool.submit(render_overlays, self._store, entry, rows, self._normalization)
        self._waiting.append(future)
        return future

    def __enter__(self) -> Painter:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
