"""The rows of a run: their columns, how they are made, and the heatmaps in them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Float16
from torch import Tensor

from gradcam_kit.capture import ClassProbability
from gradcam_kit.errors import GradCamKitError, InputError
from gradcam_kit.functional import Normalization, normalize, upsample
from gradcam_kit.jobs.sources.index import Entry
from gradcam_kit.jobs.sources.labels import Labels
from gradcam_kit.jobs.work.reader import Decoded
from gradcam_kit.methods import BaseCAM, Explanation
from gradcam_kit.targets.outputs import read_logits
from gradcam_kit.targets.scores import ScoreKind, class_scores

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
"""One row per picture and method (and target, where several are asked for; `rank` counts them from 0).

`heatmap` is little-endian float16 `(height, width)` in [0, 1], row by row, over the part `box` of the picture; with
several layers it has the resolution of the finest, and `layer` joins their names with `+`. `correct` says whether
`predicted` is the class that `label` names, and is null where it names none. `top_*` are the five best classes. What
`score` and `top_scores` are, run.json says: softmax or sigmoid of the outputs, or the outputs as they are. A row with
the status "error" has no heatmap; one with the status "ok" and an `error` lacks its overlay or its metrics, and says
why.
"""

Row = dict[str, Any]

_BEST = 5


def failed_rows(entry: Entry, labels: Labels, methods: Sequence[str], reason: str) -> list[Row]:
    """One row per method for a picture that cannot be explained."""
    return [{**_shared(entry, labels, method, "error"), "error": reason} for method in methods]


def method_name(cam: BaseCAM) -> str:
    """What rows and overlays call a method."""
    return cam.name or type(cam).__name__


def explained_rows(
    cam: BaseCAM,
    explanation: Explanation,
    group: Sequence[Decoded],
    labels: Labels,
    size: tuple[int, int],
    kind: ScoreKind | None = None,
) -> list[list[Row]]:
    """For each picture of a batch the rows of one method, one per target.

    Args:
        cam: the method.
        explanation: of the batch.
        group: its pictures.
        labels: what their labels mean.
        size: height and width of the model's input.
        kind: what the scores of classes are, see `class_scores`.
    """
    maps = _stored(cam, explanation)
    empty = explanation.is_empty.reshape(len(group), -1).tolist()
    unknown: list[list[Any]] = [[None] * maps.shape[1]] * len(group)
    classes, scores = unknown, unknown
    if explanation.targets is not None:
        probabilities = ClassProbability(explanation.targets, kind)(explanation.output)
        classes = explanation.targets.reshape(len(group), -1).tolist()
        scores = probabilities.reshape(len(group), -1).tolist()
    best, count = _best(explanation.output, len(group), kind)
    names = labels.names or ()
    found = []
    for i, one in enumerate(group):
        top, shares = best[i]
        shared = _shared(one.entry, labels, method_name(cam), "ok")
        truth = labels.index(one.entry)
        judged = truth is not None and len(shares) > 1 and truth < count
        shared.update(
            layer="+".join(explanation.layers),
            box=one.box,
            height=maps.shape[2],
            width=maps.shape[3],
            predicted=top[0] if top else None,
            predicted_name=_name(names, top[0]) if top else None,
            correct=top[0] == truth if judged else None,
            top_targets=top,
            top_names=[_name(names, index) for index in top],
            top_scores=shares,
            picture_height=one.size[0],
            picture_width=one.size[1],
            input_height=size[0],
            input_width=size[1],
        )
        found.append(
            [
                {
                    **shared,
                    "rank": j,
                    "target": classes[i][j],
                    "target_name": _name(names, classes[i][j]),
                    "score": scores[i][j],
                    "is_empty": empty[i][j],
                    "heatmap": maps[i, j].tobytes(),
                }
                for j in range(maps.shape[1])
            ]
        )
    return found


def heatmap_of(row: Mapping[str, Any]) -> Float16[np.ndarray, "h w"]:
    """The stored heatmap of a row, at the layer's resolution.

    Raises:
        InputError: its bytes are not as many as its height and width say.
    """
    content, size = row["heatmap"] or b"", (row["height"] or 0, row["width"] or 0)
    if min(size) < 1 or len(content) != 2 * size[0] * size[1]:
        raise InputError(
            f"the row of {row.get('path')!r} by {row.get('method')!r} has {len(content)} bytes for a heatmap of "
            f"{size[0]} x {size[1]}; expected {2 * size[0] * size[1]}"
        )
    return np.frombuffer(content, "<f2").reshape(size)


def enlarged(row: Mapping[str, Any], normalization: Normalization = "minmax") -> Float[np.ndarray, "h w"]:
    """The heatmap at the size of the model's input, as the library gives it up to the rounding of float16."""
    maps = torch.from_numpy(heatmap_of(row).astype(np.float32))[None]
    size = row["input_height"], row["input_width"]
    return normalize(upsample(maps, size), normalization)[0].numpy()


def _shared(entry: Entry, labels: Labels, method: str, status: str) -> Row:
    return {"path": entry.key, "status": status, "method": method, "label": labels.of(entry)}


def _name(names: Sequence[str], index: int | None) -> str | None:
    return names[index] if index is not None and index < len(names) else None


def _best(output: Any, n: int, kind: ScoreKind | None) -> tuple[list[tuple[list[int], list[float]]], int]:
    """Classes and scores of the best few, and how many there are; nothing where the output is no scores."""
    try:
        logits = read_logits(output).float()
    except GradCamKitError:
        return [([], [])] * n, 0
    scores, classes = class_scores(logits, kind).topk(min(_BEST, logits.shape[1]))
    return list(zip(classes.tolist(), scores.tolist(), strict=True)), logits.shape[1]


def _stored(cam: BaseCAM, explanation: Explanation) -> Float16[np.ndarray, "n m h w"]:
    """The heatmaps at the layer's resolution; fused ones at that of the finest layer."""
    leading = explanation.is_empty.ndim
    if len(explanation.layers) == 1:
        saliency = explanation.saliency[explanation.layers[0]]
        maps = normalize(saliency.flatten(0, leading - 1).clamp(min=0), cam.normalize)
    else:
        finest = max((maps.shape[leading:] for maps in explanation.saliency.values()), key=math.prod)
        maps = upsample(explanation.heatmaps.flatten(0, leading - 1), finest)
    found: Tensor = maps.reshape(len(explanation.is_empty), -1, *maps.shape[1:])
    return found.cpu().numpy().astype("<f2")
