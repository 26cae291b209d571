"""Turn explanations into the rows of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float16
from torch import Tensor

from gradcam_kit.capture import ClassProbability
from gradcam_kit.errors import GradCamKitError
from gradcam_kit.functional import normalize, upsample
from gradcam_kit.jobs.sources.index import Entry
from gradcam_kit.jobs.sources.labels import Labels
from gradcam_kit.jobs.storage.rows import Row, method_name
from gradcam_kit.jobs.work.reader import Decoded
from gradcam_kit.methods import BaseCAM, Explanation
from gradcam_kit.targets.outputs import read_logits
from gradcam_kit.targets.scores import ScoreKind, class_scores

_BEST = 5


@dataclass(frozen=True)
class RowMaker:
    """Makes the rows of failed and explained pictures.

    Attributes:
        labels: maps labels to classes.
        kind: kind of the class scores, see `class_scores`.
    """

    labels: Labels
    kind: ScoreKind | None = None

    def failed(self, entry: Entry, methods: Sequence[str], reason: str) -> list[Row]:
        """Return one row per method for a picture that cannot be explained."""
        return [{**self._shared(entry, method, "error"), "error": reason} for method in methods]

    def explained(
        self, cam: BaseCAM, explanation: Explanation, group: Sequence[Decoded], size: tuple[int, int]
    ) -> list[list[Row]]:
        """Return the rows of one method for each picture of a batch, one per target.

        Args:
            cam: the method.
            explanation: explanation of the batch.
            group: the pictures of the batch.
            size: height and width of the model's input.
        """
        maps = _stored(cam, explanation)
        each = self._each_target(explanation, maps)
        best, count = _best(explanation.output, len(group), self.kind)
        found = []
        for one, targets, (top, shares) in zip(group, each, best, strict=True):
            shared = {
                **self._shared(one.entry, method_name(cam), "ok"),
                "layer": "+".join(explanation.layers),
                "box": one.box,
                "height": maps.shape[2],
                "width": maps.shape[3],
                **self._prediction(one.entry, top, shares, count),
                "picture_height": one.size[0],
                "picture_width": one.size[1],
                "input_height": size[0],
                "input_width": size[1],
            }
            found.append([{**shared, **target} for target in targets])
        return found

    def _each_target(self, explanation: Explanation, maps: Float16[np.ndarray, "n m h w"]) -> list[list[Row]]:
        """Return the columns that depend on the target, for each image and each target."""
        n, m = maps.shape[:2]
        empty = explanation.is_empty.reshape(n, -1).tolist()
        classes: list[list[int | None]] = [[None] * m] * n
        scores: list[list[float | None]] = [[None] * m] * n
        if explanation.targets is not None:
            probabilities = ClassProbability(explanation.targets, self.kind)(explanation.output)
            classes = explanation.targets.reshape(n, -1).tolist()
            scores = probabilities.reshape(n, -1).tolist()
        return [
            [
                {
                    "rank": j,
                    "target": classes[i][j],
                    "target_name": self._name(classes[i][j]),
                    "score": scores[i][j],
                    "is_empty": empty[i][j],
                    "heatmap": maps[i, j].tobytes(),
                }
                for j in range(m)
            ]
            for i in range(n)
        ]

    def _prediction(self, entry: Entry, top: Sequence[int], shares: Sequence[float], count: int) -> Row:
        """Return the columns about the prediction; `count` is the number of classes."""
        truth = self.labels.index(entry)
        judged = truth is not None and len(shares) > 1 and truth < count
        return {
            "predicted": top[0] if top else None,
            "predicted_name": self._name(top[0]) if top else None,
            "correct": top[0] == truth if judged else None,
            "top_targets": top,
            "top_names": [self._name(index) for index in top],
            "top_scores": shares,
        }

    def _shared(self, entry: Entry, method: str, status: str) -> Row:
        return {"path": entry.key, "status": status, "method": method, "label": self.labels.of(entry)}

    def _name(self, index: int | None) -> str | None:
        names = self.labels.names or ()
        return names[index] if index is not None and index < len(names) else None


def _best(output: Any, n: int, kind: ScoreKind | None) -> tuple[list[tuple[list[int], list[float]]], int]:
    """Return each image's top classes and their scores, and the number of classes; empty for outputs without scores."""
    try:
        logits = read_logits(output).float()
    except GradCamKitError:
        return [([], [])] * n, 0
    scores, classes = class_scores(logits, kind).topk(min(_BEST, logits.shape[1]))
    return list(zip(classes.tolist(), scores.tolist(), strict=True)), logits.shape[1]


def _stored(cam: BaseCAM, explanation: Explanation) -> Float16[np.ndarray, "n m h w"]:
    """Return the heatmaps at the layer's resolution; fused heatmaps have the resolution of the finest layer."""
    leading = explanation.is_empty.ndim
    if len(explanation.layers) == 1:
        saliency = explanation.saliency[explanation.layers[0]]
        maps = normalize(saliency.flatten(0, leading - 1).clamp(min=0), cam.normalize)
    else:
        finest = max((maps.shape[leading:] for maps in explanation.saliency.values()), key=math.prod)
        maps = upsample(explanation.heatmaps.flatten(0, leading - 1), finest)
    found: Tensor = maps.reshape(len(explanation.is_empty), -1, *maps.shape[1:])
    return found.cpu().numpy().astype("<f2")
