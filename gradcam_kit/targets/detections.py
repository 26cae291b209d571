"""Read the output of a detector: boxes, scores and labels of each image, in any of several layouts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from gradcam_kit.errors import TargetError, kind_of
from gradcam_kit.functional import at_least_float32

Detections = Mapping[str, Tensor]
"""The detections of one image: "boxes" `(d, 4)` as corners, "scores" `(d,)`, and optionally "labels" `(d,)`,
"probabilities" `(d, classes)` and "objectness" `(d,)`.
"""

QueryScores = Literal["softmax", "sigmoid"]
"""Kind of the logits of queries: "softmax" with a last class for no object (DETR), or "sigmoid" (Deformable DETR)."""

_COLUMNS = ("boxes", "scores", "labels", "probabilities", "objectness")


def are_queries(output: Any) -> bool:
    """Whether an output has boxes and logits of queries, as DETR returns them."""
    return isinstance(output, Mapping) and all(isinstance(output.get(key), Tensor) for key in ("pred_boxes", "logits"))


def read_detections(output: Any) -> list[Detections]:
    """Return the detections of each image from a list of mappings, or from one mapping.

    Raises:
        TargetError: the output has another form.
    """
    if isinstance(output, Mapping):
        if not _are_detections(output):
            raise _unreadable(output)
        columns = {key: output[key] for key in _COLUMNS if isinstance(output.get(key), Tensor)}
        if columns["boxes"].ndim == 2:
            return [columns]
        return [dict(zip(columns, rows, strict=True)) for rows in zip(*columns.values(), strict=True)]
    if not isinstance(output, list | tuple) or not output or not all(map(_are_detections, output)):
        raise _unreadable(output)
    return list(output)


def read_queries(output: Mapping[str, Tensor], scores: QueryScores | None) -> list[Detections]:
    """Return every query of each image as a detection of its most likely class.

    Args:
        output: "pred_boxes" `(n, d, 4)` as center, width and height, and "logits" `(n, d, classes)`.
        scores: kind of the logits; None = detected, see `kind_of_queries`.

    Raises:
        TargetError: the kind of the logits cannot be detected.
    """
    logits = at_least_float32(output["logits"])
    if (scores or kind_of_queries(logits)) == "softmax":
        # The compared probabilities include the class "no object", so there is no separate objectness.
        probabilities, classes = logits.softmax(2), logits.shape[2] - 1
        objectness = torch.ones_like(logits[..., 0])
    else:
        probabilities, classes = logits.sigmoid(), logits.shape[2]
        objectness = probabilities.amax(2)
    best, labels = probabilities[..., :classes].max(2)
    columns = (corners(output["pred_boxes"]), best, labels, probabilities, objectness)
    return [dict(zip(_COLUMNS, rows, strict=True)) for rows in zip(*columns, strict=True)]


def kind_of_queries(logits: Float[Tensor, "n d classes"]) -> QueryScores:
    """Return the kind of the logits of queries, judged by how most queries express that they see no object.

    Raises:
        TargetError: the logits fit neither kind, or both kinds.
    """
    best, which = logits.detach().max(2)
    is_softmax = logits.shape[2] > 1 and bool(((which == logits.shape[2] - 1) & (best > 0)).float().mean() > 0.5)
    is_sigmoid = bool((best < 0).float().mean() > 0.5)
    if is_softmax is is_sigmoid:
        raise TargetError(
            "the logits of the queries are ambiguous; pass scores='softmax' if the last class means no "
            "object (DETR), or scores='sigmoid' if classes are independent (Deformable DETR, RT-DETR)"
        )
    return "softmax" if is_softmax else "sigmoid"


def corners(boxes: Float[Tensor, "*d 4"]) -> Float[Tensor, "*d 4"]:
    """Return (x0, y0, x1, y1) of boxes given by center, width and height."""
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([center - half, center + half], -1)


def overlaps_of(box: Float[Tensor, "4"], boxes: Float[Tensor, "d 4"]) -> Float[Tensor, " d"]:
    """Return the intersection over union of a box with each of several boxes; 0 where both have no area."""
    from torchvision.ops import box_iou  # not at the top, where it would make importing the package slow

    overlaps: Tensor = box_iou(box[None].to(boxes), boxes)[0].nan_to_num()
    return overlaps


def _are_detections(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(value.get(key), Tensor) for key in ("boxes", "scores"))


def _unreadable(output: Any) -> TargetError:
    first = next(iter(output), None) if isinstance(output, list | tuple) else output
    keys = f" (keys: {', '.join(map(str, first))})" if isinstance(first, Mapping) else ""
    return TargetError(
        f"the model's output is {kind_of(output)}{keys}; DetectionTarget reads a list of mappings with 'boxes' "
        "and 'scores', one such mapping, or one with 'pred_boxes' and 'logits'. For other outputs pass a callable "
        "output -> scores (n,)"
    )
