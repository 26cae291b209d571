"""Heatmaps put back onto the whole picture, at the part that the model saw."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np
from jaxtyping import Float

from gradcam_kit.jobs.index import Entry
from gradcam_kit.pictures import read_picture, write_picture
from gradcam_kit.render import overlay
from gradcam_kit.transforms import Box, Picture


def overlay_at(picture: Picture, heatmap: Float[np.ndarray, "h w"], box: Box) -> Picture:
    """Lay a heatmap on the part `box` of a picture, rounded to whole pixels, and dim the rest.

    Args:
        picture: as a person sees it.
        heatmap: over the box, in [0, 1], of any resolution.
        box: in the picture's pixels; what reaches beyond the picture is padding, and is cut off.
    """
    return overlay(picture, heatmap, box=box)


class OverlayWriter:
    """Draws and writes overlays in threads while the model runs; at most `2 * workers` pictures wait.

    Attributes:
        failures: pictures whose overlays could not be written, and why; complete after the `with` block.
    """

    def __init__(self, workers: int) -> None:
        self.failures: dict[Entry, Exception] = {}
        self._pool = ThreadPoolExecutor(workers)
        self._most = 2 * workers
        self._waiting: deque[tuple[Entry, Future[None]]] = deque()

    def add(self, entry: Entry, box: Box, heatmaps: Mapping[Path, Float[np.ndarray, "h w"]]) -> None:
        """Draw one picture with each heatmap, to the path that is its key."""
        while len(self._waiting) >= self._most:
            self._collect()
        self._waiting.append((entry, self._pool.submit(_write, entry, box, heatmaps)))

    def __enter__(self) -> OverlayWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        while self._waiting and kind is None:
            self._collect()
        self._pool.shutdown(cancel_futures=True)

    def _collect(self) -> None:
        entry, future = self._waiting.popleft()
        error = future.exception()
        if isinstance(error, Exception):
            self.failures[entry] = error


def _write(entry: Entry, box: Box, heatmaps: Mapping[Path, Float[np.ndarray, "h w"]]) -> None:
    picture = read_picture(entry.path)  # a second time, because pictures in full size would fill the memory
    for path, heatmap in heatmaps.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_picture(path, overlay_at(picture, heatmap, box))
