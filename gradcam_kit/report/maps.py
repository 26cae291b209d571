"""Encode small heatmaps for the report of a run, limited in total size."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np
from jaxtyping import Float

from gradcam_kit.jobs.storage.rows import Row, heatmap_of
from gradcam_kit.pixels.opencv import cv2

FINEST, _COARSEST = 32, 7  # height and width of heatmaps on the page, if there are few and if there are many
_BYTES = 16_000_000  # total bytes for the heatmaps of all pictures on the page


def side_of(maps: int) -> int:
    """Return the maximum height and width of heatmaps on a page with this number of heatmaps."""
    return max(_COARSEST, min(FINEST, math.isqrt(_BYTES * 3 // 4 // max(maps, 1))))


def shown_map(row: Row, finest: int) -> dict[str, Any]:
    """Return the data of a heatmap for the page; its height and width are at most `finest`."""
    stored = heatmap_of(row)
    size = min(stored.shape[0], finest), min(stored.shape[1], finest)
    target = row["target_name"] if row["target_name"] is not None else row["target"]
    return {
        "method": row["method"],
        "target": None if target is None else str(target),
        "score": rounded(row["score"]),
        "empty": row["is_empty"],
        "size": list(size),
        "values": packed(resized(stored, size)),
    }


def rounded(score: float | None) -> float | None:
    """Return a score with four decimals for the page; None if it is not finite, because JSON has no infinity."""
    return round(score, 4) if score is not None and math.isfinite(score) else None


def resized(heatmap: np.ndarray, size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    """Resize a heatmap, by area averaging if it shrinks, else by linear interpolation."""
    values = heatmap.astype(np.float32)
    if values.shape == size:
        return values
    shrinks = values.shape[0] >= size[0] and values.shape[1] >= size[1]
    smaller: np.ndarray = cv2.resize(values, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return smaller


def packed(values: np.ndarray) -> str:
    """Return values in [0, 1] as bytes in base64."""
    return base64.b64encode(np.rint(values.clip(0, 1) * 255).astype(np.uint8).tobytes()).decode()
