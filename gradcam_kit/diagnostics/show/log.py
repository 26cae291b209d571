"""Read the output of a `JsonWriter` while it is still writing, in constant memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from gradcam_kit.diagnostics.writers.files import JSON_NAME
from gradcam_kit.errors import InputError

_MOST_POINTS = 2000
_MOST_HISTOGRAMS = 100
_MOST_IMAGES = 200
_MOST_BYTES = 2**26
"""Maximum number of bytes of a file read at once."""


class Log:
    """The records in the folder of a `JsonWriter`; `update` reads new records.

    Args:
        folder: folder of a `JsonWriter`; it may still be empty.

    Attributes:
        scalars: name -> (step, value) pairs in the order of writing; beyond 2,000, every second pair is dropped.
        histograms: name -> (step, edges, counts); beyond 100, every second histogram is dropped.
        images: name -> (step, path relative to the folder); beyond 200, every second image is dropped.
        tables: name -> rows of the last table with this name.
        unread: number of lines that are not valid records of a `JsonWriter`.

    Raises:
        InputError: the folder does not exist.
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"there is no folder {str(self.folder)!r}; pass the folder of a JsonWriter")
        self._restart()

    def _restart(self) -> None:
        self.scalars: dict[str, list[tuple[int, float | None]]] = {}
        self.histograms: dict[str, list[tuple[int, list[float], list[int]]]] = {}
        self.images: dict[str, list[tuple[int, str]]] = {}
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self.unread = 0
        self._offset = 0

    def update(self) -> bool:
        """Read new lines, and return whether there were any."""
        path = self.folder / JSON_NAME
        if not path.is_file():
            return False
        if path.stat().st_size < self._offset:  # the file was replaced by a new one
            self._restart()
        changed = False
        while True:
            with path.open("rb") as stream:
                stream.seek(self._offset)
                block = stream.read(_MOST_BYTES)
            # The last line may be incomplete; it is read once it is complete.
            whole = block[: block.rfind(b"\n") + 1]
            if not whole:
                return changed
            self._offset += len(whole)
            changed = True
            for line in whole.splitlines():
                self._take(line)

    def picture(self, path: str) -> bytes | None:
        """Return the bytes of a PNG file by its relative path; None if it is not a file inside the folder."""
        target = (self.folder / path).resolve()
        is_inside = target.is_relative_to(self.folder.resolve()) and target.suffix == ".png"
        return target.read_bytes() if is_inside and target.is_file() else None

    def _take(self, text: bytes) -> None:
        try:
            line = json.loads(text)
            kind, name, step = line["kind"], str(line["name"]), int(line["step"])
            if kind == "scalar":
                value = line["value"]
                _add(self.scalars, name, (step, None if value is None else float(value)), _MOST_POINTS)
            elif kind == "histogram":
                edges, counts = [float(one) for one in line["edges"]], [int(one) for one in line["counts"]]
                if len(edges) != len(counts) + 1:
                    raise ValueError("edges")
                _add(self.histograms, name, (step, edges, counts), _MOST_HISTOGRAMS)
            elif kind == "image":
                _add(self.images, name, (step, str(line["path"])), _MOST_IMAGES)
            elif kind == "table":
                self.tables[name] = [dict(row) for row in line["rows"] if isinstance(row, Mapping)]
            else:
                self.unread += 1
        except (ValueError, TypeError, KeyError):
            self.unread += 1


def _add(series: dict[str, list[Any]], name: str, entry: Any, most: int) -> None:
    own = series.setdefault(name, [])
    if own and own[-1][0] == entry[0]:  # a resumed training run may log the same step again
        own.pop()
    own.append(entry)
    if len(own) > most:
        series[name] = [*own[:-1:2], own[-1]]
