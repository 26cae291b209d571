"""The target of detectors: the score of the detection that overlaps a box."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradcam_kit.errors import OptionError, ShapeError, TargetError, kind_of
from gradcam_kit.functional import at_least_float32, move
from gradcam_kit.targets.classes import ClassLogit
from gradcam_kit.targets.values import Classes, changed, read_numbers, show

_NO_LABEL = -1  # of a box that nothing overlaps: no detection has it


@dataclass(frozen=True, eq=False)
class DetectionTarget:
    """The score of the detection that overlaps a given box, for one box per sample.

    Of the detections (with the given label) the one with the largest intersection over union counts; of several at one
    place the one with the largest score. Outputs of these forms are read, with boxes (x0, y0, x1, y1) unless said:

    - a list with a mapping for each sample: "boxes" `(d, 4)`, "scores" `(d,)`, maybe "labels" `(d,)` (torchvision);
    - one such mapping, of one sample or with an axis for the samples in front;
    - a mapping with "pred_boxes" `(n, d, 4)`, as center, width and height, and "logits" `(n, d, classes)` (DETR): the
      score is the logit of the label, which must be given.

    The images as they are settle the labels that are not given. A changed image without such a detection scores 0.
    Name a layer of the backbone: queries and anchors, which come behind it, have no positions. torchvision's detectors
    take the batch as one tensor, too.

    Args:
        boxes: `(4,)` for all samples or `(n, 4)`, (x0, y0, x1, y1) in the coordinates of the model's own boxes.
        labels: an int for all samples or one per sample `(n,)`; None = those of the detections that overlap most.
        iou: the least intersection over union, in (0, 1].
        required: whether a box that nothing overlaps is an error; if not, its score is 0 and its map is empty.

    Raises:
        TargetError: nothing overlaps a box (the message has the best overlap), or the output has no detections to read.
        ShapeError: another number of boxes or labels than samples.
    """

    boxes: Any
    labels: Classes | None = None
    iou: float = 0.5
    required: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        boxes = read_numbers("boxes", self.boxes)
        if boxes.ndim not in (1, 2) or boxes.shape[-1] != 4:
            raise ShapeError(f"boxes have shape {tuple(boxes.shape)}; expected (4,) or (n, 4)")
        if not (boxes[..., 2:] > boxes[..., :2]).all():
            raise TargetError(f"boxes are {boxes.tolist()}; expected (x0, y0, x1, y1) with x0 < x1 and y0 < y1")
        if not 0 < self.iou <= 1:
            raise OptionError(f"iou is {self.iou!r}; expected a number in (0, 1]")
        object.__setattr__(self, "boxes", boxes)
        labels = None if self.labels is None else ClassLogit(self.labels).on_host().classes
        if isinstance(labels, Tensor) and labels.ndim != 1:
            raise ShapeError(f"labels have shape {tuple(labels.shape)}; expected (n,), one for each box")
        object.__setattr__(self, "labels", labels)

    __repr__ = show

    def __call__(self, output: Any) -> Float[Tensor, " n"]:
        """Scores as the model gives them."""
        return self._match(output)[0]

    def settle(self, output: Any) -> DetectionTarget:
        """The same boxes with the labels that they have in this output; in others none is required."""
        scores, labels = self._match(output)
        return changed(self, boxes=self.boxes.expand(len(scores), 4), labels=labels, required=False)

    def select(self, index: Int[Tensor, " m"]) -> DetectionTarget:
        """The target of the rows that belong to samples `index`."""
        boxes = self.boxes if self.boxes.ndim == 1 else move(self.boxes, index.device)[index]
        labels = self.labels
        if isinstance(labels, Tensor):
            labels = move(labels, index.device)[index]
        return changed(self, boxes=boxes, labels=labels)

    def _match(self, output: Any) -> tuple[Float[Tensor, " n"], Any]:
        """The score of each sample's box, and the labels: those of the detections, or as given where they have none."""
        samples = self._read(output)
        n = len(samples)
        for name, given in (("boxes", self.boxes[..., 0]), ("labels", self.labels)):
            if isinstance(given, Tensor) and given.ndim == 1 and len(given) != n:
                raise ShapeError(f"{len(given)} {name} for {n} images; give one per image, or one for all")
        boxes = self.boxes.expand(n, 4)
        wanted = self.labels if isinstance(self.labels, Tensor) else [self.labels] * n
        best = [_best(*arguments) for arguments in zip(samples, boxes, wanted, strict=True)]
        overlaps, scores, labels = (torch.stack(column) for column in zip(*best, strict=True))
        found = overlaps >= self.iou
        if self.required and not found.all():
            image = int((~found).nonzero()[0])
            of_label = "" if self.labels is None else f" with label {wanted[image]:d}"
            raise TargetError(
                f"no detection{of_label} in image {image} overlaps the box {boxes[image].tolist()} with an "
                f"intersection over union of at least {self.iou}: the best of {len(samples[image]['scores'])} "
                f"detections has {max(float(overlaps[image]), 0):.2f}. Take a box from the model's own output, or "
                "lower iou; required=False gives such images an empty map"
            )
        labeled = all("labels" in sample for sample in samples)
        return scores.where(found, 0), labels.where(found, _NO_LABEL) if labeled else self.labels

    def _read(self, output: Any) -> list[Mapping[str, Tensor]]:
        """The boxes, scores and maybe labels of each sample's detections."""
        if isinstance(output, Mapping):
            if isinstance(output.get("pred_boxes"), Tensor) and isinstance(output.get("logits"), Tensor):
                output = self._read_queries(output["pred_boxes"], output["logits"])
            if not _is_detections(output):
                raise _unreadable(output)
            columns = {key: output[key] for key in ("boxes", "scores", "labels") if key in output}
            if columns["boxes"].ndim == 2:
                return [columns]
            return [dict(zip(columns, rows, strict=True)) for rows in zip(*columns.values(), strict=True)]
        if not isinstance(output, list | tuple) or not output or not all(map(_is_detections, output)):
            raise _unreadable(output)
        return list(output)

    def _read_queries(self, boxes: Float[Tensor, "n d 4"], logits: Float[Tensor, "n d classes"]) -> dict[str, Tensor]:
        if self.labels is None:
            raise TargetError("the detections have a logit for every class; pass labels=, the class to explain")
        labels = ClassLogit(self.labels).indices(logits[:, 0])
        center, half = boxes[..., :2], boxes[..., 2:] / 2
        columns = labels[:, None, None].expand(-1, logits.shape[1], 1)
        return {"boxes": torch.cat([center - half, center + half], 2), "scores": logits.gather(2, columns)[..., 0]}


