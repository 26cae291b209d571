"""Targets of models that answer for places: a class in a region of a dense prediction, and the score of a box."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import interpolate

from gradcam_kit.capture.targets import Classes, ClassLogit, find_logits, own, read_classes
from gradcam_kit.errors import InputError, OptionError, ShapeError, TargetError
from gradcam_kit.functional import widen


@dataclass(frozen=True, eq=False)
class SegmentationTarget:
    r"""A class summed over a region: $\sum_p m_p z_{cp}$, Seg-Grad-CAM (Vinogradova et al., AAAI 2020, arXiv 2002.11434).

    The model's output is a tensor `(n, classes, *p)`, or a mapping that has it under "out" (torchvision) or "logits".
    An empty region scores 0, so its map is empty.

    Args:
        mask: the region, `(*p)` for all samples or one per sample `(n, *p)`, boolean or weights. Of another resolution
            than the output it is resized by area: each position of the output counts by its share in the region. None =
            the positions where the class is predicted (where its logit is positive, for a model with one output) in
            the images as they are.
        classes: an int for all samples, one per sample `(n,)`, or m per sample `(n, m)`.

    Raises:
        ShapeError: the output has no positions, or the mask does not fit its samples and axes.
        InputError: the mask is no array of numbers, or has NaN or infinite values.
        ClassIndexError: a class that the model does not have.
    """

    mask: Any
    classes: Classes
    predicted: Int[Tensor, "n *p"] | None = field(default=None, repr=False, kw_only=True)
    rows: Int[Tensor, " m"] | None = field(default=None, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", read_classes(self.classes))
        if self.mask is not None:
            object.__setattr__(self, "mask", _numbers("mask", self.mask))

    def __call__(self, output: Any) -> Float[Tensor, "n *targets"]:
        """Scores in logit units times positions, `(n,)`, or `(n, m)` for `(n, m)` classes."""
        logits = _read_dense(output)
        flat = logits.flatten(2)
        target = ClassLogit(self.classes)
        classes = (target if self.rows is None else target.select(self.rows)).indices(flat[..., 0])
        columns = classes.reshape(len(flat), -1)
        chosen = widen(flat.gather(1, columns[..., None].expand(-1, -1, flat.shape[2])))
        if self.mask is not None:
            region = self._region(logits).to(chosen.dtype)
        else:
            predicted = _predicted(logits) if self.predicted is None else self._taken(self.predicted)
            region = predicted.flatten(1)[:, None] == columns[..., None]
        return (chosen * region).sum(2).reshape(classes.shape)

    def settle(self, output: Any) -> SegmentationTarget:
        """The same region for changed images: where the class is predicted in this output."""
        return self if self.mask is not None else replace(self, predicted=_predicted(_read_dense(output)))

    def select(self, index: Int[Tensor, " m"]) -> SegmentationTarget:
        """The target of the rows that belong to samples `index`."""
        # Whether the mask has an axis for samples is known with the output, so what has one is taken from then.
        return replace(self, rows=index if self.rows is None else self.rows[index])

    def _taken(self, per_sample: Tensor) -> Tensor:
        return per_sample if self.rows is None else per_sample[self.rows.to(per_sample.device)]

    def _region(self, logits: Float[Tensor, "n classes *p"]) -> Float[Tensor, "r 1 positions"]:
        """The mask's weights at the positions of the output; r is 1 or n."""
        n, size = len(logits), logits.shape[2:]
        mask = self.mask[None] if self.mask.ndim == len(size) else self._taken(self.mask)
        if mask.ndim != 1 + len(size) or (mask is not self.mask[None] and False):
            raise ShapeError("")
        return interpolate(mask[:, None].to(logits.device), size=size, mode="area").flatten(2)


def _read_dense(output: Any) -> Float[Tensor, "n classes *p"]:
    own_name = output.get("out") if isinstance(output, Mapping) else None
    logits = own_name if isinstance(own_name, Tensor) else find_logits(output)
    if not 3 <= logits.ndim <= 5:
        raise ShapeError(
            f"the model's output has shape {tuple(logits.shape)}; a SegmentationTarget needs (n, classes, *positions) with "
            "1, 2 or 3 position axes. For class scores pass the classes themselves"
        )
    return logits


