"""The interface of writers, and their common parts: clean names, compact histograms, pictures as uint8 RGB."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8

from gradcam_kit.errors import ShapeError

_LONGEST = 120


@runtime_checkable
class Writer(Protocol):
    """Receives the records of a training run; any object with these methods is a writer.

    A writer that raises is dropped with one warning, and training continues. Names may be any text; the writers of
    this package clean names, and never raise because of a name.

    Example:
        >>> class Printer:
        ...     def scalar(self, name, value, step):
        ...         print(name, value, step)
        ...     def histogram(self, name, edges, counts, step): ...
        ...     def image(self, name, hwc, step): ...
        ...     def table(self, name, rows, step): ...
        ...     def close(self): ...
        >>> isinstance(Printer(), Writer)
        True
    """

    def scalar(self, name: str, value: float, step: int) -> None:
        """Receive one number, which may be NaN or infinite."""

    def histogram(self, name: str, edges: Sequence[float], counts: Sequence[int], step: int) -> None:
        """Receive counts between increasing edges: `len(edges) == len(counts) + 1`."""

    def image(self, name: str, hwc: Any, step: int) -> None:
        """Receive one picture `(h, w, c)`: uint8, or floating point in [0, 1]."""

    def table(self, name: str, rows: Iterable[Mapping[str, Any]], step: int) -> None:
        """Receive rows with the same keys."""

    def close(self) -> None:
        """Flush pending records, and release resources."""


def clean_name(name: object) -> str:
    """Return a name that every service and file system accepts: letters, digits, `_`, `-`, `.`, spaces and `/`.

    Example:
        >>> clean_name("../layer:1/weight?")
        'layer_1/weight_'
    """
    text = re.sub(r"[^A-Za-z0-9_./ -]", "_", str(name))[:_LONGEST]
    parts = [part.strip(" ") for part in text.split("/")]
    # Services refuse parts such as "." and "..", and reserve names that begin with "_".
    return "/".join(part for part in parts if part.strip(".")).lstrip("_./ ").rstrip("/ ") or "unnamed"


def compact(edges: Any, counts: Any, most: int) -> tuple[Any, Any]:
    """Return a histogram without its empty ends, with neighbors merged until at most `most` bins are left."""
    edges, counts = np.asarray(edges, dtype=np.float64), np.asarray(counts, dtype=np.int64)
    if len(edges) != len(counts) + 1:
        raise ShapeError(f"there are {len(edges)} edges and {len(counts)} counts; expected one more edge than counts")
    filled = np.flatnonzero(counts)
    if not len(filled):
        return np.array([0.0, 1.0]), np.zeros(1, dtype=np.int64)
    first, last = int(filled[0]), int(filled[-1]) + 1
    edges, counts = edges[first : last + 1], counts[first:last]
    size = math.ceil(len(counts) / most)
    starts = np.arange(0, len(counts), size)
    return np.append(edges[starts], edges[-1]), np.add.reduceat(counts, starts)


def picture_of(hwc: Any) -> UInt8[np.ndarray, "h w 3"]:
    """Return a picture `(h, w)` or `(h, w, c)` with 1, 3 or 4 channels as uint8 RGB; the alpha channel is dropped.

    Raises:
        ShapeError: a picture with other axes or channels.
        PictureError: floating-point values that are NaN or outside [0, 1].
    """
    from gradcam_kit.pixels.pictures import as_rgb, tensor_of

    values = tensor_of(hwc, "a picture") if isinstance(hwc, torch.Tensor) else tensor_of(np.asarray(hwc), "a picture")
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[2] not in (1, 3, 4) or 0 in values.shape:
        raise ShapeError(f"a picture has shape {tuple(values.shape)}; expected (h, w) or (h, w, c) with c = 1, 3 or 4")
    return np.ascontiguousarray(as_rgb(values.cpu()[None, ..., :3])[0].numpy())
