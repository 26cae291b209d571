"""Write files in one folder: CSV for spreadsheets, JSON lines for programs and for the dashboard."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, SupportsFloat, SupportsInt

from gradcam_kit.diagnostics.writers.protocol import compact, picture_of
from gradcam_kit.errors import InputError
from gradcam_kit.tables import csv_text

JSON_NAME = "diagnostics.jsonl"
"""Name of the file that `JsonWriter` appends to and the dashboard reads."""
_MOST_BINS = 256


class _FolderWriter:
    """Holds the folder, and writes pictures into it."""

    def __init__(self, folder: str | PathLike[str]) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder} is a file; expected a folder to write to")
        self.folder.mkdir(parents=True, exist_ok=True)

    def _picture(self, name: object, hwc: Any, step: SupportsInt) -> Path:
        """Write a picture, and return its path relative to the folder."""
        from gradcam_kit.pixels.pictures import encode_picture

        path = Path("images") / file_name(name, step, ".png")
        self._write(path, encode_picture(picture_of(hwc), ".png"))
        return path

    def _write(self, path: Path, content: bytes) -> None:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)

    def close(self) -> None:
        """Do nothing, because every line is already on disk."""


class CsvWriter(_FolderWriter):
    """Write `scalars.csv`, `histograms.csv`, tables and pictures into a folder, for spreadsheets.

    Lines are appended as they come, so a training run that ends early keeps its results. Text is escaped so that
    spreadsheets do not read it as a formula.

    Args:
        folder: output folder, created if missing; nothing outside it is written.

    Raises:
        InputError: `folder` is a file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     CsvWriter(folder).scalar("loss", 0.5, 1)
        ...     Path(folder, "scalars.csv").read_text().splitlines()
        ['name,value,step', 'loss,0.5,1']
    """

    def scalar(self, name: object, value: SupportsFloat, step: SupportsInt) -> None:
        """Append a row to `scalars.csv`; NaN is an empty cell."""
        self._append("scalars.csv", ("name", "value", "step"), [(str(name), float(value), int(step))])

    def histogram(self, name: object, edges: Any, counts: Any, step: SupportsInt) -> None:
        """Append one row per non-empty bin to `histograms.csv`."""
        limits, filled = compact(edges, counts, _MOST_BINS)
        rows = [
            (str(name), int(step), float(left), float(right), int(count))
            for left, right, count in zip(limits, limits[1:], filled, strict=False)
            if count
        ]
        self._append("histograms.csv", ("name", "step", "left", "right", "count"), rows)

    def image(self, name: object, hwc: Any, step: SupportsInt) -> None:
        """Write `images/<name>-<step>.png`."""
        self._picture(name, hwc, step)

    def table(self, name: object, rows: Iterable[Mapping[str, Any]], step: SupportsInt) -> None:
        """Write `tables/<name>-<step>.csv`."""
        rows = [dict(row) for row in rows]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        self._write(Path("tables") / file_name(name, step, ".csv"), csv_text(columns, rows).encode())

    def _append(self, file: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
        text = csv_text(columns, [dict(zip(columns, row, strict=True)) for row in rows])
        path = self.folder / file
        if path.exists() and path.stat().st_size:
            text = text.partition("\r\n")[2]
        with path.open("a", encoding="utf-8", newline="") as stream:
            stream.write(text)


class JsonWriter(_FolderWriter):
    """Append each record as a line of JSON to `diagnostics.jsonl`; pictures are PNG files in `images/`.

    Each line is strict JSON with "kind" ("scalar", "histogram", "image" or "table"), "name" and "step"; NaN and
    infinite numbers are null. `dashboard(folder)` shows the records during training.

    Args:
        folder: output folder, created if missing; nothing outside it is written. A resumed training run appends to
            the same file.

    Raises:
        InputError: `folder` is a file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     JsonWriter(folder).scalar("loss", 0.5, 1)
        ...     Path(folder, "diagnostics.jsonl").read_text()
        '{"kind": "scalar", "name": "loss", "step": 1, "value": 0.5}\\n'
    """

    def scalar(self, name: object, value: SupportsFloat, step: SupportsInt) -> None:
        """Append one number."""
        self._line("scalar", name, step, value=float(value))

    def histogram(self, name: object, edges: Any, counts: Any, step: SupportsInt) -> None:
        """Append the non-empty range of a histogram, in at most 256 bins."""
        limits, filled = compact(edges, counts, _MOST_BINS)
        self._line("histogram", name, step, edges=limits.tolist(), counts=filled.tolist())

    def image(self, name: object, hwc: Any, step: SupportsInt) -> None:
        """Write a PNG file, and append its path relative to the folder."""
        self._line("image", name, step, path=self._picture(name, hwc, step).as_posix())

    def table(self, name: object, rows: Iterable[Mapping[str, Any]], step: SupportsInt) -> None:
        """Append all rows in one line."""
        self._line("table", name, step, rows=[dict(row) for row in rows])

    def _line(self, kind: str, name: object, step: SupportsInt, **content: Any) -> None:
        line = {"kind": kind, "name": str(name), "step": int(step), **content}
        text = json.dumps(strict(line), allow_nan=False, default=str)
        # One write per line, so that concurrent readers see only complete lines, except perhaps the last one.
        with (self.folder / JSON_NAME).open("a", encoding="utf-8") as stream:
            stream.write(text + "\n")


def file_name(name: object, step: SupportsInt, suffix: str) -> str:
    """Return a file name without separators or leading dots; changed names get a hash that keeps them distinct.

    Example:
        >>> file_name("maps", 20, ".png")
        'maps-00000020.png'
    """
    text = str(name)
    clean = re.sub(r"[^A-Za-z0-9_.-]", "_", text).lstrip(".-")[:80] or "unnamed"
    if clean != text:
        clean += "-" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{clean}-{int(step):08d}{suffix}"


def strict(value: Any) -> Any:
    """Return a value for strict JSON: None for NaN and infinity, lists for arrays."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): strict(own) for key, own in value.items()}
    if isinstance(value, tuple | list):
        return [strict(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