def _predicted(logits: Float[Tensor, "n classes *p"]) -> Int[Tensor, "n *p"]:
    """The class with the largest logit; for a model with one output 0 where it is positive, else 1, which no class has."""
    return logits.detach().argmax(1) if logits.shape[1] > 1 else (logits.detach()[:, 0] <= 0).long()


def _numbers(name: str, value: Any) -> Float[Tensor, "*shape"]:
    try:
        found = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is a {type(value).__name__}; expected an array of numbers") from error
    found = own(found).to(torch.promote_types(found.dtype, torch.float32))
    if found.is_complex() or not torch.isfinite(found).all():
        raise InputError(f"{name} has complex, NaN or infinite values; expected finite numbers")
    return found


@dataclass(frozen=True, eq=False)
class DetectionTarget:
    """The score of the detection that overlaps a given box: one for each sample of a detector's output.

    Of the detections (of the given label) the one with the largest intersection over union counts, of several with the
    same box the one with the largest score. Boxes are (x0, y0, x1, y1) in the coordinates of the output. Outputs are
    read as a list with one mapping of "boxes" `(d, 4)`, "scores" `(d,)` and maybe "labels" `(d,)` for each sample
    (torchvision); as one such mapping, for one sample or with an axis for samples; or as a mapping with "pred_boxes"
    `(n, d, 4)` (center, width, height; relative) and "logits" `(n, d, classes)` (DETR), where the label's logit is the
    score. The images as they are settle the labels that are not given; where a changed image has no such detection the
    score is 0. Scores must be differentiable for methods with gradients; Eigen-CAM and Score-CAM need none.

    Args:
        boxes: one for all samples `(4,)`, or one per sample `(n, 4)`.
        labels: an int for all samples, or one per sample `(n,)`; None = those of the boxes that overlap most.
        iou: least intersection over union, in (0, 1].
        required: whether it is an error if nothing overlaps; if not, the score is 0 and the map empty.

    Raises:
        TargetError: nothing overlaps a box (the message has the best overlap), or the output has no detections to read.
        ShapeError: another number of boxes or labels than samples.
    """

    boxes: Any
    labels: Classes | None = None
    iou: float = 0.5
    required: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        boxes = _numbers("boxes", self.boxes)
        if boxes.shape[-1:] != (4,) or boxes.ndim > 2:
            raise ShapeError(f"boxes have shape {tuple(boxes.shape)}; expected (4,) or (n, 4)")
        if not (boxes[..., 2:] > boxes[..., :2]).all():
            raise TargetError(f"boxes {boxes.tolist()} have no area; expected (x0, y0, x1, y1) with x0 < x1 and y0 < y1")
        object.__setattr__(self, "boxes", boxes)
        if self.labels is not None:
            object.__setattr__(self, "labels", ClassLogit(self.labels).classes)
            if getattr(self.labels, "ndim", 0) > 1:
                raise ShapeError(f"labels have shape {tuple(self.labels.shape)}; expected (n,), one for each box")
        if not 0 < self.iou <= 1:
            raise OptionError(f"iou is {self.iou!r}; expected a number in (0, 1]")

    def __call__(self, output: Any) -> Float[Tensor, " n"]:
        """Scores as the model gives them, 0 where nothing overlaps."""
        return self._match(output)[0]

    def settle(self, output: Any) -> DetectionTarget:
        """The same boxes and labels for changed images."""
        scores, labels = self._match(output)
        return replace(self, boxes=self.boxes.expand(len(scores), 4), labels=labels, required=False)

    def select(self, index: Int[Tensor, " m"]) -> DetectionTarget:
        """The target of the rows that belong to samples `index`."""
        boxes = self.boxes[index.to(self.boxes.device)] if self.boxes.ndim > 1 else self.boxes
        labels = self.labels.to(index.device)[index] if isinstance(self.labels, Tensor) else self.labels
        return replace(self, boxes=boxes, labels=labels)
