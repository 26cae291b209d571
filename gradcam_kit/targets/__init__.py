"""Targets, which say what to explain: small immutable callables from the model's output to one score per sample.

Any callable `output -> scores (n,)` is a target. A target may have two further methods, which are used when images are
changed. `select(index)` returns the target for rows that belong to samples `index`. `settle(output)` returns the target
with its choices (the nearest classes, the predicted region, ...) fixed by the output for the unchanged images.
"""

from typing import TYPE_CHECKING, Any

from gradcam_kit.foreign import missing_name
from gradcam_kit.targets.classes import ClassLogit, ClassProbability
from gradcam_kit.targets.contrastive import FinerTarget, LogitDifference, Negative, TopK
from gradcam_kit.targets.detection import DetectionTarget
from gradcam_kit.targets.detection_similarity import DetectionSimilarity
from gradcam_kit.targets.embedding import EmbeddingSimilarity
from gradcam_kit.targets.segmentation import SegmentationTarget
from gradcam_kit.targets.text import TextTarget

__all__ = [
    "ClassLogit",
    "ClassProbability",
    "DetectionSimilarity",
    "DetectionTarget",
    "EmbeddingSimilarity",
    "FinerTarget",
    "LogitDifference",
    "Negative",
    "SegmentationTarget",
    "TextTarget",
    "TopK",
]


if not TYPE_CHECKING:  # type checkers would otherwise accept every name

    def __getattr__(name: str) -> Any:
        raise missing_name("gradcam_kit.targets", name)
