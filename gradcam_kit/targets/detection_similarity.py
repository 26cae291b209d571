"""The similarity of detections in D-RISE: Petsiuk et al., CVPR 2021, https://arxiv.org/abs/2006.03204."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity

from gradcam_kit.functional import at_least_float32, move
from gradcam_kit.targets.detections import (
    Detections,
    QueryScores,
    are_queries,
    overlaps_of,
    read_detections,
    read_queries,
)
from gradcam_kit.targets.values import changed, show


@dataclass(frozen=True, eq=False)
class DetectionSimilarity:
    r"""The similarity of the most similar detection: $\max_j \mathrm{IoU}(L_t, L_j) \cos(P_t, P_j) O_j$, in [0, 1].

    The explained detection is t, and j are the detections in the output. L are the boxes, P the class probabilities,
    and O the objectness. If a detector gives only the score of one class, the cosine is 1 for equal labels and 0
    otherwise. The score replaces a missing objectness. For queries of DETR, P includes the class "no object", and O is
    1; for independent classes, O is the largest probability.

    Args:
        boxes: one box per sample, `(n, 4)`.
        labels: labels of the explained detections, `(n,)`; None if detections have no labels.
        probabilities: class probabilities of the explained detections, `(n, classes)`, with zeros for a sample without
            a detection; None = compare labels instead.
        scores: kind of the logits of queries.
    """

    boxes: Float[Tensor, "n 4"]
    labels: Int[Tensor, " n"] | None = None
    probabilities: Float[Tensor, "n classes"] | None = None
    scores: QueryScores | None = None

    __repr__ = show

    @classmethod
    def of(
        cls,
        samples: Sequence[Detections],
        boxes: Float[Tensor, "n 4"],
        labels: Int[Tensor, " n"] | None,
        scores: QueryScores | None,
        iou: float,
    ) -> DetectionSimilarity:
        """Return the similarity to the detection of each sample that overlaps its box and most likely has its label.

        Args:
            samples: the detections of the unchanged images.
            boxes: boxes of the explained detections.
            labels: labels of the explained detections, if they have any.
            scores: kind of the logits of queries.
            iou: minimum intersection over union of a box and its detection.
        """
        own = [
            _probabilities(detections, boxes[sample], None if labels is None else labels[sample], iou)
            for sample, detections in enumerate(samples)
            if "probabilities" in detections
        ]
        return cls(boxes, labels, torch.stack(own) if len(own) == len(samples) else None, scores)

    def __call__(self, output: Any) -> Float[Tensor, " n"]:
        """Return the largest similarity of each sample, or 0 for a sample without detections."""
        samples = read_queries(output, self.scores) if are_queries(output) else read_detections(output)
        return torch.stack([self._most(sample, detections) for sample, detections in enumerate(samples)])

    def select(self, index: Int[Tensor, " m"]) -> DetectionSimilarity:
        """Return the target for rows that belong to samples `index`."""

        def rows(values: Tensor | None) -> Tensor | None:
            return None if values is None else move(values, index.device)[index]

        return changed(self, boxes=rows(self.boxes), labels=rows(self.labels), probabilities=rows(self.probabilities))

    def _most(self, sample: int, detections: Detections) -> Float[Tensor, ""]:
        scores = at_least_float32(detections["scores"])
        if not len(scores):
            return scores.sum()
        near = overlaps_of(move(self.boxes[sample], scores.device), at_least_float32(detections["boxes"]))
        alike: Tensor = torch.ones_like(near)
        if self.probabilities is not None and "probabilities" in detections:
            own = move(self.probabilities[sample], scores.device)
            alike = cosine_similarity(at_least_float32(detections["probabilities"]), own[None], dim=1)
        elif self.labels is not None and "labels" in detections:
            alike = (detections["labels"] == move(self.labels[sample], scores.device)).to(near.dtype)
        return (near * alike * at_least_float32(detections.get("objectness", scores))).amax()


def _probabilities(
    detections: Detections, box: Float[Tensor, "4"], label: Int[Tensor, ""] | None, iou: float
) -> Float[Tensor, " classes"]:
    """Return the class probabilities of the detection that overlaps a box, or zeros if no detection does."""
    shares = at_least_float32(detections["probabilities"].detach())
    near = overlaps_of(move(box, shares.device), at_least_float32(detections["boxes"].detach()))
    if not len(near):
        return shares.new_zeros(shares.shape[1])
    fits = near
    if label is not None:
        fits = near * shares.index_select(1, move(label.clamp(min=0), shares.device)[None])[:, 0]
    best = fits.argmax()[None]
    return shares.index_select(0, best)[0].where(near.index_select(0, best) >= iou, 0)
