"""The rows of a run: their columns and heatmaps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Float16

from gradcam_kit.errors import InputError
from gradcam_kit.functional import Normalization, normalize, upsample
from gradcam_kit.methods import BaseCAM

SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("method", pa.string(), nullable=False),
        pa.field("layer", pa.string()),
        pa.field("target", pa.int32()),
        pa.field("target_name", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("label", pa.string()),
        pa.field("is_empty", pa.bool_()),
        pa.field("heatmap", pa.binary()),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("box", pa.list_(pa.float64(), 4)),
        pa.field("rank", pa.int32()),
        pa.field("predicted", pa.int32()),
        pa.field("predicted_name", pa.string()),
        pa.field("correct", pa.bool_()),
        pa.field("top_targets", pa.list_(pa.int32())),
        pa.field("top_names", pa.list_(pa.string())),
        pa.field("top_scores", pa.list_(pa.float32())),
        pa.field("picture_height", pa.int32()),
        pa.field("picture_width", pa.int32()),
        pa.field("input_height", pa.int32()),
        pa.field("input_width", pa.int32()),
    ]
)
"""One row per picture and method (and target, if there are several; `rank` counts them from 0).

`heatmap` is little-endian float16 `(height, width)` in [0, 1], row by row, over the part `box` of the picture; with
several layers it has the resolution of the finest, and `layer` joins their names with `+`. `correct` tells whether
`predicted` is the class that `label` names; it is null if the label names no class, or if the model has fewer than two
classes. `top_*` are the best classes, at most five.
`run.json` names the kind of `score` and `top_scores`: softmax or sigmoid of the outputs, or the unchanged outputs. A
row with the status "error" has no heatmap. A row with the status "ok" and an `error` lacks its overlay or its metrics,
for the reason in `error`.
"""

Row = dict[str, Any]


def method_name(cam: BaseCAM) -> str:
    """Return the name of a method in rows and overlays."""
    return cam.name or type(cam).__name__


def heatmap_of(row: Mapping[str, Any]) -> Float16[np.ndarray, "h w"]:
    """Return the stored heatmap of a row, at the layer's resolution.

    Raises:
        InputError: the number of bytes does not match height and width.
    """
    content, size = row["heatmap"] or b"", (row["height"] or 0, row["width"] or 0)
    if min(size) < 1 or len(content) != 2 * size[0] * size[1]:
        raise InputError(
            f"the row of {row.get('path')!r} by {row.get('method')!r} has {len(content)} bytes for a heatmap of "
            f"{size[0]} x {size[1]}; expected {2 * size[0] * size[1]}"
        )
    return np.frombuffer(content, "<f2").reshape(size)


def enlarged(row: Mapping[str, Any], normalization: Normalization = "minmax") -> Float[np.ndarray, "h w"]:
    """Return a heatmap at the size of the model's input; for one layer, the method's map up to float16 rounding."""
    maps = torch.from_numpy(heatmap_of(row).astype(np.float32))[None]
    size = row["input_height"], row["input_width"]
    return normalize(upsample(maps, size), normalization)[0].numpy()
