"""A target for detectors: the score, or a coordinate, of the detection that overlaps a box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradcam_kit.errors import DetectionIndexError, OptionError, ShapeError, TargetError
from gradcam_kit.functional import at_least_float32, move
from gradcam_kit.options import finite_number, one_of, whole
from gradcam_kit.targets.classes import ClassLogit
from gradcam_kit.targets.detection_similarity import DetectionSimilarity
from gradcam_kit.targets.detections import (
    Detections,
    QueryScores,
    are_queries,
    corners,
    kind_of_queries,
    overlaps_of,
    read_detections,
    read_queries,
)
from gradcam_kit.targets.values import Classes, changed, read_numbers, show

Part = Literal["score", "x0", "y0", "x1", "y1", "x", "y", "width", "height"]
"""The explained part of a detection: its score, or a side, a coordinate of the center, or the size of its box."""

_NO_LABEL = -1  # label of a box that no detection overlaps; no detection has this label


@dataclass(frozen=True, eq=False)
class DetectionTarget:
    """The score of the detection that overlaps a given box, or a coordinate of this detection; one box per sample.

    The target uses the detection with the largest intersection over union, among those with the given label. On ties
    it uses the one with the largest score. The target reads these forms of output, with boxes (x0, y0, x1, y1) unless
    noted:

    - a list with a mapping for each sample: "boxes" `(d, 4)`, "scores" `(d,)`, optionally "labels" `(d,)` (torchvision)
      and, for D-RISE, "probabilities" `(d, classes)` and "objectness" `(d,)`;
    - one such mapping, for a single sample or with a leading axis for the samples;
    - a mapping with "pred_boxes" `(n, d, 4)`, as center, width and height, and "logits" `(n, d, classes)` (DETR): the
      score is the logit of the label, which must be given.

    Labels that are not given are those of the detections in the unchanged images. If a changed image has no such
    detection, its score is 0. Choose a layer of the backbone, because later layers hold queries, regions or flattened
    anchors instead of positions. torchvision's detectors also accept the batch as one tensor. `DetectionTarget.of`
    makes a target for each box that a model found.

    Args:
        boxes: `(4,)` for all samples or `(n, 4)`, (x0, y0, x1, y1) in the coordinates of the model's own boxes.
        labels: an int for all samples or one per sample `(n,)`; None = the labels of the detections that overlap most.
        iou: minimum intersection over union, in (0, 1].
        required: raise an error for a box that no detection overlaps; if False, the score of such a box is 0 and its
            map is empty.
        part: "score"; or "x0", "y0", "x1", "y1", "x" and "y" (the center), "width" or "height" of the box, in the
            model's own coordinates. For evidence that moves the side "x0" or "y0" outward, wrap the target in
            `Negative`.
        scores: kind of the logits of queries, for `of` and D-RISE; None = detected.

    Raises:
        TargetError: no detection overlaps a box (the message has the best overlap), or the output has no readable
            detections.
        ShapeError: the number of boxes or labels differs from the number of samples.

    Example:
        >>> import torch
        >>> from gradcam_kit.targets import DetectionTarget
        >>> output = [{"boxes": torch.tensor([[0.0, 0.0, 4.0, 8.0]]), "scores": torch.tensor([0.75])}]
        >>> [float(target(output)) for target in DetectionTarget.of(output, part="height")]
        [8.0]
    """

    boxes: Any
    labels: Classes | None = None
    iou: float = 0.5
    required: bool = field(default=True, kw_only=True)
    part: Part = field(default="score", kw_only=True)
    scores: QueryScores | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        boxes = read_numbers("boxes", self.boxes)
        if boxes.ndim not in (1, 2) or boxes.shape[-1] != 4:
            raise ShapeError(f"boxes have shape {tuple(boxes.shape)}; expected (4,) or (n, 4)")
        if not (boxes[..., 2:] > boxes[..., :2]).all():
            raise TargetError(f"boxes are {boxes.tolist()}; expected (x0, y0, x1, y1) with x0 < x1 and y0 < y1")
        if not 0 < self.iou <= 1:
            raise OptionError(f"iou is {self.iou!r}; expected a number in (0, 1]")
        one_of("part", self.part, get_args(Part))
        if self.scores is not None:
            one_of("scores", self.scores, get_args(QueryScores))
        object.__setattr__(self, "boxes", boxes)
        labels = None if self.labels is None else ClassLogit(self.labels).on_host().classes
        if isinstance(labels, Tensor) and labels.ndim != 1:
            raise ShapeError(f"labels have shape {tuple(labels.shape)}; expected (n,), one for each box")
        object.__setattr__(self, "labels", labels)

    __repr__ = show

    @classmethod
    def of(
        cls,
        output: Any,
        image: int = 0,
        score_above: float = 0.5,
        *,
        detections: Sequence[int] | int | None = None,
        **options: Any,
    ) -> list[DetectionTarget]:
        """Return a target for each detection of one image, best score first, for methods that get this image alone.

        Boxes without area cannot be explained. They are left out, unless `detections` names them, which is an error.

        Args:
            output: output of the model, in one of the forms that `DetectionTarget` reads. The score of a query is the
                probability of its most likely class.
            image: index of the image, from 0.
            score_above: only detections with a score above this number.
            detections: only the detections with these indices in the output, in this order, regardless of their scores.
            options: options of the targets, such as `part`, `scores` or `iou`.

        Raises:
            TargetError: the output has no boxes, or no score is above `score_above`; the message gives the best score.
            DetectionIndexError: the output does not have an image or a detection with the given index.

        Example:
            >>> import torch
            >>> from gradcam_kit.targets import DetectionTarget
            >>> boxes, scores = torch.tensor([[0.0, 0, 4, 8], [5.0, 0, 9, 9]]), torch.tensor([0.4, 0.9])
            >>> [target.boxes.tolist() for target in DetectionTarget.of([{"boxes": boxes, "scores": scores}])]
            [[5.0, 0.0, 9.0, 9.0]]
        """
        least = finite_number("score_above", score_above)
        found = read_queries(output, options.get("scores")) if are_queries(output) else read_detections(output)
        own = {key: column.detach().cpu() for key, column in found[_place("image", image, len(found))].items()}
        scores, boxes, labels = at_least_float32(own["scores"]), own["boxes"], own.get("labels")
        if not len(scores):
            raise TargetError(f"the model found no box in image {image}; there is nothing to explain")
        if detections is not None:
            given = [detections] if isinstance(detections, int) else detections
            chosen = [_place("detection", one, len(scores)) for one in given]
        else:
            chosen = [one for one in scores.argsort(descending=True, stable=True).tolist() if scores[one] > least]
            if not chosen:
                raise TargetError(
                    f"no detection in image {image} scores above {least:g}: the best of {len(scores)} has "
                    f"{float(scores.max()):.2f}; lower score_above"
                )
            chosen = [one for one in chosen if (boxes[one, 2:] > boxes[one, :2]).all()]
        return [cls(boxes[one], None if labels is None else int(labels[one]), **options) for one in chosen]

    def __call__(self, output: Any) -> Float[Tensor, " n"]:
        """Return scores or coordinates in the model's own units."""
        return self._match(output)[0]

    def settle(self, output: Any) -> DetectionTarget:
        """Return the target with its labels fixed by this output. Other outputs may lack detections at the boxes."""
        scores, labels, _ = self._match(output)
        return changed(self, boxes=self.boxes.expand(len(scores), 4), labels=labels, required=False)

    def select(self, index: Int[Tensor, " m"]) -> DetectionTarget:
        """Return the target for rows that belong to samples `index`."""
        boxes = self.boxes if self.boxes.ndim == 1 else move(self.boxes, index.device)[index]
        labels = self.labels
        if isinstance(labels, Tensor):
            labels = move(labels, index.device)[index]
        return changed(self, boxes=boxes, labels=labels)

    def similarity(self, output: Any) -> DetectionSimilarity:
        """Return the target of D-RISE: the similarity of other outputs' detections to those of this output.

        Raises:
            TargetError: the target explains a coordinate, for which there is no similarity.
        """
        if self.part != "score":
            raise TargetError(f"part is {self.part!r}, but a similarity compares whole detections; leave part out")
        _, labels, samples = self._match(output)
        scores = self.scores
        if are_queries(output):
            scores = scores or kind_of_queries(
                at_least_float32(output["logits"])
            )  # decide now, because detections may vanish in changed images
            samples = read_queries(output, scores)
        known = None if labels is None else torch.as_tensor(labels).expand(len(samples))
        return DetectionSimilarity.of(samples, self.boxes.expand(len(samples), 4), known, scores, self.iou)

    def _match(self, output: Any) -> tuple[Float[Tensor, " n"], Any, list[Detections]]:
        """Return value and label of each sample's box (the given label if detections have none), and all detections."""
        samples = self._read(output)
        n = len(samples)
        for name, given in (("boxes", self.boxes[..., 0]), ("labels", self.labels)):
            if isinstance(given, Tensor) and given.ndim == 1 and len(given) != n:
                raise ShapeError(f"{len(given)} {name} for {n} images; give one per image, or one for all")
        boxes = self.boxes.expand(n, 4)
        wanted = self.labels if isinstance(self.labels, Tensor) else [self.labels] * n
        best = [_best(*arguments, self.part) for arguments in zip(samples, boxes, wanted, strict=True)]
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
        return scores.where(found, 0), labels.where(found, _NO_LABEL) if labeled else self.labels, samples

    def _read(self, output: Any) -> list[Detections]:
        """Return the detections of each sample. The score of a query is the logit of the label."""
        if not are_queries(output):
            return read_detections(output)
        if self.labels is None:
            raise TargetError("the detections have a logit for every class; pass labels=, the class to explain")
        logits = output["logits"]
        columns = ClassLogit(self.labels).indices(logits[:, 0])[:, None, None].expand(-1, logits.shape[1], 1)
        return read_detections({"boxes": corners(output["pred_boxes"]), "scores": logits.gather(2, columns)[..., 0]})