def _best(detections: Mapping[str, Tensor], box: Float[Tensor, "4"], label: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Overlap, score and label of the detection that overlaps a box most."""
    scores = detections["scores"]
    labels = detections.get("labels", torch.full_like(scores, _NO_LABEL, dtype=torch.long))
    if not len(scores):
        return scores.new_full((), -1), scores.sum(), labels.new_full((), _NO_LABEL)
    overlaps = _overlaps(move(box, scores.device), at_least_float32(detections["boxes"].detach()))
    if label is not None and "labels" in detections:
        overlaps = overlaps.where(labels == label, -1)
    most = overlaps.amax()
    place = at_least_float32(scores.detach()).where(overlaps == most, -torch.inf).argmax()[None]
    return most, scores.index_select(0, place)[0], labels.index_select(0, place)[0]


def _overlaps(box: Float[Tensor, "4"], boxes: Float[Tensor, "d 4"]) -> Float[Tensor, " d"]:
    """Intersection over union."""
    shared = (torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2])).clamp(min=0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
    return shared / ((box[2:] - box[:2]).prod() + areas - shared)


def _is_detections(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(value.get(key), Tensor) for key in ("boxes", "scores"))


def _unreadable(output: Any) -> TargetError:
    first = next(iter(output), None) if isinstance(output, list | tuple) else output
    keys = f" of {', '.join(map(str, first))}" if isinstance(first, Mapping) else ""
    return TargetError(
        f"the model's output is {kind_of(output)}{keys}; DetectionTarget reads a list of mappings with 'boxes' "
        "and 'scores', one such mapping, or one with 'pred_boxes' and 'logits'. Pass a callable output -> scores (n,)"
    )