def _best(detections: Detections, box: Float[Tensor, "4"], label: Any, part: Part) -> tuple[Tensor, Tensor, Tensor]:
    """Return overlap, explained value, and label of the detection that overlaps a box most."""
    scores, values = detections["scores"], _values(detections, part)
    labels = detections.get("labels", torch.full_like(scores, _NO_LABEL, dtype=torch.long))
    if not len(scores):
        return scores.new_full((), -1), values.sum(), labels.new_full((), _NO_LABEL)
    overlaps = overlaps_of(move(box, scores.device), at_least_float32(detections["boxes"].detach()))
    if label is not None and "labels" in detections:
        overlaps = overlaps.where(labels == label, -1)
    most = overlaps.amax()
    place = at_least_float32(scores.detach()).where(overlaps == most, -torch.inf).argmax()[None]
    return most, values.index_select(0, place)[0], labels.index_select(0, place)[0]


def _values(detections: Detections, part: Part) -> Float[Tensor, " d"]:
    """Return the explained value of each detection."""
    if part == "score":
        return detections["scores"]
    x0, y0, x1, y1 = detections["boxes"].unbind(1)
    sides = {"x0": x0, "y0": y0, "x1": x1, "y1": y1, "width": x1 - x0, "height": y1 - y0}
    return sides[part] if part in sides else (x0 + x1) / 2 if part == "x" else (y0 + y1) / 2


def _place(what: str, index: int, count: int) -> int:
    place = whole(what, index)
    if not 0 <= place < count:
        raise DetectionIndexError(f"there is no {what} {place}: the output has {count}, with indices from 0")
    return place
